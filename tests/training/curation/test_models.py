"""Models of the stages, with small random weights."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from training.curation.captions import Features, FeatureSettings
from training.curation.clearvoice import ClearVoiceExtractor
from training.curation.faces import Faces, FaceSettings
from training.curation.masks import Masks, MaskSettings
from training.curation.models import MODELS, ModelChoice, SpeechMixture, load_curation_model
from training.curation.real_models import QwenCaptioner, describe_people, qwen_captioner
from training.curation.record import Record
from training.curation.speech import SyncFilter, SyncSettings


def clip_at(path: Path, start: int = 25, end: int = 42) -> Record:
    """A clip of 17 frames with two faces."""
    boxes = np.tile(np.array([[[40, 40, 80, 90]], [[150, 40, 190, 90]]], np.float32), (1, end - start + 10, 1))
    data = {
        "context": [start - 5, end + 5], "crop": [0.0, 0.0, 240.0, 160.0], "speaking": [True, True],
        "matrix": [[1, 0], [0, 1]],
    }  # fmt: skip
    record = Record(str(path), path.name, "clip", lineage="t", content="c", start=start, end=end, data=data)
    speeches = np.random.default_rng(0).standard_normal((2, boxes.shape[1] * 640)).astype(np.float32) * 0.1
    return record.with_arrays(boxes=boxes, speeches=speeches)


@pytest.fixture
def clip(footage):
    return clip_at(footage.folder / "a film.mp4")


def test_model_registry():
    for models in MODELS.values():
        for name, entry in models.items():
            module, _, factory = entry.factory.partition(":")
            assert callable(getattr(import_module(module), factory))
            assert entry.puppet_only == (name == "puppet")
    with pytest.raises(InputError, match="unknown sync 'sing'"):
        load_curation_model("sync", ModelChoice("sing"))
    with pytest.raises(InputError, match="options"):
        load_curation_model("detector", ModelChoice("puppet", {"color": "red"}))


def test_default_detector_finds_no_puppets(footage):
    pytest.importorskip("skimage")
    record = Record(str(footage.folder / "a film.mp4"), "a film", "shot", end=9)
    (result,) = Faces(FaceSettings())(record)
    assert result.rejected == "no face detected" and result.data["detector"]
    assert result.data["num_detections"] == 2  # every fifth frame, or the next reference frame


def test_syncnet(tmp_path, clip):
    from bya_core.evaluation.syncnet import SyncNet

    torch.manual_seed(0)
    torch.save(SyncNet().eval().state_dict(), tmp_path / "syncnet_v2.model")
    choice = ModelChoice("syncnet", {"weights": str(tmp_path / "syncnet_v2.model")})
    (result,) = SyncFilter(SyncSettings(choice, min_confidence=-1.0, max_side=240))(clip)
    table = np.array(result.data["sync_table"])
    assert table.shape == (2, 2) and np.isfinite(table).all() and (table >= 0).all()
    assert result.data["sync_mean"] == pytest.approx(table.diagonal().mean(), abs=1e-3)
    (rejected,) = SyncFilter(SyncSettings(choice, min_confidence=1e3, max_side=240))(clip)
    assert "lip sync too low" in rejected.rejected


def test_sam2(tmp_path, clip):
    from tests.unit.routing import test_post

    small_sam = test_post.sam2.__wrapped__ if hasattr(test_post.sam2, "__wrapped__") else None
    segmenter = (small_sam or test_post.sam2._get_wrapped_function())()
    segmenter.model.save_pretrained(tmp_path)
    segmenter.processor.save_pretrained(tmp_path)
    choice = ModelChoice("sam2", {"weights": str(tmp_path)})
    (result,) = Masks(MaskSettings(choice, min_face_coverage=0.0, max_overlap=1.0, max_side=96))(clip)
    assert result.rejected is None and result.array("masks").shape == (2, 17, 64, 96)
    assert result.data["mask_overlap"] == 0 and len(result.data["mask_area"]) == 2


def test_wav2vec2_features_use_the_context(tmp_path, clip):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(16,) * 7
    )
    Wav2Vec2Model(config).save_pretrained(tmp_path)
    choice = ModelChoice("wav2vec", {"folder": str(tmp_path)})
    (result,) = Features(FeatureSettings(choice))(clip)
    features = result.array("features")
    assert features.shape == (2, 17 + 4, 2, 32)
    encoder = load_curation_model("speech", choice)
    full = encoder.encode(torch.from_numpy(clip.array("speeches")[0]), 27)  # frame k at k + 2
    np.testing.assert_allclose(features[0], full[5 : 5 + 21].numpy(), atol=2e-3)


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


WORKER = """
import json, os, sys
import numpy as np
print(json.dumps({"ok": True}), flush=True)
state = sys.argv[2]
for line in sys.stdin:
    request = json.loads(line)
    inputs = np.load(request["input"])
    mode = float(inputs["mix"][0])
    if mode == 2.0 and not os.path.exists(state + "/died"):
        open(state + "/died", "w").close()
        os._exit(9)
    if mode == 3.0:
        os._exit(9)
    if mode == 4.0:
        print(json.dumps({"error": "ValueError: no lips"}), flush=True)
        continue
    if mode == 5.0:
        import time
        time.sleep(60)
    with open(request["output"], "wb") as out:
        np.save(out, np.repeat(inputs["mix"][None], len(inputs["faces"]), 0) / 2)
    print(json.dumps({"ok": True}), flush=True)
"""


def test_clearvoice_worker_failures(tmp_path):
    """A worker with the protocol of clearvoice_worker.py that crashes, reports errors and hangs."""
    (tmp_path / "worker.py").write_text(WORKER)
    extractor = ClearVoiceExtractor(sys.executable, str(tmp_path), timeout=20.0, worker=str(tmp_path / "worker.py"))

    def extract(mode: float) -> np.ndarray:
        faces = np.zeros((2, 1, 224, 224, 3), np.uint8)
        return extractor.extract(SpeechMixture(np.full(640, mode, np.float32), faces, "x", 0))

    assert extract(1.0).shape == (2, 640) and extract(1.0)[0, 0] == 0.5
    assert extract(2.0)[1, 5] == 1.0  # restarted after a crash
    with pytest.raises(RuntimeError, match="died 2 times"):
        extract(3.0)
    with pytest.raises(RuntimeError, match="no lips"):
        extract(4.0)
    assert extract(1.0)[0, 0] == 0.5
    extractor.timeout = 0.5
    with pytest.raises(RuntimeError, match="died 2 times"):
        extract(5.0)
    extractor.close()


@pytest.mark.weights
@pytest.mark.skipif("BYA_CLEARVOICE" not in os.environ, reason="BYA_CLEARVOICE names no environment with clearvoice")
def test_clearvoice():
    """BYA_CLEARVOICE = PYTHON:CHECKPOINTS; random weights are sufficient."""
    python, checkpoints = os.environ["BYA_CLEARVOICE"].split(":")
    extractor = ClearVoiceExtractor(python, checkpoints, device="cpu")
    rng = np.random.default_rng(0)
    mix = rng.standard_normal(25 * 640).astype(np.float32) * 0.1
    faces = rng.integers(0, 255, (2, 25, 224, 224, 3)).astype(np.uint8)
    speeches = extractor.extract(SpeechMixture(mix, faces, "x", 0.0))
    assert speeches.shape == (2, 16_000) and speeches.dtype == np.float32 and np.isfinite(speeches).all()
    extractor.close()
