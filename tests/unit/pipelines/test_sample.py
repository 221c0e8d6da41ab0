"""Decoding of latents."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from torch.nn.functional import interpolate

from bya_core import load_scene
from bya_core.io.media import read_frames
from bya_core.pipelines.kept_latents import Denoised
from bya_core.pipelines.prepare import with_footage
from bya_core.pipelines.sample import decode_latents, decode_video
from bya_core.progress import ProgressTracker
from bya_core.sampling import Conditions
from bya_core.scene.types import Footage
from bya_core.weights.loader import load_bundle


def test_decoding_repeats_in_tiles_if_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = load_bundle("toy")
    vae = bundle.codec.vae
    latents = torch.randn(1, 3, bundle.codec.latent_channels, 8, 12, generator=torch.Generator().manual_seed(0))
    expected = decode_latents(latents, bundle, ProgressTracker())
    decode = vae.decode

    def limited(*args: torch.Tensor) -> object:
        if not vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*args)

    monkeypatch.setattr(vae, "decode", limited)
    frames = decode_latents(latents, bundle, ProgressTracker())
    assert "repeated in tiles" in caplog.text and frames.shape == expected.shape
    assert (frames.float() - expected.float()).abs().mean() < 4

    vae.disable_tiling()
    scene, grid = load_scene("demo/scene.json", bundle), bundle.grid(9, 64, 96)
    masks = torch.zeros(2, grid.frames, grid.height, grid.width)
    video = decode_video(Denoised(latents, masks, torch.eye(2), ("A notice.",)), scene, bundle, ProgressTracker())
    assert video.notices[0] == "A notice." and "repeated in tiles" in video.notices[1]

    monkeypatch.setattr(vae, "decode", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        decode_latents(latents, bundle, ProgressTracker())


def test_the_encoding_of_a_film_repeats_in_tiles_if_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = load_bundle("toy")
    vae, grid = bundle.codec.vae, bundle.grid(9, 64, 96)
    film = rearrange(read_frames("demo/two_puppets.mp4", seconds=0.36).frames, "f h w c -> f c h w").float()
    film = rearrange(interpolate(film, (64, 96), mode="area"), "f c h w -> f h w c")[:9]
    footage = Footage(film.round().to(torch.uint8), torch.ones(9, 64, 96, dtype=torch.bool))
    conditions = Conditions(torch.zeros(1, 1, 8), grid.latent_shape(bundle.codec.latent_channels))
    expected = with_footage(conditions, footage, grid, bundle).known_latents
    encode = vae.encode

    def limited(*args: torch.Tensor) -> object:
        if not vae.use_tiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(*args)

    monkeypatch.setattr(vae, "encode", limited)
    found = with_footage(conditions, footage, grid, bundle).known_latents
    assert "Encoding the film needed more memory than is free and was repeated in tiles" in caplog.text
    assert expected is not None and found is not None and not torch.equal(found, expected)
    assert (found - expected).square().mean().sqrt() < 0.3 * expected.std()
    pictures = [rearrange(bundle.codec.decode(each)[0] + 1, "c f h w -> f h w c") * 127.5 for each in (expected, found)]
    whole, tiled = ((picture - film).square().mean().sqrt() for picture in pictures)
    assert tiled < 1.2 * whole
