"""Decoding one small video on a processor: by the quicker convolution, with the same result."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from bya_core.encoders.vae import SMALL_VIDEO, CogVideoXCodec


@pytest.fixture(scope="module")
def codec() -> CogVideoXCodec:
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return CogVideoXCodec(vae)


def decoded_together(codec: CogVideoXCodec) -> list[int]:
    """Fills itself with the number of videos of each call of the decoder."""
    seen: list[int] = []
    codec.vae.decoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    return seen


@pytest.mark.parametrize(("count", "sizes"), [(1, {2}), (2, {2}), (3, {3})])
def test_a_small_video_is_decoded_twice_and_given_once(codec: CogVideoXCodec, count: int, sizes: set[int]) -> None:
    latents = torch.randn(1, 3, 4, 2, 3, generator=torch.Generator().manual_seed(1)).repeat(count, 1, 1, 1, 1)
    plain = codec.vae.decode(latents.movedim(1, 2)[:1] * codec.std).sample
    seen = decoded_together(codec)
    made = codec.decode(latents)
    assert set(seen) == sizes and made.shape == (count, 3, 9, 16, 24)
    torch.testing.assert_close(made[:1], plain, atol=1e-5, rtol=1e-4)


def test_a_large_one_is_decoded_once(codec: CogVideoXCodec) -> None:
    height = width = 76
    assert 3 * height * width * codec.space_factor**2 >= SMALL_VIDEO
    seen = decoded_together(codec)
    assert len(codec.decode(torch.zeros(1, 1, 4, height, width))) == 1 and set(seen) == {1}
