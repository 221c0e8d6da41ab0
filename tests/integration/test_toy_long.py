"""The shipped toy model over several windows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bya_core.config import WindowConfig
from bya_core.evaluation.mask_metrics import to_labels
from bya_core.pipelines.long_video import generate_long, plan
from bya_core.pipelines.window_files import StoredWindow, WindowFolder, fingerprint, window_inputs
from bya_core.scene.types import Character, Scene, Speech
from bya_core.toy.mouth import mouth_opening
from bya_core.toy.segmentation import segment_characters
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from training.benchmark.targets import as_video
from training.puppets.looks import MOUTH_RGB
from training.puppets.world import SAMPLE_RATE, PuppetClip, make_clip

pytestmark = pytest.mark.skipif(not MODELS["toy"].available, reason="the weights of the toy model are missing")


@pytest.fixture(scope="module")
def toy() -> ModelBundle:
    return load_bundle("toy")


def scene_of(clip: PuppetClip, bundle: ModelBundle, num_frames: int, steps: int) -> Scene:
    def picture(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(pixels)).float().movedim(-1, 0) / 255

    return Scene(
        prompt=clip.prompt,
        characters=[Character(f"puppet {n + 1}", picture(p)) for n, p in enumerate(clip.portraits)],
        speeches=[Speech(torch.from_numpy(speech)[None], SAMPLE_RATE) for speech in clip.speeches],
        height=64,
        width=96,
        num_frames=num_frames,
        first_frame=picture(clip.first_frame),
        sampling=replace(bundle.sampling, steps=steps, seed=clip.seed),
    )


@pytest.mark.parametrize("latent_frames", [1, 2, 5, 6])
def test_codec_of_any_length(toy, latent_frames):
    frames = 4 * (latent_frames - 1) + 1
    video = as_video(make_clip(2_000_003, 2, num_frames=21))[:, :, :frames]
    latents = toy.codec.encode(video)
    assert latents.shape[1] == latent_frames
    decoded = toy.codec.decode(latents).clamp(-1, 1)
    assert decoded.shape[2] == frames
    for frame in (0, frames // 2, frames - 1):
        error = (decoded[:, :, frame] - video[:, :, frame]).square().mean() / 4
        assert -10 * float(error.log10()) > 20  # PSNR in dB


def test_masks_persist_after_characters_cross(toy, tmp_path):
    """Window 1 is drawn: two puppets change places. Window 2 continues, although the prompt has the first positions."""
    seed = 2_000_000
    clip = make_clip(seed, 2, num_frames=49, motion="crossing")
    scene = scene_of(clip, toy, 89, steps=toy.sampling.steps)
    windows = plan(scene, toy)
    files = WindowFolder(tmp_path, fingerprint(scene, toy), [window_inputs(scene, window, "") for window in windows])
    grid = toy.grid(49, 64, 96)
    masks = grid.pixels_to_tokens(torch.from_numpy(clip.masks))
    first = windows[0].frames
    latents = toy.codec.encode(as_video(clip)[:, :, :first])
    drawn = torch.from_numpy(clip.frames[:first])
    files.write(0, StoredWindow(drawn, latents, masks[:, : latents.shape[1]], torch.eye(2), seed))

    video = generate_long(scene, toy, tmp_path)
    assert [row["generated"] for row in video.windows] == [False, True]
    across = torch.linspace(0, 1, masks.shape[-1])

    def place(mask: torch.Tensor) -> float:
        """Horizontal center of a mask [h, w], 0 = left .. 1 = right."""
        return float((mask.sum(0) * across).sum() / mask.sum())

    started = [place(mask[0]) for mask in masks]
    ended = [place(mask[latents.shape[1] - 1]) for mask in masks]
    assert (started[0] < started[1]) != (ended[0] < ended[1])
    owned = torch.from_numpy(to_labels(video.masks.numpy())).float()
    for frame in range(latents.shape[1], video.grid.frames):
        now = [place(mask) for mask in owned[:, frame]]
        assert (now[0] < now[1]) == (ended[0] < ended[1]), f"latent frame {frame}"


@pytest.mark.slow
def test_speech_at_7_seconds_moves_the_mouth_at_7_seconds(toy, tmp_path):
    clip = make_clip(2_000_002, 2, num_frames=201, motion="still", talk="overlap")
    word = clip.speeches[0][SAMPLE_RATE : 2 * SAMPLE_RATE]
    scene = scene_of(clip, toy, 201, steps=8)
    speech = Speech(torch.from_numpy(word)[None], SAMPLE_RATE, offset=7.0)
    scene = replace(scene, speeches=[speech, None], windows=WindowConfig(49, 9))
    frames = torch.stack(list(generate_long(scene, toy, tmp_path).frames)).numpy()
    regions = segment_characters(frames, clip.portraits, shared_rgb=MOUTH_RGB)
    opening = mouth_opening(frames, regions, MOUTH_RGB)[0]
    per_second = [opening[second * 25 : second * 25 + 25].std() for second in range(8)]
    assert int(np.argmax(per_second[1:])) + 1 == 7, np.round(per_second, 3)  # the first frame may show an open mouth
