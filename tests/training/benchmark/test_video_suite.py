"""The suites of finished videos: layout of the benchmark, any system's folder, results, table and page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bya_core.encoders.face.detection import Face
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools
from bya_core.io.media import read_audio, read_image, resample_mono, write_video
from bya_core.scene.schema import read_scene_file
from tests.parity.weight_rule import ROOT
from training.benchmark import byab
from training.benchmark.video_suite import Tools, _frechet, folder_tasks, summary
from training.evaluate import Arguments, main
from training.puppets.world import SAMPLE_RATE, make_clip

SAMPLES = ROOT.parent / "shared" / "samples"
soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn pairs in the layout of the benchmark, the second with its voices the other way round."""
    root = tmp_path_factory.mktemp("byab")
    for k in range(2):
        clip, folder = make_clip(2_000_101, n=2, num_frames=49, motion="still", talk="overlap"), root / f"{k + 1:03}"
        folder.mkdir()
        for n in range(2):
            Image.fromarray(clip.portraits[n]).save(folder / f"face_{n + 1}.png")
            soundfile.write(folder / f"speech_{n + 1}.wav", clip.speeches[n], SAMPLE_RATE)
        (folder / "source.json").write_text(json.dumps({"prompt": clip.prompt, "speaker_pos": ["left", "right"][k]}))
    Image.fromarray(clip.frames[0]).save(root / "001" / "first_frame.png")
    return root


def test_pairs_become_scene_files(benchmark, tmp_path):
    first, second = byab.read_pairs(benchmark)
    assert first.first_frame is not None and second.first_frame is None and first.separate
    assert not first.swapped and second.swapped
    for pair in (first, second):
        file = tmp_path / f"{pair.name}.json"
        file.write_text(json.dumps(pair.scene(seed=3)))
        scene = read_scene_file(file)
        assert [c.name for c in scene.characters] == ["left", "right"] and scene.seed == 3
    assert scene.audio_character_matrix == "swapped"
    assert byab.fingerprint([first]) == byab.fingerprint([first]) != byab.fingerprint([second])


def test_the_validator_says_what_does_not_fit(benchmark, tmp_path):
    assert byab.check(benchmark) == ["2 pairs; the benchmark has 40, so figures are not comparable with its own"]
    broken = tmp_path / "broken"
    shutil.copytree(benchmark, broken)
    shutil.copytree(broken / "002", broken / "003")
    (broken / "001" / "face_2.png").unlink()
    (broken / "002" / "speech_2.wav").unlink()
    (broken / "003" / "source.json").write_text('{"prompt": "x", "speaker_pos": "up"}')
    said = "\n".join(byab.check(broken))
    for words in ("001: ", "without face_2", "002: ", "one of two speech streams", "003: ", '"speaker_pos": "up"'):
        assert words in said
    soundfile.write(broken / "002" / "speech_2.wav", np.zeros(100), SAMPLE_RATE)
    assert "should be of one length" in "\n".join(byab.check(broken))
    (broken / "002" / "speech_1.wav").rename(broken / "002" / "mix.wav")
    (broken / "002" / "speech_2.wav").unlink()
    assert "cannot be judged without two streams" in "\n".join(byab.check(broken))
    with pytest.raises(InputError, match="without pairs"):
        byab.read_pairs(tmp_path)


