"""`bya report` on drawn ground truth, and on faces that detection and SyncNet are replaced for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bya_core.evaluation.video_file as video_file
from bya_core.cli.main import main
from bya_core.cli.report import NOT_BOUND
from bya_core.encoders.face.tracking import FaceTrack
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceMetrics, FaceTools, measure_faces, measure_sync
from bya_core.evaluation.metric_weights import SYNCNET
from bya_core.evaluation.report import binding_report
from bya_core.evaluation.sync_metrics import CrossTalk, Span
from bya_core.evaluation.verdict import SYNC
from bya_core.evaluation.video_file import measure_file
from bya_core.io.audio import Recording
from bya_core.io.media import read_video, write_video
from bya_core.io.video import Video
from bya_core.scene.types import Speech
from training.puppets.world import SAMPLE_RATE, PuppetClip, make_clip


@pytest.fixture(scope="module")
def clip() -> PuppetClip:
    return make_clip(2_000_101, n=2, num_frames=73, motion="still", talk="turns")


@pytest.fixture(scope="module")
def folder(clip: PuppetClip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn video and scene files: with the original speech, swapped speech, and speech delayed by 200 ms."""
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path_factory.mktemp("report")
    write_video(path / "talk.mp4", clip.frames, clip.fps, (torch.from_numpy(clip.mix)[None], SAMPLE_RATE))
    for n, (portrait, speech) in enumerate(zip(clip.portraits, clip.speeches, strict=True)):
        Image.fromarray(portrait).save(path / f"{n}.png")
        soundfile.write(path / f"{n}.wav", speech, SAMPLE_RATE)
    for name, order, offset in (("right", (0, 1), 0.0), ("swapped", (1, 0), 0.0), ("late", (0, 1), 0.2)):
        people = [
            {"name": "ABCD"[n], "image": f"{n}.png", "speech": f"{voice}.wav", "offset": offset}
            for n, voice in enumerate(order)
        ]
        (path / f"{name}.json").write_text(json.dumps({"prompt": "two", "characters": people, "length": 73}))
    np.savez(path / "masks.npz", masks=clip.masks[:, ::4].astype(np.float32)[::-1], names=np.array(["B", "A"]))
    return path


def run_report(folder: Path, scene: str, *more: str) -> tuple[int, dict]:
    code = main(["report", str(folder / "talk.mp4"), "--scene", str(folder / f"{scene}.json"), *more])
    return code, json.loads((folder / "talk.binding.json").read_text())


def test_ground_truth_passes(folder, capsys):
    code, report = run_report(folder, "right")
    assert code == 0 and report["passed"] is True and report["verdicts"] == ["own", "own"]
    assert report["offset"] == [0, 0] and not report["follows_another"] and report["failed"] == [[], []]
    assert report["identity"]["colors"]["correct"] == [True, True] and min(report["identity"]["colors"]["mean"]) > 0.8
    assert any(end - start > 0.5 for start, end in report["listening"][0])
    assert "Binding: passed" in capsys.readouterr().out
    with Image.open(folder / "talk.binding.png") as picture:
        assert picture.size[0] == 1152


def test_swapped_speech_fails(folder, capsys):
    code, report = run_report(folder, "swapped")
    assert code == NOT_BOUND and report["passed"] is False and report["verdicts"] == ["wrong", "wrong"]
    assert {row["voice"] for row in report["follows_another"]} == {"A", "B"}
    assert all(report["failed"]) and "FAILED" in capsys.readouterr().out


def test_delayed_speech_fails(folder):
    code, report = run_report(folder, "late")
    assert code == NOT_BOUND and report["verdicts"] == ["shifted", "shifted"]
    assert report["offset"] == [-5, -5] and "5 frames (200 ms) early" in report["text"][0]


def test_masks_are_matched_by_name(folder):
    code, report = run_report(folder, "right", "--masks", str(folder / "masks.npz"))
    assert code == 0 and report["verdicts"] == ["own", "own"]
    np.savez(folder / "short.npz", masks=np.zeros((2, 3, 4, 4)))
    assert run_report(folder, "right", "--masks", str(folder / "short.npz"))[0] == 2


def test_invalid_video_raises(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="cannot be read"):
        read_video(tmp_path / "a.mp4")


class Embedder:
    """Lips are the brightness of the crop, speech is its power."""

    def lips(self, crops: np.ndarray) -> np.ndarray:
        light = crops.reshape(len(crops), -1).mean(axis=1)[:-5]
        return np.stack([(light - light.mean()) / max(light.std(), 1e-9), np.zeros_like(light)], axis=1)

    def voice(self, wave: np.ndarray, frames: int) -> np.ndarray:
        power = (wave[: frames * 640].reshape(frames, 640) ** 2).mean(axis=1)[:-5]
        return np.stack([(power - power.mean()) / max(power.std(), 1e-9), np.zeros_like(power)], axis=1)


class MeanColor:
    """Identity features: the mean color."""

    name, size = "color", 8

    def embed(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1, 3).mean(axis=1) - 100.0


def people() -> tuple[torch.Tensor, list[Speech], list[torch.Tensor]]:
    """A red and a blue face whose brightness follows their speech; the blue one is on the left."""
    rng = np.random.default_rng(0)
    power = rng.uniform(0, 1, (2, 40))
    frames = np.full((40, 48, 96, 3), 90, dtype=np.uint8)
    frames[:, 10:34, 10:34, 2] = (150 + 100 * power[1, :, None, None]).astype(np.uint8)
    frames[:, 10:34, 60:84, 0] = (150 + 100 * power[0, :, None, None]).astype(np.uint8)
    waves = np.sqrt(power).repeat(640, axis=1) * rng.choice([-0.5, 0.5], (2, 40 * 640))
    speeches = [Speech(torch.from_numpy(wave[None]).float(), 16_000) for wave in waves]
    portraits = [torch.full((3, 16, 16), 0.35) for _ in range(2)]
    portraits[0][0], portraits[1][2] = 0.8, 0.8
    return torch.from_numpy(frames), speeches, portraits


