"""The real models behind the stages: built with small random weights, to see that the calls fit the libraries."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from training.curation.describe import Features, FeatureSettings
from training.curation.extractor import ClearVoiceExtractor
from training.curation.models import MODELS, Captioner, ModelChoice, SpeechExtractor, SyncScorer, Talk, model_of
from training.curation.qwen import QwenCaptioner, people
from training.curation.record import Record
from training.curation.stage import Resources


def clip_at(path: Path, start: int = 25, end: int = 42) -> Record:
    """A clip of 17 frames with two faces, without having been found."""
    boxes = np.tile(np.array([[[40, 40, 80, 90]], [[150, 40, 190, 90]]], np.float32), (1, end - start + 10, 1))
    data = {
        "context": [start - 5, end + 5], "window": [0.0, 0.0, 240.0, 160.0], "speaks": [True, True],
        "matrix": [[1, 0], [0, 1]],
    }  # fmt: skip
    record = Record(str(path), path.name, "clip", trail="t", content="c", start=start, end=end, data=data)
    speeches = np.random.default_rng(0).standard_normal((2, boxes.shape[1] * 640)).astype(np.float32) * 0.1
    return record.with_arrays(boxes=boxes, speeches=speeches)


@pytest.fixture
def clip(small):
    return clip_at(small.folder / "a film.mp4")


def test_every_model_has_a_maker_and_stand_ins_are_called_puppet():
    from importlib import import_module

    for models in MODELS.values():
        for name, entry in models.items():
            module, _, maker = entry.maker.partition(":")
            assert callable(getattr(import_module(module), maker))
            assert entry.stand_in == (name == "puppet")
    with pytest.raises(InputError, match="a sync called 'sing'"):
        model_of("sync", ModelChoice("sing"))
    with pytest.raises(InputError, match="options"):
        model_of("detector", ModelChoice("puppet", {"colour": "red"}))


def test_faces_of_the_real_detector_on_this_machine(small):
    """A cascade sees no puppets in these pictures; the stage says so and goes on."""
    pytest.importorskip("skimage")
    from training.curation.faces import Faces, FaceSettings

    record = Record(str(small.folder / "a film.mp4"), "a film", "shot", end=9)
    (seen,) = Faces(FaceSettings(), Resources())(record)
    assert seen.rejected == "nobody's face is found" and seen.data["detector"]
    assert seen.data["looks"] == 2  # every fifth picture, or the next that the codec lets others refer to


def test_sync_scores_by_syncnet(tmp_path, clip):
    from bya_core.evaluation.syncnet import SyncNet
    from training.curation.speech import SyncFilter, SyncSettings

    torch.manual_seed(0)
    torch.save(SyncNet().eval().state_dict(), tmp_path / "syncnet_v2.model")
    choice = ModelChoice("syncnet", {"weights": str(tmp_path / "syncnet_v2.model")})
    assert isinstance(model_of("sync", choice), SyncScorer)
    (seen,) = SyncFilter(SyncSettings(choice, least=-1.0, longest=240), Resources())(clip)
    table = np.array(seen.data["sync_table"])
    assert table.shape == (2, 2) and np.isfinite(table).all() and (table >= 0).all()
    assert seen.data["sync_mean"] == pytest.approx(table.diagonal().mean(), abs=1e-3)
    (dropped,) = SyncFilter(SyncSettings(choice, least=1e3, longest=240), Resources())(clip)
    assert "lips do not follow the voices" in dropped.rejected


def test_masks_by_sam2(tmp_path, clip, request):
    from tests.unit.routing import test_post
    from training.curation.masks import Masks, MaskSettings

    small_sam = test_post.sam2.__wrapped__ if hasattr(test_post.sam2, "__wrapped__") else None
    segmenter = (small_sam or test_post.sam2._get_wrapped_function())()
    segmenter.model.save_pretrained(tmp_path)
    segmenter.processor.save_pretrained(tmp_path)
    settings = MaskSettings(ModelChoice("sam2", {"weights": str(tmp_path)}), on_face=0.0, elsewhere=1.0, longest=96)
    (seen,) = Masks(settings, Resources())(clip)
    assert seen.rejected is None and seen.array("masks").shape == (2, 17, 64, 96)
    assert seen.data["mask_overlap"] == 0 and len(seen.data["mask_area"]) == 2


def test_features_by_wav2vec2_hear_what_is_around_the_clip(tmp_path, clip):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(16,) * 7
    )
    Wav2Vec2Model(config).save_pretrained(tmp_path)
    choice = ModelChoice("wav2vec", {"folder": str(tmp_path)})
    (seen,) = Features(FeatureSettings(choice), Resources())(clip)
    features = seen.array("features")
    assert features.shape == (2, 17 + 4, 2, 32)
    encoder = model_of("speech", choice)
    whole = encoder.encode(torch.from_numpy(clip.array("speeches")[0]), 27)  # frame k at k + 2
    np.testing.assert_allclose(features[0], whole[5 : 5 + 21].numpy(), atol=2e-3)


def test_captions_by_qwen2_vl(clip):
    """The real classes: chat template, picture tokens, greedy answers."""
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
    captioner = QwenCaptioner.of(Qwen2VLForConditionalGeneration(config), processor)
    captioner.model.generation_config.eos_token_id = None
    assert isinstance(captioner, Captioner)
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3)).astype(np.uint8)
    boxes = np.tile(np.array([[[60, 5, 80, 30], [10, 5, 30, 30]]], float), (3, 1, 1))
    seen = []
    generate = captioner.model.generate
    captioner.model.generate = lambda **inputs: seen.append(inputs) or generate(**{**inputs, "max_new_tokens": 4})
    first = captioner.caption(frames, boxes, [True, False])
    assert isinstance(first, str) and first == captioner.caption(frames, boxes, [True, False])
    tokens = seen[0]["input_ids"][0]
    assert int((tokens == processor.image_token_id).sum()) == int(seen[0]["image_grid_thw"].prod(-1).sum()) // 4
    text = processor.tokenizer.decode(tokens)
    assert "from left to right, the first listens, the second speaks" in text and "who is where" in text


def small_processor():
    """Qwen2-VL's processor with a tokenizer of the bytes."""
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


