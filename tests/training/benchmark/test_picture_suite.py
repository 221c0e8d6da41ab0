"""Picture suite: the ground truth scores about 1, broken images do not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from training.benchmark.picture_metrics import evaluate_frame
from training.benchmark.picture_suite import (
    PictureEvaluator,
    PictureNetwork,
    aggregate,
    evaluate_video,
    evaluated_frames,
    picture_report,
    picture_table,
)
from training.benchmark.puppet_fit import fit_frame
from training.benchmark.scenes import SceneSettings
from training.evaluate import EvaluateOptions, main
from training.puppets.world import make_clip

SEED = 2_000_040


def still_clip(n=2, frames=1):
    return make_clip(SEED, n, num_frames=frames, motion="still")


def evaluated(frame, clip):
    return evaluate_frame(frame, clip.looks, clip.portraits, fit_frame(frame, clip.looks))


def eye(clip, character, side):
    x, y = clip.eye_centers[character, 0, side]
    return round(float(x)), round(float(y)), clip.looks[character].eye_size * float(clip.poses[character].radius[0])


def with_disc(frame, x, y, radius, color):
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]]
    changed = frame.copy()
    changed[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = color
    return changed


def without_eye(clip):
    x, y, size = eye(clip, 0, 1)
    return with_disc(clip.frames[0], x, y, 1.6 * size, np.clip(clip.looks[0].skin * 255, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ground_truth_is_intact(n):
    clip = still_clip(n)
    for face in evaluated(clip.frames[0], clip):
        assert face.intact and face.outline > 0.93 and face.likeness > 0.6 and 0.8 < face.sharpness < 1.25


def test_missing_eye():
    clip = still_clip()
    faces = evaluated(without_eye(clip), clip)
    assert faces[0].eyes[0] > 0.8 > 0.6 > faces[0].eyes[1] and not faces[0].intact and faces[1].intact


def test_third_eye():
    clip = still_clip()
    (left, y, size), (right, _, _) = eye(clip, 0, 0), eye(clip, 0, 1)
    face = evaluated(with_disc(clip.frames[0], (left + right) / 2, y + 3.2 * size, size, (250, 250, 245)), clip)[0]
    assert face.extra and not face.intact


def test_displaced_eye():
    clip = still_clip()
    x, y, size = eye(clip, 0, 1)
    half, shift = int(1.5 * size), round(2.2 * size)
    frame, columns = without_eye(clip), slice(x - half, x + half)
    frame[y - half + shift : y + half + shift, columns] = clip.frames[0][y - half : y + half, columns]
    assert not evaluated(frame, clip)[0].intact


def test_swollen_head_has_a_worse_outline():
    clip = still_clip(1)
    frame = clip.frames[0]
    large = zoom(frame, (1.3, 1.3, 1), order=1)
    top, left = (large.shape[0] - 64) // 3, (large.shape[1] - 96) // 2
    outline = evaluated(large[top : top + 64, left : left + 96], clip)[0].outline
    assert evaluated(frame, clip)[0].outline > 0.93 and (outline is None or outline < 0.87)


def test_missing_characters_are_not_intact():
    clip = still_clip()
    empty = np.repeat(np.median(clip.frames[0], axis=1, keepdims=True), 96, axis=1).astype(np.uint8)
    assert all(not face.intact and min(face.eyes) < 0.6 for face in evaluated(empty, clip))


def test_blur_reduces_sharpness_and_eyes():
    clip = still_clip(4)
    blurred = gaussian_filter(clip.frames[0].astype(np.float32), (2.5, 2.5, 0)).astype(np.uint8)
    faces = [face for face in evaluated(blurred, clip) if face.eyes is not None]
    assert np.mean([face.sharpness for face in faces]) < 0.7
    assert np.mean([face.intact for face in faces]) < 0.5


def test_videos_are_evaluated_by_thirds():
    assert evaluated_frames(1) == {"first": [0]}
    assert evaluated_frames(17) == {"first": [1, 4], "middle": [7, 9], "last": [13, 16]}
    clip = still_clip(1, frames=17)
    noisy = np.clip(clip.frames + np.random.default_rng(0).normal(0, 12, clip.frames.shape), 0, 255).astype(np.uint8)
    drawn, changed = (evaluate_video(frames, clip) for frames in (clip.frames, noisy))
    assert set(drawn) == {"first", "middle", "last"}
    drawn_flicker, noisy_flicker = ([x for part in v.values() for x in part["flicker"]] for v in (drawn, changed))
    assert max(drawn_flicker) < 1.0 < min(noisy_flicker)


def test_network_is_deterministic():
    frames = still_clip(1, frames=5).frames
    assert np.array_equal(PictureNetwork()(frames), PictureNetwork()(frames))


@pytest.mark.slow
def test_ground_truth_and_other_scenes():
    settings = SceneSettings(scenes=4, seed_base=2_000_000, characters=2)
    truth, other = (
        picture_report(PictureEvaluator.create(None, settings, (17,), reference=name), name)
        for name in ("truth", "shuffled")
    )
    assert "intact_faces" in picture_table(truth)
    truth, other = (report["lengths"]["17"]["all"] for report in (truth, other))
    assert truth["intact_faces"] > 0.95 and truth["outline"] > 0.95
    assert other["intact_faces"] < 0.3 and other["outline"] < 0.85


def test_command_resumes_its_report(tmp_path, capsys):
    path = tmp_path / "report.json"
    options = EvaluateOptions(
        suite="pictures", model="truth", json=path, scenes=1, seed_base=2_000_000, characters=1, lengths=(1,)
    )
    main(options)
    first = json.loads(path.read_text())
    main(options)
    assert json.loads(path.read_text())["scenes"] == first["scenes"]
    assert first["lengths"]["1"]["all"]["intact_faces"] == 1.0 and "1 frames" in capsys.readouterr().out
    assert aggregate(first["scenes"], 1)["n = 1"]["videos"] == 1
