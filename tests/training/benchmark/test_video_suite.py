"""Suites of finished videos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bya_core.encoders.face.tracking import FaceTrack
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools
from bya_core.io.media import write_video
from bya_core.scene.schema import read_scene_file
from bya_core.weights.loader import load_bundle
from training.benchmark import byab
from training.benchmark.video_suite import MetricModels, _frechet, row_key
from training.benchmark.video_tasks import folder_tasks, generation_key
from training.evaluate import EvaluateOptions, main
from training.puppets.world import SAMPLE_RATE, make_clip

SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "samples"
soundfile = pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn pairs in the layout of the benchmark, the second with swapped speeches."""
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


def test_scene_files_of_pairs(benchmark, tmp_path):
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


def test_check_layout(benchmark, tmp_path):
    assert byab.check(benchmark) == ["2 pairs instead of 40; figures are not comparable with the benchmark's"]
    broken = tmp_path / "broken"
    shutil.copytree(benchmark, broken)
    shutil.copytree(broken / "002", broken / "003")
    (broken / "001" / "face_2.png").unlink()
    (broken / "002" / "speech_2.wav").unlink()
    (broken / "003" / "source.json").write_text('{"prompt": "x", "speaker_pos": "up"}')
    notices = "\n".join(byab.check(broken))
    for words in ("001: ", "has no face_2", "002: ", "only one of two speech streams", "003: ", '"speaker_pos": "up"'):
        assert words in notices
    soundfile.write(broken / "002" / "speech_2.wav", np.zeros(100), SAMPLE_RATE)
    assert "expected equal lengths" in "\n".join(byab.check(broken))
    (broken / "002" / "speech_1.wav").rename(broken / "002" / "mix.wav")
    (broken / "002" / "speech_2.wav").unlink()
    assert "measuring binding needs two streams" in "\n".join(byab.check(broken))
    with pytest.raises(InputError, match="contains no pairs"):
        byab.read_pairs(tmp_path)


