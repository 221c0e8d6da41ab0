"""Color conversion and histograms, and loudness."""

from __future__ import annotations

import numpy as np
import pytest

from bya_core.io.color import color_descriptor, histogram, histogram_similarity, lab, lab_bins
from bya_core.io.loudness import loudness_track


def test_lab() -> None:
    colors = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]], dtype=np.uint8)
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    assert np.allclose(lab(colors), expected, atol=0.3)


def test_histogram_weights() -> None:
    colors, weights = lab(np.random.default_rng(0).random((50, 3))), np.zeros(50)
    weights[7] = 1.0
    assert histogram(colors).sum() == pytest.approx(1.0)
    assert histogram(colors, weights).argmax() == lab_bins(colors[7])


def test_similar_colors_have_similar_descriptors() -> None:
    rng = np.random.default_rng(1)
    images, region = rng.random((8, 1, 1, 3)) * np.ones((8, 6, 6, 3)), np.ones((6, 6), dtype=bool)
    references = np.stack([color_descriptor(image, region) for image in images])
    for k, image in enumerate(images):
        noisy = color_descriptor(np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1), region)
        assert histogram_similarity(noisy, references).argmax() == k


def test_loudness_track() -> None:
    wave = np.zeros(16000)
    wave[8000:] = 1.0
    track = loudness_track(wave, 16000, 25)
    assert track[:12] == pytest.approx(np.zeros(12)) and track[14:] == pytest.approx(np.ones(11))
    assert loudness_track(np.stack([wave, -wave]), 16000, 25).max() == 0.0, "channels are averaged"
    assert loudness_track(wave, 16000, 50)[30:].max() == 0.0, "silence after the end"
