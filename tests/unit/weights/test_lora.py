"""LoRA files of several trainers, at a strength, alone and together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bya_core.cli import main as cli
from bya_core.errors import InputError
from bya_core.pipelines.load import load_model
from bya_core.weights.loader import load_bundle, resolve
from bya_core.weights.lora import parse_lora, read_lora
from bya_core.weights.registry import MODELS

needs_toy = pytest.mark.skipif(not MODELS["toy"].available, reason="toy weights are missing")
MODULE = "transformer_blocks.0.attn1.to_q"
SHAPES = {f"{MODULE}.weight": (6, 8), "proj_out.weight": (3, 6)}
A, B = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), torch.ones(6, 2)
UPDATE = B @ A


def _names(form: str) -> tuple[str, str, str]:
    flat = "lora_unet_" + MODULE.replace(".", "_")
    return {
        "diffusers": (f"transformer.{MODULE}.lora_A.weight", f"transformer.{MODULE}.lora_B.weight", ""),
        "peft": (f"base_model.model.{MODULE}.lora_A.weight", f"base_model.model.{MODULE}.lora_B.weight", ""),
        "comfyui": (f"diffusion_model.{MODULE}.lora_down.weight", f"diffusion_model.{MODULE}.lora_up.weight",
                    f"diffusion_model.{MODULE}.alpha"),
        "kohya": (f"{flat}.lora_down.weight", f"{flat}.lora_up.weight", f"{flat}.alpha"),
        "old diffusers": (f"{MODULE}.lora.down.weight", f"{MODULE}.lora.up.weight", ""),
    }[form]  # fmt: skip


@pytest.mark.parametrize("form", ["diffusers", "peft", "comfyui", "kohya", "old diffusers"])
def test_names_and_alpha_of_trainers(tmp_path: Path, form: str) -> None:
    down, up, alpha = _names(form)
    path = tmp_path / "style.safetensors"
    save_file({down: A, up: B, **({alpha: torch.tensor(1.0)} if alpha else {})}, path)
    ((name, (a, b)),) = read_lora(path, SHAPES).items()
    assert name == f"{MODULE}.weight"
    torch.testing.assert_close(b @ a, UPDATE * (0.5 if alpha else 1.0))


def test_alpha_of_metadata_and_of_peft_folders(tmp_path: Path) -> None:
    down, up, _ = _names("diffusers")
    config = {"r": 2, "lora_alpha": 8, "alpha_pattern": {}}
    path = tmp_path / "style.safetensors"
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    save_file({down: A, up: B}, path, metadata)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({down: A, up: B}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**config, "alpha_pattern": {"attn1.to_q": 1}}))
    for spec, factor in ((path, 4.0), (parse_lora(folder)[0], 0.5)):
        ((a, b),) = read_lora(spec, SHAPES).values()
        torch.testing.assert_close(b @ a, UPDATE * factor)


def test_strength_follows_the_last_colon(tmp_path: Path) -> None:
    plain, colon = tmp_path / "a.safetensors", tmp_path / "b:2"
    plain.touch()
    colon.touch()
    assert parse_lora(str(plain)) == (plain, 1.0)
    assert parse_lora(f"{plain}:-0.5") == (plain, -0.5)
    assert parse_lora(str(colon)) == (colon, 1.0)
    assert parse_lora((plain, 0.25)) == (plain, 0.25)
    for wrong in (f"{plain}:nan", f"{plain}:1e9", str(tmp_path / "missing.safetensors:0.5")):
        with pytest.raises(InputError):
            parse_lora(wrong)
    for wrong in ("zz", "", "0,5"):
        with pytest.raises(InputError, match=re.escape(f"strength {wrong!r} of the LoRA a.safetensors")):
            parse_lora(f"{plain}:{wrong}")
    with pytest.raises(InputError, match="missing.safetensors:zz"):
        parse_lora(str(tmp_path / "missing.safetensors:zz"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"unet.down.lora_A.weight": A, "unet.down.lora_B.weight": B}, "fits none"),
        ({f"{MODULE}.lora_A.weight": A[:, :4].contiguous(), f"{MODULE}.lora_B.weight": B}, "shape"),
        ({f"{MODULE}.lora_A.weight": A, f"{MODULE}.lora_B.weight": torch.ones(6, 3)}, "shape"),
        ({f"{MODULE}.lora_A.weight": A}, "incomplete"),
        ({f"{MODULE}.hada_w1_a": A}, "LoRA entry"),
        ({}, "fits none"),
    ],
)
def test_files_that_do_not_fit_are_one_sentence(tmp_path: Path, content: dict, message: str) -> None:
    path = tmp_path / "style.safetensors"
    save_file(content, path)
    with pytest.raises(InputError, match=message):
        read_lora(path, SHAPES)


@needs_toy
def test_strengths_add_up_in_loading_and_converting(tmp_path: Path) -> None:
    weight = load_bundle("toy").transformer.state_dict()[f"{MODULE}.weight"]
    a, b = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    first, second = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for path, factor in ((first, 1.0), (second, 3.0)):
        save_file({f"transformer.{MODULE}.lora_A.weight": a, f"transformer.{MODULE}.lora_B.weight": factor * b}, path)
    expected = weight + (0.5 + 3.0) * b @ a
    bundle = load_model("toy", lora=(f"{first}:0.5", second))
    torch.testing.assert_close(bundle.transformer.state_dict()[f"{MODULE}.weight"], expected)
    assert bundle.name == "toy + one:0.5 + two:1"
    file = tmp_path / "model.safetensors"
    assert cli.main(["convert", "toy", "-o", str(file), "--lora", f"{first}:0.5", "--lora", str(second)]) == 0
    torch.testing.assert_close(resolve(file).transformer.build().state_dict()[f"{MODULE}.weight"], expected)


@needs_toy
def test_generate_takes_a_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"unet.x.lora_A.weight": A, "unet.x.lora_B.weight": B}, path)
    scene = str(Path(__file__).resolve().parents[3] / "demo" / "scene.json")
    output = tmp_path / "video.mp4"
    assert cli.main(["generate", scene, "-o", str(output), "--lora", str(path)]) == 2
    assert "fits none of the weights" in capsys.readouterr().err
    assert not output.exists()