@pytest.fixture(scope="module")
def videos(benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of two systems: one drew what was asked, one swapped the voices of the first clip."""
    root = tmp_path_factory.mktemp("systems")
    clip = make_clip(2_000_101, n=2, num_frames=49, motion="still", talk="overlap")
    tracks = clip.opening[::-1], clip.speeches
    crossed = make_clip(2_000_101, n=2, num_frames=49, motion="still", talk="overlap", tracks=tracks)
    for system, drawn in (("good", (clip, crossed)), ("bad", (crossed, crossed))):
        (root / system).mkdir()
        for pair, one in zip(byab.read_pairs(benchmark), drawn, strict=True):
            sound = torch.from_numpy(clip.mix)[None], SAMPLE_RATE
            write_video(root / system / f"{pair.name}.mp4", one.frames, one.fps, sound)
            (root / f"{pair.name}.json").write_text(json.dumps(pair.scene(length=49)))
    return root


def test_systems_are_measured_side_by_side(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path / "no weights"))
    asked = Arguments(suite="folder", data=videos, output=tmp_path / "results")
    main(asked)
    report = json.loads((tmp_path / "results" / "results.json").read_text())
    systems = report["systems"]
    assert systems["good"]["bound"] == 100.0 and systems["bad"]["bound"] == 50.0
    assert systems["good"]["sync_c"] is None and "syncnet_v2.model" in "\n".join(report["notices"])
    table = (tmp_path / "results" / "table.md").read_text()
    assert "| good | 100.00 | 2 |" in table and "Sync-C" not in table.splitlines()[0], "no column without figures"
    page = (tmp_path / "results" / "index.html").read_text()
    assert page.count("<video ") == 4 and page.count('class="bad"') == 1 and page.count('class="good"') == 3
    for row in report["rows"]:
        assert Path(row["picture"]).is_file()
    main(asked)
    again = json.loads((tmp_path / "results" / "results.json").read_text())
    assert again["rows"] == report["rows"] and again["systems"] == systems
    (tmp_path / "results" / "results.json").unlink()
    main(asked)
    assert json.loads((tmp_path / "results" / "results.json").read_text()) == report, "two runs, the same numbers"
    capsys.readouterr()


def test_videos_that_are_there_are_not_made_again(benchmark, videos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path / "no weights"))
    output = tmp_path / "out"
    shutil.copytree(videos / "good", output / "videos" / "official")
    main(Arguments(suite="byab", data=benchmark, model="official", output=output))
    report = json.loads((output / "results.json").read_text())
    assert report["systems"]["official"]["bound"] == 100.0, "the second pair asks for swapped voices, and has them"
    assert report["settings"]["list"] == byab.VERSION and "2 pairs; the benchmark has 40" in report["notices"][0]
    assert "| official |" in capsys.readouterr().out
    with pytest.raises(InputError, match="--data"):
        main(Arguments(suite="byab", output=output))


def test_a_video_needs_its_scene(videos, tmp_path):
    shutil.copy(videos / "good" / "001.mp4", tmp_path / "new.mp4")
    with pytest.raises(InputError, match="new.json"):
        folder_tasks(tmp_path)
    tasks = folder_tasks(videos)
    assert [(task.system, task.clip) for task in tasks] == [(s, c) for s in ("bad", "good") for c in ("001", "002")]
    with pytest.raises(InputError, match="without videos"):
        folder_tasks(tmp_path / "nowhere")


class Eyes:
    """Sees two faces at fixed places; features are mean colours."""

    name = "fixed"

    def detect(self, image: torch.Tensor) -> list[Face]:
        return [Face((8.0, 8.0, 40.0, 56.0), 0.9), Face((56.0, 8.0, 88.0, 56.0), 0.9)]

    def pictures(self, pictures: np.ndarray) -> np.ndarray:
        assert pictures.shape[1:] == (299, 299, 3)
        return pictures[:, ::16, ::16].mean(axis=(1, 2))

    def videos(self, videos: np.ndarray) -> np.ndarray:
        return videos.reshape(videos.shape[1], -1, 3).mean(axis=1)


def test_distances_from_real_videos(videos):
    eyes = Eyes()
    tools = Tools(FaceTools(eyes), eyes, eyes)
    tasks = [task for task in folder_tasks(videos) if task.system == "good"][:1]
    same = _frechet(tasks, videos / "good", tools)
    assert same == {"fid": pytest.approx(0.0, abs=1e-3), "fvd": pytest.approx(0.0, abs=1e-3)}
    other = _frechet(tasks, videos / "bad", tools)
    assert other["fid"] > 1e-3, "another mouth is another face region"
    assert _frechet(tasks, videos / "bad", Tools(FaceTools(eyes))) == {"fid": None, "fvd": None}
    with pytest.raises(InputError, match="001.mp4"):
        _frechet(tasks, videos, tools)


def test_means_over_characters_then_videos():
    row = {"face_sim": [0.5, 0.7], "arcface_sim": None, "confidence": [4.0, 2.0]}
    row |= {"distance": [8.0, 9.0], "margin": [1.0, None]}
    rows = [row | {"passed": True, "judged": True}, row | {"passed": None, "judged": False, "face_sim": [0.8, None]}]
    assert summary(rows) == {
        "face_sim": 70.0, "arcface_sim": None, "sync_c": 3.0, "sync_d": 8.5, "margin": 1.0, "bound": 100.0,
        "videos": 2, "judged": 1,
    }  # fmt: skip


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no samples beside the project")
def test_samples_go_as_far_as_they_can_without_weights(tmp_path, monkeypatch, capsys):
    """Real pictures and recordings in the benchmark's layout; as a video, the first frame held still."""
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path / "no weights"))
    said = byab.check(SAMPLES)
    assert sum("one recording of both voices" in line for line in said) == 3 and "3 pairs" in said[-1]
    output = tmp_path / "out"
    (output / "videos" / "still").mkdir(parents=True)
    for pair in byab.read_pairs(SAMPLES):
        assert pair.first_frame is not None and pair.swapped == (pair.name == "014")
        frame = read_image(pair.first_frame)
        small = torch.nn.functional.interpolate(frame[None], size=(240, 360), mode="area")[0]
        pixels = (small.permute(1, 2, 0) * 255).round().byte().numpy()
        heard, rate = read_audio(pair.speeches[0])
        sound = resample_mono(heard, rate, 16_000)[None, :16_000], 16_000
        write_video(output / "videos" / "still" / f"{pair.name}.mp4", [pixels] * 26, 25, sound)
    main(Arguments(suite="byab", data=SAMPLES, model="still", output=output))
    report = json.loads((output / "results.json").read_text())
    assert len(report["rows"]) == 3 and all(row["passed"] is None for row in report["rows"])
    assert any("left to right" in line for line in report["rows"][0]["text"])
    assert report["systems"]["still"]["bound"] is None and "Sync-C" in "\n".join(report["notices"])
    capsys.readouterr()
