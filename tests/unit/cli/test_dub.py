"""`bya dub` with a small model: options, files, messages."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from bya_core.cli import main as cli
from bya_core.io.media import read_audio, read_video, write_video
from tests.fakes import RATE
from tests.unit.conftest import SceneMaker

PEOPLE = [{"name": "Ada", "image": "ada.png", "speech": "ada.wav"}, {"name": "Bo", "image": "bo.png"}]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (13, 64, 96, 3), dtype=np.uint8)
    write_video(path, torch.from_numpy(frames), 25.0, (torch.full((1, RATE), 0.1), RATE))
    return path


def run(*words: str | Path) -> int:
    return cli.main(["dub", *map(str, words)])


def test_only_the_mouth_changes_in_a_lossless_file(
    registered: ModuleType, found_people: None, film: Path, make_scene: SceneMaker, tmp_path: Path
) -> None:
    scene, made = make_scene(characters=PEOPLE), tmp_path / "out.mp4"
    files = ["--overlay", tmp_path / "regions.mp4", "--json", tmp_path / "report.json"]
    assert run(film, "--scene", scene, "-o", made, "--lossless", "--feather", "2", *files) == 0
    before, fps = read_video(film)
    after, same = read_video(made)
    assert before.shape == after.shape and fps == same == 25.0
    changed = (before != after).any(dim=3)
    assert changed.any() and not changed[:, :, 48:].any() and changed.float().mean() < 0.2
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dub"]["characters"] == ["Ada"] and report["dub"]["feather"] == 2
    assert report["film"]["frames"] == 13 and report["windows"][0]["generated"]
    assert not list(tmp_path.glob("*.windows")), "finished windows are deleted"


def test_usual_file_has_the_length_of_the_film_and_the_new_voice(
    registered: ModuleType, found_people: None, film: Path, make_scene: SceneMaker, tmp_path: Path
) -> None:
    made = tmp_path / "out.mp4"
    assert run(film, "--scene", make_scene(characters=PEOPLE), "-o", made) == 0
    frames, fps = read_video(made)
    sound, rate = read_audio(made)
    assert len(frames) == 13 and fps == 25.0
    assert abs(sound.shape[1] / rate - 13 / 25) < 0.06 and float(sound.abs().max()) > 0.2


def test_people_who_are_not_found_are_one_sentence(
    registered: ModuleType, film: Path, make_scene: SceneMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(film, "--scene", make_scene(characters=PEOPLE), "-o", tmp_path / "out.mp4") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: a film in which Ada cannot be recognized")
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--feather", "-1"], "feather is -1"),
        (["--strength", "1.5"], "strength is 1.5"),
        (["--region", "eyes"], "--region"),
        (["--region", "given"], 'region "given" without masks'),
        (["--masks", "none.npz"], "none.npz"),
        (["--regenerate-seed", "3"], "without --regenerate"),
    ],
)
def test_wrong_options_are_one_sentence(
    registered: ModuleType,
    found_people: None,
    film: Path,
    make_scene: SceneMaker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert run(film, "--scene", make_scene(characters=PEOPLE), "-o", tmp_path / "out.mp4", *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out.mp4").exists()


def test_scene_without_new_speech(
    registered: ModuleType, found_people: None, film: Path, make_scene: SceneMaker, tmp_path: Path
) -> None:
    people = [{"name": "Ada", "image": "ada.png"}]
    assert run(film, "--scene", make_scene(characters=people), "-o", tmp_path / "out.mp4") == 2


def test_film_is_never_overwritten(
    registered: ModuleType, found_people: None, film: Path, make_scene: SceneMaker, tmp_path: Path
) -> None:
    content = film.read_bytes()
    assert run(film, "--scene", make_scene(characters=PEOPLE), "-o", film) == 2
    assert film.read_bytes() == content


def test_masks_of_the_film_are_the_region(
    registered: ModuleType, found_people: None, film: Path, make_scene: SceneMaker, tmp_path: Path
) -> None:
    masks = np.zeros((2, 13, 16, 24), np.float32)
    masks[0, :, 4:8, 4:8], masks[1, :, 4:8, 16:20] = 1, 1
    np.savez(tmp_path / "masks.npz", masks=masks, names=["Ada", "Bo"])
    made = tmp_path / "out.mp4"
    options = ["--masks", tmp_path / "masks.npz", "--region", "given", "--feather", "0", "--lossless"]
    assert run(film, "--scene", make_scene(characters=PEOPLE), "-o", made, *options) == 0
    changed = (read_video(film)[0] != read_video(made)[0]).any(dim=3).any(dim=0).nonzero()
    assert changed.amin(0).tolist() == [16, 16] and changed.amax(0).tolist() == [31, 31]


def test_separate_recordings_of_the_scene_file(
    registered: ModuleType, found_people: None, film: Path, make_scene: SceneMaker, tmp_path: Path
) -> None:
    stems = [{"character": "ada", "file": "ada.wav"}, {"character": "Bo", "file": "bo.wav"}]
    made = tmp_path / "out.mp4"
    assert run(film, "--scene", make_scene(characters=PEOPLE, dub={"stems": stems}), "-o", made) == 0
    sound, rate = read_audio(made)
    spectrum = torch.fft.rfft(sound.mean(0)[: round(0.28 * rate)]).abs()
    at = {hertz: float(spectrum[round(hertz * 0.28) - 2 : round(hertz * 0.28) + 3].max()) for hertz in (200, 300, 450)}
    assert at[200] > 10 * at[450] and at[300] > 10 * at[450], "the new voice of Ada and the old one of Bo, not the film"


@pytest.mark.parametrize("command", [["generate", "no.json"], ["dub", "no.mp4", "--scene", "no.json"]])
def test_work_folder_is_checked_first(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main([*command, "-o", str(tmp_path / "out.mp4"), "--work-dir", str(tmp_path / "file")]) == 2
    assert "a folder, not a file" in capsys.readouterr().err
