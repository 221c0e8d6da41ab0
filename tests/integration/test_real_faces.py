"""Faces of real people: the GRID clips of tests/assets, and a folder of more clips where there is one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bya_core.encoders.face.mesh import FaceMesh
from bya_core.encoders.face.tracking import track_faces
from bya_core.io.media import read_frames, read_image
from tests.clips import NAMES, read_clip, side_by_side

ROOT = Path(__file__).resolve().parents[2]
CLIPS = Path(os.environ.get("BYA_CLIPS_DIR", ROOT.parent / "shared" / "clips"))
"""Folder with manifest.json: sources (one person each, with a portrait) and videos with several characters."""


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


@pytest.mark.parametrize("name", NAMES)
def test_one_person(mesh: FaceMesh, name: str) -> None:
    frames = read_clip(name)[0][:25]
    (track,) = track_faces(frames, mesh)
    assert track.visible.all() and track.scores.min() > 0.6
    width = np.ptp(track.boxes[:, [0, 2]], axis=1)
    assert np.abs(np.diff(width)).max() < 0.06 * width.mean()  # steady from frame to frame
    (face,) = mesh.detect(torch.from_numpy(frames[0].copy()).permute(2, 0, 1) / 255)
    assert np.abs(np.array(face.box) - track.boxes[0]).max() < 0.06 * width.mean()


def test_three_people_side_by_side(mesh: FaceMesh) -> None:
    frames = side_by_side(NAMES[:3])[0][:13]
    tracks = track_faces(frames, mesh)
    assert len(tracks) == 3 and all(track.visible.all() for track in tracks)
    assert [int(track.points[:, :, 0].mean() // 360) for track in tracks] == [0, 1, 2]


@pytest.mark.slow
def test_all_clips(mesh: FaceMesh) -> None:
    """At least 99 % of the faces are found, and at most 1 % of the frames show more faces than people."""
    if not (CLIPS / "manifest.json").is_file():
        pytest.skip(f"no manifest.json in {CLIPS}: set BYA_CLIPS_DIR to the folder of the clips")
    manifest = json.loads((CLIPS / "manifest.json").read_text(encoding="utf-8"))
    videos = {entry["file"]: 1 for entry in manifest["sources"].values()}
    videos |= {name: len(entry["characters"]) for name, entry in manifest["videos"].items()}
    found = wanted = invented = total = 0
    for name, count in videos.items():
        if not (CLIPS / name).is_file():
            continue
        frames = read_frames(CLIPS / name).frames.numpy()
        visible = np.sum([track.visible for track in track_faces(frames, mesh)], axis=0)
        if not name.startswith("cross/"):  # people hide each other there
            found, wanted = found + int(np.minimum(visible, count).sum()), wanted + count * len(frames)
        invented, total = invented + int((visible > count).sum()), total + len(frames)
    assert wanted and found >= 0.99 * wanted and invented <= 0.01 * total, (found, wanted, invented, total)
    for entry in manifest["sources"].values():
        assert len(mesh.detect(read_image(CLIPS / entry["portrait"]))) == 1, entry["portrait"]
