"""Commands on videos of real people: combinations of tests/assets/grid, and ../shared/clips where it exists."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bya_core.cli.main import main
from bya_core.cli.report import INCONCLUSIVE, NOT_BOUND
from bya_core.encoders.face.mesh import FaceMesh
from bya_core.io.media import read_image
from bya_core.scene.loader import load_scene
from bya_core.scene.timeline import read_timeline
from tests.clips import read_clip, side_by_side, write_clip
from tests.unit.scene.test_loader import DEFAULTS

SHARED = Path(__file__).resolve().parents[3] / "shared" / "clips"
PEOPLE = ("brbk7n", "lrwp9a")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people side by side, each with a portrait and a voice; scenes that name them in the other order."""
    path = tmp_path_factory.mktemp("people")
    frames, voices = side_by_side(PEOPLE)
    write_clip(path / "both.mp4", frames, voices.sum(axis=0) / 2)
    still = np.concatenate([frames[:, :, :360], np.broadcast_to(frames[:1, :, 360:], frames[:, :, 360:].shape)], axis=2)
    write_clip(path / "one.mp4", still, voices[0])
    for name, voice in zip(PEOPLE, voices, strict=True):
        Image.fromarray(read_clip(name)[0][0]).save(path / f"{name}.png")
        with wave.open(str(path / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes((voice * 32767).astype(np.int16).tobytes())
    for scene, order in (("right", (1, 0)), ("swapped", (0, 1))):
        characters = [
            {"name": PEOPLE[n], "image": f"{PEOPLE[n]}.png", "speech": f"{PEOPLE[m]}.wav"}
            for n, m in zip((1, 0), order, strict=True)
        ]
        (path / f"{scene}.json").write_text(json.dumps({"prompt": "two people", "characters": characters}))
    return path


def report(video: Path, *options: str | Path) -> tuple[int, dict]:
    data = video.with_suffix(".report.json")
    code = main(["report", str(video), *map(str, options), "--json", str(data)])
    return code, json.loads(data.read_text())


def test_faces_are_found_by_likeness(folder: Path) -> None:
    """The scene lists the right person first: the order in the picture does not matter."""
    code, right = report(folder / "both.mp4", "--scene", folder / "right.json")
    assert code == 0 and right["verdicts"] == ["own", "own"] and right["measure"] == "lip movement"
    code, swapped = report(folder / "both.mp4", "--scene", folder / "swapped.json")
    assert code == NOT_BOUND and swapped["verdicts"] == ["wrong", "wrong"]


def test_masks_and_voices(folder: Path) -> None:
    masks = np.zeros((2, 1, 12, 18), np.float32)
    masks[0, :, :, :9], masks[1, :, :, 9:] = 1, 1
    np.savez(folder / "masks.npz", masks=masks, names=np.array(PEOPLE))
    code, masked = report(folder / "both.mp4", "--scene", folder / "right.json", "--masks", folder / "masks.npz")
    assert code == 0 and masked["verdicts"] == ["own", "own"]
    files = [folder / f"{name}.wav" for name in reversed(PEOPLE)]
    code, voices = report(folder / "both.mp4", "--voices", *files)
    assert code == 0 and voices["should_follow"] == [1, 0] and voices["voices"] == list(reversed(PEOPLE))


def test_one_speaker(folder: Path) -> None:
    code, one = report(folder / "one.mp4", "--voices", folder / f"{PEOPLE[0]}.wav")
    assert code == 0 and one["verdicts"] == ["own", "still"]
    timeline = folder / "turns.json"
    plot = folder / "turns.png"
    options = ["-o", str(timeline), "--scene", str(folder / "right.json"), "--plot", str(plot)]
    assert main(["speakers", str(folder / "one.mp4"), *options]) == 0
    assert {turn["speaker"] for turn in json.loads(timeline.read_text())} == {PEOPLE[0]} and plot.stat().st_size > 1000


def test_scene_of_a_video(folder: Path) -> None:
    """The turns of a video become a scene that can be loaded, with portraits of its own or the given ones."""
    scene, timeline = folder / "found.json", folder / "turns.rttm"
    assert main(["speakers", str(folder / "one.mp4"), "-o", str(timeline), "--save-scene", str(scene)]) == 0
    loaded = load_scene(scene, DEFAULTS, force=True)
    assert [each.name for each in loaded.characters] == ["face 1", "face 2"]
    assert [speech is None or speech.silent for speech in loaded.speeches] == [False, True]
    assert len(FaceMesh().detect(read_image(scene.parent / "found_faces" / "face 2.png"))) == 1
    assert {turn.speaker for turn in read_timeline(timeline)} == {"face_1"}
    named = folder / "named.json"
    options = [
        "-o",
        str(folder / "named_turns.json"),
        "--scene",
        str(folder / "right.json"),
        "--save-scene",
        str(named),
    ]
    assert main(["speakers", str(folder / "one.mp4"), *options]) == 0
    written = json.loads(named.read_text())
    assert [each["image"] for each in written["characters"]] == [f"{name}.png" for name in reversed(PEOPLE)]
    assert written["dialogue"] == "one.mp4" and {turn["speaker"] for turn in written["timeline"]} == {PEOPLE[0]}


def _shared() -> list[tuple[str, dict]]:
    file = SHARED / "manifest.json"
    if not file.is_file():
        return []
    videos = json.loads(file.read_text())["videos"]
    chosen = ("n2/vr_1+vr_3.mp4", "n2/vr_1+vr_3.mp4#swapped", "listen/vr_1+vr_3.mp4", "n2/vr_3+st_kh.mp4")
    return [(name, videos[name]) for name in chosen if name in videos]


@pytest.mark.skipif(not _shared(), reason=f"no {SHARED}: videos of people who are not in the training data")
@pytest.mark.parametrize("name", [name for name, _ in _shared()])
def test_other_people(name: str, tmp_path: Path) -> None:
    clip = dict(_shared())[name]
    data = tmp_path / "report.json"
    options = ["--scene", str(SHARED / clip["scene"]), "--json", str(data)]
    code = main(["report", str(SHARED / clip.get("video", name)), *options])
    own = clip["truth"]["own"] == [0, 1]
    assert code in ((0, INCONCLUSIVE) if own else (NOT_BOUND,))
    verdicts = json.loads(data.read_text())["verdicts"]
    for verdict, speaks in zip(verdicts, clip["truth"]["speaks"], strict=True):
        assert speaks or verdict == "still"
