"""Conversion to single files and to the released layout, and loading the results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from bya_core.cli import main as cli
from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights import registry
from bya_core.weights import state_dict_adapter as official
from bya_core.weights.export import convert, convert_to_released
from bya_core.weights.loader import RUN_LORA, encoders_for, load_bundle, resolve
from bya_core.weights.registry import MODELS
from bya_core.weights.single_file import is_stored_in_fp8, quantize_fp8, read_metadata
from bya_core.weights.weight_files import SCALE_SUFFIX
from tests.unit.weights.test_state_dict_adapter import SIZES

needs_toy = pytest.mark.skipif(not MODELS["toy"].available, reason="toy weights are missing")
LAYER = "transformer_blocks.1.attn1.to_q"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training run: the toy transformer in two shards, and a LoRA."""
    folder = tmp_path / "stage3" / "final"
    folder.mkdir(parents=True)
    toy = MODELS["toy"].path / "transformer"
    (folder / "config.json").write_text((toy / "config.json").read_text())
    weights = load_file(next(toy.glob("*.safetensors")))
    names = sorted(weights)
    for shard in range(2):
        save_file({n: weights[n] for n in names[shard::2]}, folder / f"diffusion_pytorch_model-{shard}.safetensors")
    torch.manual_seed(0)
    out, width = weights[f"{LAYER}.weight"].shape
    a, b = 0.1 * torch.randn(4, width), 0.1 * torch.randn(out, 4)
    save_file({f"transformer.{LAYER}.lora_A.weight": a, f"transformer.{LAYER}.lora_B.weight": b}, folder / RUN_LORA)
    return folder


def _state(path: Path | str, **options: Any) -> dict[str, torch.Tensor]:
    return dict(load_bundle(path, **options).transformer.state_dict())


def _output(model: BindYourAvatarTransformer3DModel) -> torch.Tensor:
    """Prediction for two characters with faces and speech."""
    c: Any = model.config
    random = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    with torch.no_grad():
        faces = model.encode_faces(randn(1, 2, c.lfe_id_dim), randn(1, 2, c.lfe_num_scale, 7, c.lfe_vit_dim))
        speech = model.encode_speech(randn(1, 2, 9, c.audio_blocks, c.audio_channels))
        out = model(
            randn(1, 2, c.in_channels, 8, 8),
            randn(1, c.max_text_seq_length, c.text_embed_dim),
            torch.tensor([500]),
            face_tokens=faces,
            audio_tokens=speech,
            run_router=True,
        )
    return out.sample