@pytest.fixture(scope="module")
def videos(benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of two systems: one is correct, one swapped the speeches of the first clip."""
    root = tmp_path_factory.mktemp("systems")
    clip = make_clip(2_000_101, n=2, num_frames=49, motion="still", talk="overlap")
    tracks = clip.opening[::-1], clip.speeches
    swapped = make_clip(2_000_101, n=2, num_frames=49, motion="still", talk="overlap", tracks=tracks)
    for system, drawn in (("good", (clip, swapped)), ("bad", (swapped, swapped))):
        (root / system).mkdir()
        for pair, source in zip(byab.read_pairs(benchmark), drawn, strict=True):
            audio = torch.from_numpy(clip.mix)[None], SAMPLE_RATE
            write_video(root / system / f"{pair.name}.mp4", source.frames, source.fps, audio)
            (root / f"{pair.name}.json").write_text(json.dumps(pair.scene(length=49)))
    return root


def test_folder_suite(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path / "no weights"))
    options = EvaluateOptions(suite="folder", data=videos, output=tmp_path / "results")
    main(options)
    report = json.loads((tmp_path / "results" / "results.json").read_text())
    systems = report["systems"]
    assert systems["good"]["bound"] == 100.0 and systems["bad"]["bound"] == 50.0
    assert systems["good"]["sync_c"] is None and "syncnet_v2.model" in "\n".join(report["notices"])
    table = (tmp_path / "results" / "table.md").read_text()
    assert "| good | 100.00 | 2 |" in table and "Sync-C" not in table.splitlines()[0], "empty columns are omitted"
    page = (tmp_path / "results" / "index.html").read_text()
    assert page.count("<video ") == 4 and page.count('class="bad"') == 1 and page.count('class="good"') == 3
    for row in report["rows"]:
        assert Path(row["picture"]).is_file()
    main(options)
    again = json.loads((tmp_path / "results" / "results.json").read_text())
    assert again["rows"] == report["rows"] and again["systems"] == systems
    (tmp_path / "results" / "results.json").unlink()
    main(options)
    assert json.loads((tmp_path / "results" / "results.json").read_text()) == report, "the evaluation is deterministic"
    capsys.readouterr()


def test_rows_are_measured_again_when_something_they_depend_on_changes(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "v")
    (task,) = [task for task in folder_tasks(tmp_path / "v") if (task.system, task.clip) == ("good", "001")]
    models = MetricModels(FaceTools())
    keys = [row_key(task, models)]
    content = bytearray(task.video.read_bytes())
    content[-1] ^= 1  # of the same size
    task.video.write_bytes(content)
    keys.append(row_key(task, models))
    scene = json.loads(task.scene.read_text())
    speech = next(Path(c["speech"]) for c in scene["characters"] if c.get("speech"))
    shutil.copy(speech, task.scene.parent / "speech.wav")
    scene["characters"][0]["speech"] = "speech.wav"
    task.scene.write_text(json.dumps(scene))
    keys.append(row_key(task, models))
    with (task.scene.parent / "speech.wav").open("ab") as file:
        file.write(b"x")
    keys.append(row_key(task, models))
    keys.append(row_key(task, MetricModels(FaceTools(identities=(FixedFeatures(),)))))
    assert len(set(keys)) == 5 and row_key(task, models) == keys[3]


def test_byab_suite_reuses_videos(benchmark, videos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path / "no weights"))
    output = tmp_path / "out"
    shutil.copytree(videos / "good", output / "videos" / "official")
    main(EvaluateOptions(suite="byab", data=benchmark, model="official", output=output))
    report = json.loads((output / "results.json").read_text())
    assert report["systems"]["official"]["bound"] == 100.0, "the second pair has swapped speeches"
    assert report["settings"]["list"] == byab.VERSION and "2 pairs instead of 40" in report["notices"][0]
    assert "| official |" in capsys.readouterr().out
    with pytest.raises(InputError, match="--data"):
        main(EvaluateOptions(suite="byab", output=output))


def test_missing_scene_files_raise(videos, tmp_path):
    shutil.copy(videos / "good" / "001.mp4", tmp_path / "new.mp4")
    with pytest.raises(InputError, match="new.json"):
        folder_tasks(tmp_path)
    tasks = folder_tasks(videos)
    assert [(task.system, task.clip) for task in tasks] == [(s, c) for s in ("bad", "good") for c in ("001", "002")]
    with pytest.raises(InputError, match="contains no videos"):
        folder_tasks(tmp_path / "nowhere")


class FixedFeatures:
    """Features are mean colors."""

    def images(self, images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == (299, 299, 3)
        return images[:, ::16, ::16].mean(axis=(1, 2))

    def videos(self, videos: np.ndarray) -> np.ndarray:
        return videos.reshape(videos.shape[1], -1, 3).mean(axis=1)


def two_tracks(frames: np.ndarray, mesh: object = None) -> list[FaceTrack]:
    """Two faces at fixed positions."""
    length = len(frames)
    boxes = [np.tile(np.float32(box), (length, 1)) for box in ((8, 8, 40, 56), (56, 8, 88, 56))]
    return [FaceTrack(box, np.ones(length), np.zeros((length, 468, 3)), np.ones(length)) for box in boxes]


def test_frechet_distances(videos, monkeypatch):
    monkeypatch.setattr("training.benchmark.video_suite.track_faces", two_tracks)
    features = FixedFeatures()
    models = MetricModels(FaceTools(), features, features)
    tasks = [task for task in folder_tasks(videos) if task.system == "good"][:1]
    same = _frechet(tasks, videos / "good", models)
    assert same == {"fid": pytest.approx(0.0, abs=1e-3), "fvd": pytest.approx(0.0, abs=1e-3)}
    other = _frechet(tasks, videos / "bad", models)
    assert other["fid"] > 1e-3, "face regions differ"
    assert _frechet(tasks, videos / "bad", MetricModels(FaceTools())) == {"fid": None, "fvd": None}
    with pytest.raises(InputError, match="001.mp4"):
        _frechet(tasks, videos, models)


def test_key_of_generated_videos_depends_on_weights_and_settings():
    bundle = load_bundle("toy")
    key = generation_key(bundle, None, None)
    assert key == generation_key(load_bundle("toy"), None, None)
    assert len({key, generation_key(bundle, 3, None), generation_key(bundle, None, 9)}) == 3
    next(bundle.transformer.parameters()).data.view(-1)[0] += 1
    assert generation_key(bundle, None, None) != key
