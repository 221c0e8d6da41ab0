"""Clip extraction and the distance filter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.curation.record import Record
from training.curation.segments import Segments, SegmentSettings, distance_ratio


def make_shot(tracks, end=100, width=640, height=480):
    """A shot of frames 0..end with tracks (first, last, x, size)."""
    rows = [
        [n, frame, x, 200, x + size, 200 + size, 0.9]
        for n, (first, last, x, size) in enumerate(tracks)
        for frame in range(first, last + 1, 5)
    ]
    data = {"width": width, "height": height, "last_detection": 95, "stride": 5}
    return Record("film", "film", "shot", content="c", end=end, data=data).with_arrays(tracks=np.array(rows, float))


def extract_clips(record, **settings):
    return Segments(SegmentSettings(size=(480, 640), **settings))(record)


def test_clips_with_exact_number_of_characters():
    shot = make_shot([(0, 95, 100, 80), (0, 95, 400, 80), (60, 95, 250, 80)])
    clips = extract_clips(shot, lengths=(25, 49), context=5)
    assert [(c.start, c.end) for c in clips] == [(5, 54)]
    assert clips[0].array("boxes").shape == (2, 59, 4)
    assert [(c.start, c.end) for c in extract_clips(shot, characters=3, lengths=(25,))] == [(67, 92)]
    (rejected,) = extract_clips(shot, characters=1, lengths=(25,))
    assert rejected.rejected.startswith("no 25 frames with exactly 1 characters")


def test_small_faces():
    background = make_shot([(0, 95, 100, 80), (0, 95, 400, 80), (0, 95, 250, 10)])
    assert extract_clips(background, lengths=(49,))[0].level == "clip"
    assert "too small" in extract_clips(make_shot([(0, 95, 100, 40), (0, 95, 400, 40)]), lengths=(49,))[0].rejected


def test_character_order_is_shuffled():
    shots = [replace(make_shot([(0, 95, 100, 80), (0, 95, 400, 80)]), content=str(n)) for n in range(20)]
    first_is_left = [extract_clips(shot, lengths=(49,))[0].data["left_to_right"][0] == 0 for shot in shots]
    assert 3 < sum(first_is_left) < 17


def test_reference_images_from_outside_the_clip():
    (clip,) = extract_clips(make_shot([(0, 95, 100, 80), (0, 45, 400, 80)]), lengths=(45,))
    inside = [clip.start <= entry["frame"] < clip.end for entry in clip.data["reference"]]
    assert [entry["inside"] for entry in clip.data["reference"]] == inside and sum(inside) <= 1


def test_distance_ratio():
    boxes = np.array([[[0, 0, 20, 20]], [[40, 0, 60, 20]], [[200, 0, 220, 20]]], float)
    assert distance_ratio(boxes[:2]) == pytest.approx(0.5)
    assert distance_ratio(boxes) == pytest.approx(20 / 160)
