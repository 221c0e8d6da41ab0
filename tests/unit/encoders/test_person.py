"""Person segmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bya_core.encoders.person import PersonParser, PersonSegmenter
from tests.unit.encoders.face_scenes import RECORDED, person, put, scene


@pytest.fixture(scope="module")
def segmenter() -> PersonSegmenter:
    return PersonSegmenter()


def test_network_matches_the_reference(segmenter: PersonSegmenter) -> None:
    photo = RECORDED["photo"].permute(2, 0, 1).float()
    images = F.pad(torch.stack([photo, photo.flip(2)]), (32, 32, 32, 32), mode="replicate") / 255.0
    with torch.no_grad():
        masks = segmenter.network(images)
    assert (masks[:, ::4, ::4] - RECORDED["person.65536"]).abs().max() < 1e-3


def test_person_in_a_box_and_nothing_elsewhere(segmenter: PersonSegmenter) -> None:
    frames = scene(3)
    for frame in frames:
        put(frame, person(200), 100, 40)
    masks = segmenter(frames, boxes=[(100, 40, 300, 240), (np.nan,) * 4, (150, 40, 900, 240)])
    assert masks.shape == (3, 240, 320) and masks.dtype == np.float32
    assert masks[0, 130, 195] > 0.9 and masks[0, :, :100].max() == 0  # the face, and outside of the box
    assert masks[1].max() == 0
    assert masks[2, :, :150].max() == 0
    whole = segmenter(frames[:1])
    assert whole[0, 130, 195] > 0.8 and 0.1 < (whole > 0.5).mean() < 0.6


def test_parser_gives_a_mask_of_the_person() -> None:
    mask = PersonParser().face(RECORDED["photo"].permute(2, 0, 1) / 255)
    assert mask.dtype == torch.bool and mask.shape == (192, 192) and mask[80, 92] and not mask[5, 5]