def face(box: tuple[float, float, float, float], length: int = 40) -> FaceTrack:
    """A face at a fixed position."""
    points = np.random.default_rng(0).uniform(box[0], box[2], (468, 3)).astype(np.float32)
    boxes = np.tile(np.float32(box), (length, 1))
    return FaceTrack(boxes, np.ones(length), np.tile(points, (length, 1, 1)), np.ones(length))


def test_faces_are_cast_and_identified():
    frames, speeches, portraits = people()
    boxes = [(10.0, 10.0, 34.0, 34.0), (60.0, 10.0, 84.0, 34.0)]
    tracks = [face(box) for box in boxes]
    tools = FaceTools(None, Embedder(), [MeanColor()], ("a part is missing.",))
    seen = measure_faces(frames, speeches, 25.0, portraits, tools, tracks=tracks)
    assert np.allclose(seen.boxes[0, 7], boxes[1])
    assert seen.identity["color"].correct.all() and seen.sync.correct.all() and not seen.sync.failing
    crossed = measure_faces(frames, speeches[::-1], 25.0, portraits, tools, tracks=tracks)
    assert not crossed.sync.correct.any() and len(crossed.sync.failing) >= 2
    masks = np.zeros((2, 40, 48, 96), dtype=bool)
    masks[0, :, :, :48], masks[1, :, :, 48:] = True, True
    tools = FaceTools(None, None, [MeanColor()])
    swapped = measure_faces(frames, speeches, 25.0, portraits, tools, masks=masks, tracks=tracks)
    assert not swapped.identity["color"].correct.any()


def test_faces_are_never_cast_by_position():
    """Without masks and with reference images that show no face, no face is assigned."""
    frames, speeches, portraits = people()
    tracks = [face((10.0, 10.0, 34.0, 34.0)), face((60.0, 10.0, 84.0, 34.0))]
    seen = measure_faces(frames, speeches, 25.0, portraits, FaceTools(), tracks=tracks, names=["Ada", "Bo"])
    assert np.isnan(seen.boxes).all() and any("Ada" in notice and "likeness" in notice for notice in seen.notices)
    report = binding_report(frames, None, speeches, 25.0, ["Ada", "Bo"], faces=seen)
    assert report.metrics["passed"] is None and report.metrics["verdicts"] == ["unclear", "unclear"]


def test_frame_rate_is_converted():
    frames, speeches, _ = people()
    boxes = np.tile(np.array([[[60.0, 10, 84, 34]], [[10.0, 10, 34, 34]]]), (1, 40, 1))
    plain = measure_sync(frames.numpy(), boxes, speeches, 25.0, torch.eye(2), Embedder())
    twice = frames.repeat_interleave(2, dim=0).numpy()
    fast = measure_sync(twice, boxes.repeat(2, axis=1), speeches, 50.0, torch.eye(2), Embedder())
    assert np.allclose(plain.confidence, fast.confidence, atol=0.1) and plain.correct.all()


def test_report_on_real_people():
    frames, speeches, _ = people()
    masks = torch.ones(2, 40, 4, 4)
    sync = CrossTalk(
        np.array([[6.0, 1.0], [1.2, 5.0]]), np.full((2, 2), 8.0), np.array([[0, 3], [1, -4]]), np.array([0, 1]),
        (Span(0, 1, 0.4, 0.9),),
    )  # fmt: skip
    report = binding_report(
        frames, masks, speeches, 25.0, ["Ada", "Bo"], faces=FaceMetrics(sync=sync, notices=("FID is missing.",))
    )
    assert report.metrics["verdicts"] == ["own", "shifted"] and report.metrics["measure"] == SYNC.name
    assert "4 frames (160 ms) early" in report.text and "FID is missing." in report.text
    assert "From 0.40 to 0.90 s Ada follows the voice of Bo" in report.text


def test_missing_weights_are_reported(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path))
    tools = FaceTools.load()
    assert tools.sync is None and any(SYNCNET.file in notice for notice in tools.notices)
    monkeypatch.setattr("bya_core.evaluation.face_report.track_faces", lambda frames, mesh=None: [])
    report = measure_file(folder / "talk.mp4", folder / "right.json", people="real", tools=tools)
    assert report.metrics["passed"] is None and "syncnet_v2.model" in report.text and "FaceNet" in report.text
    assert "No face was found" in report.text


def test_scene_or_voices(folder, capsys):
    assert main(["report", str(folder / "talk.mp4")]) == 2 and "--voices" in capsys.readouterr().err
    both = ["--scene", str(folder / "right.json"), "--voices", str(folder / "0.wav")]
    assert main(["report", str(folder / "talk.mp4"), *both]) == 2


def test_names_of_voices_are_printable(monkeypatch):
    names = []
    monkeypatch.setattr(
        video_file, "read_recording", lambda *_, **__: Recording(torch.zeros(1, 16), 16_000, 0.0, 0.001)
    )
    monkeypatch.setattr(video_file, "read_frames", lambda *_: Video(torch.zeros(1), 25.0, torch.zeros(1), 1))
    monkeypatch.setattr(video_file, "measure_frames", lambda *options: names.extend(options[3]))
    video_file.measure_voices(Path("film.mp4"), [Path("b\udcff.wav"), Path("x" * 300 + ".wav"), Path("a.wav")])
    assert names[0] == "b\\udcff" and len(names[1]) <= 100 and names[2] == "a"
