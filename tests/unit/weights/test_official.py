"""Loading the released model from a downloaded folder: real classes, small sizes, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from bya_core.encoders.text_t5 import T5TextEncoder
from bya_core.encoders.wav2vec2 import Wav2Vec2SpeechEncoder
from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.pipelines.estimate import ModelFolder
from bya_core.pipelines.generate import generate
from bya_core.scene.types import Character, Scene, Speech
from bya_core.weights import state_dict_adapter as official
from bya_core.weights.export import convert
from bya_core.weights.loader import load_bundle, load_defaults
from bya_core.weights.official import load_official
from bya_core.weights.registry import MODELS
from tests.fakes import IDENTITY, RATE, SCALES, VIT, FakeCodec, FakeFace, FakeText, tone
from tests.unit.weights.test_state_dict_adapter import SIZES

SMALL = {
    **SIZES, "out_channels": 16, "text_embed_dim": 32, "sample_width": 8, "sample_height": 8,
    "max_text_seq_length": 226, "lfe_depth": SCALES, "lfe_num_scale": SCALES, "lfe_vit_dim": VIT,
    "lfe_id_dim": IDENTITY, "audio_blocks": 12, "audio_channels": 48,
}  # fmt: skip


class Face(FakeFace):
    """Replaces the face networks, whose size is fixed; records the files it was loaded from."""

    files: tuple[Path, ...] = ()

    def __init__(self, files: tuple[Path, ...]) -> None:
        Face.files = files

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Face:
        return self


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small T5 and a tokenizer of a few words."""
    path = tmp_path_factory.mktemp("text")
    words = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", "two", "people", "talk"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path / "tokenizer")
    torch.manual_seed(0)
    sizes = dict(vocab_size=16, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    T5EncoderModel(T5Config(**sizes)).save_pretrained(path / "text_encoder", max_shard_size="20KB")
    return path


@pytest.fixture
def folder(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All components in the released layout, with antelopev2 in its nested folder."""
    monkeypatch.setattr(official, "IGNORED_ARGUMENTS", ("LFE_",))
    monkeypatch.setattr("bya_core.encoders.face.encoder.FaceModels.load", staticmethod(lambda *files: files))
    monkeypatch.setattr("bya_core.encoders.face.encoder.PhotoFaceEncoder", Face)
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path))
    torch.manual_seed(0)
    root = tmp_path / "official"
    root.mkdir()
    for name in ("text_encoder", "tokenizer"):
        (root / name).symlink_to(text / name)
    model = BindYourAvatarTransformer3DModel(flavour="official", **SMALL)
    for file, content in official.to_released(model.state_dict()).items():
        path = root / file
        if file == "transformer":
            path.mkdir()
            save_file(content, path / "model.safetensors")
            (path / "config.json").write_text(json.dumps(SMALL))
        else:
            path.parent.mkdir(exist_ok=True)
            torch.save(content, path)
    layer = "transformer_blocks.0.attn1.to_q.lora_"
    (root / "lora_weight").mkdir()
    lora = {f"transformer.{layer}A.weight": torch.zeros(2, 32), f"transformer.{layer}B.weight": torch.zeros(32, 2)}
    save_file(lora, root / official.LORA_FILE)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,  # type: ignore[arg-type]
        up_block_types=("CogVideoXUpBlock3D",) * 4,  # type: ignore[arg-type]
        block_out_channels=(8, 8, 8, 8),  # type: ignore[arg-type]
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=2,
    )
    vae.save_pretrained(root / "vae")
    (root / "scheduler").mkdir()
    schedule = {"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 1.0}
    (root / "scheduler/scheduler_config.json").write_text(json.dumps(schedule))
    speech = Wav2Vec2Config(
        hidden_size=48, num_hidden_layers=12, num_attention_heads=4, intermediate_size=32, conv_dim=[16] * 7
    )
    Wav2Vec2Model(speech).save_pretrained(root / "wav2vec2-base-960h")
    (root / "wav2vec2-base-960h/preprocessor_config.json").write_text("{}")
    nested = root / "face_encoder/models/antelopev2/antelopev2"
    nested.mkdir(parents=True)
    for name in ("glintr100.onnx", "scrfd_10g_bnkps.onnx"):
        (nested / name).touch()
    for name in ("EVA02_CLIP_L_336_psz14_s6B.pt", "detection_Resnet50_Final.pth", "parsing_bisenet.pth"):
        (root / "face_encoder" / name).touch()
    (root / "bundle.json").write_text(
        json.dumps(
            {
                "native": {"height": 64, "width": 64, "num_frames": 5},
                "sampling": {"steps": 2, "guidance_scale": 2.0, "audio_guidance_scale": 2.0},
                "max_characters": 2,
            }
        )
    )
    return root


def _scene(bundle: Any) -> Scene:
    voices = [Speech(torch.from_numpy(tone(0.2, hertz)).float()[None], RATE) for hertz in (200.0, 300.0)]
    return Scene(
        prompt="two people talk",
        characters=[Character(name, torch.rand(3, 40, 40)) for name in ("Ada", "Bo")],
        speeches=voices,
        num_frames=5,
        height=64,
        width=64,
        sampling=bundle.sampling,
    )


def test_load_official_and_generate(folder: Path) -> None:
    bundle = load_bundle("official")
    assert isinstance(bundle.text, T5TextEncoder) and isinstance(bundle.speech, Wav2Vec2SpeechEncoder)
    assert bundle.dtype == torch.bfloat16 == bundle.codec.vae.dtype  # type: ignore[attr-defined]
    assert (bundle.name, bundle.native.height, bundle.max_characters) == ("official", 64, 2)
    assert [path.name for path in Face.files] == [
        "detection_Resnet50_Final.pth",
        "parsing_bisenet.pth",
        "glintr100.onnx",
        "EVA02_CLIP_L_336_psz14_s6B.pt",
    ]
    assert all(path.is_file() for path in Face.files)
    video = generate(_scene(bundle), bundle)
    assert video.frames.shape == (5, 64, 64, 3) and video.masks.shape[0] == 2


def test_configuration_of_the_release_is_preferred(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    for name, config in {
        "scheduler/scheduler_config.json": {**base, "snr_shift_scale": 3.0, "_class_name": "other"},
        "vae/config.json": {**json.loads((folder / "vae/config.json").read_text()), "scaling_factor": 0.5},
    }.items():
        path = folder / "release" / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(config))
    bundle = load_bundle("official")
    assert bundle.scheduler_config["snr_shift_scale"] == 3.0
    assert bundle.codec.vae.config.scaling_factor == 0.5  # type: ignore[attr-defined]
    assert "snr_shift_scale 3.0" in caplog.text and "scaling_factor 0.5" in caplog.text


def test_converted_file_uses_the_official_encoders(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    convert("official", file, "fp8", encoders="official")
    weights = load_file(file)
    assert any(value.dtype == torch.float8_e4m3fn for value in weights.values())
    bundle = load_bundle(file)
    assert isinstance(bundle.text, T5TextEncoder) and bundle.name == "one" and bundle.native.height == 64
    assert generate(_scene(bundle), bundle).frames.shape == (5, 64, 64, 3)
    (folder / "vae/config.json").unlink()
    with pytest.raises(InputError, match=r"lacks vae/config.json; expected video VAE.*--components codec"):
        load_bundle(file)


def test_incomplete_released_folder_uses_downloaded_encoders(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "pretrained"
    other.mkdir()
    for name in ("transformer", "audio_module", "face_module", "router", "lora_weight"):
        (folder / name).rename(other / name)
    bundle = load_bundle(other, dtype=torch.float32)
    assert bundle.name == "pretrained" and bundle.dtype == torch.float32
    with pytest.raises(InputError, match="video transformer with audio, face and router modules"):
        load_official(folder)


def test_missing_components_are_reported(folder: Path) -> None:
    entry = MODELS["official"]
    assert entry.path == folder and entry.available
    (folder / "wav2vec2-base-960h/model.safetensors").unlink()
    assert not entry.available and entry.missing == ["wav2vec2-base-960h/model.safetensors"]
    with pytest.raises(InputError, match="wav2vec2-base-960h speech encoder: 378 MB, license: Apache-2.0"):
        load_bundle("official")


def test_components_of_the_host_replace_missing_files(folder: Path) -> None:
    (folder / "vae/config.json").unlink()
    (folder / "text_encoder").unlink()
    text, codec = FakeText(), FakeCodec()
    bundle = load_bundle("official", components={"text": text, "codec": codec})
    assert bundle.text is text and bundle.codec is codec
    with pytest.raises(InputError, match=r"lacks text_encoder/config.json.* \(and 1 more components: codec\)"):
        load_bundle("official")


def test_defaults_and_settings_without_weights(folder: Path, tmp_path: Path) -> None:
    defaults = load_bundle("official").defaults
    file = tmp_path / "one.safetensors"
    convert("official", file, encoders="official")
    for path in (folder, file):
        model = ModelFolder(path)
        assert model.max_characters == 2 and model.defaults == defaults
        assert model.settings("transformer", "config.json")["lfe_id_dim"] == IDENTITY
        assert model.bytes >= file.stat().st_size / 2
    for path in (folder / "transformer").iterdir():
        path.unlink()
    assert load_defaults("official") == load_defaults(file) == load_defaults(folder) == defaults
    assert load_defaults("toy") == load_bundle("toy").defaults
