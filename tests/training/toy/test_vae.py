"""Training of the toy VAE."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from training.puppets import MOUTH_RGB
from training.toy.vae import TOY_VAE, Arguments, opening_error, train

INSIDE = torch.tensor(MOUTH_RGB).view(1, 3, 1, 1, 1) * 2 - 1


def mouths_open(rows: list[int]) -> tuple[Tensor, Tensor]:
    """Faces with mouths of the given heights per frame [1,3,F,16,16], and the weights of the mouth [1,F,16,16]."""
    video = torch.full((1, 3, len(rows), 16, 16), 0.6)
    for frame, height in enumerate(rows):
        video[:, :, frame, 8 : 8 + height, 5:11] = INSIDE[:, :, 0]
    near = torch.zeros(1, len(rows), 16, 16)
    near[:, :, 4:, 2:14] = 1
    return video, near


def test_opening_error_compares_mouth_areas() -> None:
    video, near = mouths_open([0, 2, 4, 2])
    assert opening_error(video, video, near) == 0
    moved = video.roll(2, dims=-1)
    torch.testing.assert_close(opening_error(moved, video, near), torch.tensor(0.0))
    shut, late = (mouths_open(rows)[0] for rows in ([0, 0, 0, 0], [2, 0, 2, 4]))
    torch.testing.assert_close(opening_error(shut, video, near), torch.tensor(1.0), atol=0.02, rtol=0)
    assert opening_error(late, video, near) > 0.9  # the same mean opening at other times
    elsewhere = video.clone()
    elsewhere[..., :3, :] = INSIDE
    assert opening_error(elsewhere, video, near) == 0
    wrong = (video + 0.2).requires_grad_()
    opening_error(wrong, video, near).backward()
    assert wrong.grad is not None and wrong.grad.abs().sum() > 0


@pytest.mark.parametrize("opening", [0.0, 0.3])
def test_decoder_training_keeps_the_encoder(tmp_path: Path, opening: float) -> None:
    sizes = {"block_out_channels": (8, 8, 8), "norm_num_groups": 2, "layers_per_block": 1}
    torch.manual_seed(0)
    AutoencoderKLCogVideoX(**{**TOY_VAE, **sizes}).save_pretrained(tmp_path)
    before = AutoencoderKLCogVideoX.from_pretrained(tmp_path)
    options = {"minutes": 0.05, "crop": 16, "frames": 9, "batch_size": 2, "opening_weight": opening}
    metrics = train(Arguments(tmp_path, resume=True, decoder_only=True, **options))
    assert metrics["steps"] > 0 and metrics["error"] > 0 and metrics["opening"] > 0
    after = AutoencoderKLCogVideoX.from_pretrained(tmp_path)
    pairs = [(name, old, after.state_dict()[name]) for name, old in before.state_dict().items()]
    assert all(torch.equal(old, new) for name, old, new in pairs if name.startswith("encoder."))
    assert any(not torch.equal(old, new) for name, old, new in pairs if name.startswith("decoder."))
