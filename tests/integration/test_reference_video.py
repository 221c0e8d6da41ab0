"""Voices assigned to characters by a reference video of real people: combinations of tests/assets/grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bya_core.encoders.face.mesh import FaceMesh
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools
from bya_core.evaluation.reference_video import match_reference_video
from bya_core.io.video import Video
from bya_core.scene.types import Speech
from tests.clips import read_clip, side_by_side

PEOPLE = ("brbk7n", "lrwp9a")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tools() -> FaceTools:
    return FaceTools(FaceMesh())


def footage(names: tuple[str, ...]) -> Video:
    frames = torch.from_numpy(side_by_side(names)[0].copy())
    return Video(frames, 25.0, torch.arange(len(frames)), len(frames))


def portrait(name: str) -> torch.Tensor:
    return torch.from_numpy(read_clip(name)[0][40].copy()).permute(2, 0, 1) / 255


def speech(name: str) -> Speech:
    return Speech(torch.from_numpy(read_clip(name)[1].copy())[None], 16_000)


@pytest.mark.parametrize("voices", [(0, 1), (1, 0)])
@pytest.mark.parametrize("characters", [(0, 1), (1, 0)])
def test_each_voice_drives_the_mouth_that_says_it(
    tools: FaceTools, voices: tuple[int, int], characters: tuple[int, int]
) -> None:
    """Neither the order of the voices, nor that of the characters, nor the position in the picture decides."""
    speeches = [speech(PEOPLE[m]) for m in voices]
    named = [PEOPLE[n] for n in characters]
    matrix = match_reference_video(footage(PEOPLE), speeches, [portrait(name) for name in named], named, tools)
    assert matrix.tolist() == [[float(n == m) for n in characters] for m in voices]


def test_silent_stream_belongs_to_the_listener(tools: FaceTools) -> None:
    speeches = [None, speech(PEOPLE[0])]
    matrix = match_reference_video(footage(PEOPLE), speeches, [portrait(name) for name in PEOPLE], PEOPLE, tools)
    assert matrix.tolist() == [[0, 1], [1, 0]]


def test_refused(tools: FaceTools) -> None:
    """A voice that nobody says, another person than those of the scene, and drawn characters."""
    portraits, spoken = [portrait(name) for name in PEOPLE], [speech(name) for name in PEOPLE]
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 48_000)).astype(np.float32))
    with pytest.raises(InputError, match="lips do not tell"):
        match_reference_video(footage(PEOPLE), [spoken[0], Speech(noise, 16_000)], portraits, PEOPLE, tools)
    with pytest.raises(InputError, match="lbax4n cannot be recognized"):
        match_reference_video(footage(PEOPLE), spoken, [portraits[0], portrait("lbax4n")], (PEOPLE[0], "lbax4n"), tools)


def test_scene_file(tmp_path: Path) -> None:
    """Voices are listed in the other order than the people who say them; the matrix corrects that."""
    from bya_core import load_model
    from bya_core.pipelines.assignment import with_audio_assignment
    from bya_core.scene.loader import load_scene
    from tests.clips import write_clip

    frames, voices = side_by_side(PEOPLE)
    write_clip(tmp_path / "both.mp4", frames, voices.sum(axis=0) / 2)
    for name in PEOPLE:
        Image.fromarray(read_clip(name)[0][0]).save(tmp_path / f"{name}.png")
        write_clip(tmp_path / f"{name}.mp4", frames[:2], read_clip(name)[1])
    characters = [
        {"name": one, "image": f"{one}.png", "speech": f"{other}.mp4"}
        for one, other in zip(PEOPLE, reversed(PEOPLE), strict=True)
    ]
    scene = {"prompt": "two people", "characters": characters, "reference_video": "both.mp4", "force": True}
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(scene))
    model = load_model("toy")
    with pytest.raises(InputError, match="without automatic audio assignment"):
        load_scene(path, model)
    for content, options in (
        (scene | {"audio_character_matrix": "auto"}, {}),
        (scene, {"reference_video": tmp_path / "both.mp4"}),
    ):
        path.write_text(json.dumps(content))
        loaded = with_audio_assignment(load_scene(path, model, **options), model)
        assert loaded.matrix.tolist() == [[0, 1], [1, 0]] and loaded.bind == "given" and loaded.reference_video is None
        assert "speech 1 -> lrwp9a, speech 2 -> brbk7n" in loaded.notices[-1]
