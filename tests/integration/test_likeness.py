"""Faces of real people assigned to the reference images of a scene: tests/assets/grid, and ../shared/clips."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from bya_core.encoders.face.mesh import FaceMesh
from bya_core.encoders.face.tracking import track_faces
from bya_core.evaluation.face_report import FaceTools, cast_faces
from bya_core.io.media import read_image
from tests.clips import NAMES, read_clip, side_by_side

SHARED = Path(__file__).resolve().parents[3] / "shared" / "clips"
pytestmark = pytest.mark.slow
EVERY = 5  # frames of which one is looked at


@pytest.fixture(scope="module")
def tools() -> FaceTools:
    return FaceTools(FaceMesh())


def portrait(name: str) -> torch.Tensor:
    return torch.from_numpy(read_clip(name)[0][37].copy()).permute(2, 0, 1) / 255


def cast(frames: np.ndarray, characters: list[torch.Tensor], tools: FaceTools) -> tuple[list[list[int]], list[str]]:
    """Numbers of the faces from left to right that are each character, and notices."""
    tracks = track_faces(frames, tools.mesh)
    members, _, notices = cast_faces(frames, tracks, characters, None, tools, None)
    return members, notices


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_three_people_in_any_order(tools: FaceTools, order: tuple[int, ...]) -> None:
    people = NAMES[:3]
    frames = side_by_side(people)[0][::EVERY]
    members, notices = cast(frames, [portrait(people[n]) for n in order], tools)
    assert members == [[n] for n in order] and not notices


@pytest.mark.parametrize("stranger", NAMES[2:])
@pytest.mark.parametrize("first", [True, False])
def test_stranger_is_not_matched(tools: FaceTools, stranger: str, first: bool) -> None:
    """One of two people is in the scene; the other reference image shows somebody else, at either place."""
    frames = side_by_side(NAMES[:2])[0][::EVERY]
    characters = [portrait(stranger), portrait(NAMES[1])] if first else [portrait(NAMES[0]), portrait(stranger)]
    members, notices = cast(frames, characters, tools)
    assert members == ([[], [1]] if first else [[0], []])
    assert any("no face was assigned" in text for text in notices) and any("further face" in text for text in notices)


def test_nobody_of_the_scene(tools: FaceTools) -> None:
    frames = side_by_side(NAMES[:2])[0][::EVERY]
    members, notices = cast(frames, [portrait(name) for name in NAMES[2:4]], tools)
    assert members == [[], []] and len(notices) == 3


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}: videos of people who are not in the training data")
def test_shared_clips(tools: FaceTools) -> None:
    """Every pair of people in every video with two of them, in both orders; and each with a stranger instead."""
    manifest = json.loads((SHARED / "manifest.json").read_text())
    images = {name: read_image(SHARED / source["portrait"]) for name, source in manifest["sources"].items()}
    chosen = {name: each for name, each in manifest["videos"].items() if each["kind"] == "n2" and "#" not in name}
    taken, tried = 0, 0
    for name, video in chosen.items():
        with av.open(str(SHARED / name)) as container:
            frames = np.stack([each.to_ndarray(format="rgb24") for each in container.decode(video=0)])[::EVERY]
        tracks = track_faces(frames, tools.mesh)
        for order in permutations(range(2)):
            characters = [images[video["characters"][n]] for n in order]
            members, _, _ = cast_faces(frames, tracks, characters, None, tools, None)
            assert members == [[n] for n in order], name
        for stranger in sorted(set(images) - set(video["characters"])):
            members, _, _ = cast_faces(frames, tracks, [images[stranger], characters[0]], None, tools, None)
            taken, tried = taken + bool(members[0]), tried + 1
    assert taken <= 0.05 * tried
