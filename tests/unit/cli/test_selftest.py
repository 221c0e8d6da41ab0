"""The self-test: reproducible random weights, the toy model, and the released architecture in a small config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights

from bya_core.cli.main import main
from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.pipelines import full_size, selftest
from bya_core.weights import random_weights as weight_rule
from bya_core.weights.bundle import NativeSize
from tests.parity import weight_rule as reference

SMALL: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=16, time_embed_dim=16, text_embed_dim=8, sample_width=12, sample_height=8,
    sample_frames=9, max_text_seq_length=5, cross_attn_dim_head=8, cross_attn_num_heads=2, lfe_dim=16, lfe_depth=5,
    lfe_dim_head=8, lfe_heads=2, lfe_num_id_token=2, lfe_num_queries=4, lfe_output_dim=16, lfe_ff_mult=2,
    lfe_vit_dim=10, lfe_id_dim=6, lfe_hidden_dim=16, router_heads=2, router_blocks=1, audio_dim=12, audio_heads=2,
    audio_dim_head=16, audio_blocks=3, audio_channels=12, audio_hidden_dim=16, audio_context_tokens=4,
)  # fmt: skip
SIZE = NativeSize(64, 96, 9)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("a.weight", (7,)), ("a.bias", (7,)), ("b.proj.weight", (5, 3, 2)), ("latents", (1, 4, 6)), ("c", (3,))],
)
def test_random_weights_match_the_parity_tests(name, shape, monkeypatch):
    expected = reference.weight(name, shape, "salt")
    assert torch.equal(weight_rule.draw(name, shape, "salt"), expected)
    assert torch.equal(weight_rule.draw_input(name, shape, "salt"), reference.input_tensor(name, shape, "salt"))
    monkeypatch.setattr(weight_rule, "DRAW_SIZE", 4)  # the chunk size does not matter
    assert torch.equal(weight_rule.draw(name, shape, "salt"), expected)
    assert weight_rule.draw(name, shape, "salt", torch.bfloat16).dtype == torch.bfloat16


def test_meta_model_is_filled():
    expected = reference.fill(BindYourAvatarTransformer3DModel(num_layers=2, **SMALL), "salt").state_dict()
    with init_empty_weights():
        model = BindYourAvatarTransformer3DModel(num_layers=2, **SMALL)
    filled = weight_rule.fill_random(model, "salt").state_dict()
    assert filled.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(filled[key], value), key
    assert float(filled["router.pos_emb"].abs().sum()) > 0  # computed, not random


def test_toy_model(capsys):
    assert main(["selftest"]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("generated 9 frames of 96x64", "Decoding", "Peak RAM", "crc32"))


def test_incorrect_video_raises(monkeypatch):
    from bya_core.pipelines.generate import Video

    gray = torch.full((9, 64, 96, 3), 128, dtype=torch.uint8)
    video = Video(gray, torch.zeros(2, 3, 8, 12), None, None, torch.eye(2))  # type: ignore[arg-type]
    monkeypatch.setattr("bya_core.pipelines.generate.generate", lambda *_: video)
    with pytest.raises(RuntimeError, match="incorrect results"):
        selftest.check_toy_model("cpu")


@pytest.mark.parametrize("layers", [None, 3])
def test_full_size(layers):
    result = selftest.check_full_size(layers, device="cpu", config=SMALL, native=SIZE)
    depth = layers or 1
    assert f"{depth} blocks" in result.lines[0]
    assert f"Not a full run, because there is no GPU: {depth} of 42" in result.lines[2]
    assert {"Loading model", "Encoding faces and audio", "Denoising"} <= result.seconds.keys()
    same, other = (selftest.check_full_size(n, device="cpu", config=SMALL, native=SIZE) for n in (layers, 2))
    assert same.checksum == result.checksum != other.checksum


def test_full_size_with_guidance():
    options = {"codec": False, "native": SIZE}
    bundle = full_size.build_full_size(2, torch.float32, SMALL, **options)  # type: ignore[arg-type]
    latents = full_size.run_steps(bundle, branches=2, steps=2)
    assert latents.shape == (1, 3, 16, 8, 12) and latents.isfinite().all() and latents.std() > 0
    with pytest.raises(InputError, match="a model with encoders"):
        bundle.text.encode(["a"])


def test_too_little_memory_is_reported_first(monkeypatch, capsys):
    monkeypatch.setattr(full_size, "free_host_memory", lambda: 3 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(full_size, "fill_random", lambda *_: pytest.fail("weights were created"))
    assert main(["selftest", "--full-size", "--layers", "2"]) == 2
    printed = capsys.readouterr().err
    assert "3.0 GB of memory available" in printed and "and one step" in printed and "--layers" in printed


@pytest.mark.parametrize("command", ["generate", "probe"])
def test_vram_budget_is_passed_on(command, monkeypatch, tmp_path):
    budgets: list[str | None] = []

    def load(name: str, *, vram: str | None = None, lora: tuple[str, ...] = ()) -> None:
        budgets.append(vram)
        raise InputError("problem", "expected", "hint")

    scene = Path(__file__).resolve().parents[3] / "demo" / "scene.json"
    out = str(tmp_path / ("a.mp4" if command == "generate" else "a.safetensors"))
    monkeypatch.setattr("bya_core.pipelines.load.load_model", load)
    assert main([command, str(scene), "-o", out, "--vram", "12"]) == 2 and not budgets  # without a GPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for extra in ([], ["--vram", "12"]):
        assert main([command, str(scene), "-o", out, *extra]) == 2
    assert budgets == ["auto", "12"]
    assert main([command, str(scene), "--vram", "13"]) == 2
