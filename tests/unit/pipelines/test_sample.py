"""Decoding of latents."""

from __future__ import annotations

import pytest
import torch

from bya_core import load_scene
from bya_core.pipelines.kept_latents import Denoised
from bya_core.pipelines.sample import decode_latents, decode_video
from bya_core.progress import ProgressTracker
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
