"""Segmentation and mouth opening of puppets by color, and the demos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from bya_core.evaluation.mask_metrics import mean_iou
from bya_core.toy import meter
from bya_core.toy.demo import demo_names, load_demo
from bya_core.toy.mouth import mouth_opening
from bya_core.toy.segmentation import foreground, segment_characters
from training.puppets import MOUTH_RGB
from training.puppets.world import make_clip


@pytest.fixture
def figures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames, portraits and masks of two figures whose hair has the same color."""
    skins, hair = ([0.9, 0.6, 0.5], [0.3, 0.7, 0.4]), [0.35, 0.2, 0.1]
    frames = np.tile(np.array([0.5, 0.6, 0.8]), (5, 64, 96, 1))
    masks = np.zeros((2, 5, 64, 96), dtype=bool)
    portraits = np.ones((2, 48, 48, 3))
    for n, skin in enumerate(skins):
        for f in range(5):
            left = 8 + 48 * n + 2 * f
            frames[f, 20:64, left : left + 24] = skin
            frames[f, 12:26, left : left + 24] = hair
            masks[n, f, 12:64, left : left + 24] = True
        portraits[n, 16:48, 12:36] = np.array(skin) * 0.9
        portraits[n, 8:20, 12:36] = np.array(hair) * 0.9
    noise = np.random.default_rng(0).normal(0, 0.02, frames.shape)
    return np.clip(frames + noise, 0, 1), portraits, masks


def test_segmentation(figures: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    frames, portraits, masks = figures
    result = segment_characters(frames, portraits)
    assert mean_iou(result, masks) > 0.9 and not (result[0] & result[1]).any()
    result = segment_characters((frames * 255).astype(np.uint8), portraits, first_masks=masks[:, 0])
    assert mean_iou(result, masks) > 0.9
    with pytest.raises(InputError, match="portraits"):
        segment_characters(np.zeros((8, 8, 3)), np.zeros((2, 8, 8, 3)))


def test_foreground_includes_enclosed_white(figures: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    portrait = figures[1][0]
    portrait[24:28, 20:24] = 1.0
    assert foreground(portrait)[26, 22] and not foreground(portrait)[2, 2]


def test_mouth_opening() -> None:
    frames = np.full((3, 8, 12, 3), 0.8, dtype=np.float32)
    frames[1, 2:4, 1:3] = MOUTH_RGB
    frames[2, 2:6, 1:3] = MOUTH_RGB
    frames[2, 2:6, 9:11] = np.array(MOUTH_RGB) + np.array([0.15, 0.0, 0.0])
    regions = np.zeros((2, 3, 8, 12), dtype=bool)
    regions[0, :, :, :6], regions[1, :, :, 6:] = True, True
    opening = mouth_opening(frames, regions, MOUTH_RGB)
    assert opening[0] == pytest.approx([0.0, 4 / 48, 8 / 48])
    assert opening[1] == pytest.approx([0.0, 0.0, 4 / 48], rel=0.01)


def test_mouth_color_is_that_of_the_drawing() -> None:
    assert meter.MOUTH_RGB == MOUTH_RGB


@pytest.mark.parametrize("name", demo_names())
def test_demos_are_complete(name: str) -> None:
    demo = load_demo(name)
    assert demo.first_frame is not None and demo.frames % 4 == 1 and 1 <= len(demo.characters) <= 3
    assert all(sound is not None and sound[0].abs().max() > 0.05 for _, sound in demo.characters)


def test_eye_likeness_falls_with_broken_eyes() -> None:
    """The drawn frames of a clip, with one eye painted over, and with blurred faces."""
    clip = make_clip(900_001, 2, num_frames=1, motion="still")
    portraits = [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in clip.portraits]
    regions, whole = torch.from_numpy(clip.masks), torch.from_numpy(clip.frames)
    one_eye = whole.clone()
    for x, y in clip.eye_centers[:, 0, 0].round().astype(int):
        one_eye[0, y - 4 : y + 5, x - 4 : x + 5] = whole[0, y + 6, x]
    blurred = torch.nn.functional.avg_pool2d(whole.permute(0, 3, 1, 2).float(), 11, 1, 5).permute(0, 2, 3, 1).byte()
    good, half, bad = (meter.PuppetMeter().eye_likeness(each, regions, portraits) for each in (whole, one_eye, blurred))
    assert good.shape == (2, 1) and (good > 0.7).all()
    assert (half < good - 0.05).all() and (bad < good - 0.05).all()
    assert not meter.PuppetMeter().eye_likeness(whole, torch.zeros_like(regions), portraits).any(), "no region"
