"""Models for real footage with small random weights."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from training.curation.clearvoice import ClearVoiceExtractor
from training.curation.real_models import QwenCaptioner, describe_people, qwen_captioner


def test_qwen2_vl_captions():
    """Chat template, image tokens and greedy decoding of the real classes."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    processor = small_processor()
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1},
        image_token_id=processor.image_token_id, video_token_id=processor.video_token_id,
        vision_start_token_id=processor.tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=processor.tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    captioner = QwenCaptioner(Qwen2VLForConditionalGeneration(config), processor)
    captioner.model.generation_config.eos_token_id = None
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3)).astype(np.uint8)
    boxes = np.tile(np.array([[[60, 5, 80, 30], [10, 5, 30, 30]]], float), (3, 1, 1))
    calls = []
    generate = captioner.model.generate
    captioner.model.generate = lambda **inputs: calls.append(inputs) or generate(**{**inputs, "max_new_tokens": 4})
    first = captioner.caption(frames, boxes, [True, False])
    assert isinstance(first, str) and first == captioner.caption(frames, boxes, [True, False])
    tokens = calls[0]["input_ids"][0]
    assert int((tokens == processor.image_token_id).sum()) == int(calls[0]["image_grid_thw"].prod(-1).sum()) // 4
    text = processor.tokenizer.decode(tokens)
    assert "from left to right, the first listens, the second speaks" in text and "who is where" in text


def small_processor():
    """Processor of Qwen2-VL with a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(sorted(letters))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|im_end|>", eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": special})
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    pixels = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    return Qwen2VLProcessor(Qwen2VLImageProcessor(**pixels), fast, Qwen2VLVideoProcessor(), chat_template=template)


def test_describe_people():
    boxes = np.array([[[60, 0, 80, 9], [10, 0, 30, 9], [100, 0, 120, 9]]], float)
    text = "3 people are visible: from left to right, the first listens, the second speaks, the third speaks."
    assert describe_people(boxes, [True, False, True]) == text
    assert describe_people(boxes[:, :1], [False]) == "One person is visible, who listens."


def test_missing_weights_raise(tmp_path):
    for load in (
        lambda: qwen_captioner(str(tmp_path)),
        lambda: ClearVoiceExtractor(str(tmp_path / "python"), str(tmp_path)),
        lambda: ClearVoiceExtractor(sys.executable, str(tmp_path)),
    ):
        with pytest.raises(InputError):
            load()
