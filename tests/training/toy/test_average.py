"""Averaging of fine-tuned weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from bya_core.errors import InputError
from training.toy.assemble import WEIGHTS
from training.toy.average import Arguments, average, weighted_average
from training.toy.vae import TOY_VAE

SMALL = {**TOY_VAE, "block_out_channels": (8, 8, 8), "norm_num_groups": 2, "layers_per_block": 1}


def saved(folder: Path, seed: int, **changes: object) -> AutoencoderKLCogVideoX:
    torch.manual_seed(seed)
    model = AutoencoderKLCogVideoX(**{**SMALL, **changes})
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("weights", "first"), [((), 0.5), ((0.25, 0.75), 0.25)])
def test_weighted_average(tmp_path: Path, weights: tuple[float, ...], first: float) -> None:
    one, other = saved(tmp_path / "a", 1).state_dict(), saved(tmp_path / "b", 2).state_dict()
    average(Arguments((tmp_path / "a", tmp_path / "b"), tmp_path / "mean", weights))
    mean = AutoencoderKLCogVideoX.from_pretrained(tmp_path / "mean").state_dict()
    for name, value in mean.items():
        torch.testing.assert_close(value, first * one[name] + (1 - first) * other[name])
    assert {path.name for path in (tmp_path / "mean").iterdir()} == {"config.json", WEIGHTS}


def test_output_may_be_an_input_folder(tmp_path: Path) -> None:
    saved(tmp_path / "a", 1), saved(tmp_path / "b", 2)
    average(Arguments((tmp_path / "a", tmp_path / "b"), tmp_path / "mean"))
    average(Arguments((tmp_path / "a", tmp_path / "b"), tmp_path / "a"))
    first, second = (AutoencoderKLCogVideoX.from_pretrained(tmp_path / name).state_dict() for name in ("a", "mean"))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_invalid_inputs_raise(tmp_path: Path) -> None:
    saved(tmp_path / "a", 1), saved(tmp_path / "wider", 2, block_out_channels=(16, 16, 16))
    with pytest.raises(InputError, match="of one architecture"):
        average(Arguments((tmp_path / "a", tmp_path / "wider"), tmp_path / "mean"))
    with pytest.raises(InputError, match="check the path"):
        average(Arguments((tmp_path / "a", tmp_path / "nowhere"), tmp_path / "mean"))
    with pytest.raises(InputError, match="at least two"):
        average(Arguments((tmp_path / "a",), tmp_path / "mean"))
    assert not (tmp_path / "mean").exists()
    some = {"weight": torch.ones(2)}
    with pytest.raises(InputError, match="adding up to 1"):
        weighted_average([some, some], (0.5, 0.6))


def test_dtype_is_preserved() -> None:
    low, high = torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 1.0 + 1 / 64, dtype=torch.bfloat16)
    mean = weighted_average([{"w": low}, {"w": high}], ())["w"]
    assert mean.dtype is torch.bfloat16 and mean.item() == 1.0 + 1 / 128