def test_a_caption_is_told_who_speaks_where():
    boxes = np.array([[[60, 0, 80, 9], [10, 0, 30, 9], [100, 0, 120, 9]]], float)
    told = people(boxes, [True, False, True])
    assert told == ("3 people are seen: from left to right, the first listens, the second speaks, the third speaks.")
    assert people(boxes[:, :1], [False]) == "One person is seen, who listens."


def test_without_weights_one_sentence_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="hf download Qwen/Qwen2-VL-7B-Instruct"):
        QwenCaptioner(str(tmp_path))
    with pytest.raises(InputError, match="an environment of its own"):
        ClearVoiceExtractor(str(tmp_path / "python"), str(tmp_path))
    with pytest.raises(InputError, match="cannot be used .*(clearvoice|no weights)"):
        ClearVoiceExtractor(sys.executable, str(tmp_path))


WORKER = """
import json, os, sys
import numpy as np
print(json.dumps({"ok": True}), flush=True)
marks = sys.argv[2]
for line in sys.stdin:
    request = json.loads(line)
    given = np.load(request["input"])
    mode = float(given["mix"][0])
    if mode == 2.0 and not os.path.exists(marks + "/died"):
        open(marks + "/died", "w").close()
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
        np.save(out, np.repeat(given["mix"][None], len(given["faces"]), 0) / 2)
    print(json.dumps({"ok": True}), flush=True)
"""


def test_the_extractor_talks_to_its_process_and_outlives_its_death(tmp_path):
    """A worker that speaks the protocol of clearvoice_worker.py, and fails in all ways."""
    (tmp_path / "worker.py").write_text(WORKER)
    extractor = ClearVoiceExtractor(sys.executable, str(tmp_path), seconds=20.0, worker=str(tmp_path / "worker.py"))
    assert isinstance(extractor, SpeechExtractor)

    def said(mode: float) -> np.ndarray:
        return extractor.extract(Talk(np.full(640, mode, np.float32), np.zeros((2, 1, 224, 224, 3), np.uint8), "x", 0))

    assert said(1.0).shape == (2, 640) and said(1.0)[0, 0] == 0.5
    assert said(2.0)[1, 5] == 1.0  # it died once and was started again
    with pytest.raises(RuntimeError, match="ended 2 times"):
        said(3.0)
    with pytest.raises(RuntimeError, match="no lips"):
        said(4.0)
    assert said(1.0)[0, 0] == 0.5
    extractor.seconds = 0.5
    with pytest.raises(RuntimeError, match="ended 2 times"):
        said(5.0)
    extractor.close()


@pytest.mark.weights
@pytest.mark.skipif("BYA_CLEARVOICE" not in os.environ, reason="BYA_CLEARVOICE names no environment with clearvoice")
def test_clearvoice_itself():
    """BYA_CLEARVOICE = PYTHON:CHECKPOINTS; random weights will do."""
    python, checkpoints = os.environ["BYA_CLEARVOICE"].split(":")
    extractor = ClearVoiceExtractor(python, checkpoints, device="cpu")
    rng = np.random.default_rng(0)
    mix = rng.standard_normal(25 * 640).astype(np.float32) * 0.1
    faces = rng.integers(0, 255, (2, 25, 224, 224, 3)).astype(np.uint8)
    voices = extractor.extract(Talk(mix, faces, "x", 0.0))
    assert voices.shape == (2, 16_000) and voices.dtype == np.float32 and np.isfinite(voices).all()
    extractor.close()
