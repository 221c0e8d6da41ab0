"""Decoding of single small videos on the CPU, which is faster in a batch of two."""

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


def batch_sizes(codec: CogVideoXCodec) -> list[int]:
    """A list that receives the batch size of each call of the decoder."""
    seen: list[int] = []
    codec.vae.decoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    return seen


@pytest.mark.parametrize(("count", "sizes"), [(1, {2}), (2, {2}), (3, {3})])
def test_small_videos_are_decoded_in_a_batch(codec: CogVideoXCodec, count: int, sizes: set[int]) -> None:
    latents = torch.randn(1, 3, 4, 2, 3, generator=torch.Generator().manual_seed(1)).repeat(count, 1, 1, 1, 1)
    plain = codec.vae.decode(latents.movedim(1, 2)[:1] * codec.std).sample
    seen = batch_sizes(codec)
    made = codec.decode(latents)
    assert set(seen) == sizes and made.shape == (count, 3, 9, 16, 24)
    torch.testing.assert_close(made[:1], plain, atol=1e-5, rtol=1e-4)


def test_large_videos_are_decoded_alone(codec: CogVideoXCodec) -> None:
    height = width = 76
    assert 3 * height * width * codec.space_factor**2 >= SMALL_VIDEO
    seen = batch_sizes(codec)
    assert len(codec.decode(torch.zeros(1, 1, 4, height, width))) == 1 and set(seen) == {1}


def test_images_are_encoded_as_the_mean_of_the_distribution(codec: CogVideoXCodec) -> None:
    """The release draws a sample at inference (docs/explanation/fidelity.md)."""
    video = torch.rand(1, 3, 1, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        mean = codec.vae.encode(video).latent_dist.mean.movedim(2, 1)
        first, second = codec.encode(video), codec.encode(video)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, mean * codec.vae.config.scaling_factor)