@needs_toy
def test_convert_merges_the_lora_of_a_training_run(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    assert convert(run, file) == [f"wrote {file} ({file.stat().st_size / 1e9:.2f} GB, fp32)", "merged 1 LoRA updates"]
    base = load_file(next((MODELS["toy"].path / "transformer").glob("*.safetensors")))
    lora = load_file(run / RUN_LORA)
    a, b = (lora[f"transformer.{LAYER}.lora_{side}.weight"] for side in "AB")
    loaded = _state(file)
    assert loaded.keys() == base.keys()
    assert_close(loaded[f"{LAYER}.weight"], base[f"{LAYER}.weight"] + b @ a)
    assert all(torch.equal(loaded[name], base[name]) for name in base if name != f"{LAYER}.weight")
    direct = load_bundle(run)
    assert direct.name == "final" and direct.voice_face is not None  # with the encoders of the toy model
    assert torch.equal(_output(direct.transformer), _output(load_bundle(file).transformer))
    assert not torch.equal(_output(direct.transformer), _output(load_bundle("toy").transformer))


@needs_toy
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_convert_to_half_precision(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    file = tmp_path / "half.safetensors"
    convert("toy", file, precision)
    assert file.stat().st_size < 0.55 * sum(f.stat().st_size for f in (MODELS["toy"].path / "transformer").iterdir())
    loaded, widened, original = _state(file), _state(file, dtype=torch.float32), _state("toy")
    assert all(torch.equal(loaded[name], original[name].to(dtype)) for name in original)
    assert all(torch.equal(widened[name], loaded[name].float()) for name in original)


@needs_toy
def test_convert_to_fp8(tmp_path: Path) -> None:
    file = tmp_path / "small.safetensors"
    convert("toy", file, "fp8")
    original = _state("toy")
    with safe_open(file, framework="pt") as opened:
        stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    fp8 = [name for name, value in stored.items() if value.dtype == torch.float8_e4m3fn]
    assert len(fp8) > 50 and all(is_stored_in_fp8(name, tuple(stored[name].shape)) for name in fp8)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = _state(file, dtype=dtype)
        for name in original:
            value = stored[name].float() * stored[name + SCALE_SUFFIX] if name in fp8 else original[name].bfloat16()
            assert torch.equal(loaded[name], value.to(dtype)), name
            assert torch.equal(value.to(torch.bfloat16).float(), value.float())  # exact in bfloat16
    assert _state(file)[fp8[0]].dtype == torch.bfloat16  # default
    errors = [(original[n] - loaded[n].float()).abs().max() / original[n].abs().max() for n in fp8]
    assert max(errors) < 1 / 16  # half a step of a mantissa of three bits
    again = tmp_path / "again.safetensors"
    convert(file, again)
    assert all(torch.equal(value, loaded[name]) for name, value in _state(again, dtype=torch.bfloat16).items())


def test_fp8_scales_are_powers_of_two() -> None:
    for largest in (1e-6, 0.3, 448.0, 449.0, 1e5):
        weight = torch.linspace(-largest, largest, 1001).view(7, 143)
        quantized, scale = quantize_fp8(weight)
        assert torch.log2(torch.tensor(scale)) % 1 == 0 and quantized.float().abs().max() > 220
        assert_close(quantized.float() * scale, weight, rtol=1 / 16, atol=scale * 2**-10)
    zeros, scale = quantize_fp8(torch.zeros(2, 2))
    assert scale == 1.0 and not zeros.float().any()


@needs_toy
def test_metadata(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    convert(run, file, "bf16")
    metadata = read_metadata(file)
    assert (metadata["flavour"], metadata["precision"], metadata["encoders"]) == ("paper", "bf16", "toy")
    toy = MODELS["toy"].path
    config = json.loads((toy / "transformer/config.json").read_text())
    assert json.loads(metadata["config"]).items() >= {k: v for k, v in config.items() if k[0] != "_"}.items()
    assert json.loads(metadata["settings"]) == json.loads((toy / "bundle.json").read_text())
    assert [s["file"] for s in json.loads(metadata["sources"])][-1] == f"final/{RUN_LORA}"
    bundle, shipped = load_bundle(file), load_bundle("toy")
    assert (bundle.name, bundle.native, bundle.sampling) == ("mine", shipped.native, shipped.sampling)
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(InputError, match="other.safetensors is not a converted model"):
        load_bundle(other)


@needs_toy
def test_convert_command(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path))
    file = tmp_path / "mine.safetensors"
    assert cli.main(["convert", str(run), "-o", str(file), "--precision", "bf16"]) == 0
    assert "merged 1 LoRA" in capsys.readouterr().out
    assert cli.main(["models"]) == 0 and "mine.safetensors" in capsys.readouterr().out
    assert load_bundle("mine.safetensors").name == "mine"
    assert cli.main(["convert", str(file), "-o", str(file)]) == 2
    assert "which is an input" in capsys.readouterr().err
    assert cli.main(["convert", "mine.safetensor", "-o", str(tmp_path / "b.safetensors")]) == 2
    assert "use --model mine.safetensors" in capsys.readouterr().err


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, BindYourAvatarTransformer3DModel]:
    """A small training run of the official flavour with a LoRA, and the model with the LoRA merged."""
    monkeypatch.setattr(official, "IGNORED_ARGUMENTS", ("LFE_",))  # allows small modules
    torch.manual_seed(0)
    model = BindYourAvatarTransformer3DModel(flavour="official", **SIZES)
    folder = tmp_path / "run"
    model.save_pretrained(folder)
    a, b = torch.randn(3, 32), torch.randn(32, 3)
    save_file({f"transformer.{LAYER}.lora_A.weight": a, f"transformer.{LAYER}.lora_B.weight": b}, folder / RUN_LORA)
    model.get_submodule(LAYER).weight.data += b @ a
    return folder, model


def test_convert_to_released(released: tuple[Path, BindYourAvatarTransformer3DModel], tmp_path: Path) -> None:
    run, model = released
    out = tmp_path / "pretrained"
    _, lora, unsupported = convert_to_released(run, out)
    assert "1 updates in lora_weight/pytorch_lora_weights.safetensors" in lora
    assert "does not support" in unsupported and "lfe_dim" in unsupported and "num_layers" not in unsupported
    files = (official.AUDIO_FILE, official.FACE_FILE, official.ROUTER_FILE, official.LORA_FILE)
    assert all((out / file).is_file() for file in files)
    config = json.loads((out / "transformer/config.json").read_text())
    assert config["is_train_audio"] is True and config["in_channels"] == 48 and "flavour" not in config
    base = load_file(out / "transformer/diffusion_pytorch_model.safetensors")
    assert not torch.equal(base[f"{LAYER}.weight"], model.state_dict()[f"{LAYER}.weight"])  # LoRA not merged
    again = official.load_released(out)
    for name, value in model.state_dict().items():
        assert_close(again.state_dict()[name], value, msg=name)
    assert_close(_output(again), _output(model))
    with pytest.raises(InputError, match="already exists"):
        convert_to_released(run, out)
    one = tmp_path / "one.safetensors"
    with pytest.raises(InputError, match="no known model"):
        convert(run, one)
    convert(run, one, encoders="official")
    back = tmp_path / "back"
    assert "no separate LoRA" in convert_to_released(one, back, "bf16")[1]
    merged = official.load_released(back).state_dict()
    assert all(torch.equal(merged[n], v.bfloat16()) for n, v in model.state_dict().items() if LAYER not in n)
    assert not list(tmp_path.glob(".*part*"))


def test_lora_is_merged_into_released_files(
    released: tuple[Path, BindYourAvatarTransformer3DModel], tmp_path: Path
) -> None:
    run, model = released
    file, out = tmp_path / "style.safetensors", tmp_path / "pretrained"
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    content = {}
    for module in (LAYER, "audio_model.layers.0.attn.to_q"):
        weight = expected[f"{module}.weight"]
        a, b = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
        content |= {f"transformer.{module}.lora_A.weight": a, f"transformer.{module}.lora_B.weight": b}
        expected[f"{module}.weight"] += 0.5 * b @ a
    save_file(content, file)
    assert "merged 2 LoRA updates" in convert_to_released(run, out, lora=[f"{file}:0.5"])
    assert len(load_file(out / official.LORA_FILE)) == 2, "the model's own LoRA stays separate"
    again = official.load_released(out).state_dict()
    for name, value in expected.items():
        assert_close(again[name], value, msg=name)


@needs_toy
def test_convert_to_released_rejects_other_flavours_and_fp8(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the flavour paper"):
        convert_to_released("toy", tmp_path / "out")
    with pytest.raises(InputError, match="released files in fp8"):
        convert_to_released("toy", tmp_path / "out", "fp8")
    assert not (tmp_path / "out").exists()


@needs_toy
def test_failed_conversion_leaves_no_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(InputError, match="1.0 kB free in .* expected 11.1 MB"):
            convert(run, tmp_path / "a.safetensors")
    shard = sorted(run.glob("diffusion*"))[0]
    weights = load_file(shard)
    missing = weights.popitem()[0]
    save_file(weights, shard)
    with pytest.raises(InputError, match=rf"1 missing \({missing}\)"):
        convert(run, tmp_path / "a.safetensors")
    assert not list(tmp_path.glob("*a.*"))


@needs_toy
def test_encoders_of_a_bundle_folder(tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(MODELS["toy"].path, own)
    file = tmp_path / "mine.safetensors"
    convert(own, file)
    assert read_metadata(file)["encoders"] == str(own) and load_bundle(file).native == load_bundle(own).native
    shutil.rmtree(own)
    with pytest.raises(InputError, match="the encoders of this model are expected in"):
        load_bundle(file)


def test_encoders_are_selected_by_size(tmp_path: Path) -> None:
    assert encoders_for({}) == "official"
    with pytest.raises(InputError, match="text_embed_dim 77"):
        encoders_for({"text_embed_dim": 77})
    with pytest.raises(InputError, match="is not a model"):
        resolve(tmp_path)


def test_missing_official_model_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bya_core.weights.official import load_official

    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path))
    expected = r"lacks transformer.*and 6 more components.*license: none.*huggingface.co/hyb1124.*download official"
    with pytest.raises(InputError, match=expected):
        load_official(tmp_path / "official")
    with pytest.raises(InputError, match="bya download official --components release"):
        resolve("official")
    assert registry.MODELS["official"].missing


@needs_toy
def test_convert_output_of_the_training_loop(tmp_path: Path) -> None:
    """Written by the training engine, with a LoRA scale other than 1."""
    from training.engine.lora import add_lora, load_model, write_model
    from training.engine.stages import Lora

    lora = Lora(rank=4, alpha=8, targets=("attn1.to_q", "attn1.to_k"))
    model = load_model(MODELS["toy"].path / "transformer")
    add_lora(model, lora)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.eval()
    write_model(tmp_path / "final", model, model.state_dict(), lora, {"stage": 3})
    file = tmp_path / "mine.safetensors"
    assert f"merged {2 * len(model.transformer_blocks)} LoRA updates" in convert(tmp_path / "final", file)
    expected = _output(model)
    assert_close(_output(load_bundle(file).transformer), expected)
    assert (_output(load_bundle("toy").transformer) - expected).abs().max() > 0.01
