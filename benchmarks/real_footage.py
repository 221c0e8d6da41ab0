"""Cost of measuring and curating footage of two people at 720p without downloads: time, and CPU time of all threads.

    python -m benchmarks.real_footage                                 # clips of tests/assets/grid
    python -m benchmarks.real_footage --clips anna.mp4 ben.mp4 --threads 2 --json costs.json

The footage is made from clips of one person each, with sound: two people side by side who speak at once (report) and
two who take turns (curation). CPU time depends less on what else runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.io import wavfile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bya_core.errors import InputError
from bya_core.io.media import read_audio, read_video, resample_mono
from bya_core.io.video_writer import write_video
from training.command_line import run_command

ROOT = Path(__file__).resolve().parents[1]
FPS, RATE, HEIGHT, WIDTH = 25, 16_000, 720, 1280
SECONDS, INTERVIEW = 10.0, 17.0
RECIPE = ROOT / "training/recipes/curation_local.yaml"


@dataclass(frozen=True)
class Options:
    """Measure the cost of reports and curation of footage.

    Args:
        clips: Two videos of one person each, with sound. Default: the first two of tests/assets/grid.
        threads: Of PyTorch in the report.
        workers: Processes of the curation; 0 = run in the main process.
        json: File for the figures.
    """

    clips: tuple[Path, ...] = ()
    threads: int = 2
    workers: int = 2
    json: Path | None = None


@dataclass(frozen=True)
class Person:
    """One half of the picture.

    Args:
        frames: uint8 [F, HEIGHT, WIDTH // 2, 3], at 25 frames per second.
        wave: int16 [S] at 16 kHz, as long as the frames.
    """

    frames: np.ndarray
    wave: np.ndarray


def read_person(path: Path) -> Person:
    """Scale and crop a clip to half a picture of 720p."""
    frames, fps = read_video(path)
    frames = frames[torch.arange(int(len(frames) / fps * FPS)).mul(fps / FPS).long()]
    height, width = frames.shape[1:3]
    scale = max(HEIGHT / height, WIDTH / 2 / width)
    size = round(height * scale), round(width * scale)
    large = F.interpolate(frames.permute(0, 3, 1, 2).float(), size, mode="bilinear").round().byte()
    left = (size[1] - WIDTH // 2) // 2
    waveform, rate = read_audio(path)
    wave = np.zeros(len(frames) * RATE // FPS, np.int16)
    sound = resample_mono(waveform, rate, RATE).numpy()[: len(wave)]
    wave[: len(sound)] = (sound.clip(-1, 1) * 32767).astype(np.int16)
    return Person(large[:, :, :HEIGHT, left : left + WIDTH // 2].permute(0, 2, 3, 1).numpy(), wave)


def together(people: Sequence[Person], seconds: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Everybody speaks, repeated: frames [F, HEIGHT, WIDTH, 3] and one voice per person."""
    count = round(seconds * FPS)
    frames = np.concatenate([each.frames[np.arange(count) % len(each.frames)] for each in people], axis=2)
    return frames, [np.resize(each.wave, count * RATE // FPS) for each in people]


def interview(people: Sequence[Person], seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """People take turns; who listens keeps still."""
    parts, waves, turn, count = [], [], 0, round(seconds * FPS)
    while sum(map(len, parts)) < count:
        speaker = people[turn % len(people)]
        halves = [
            each.frames if each is speaker else np.repeat(each.frames[-1:], len(speaker.frames), axis=0)
            for each in people
        ]
        parts.append(np.concatenate(halves, axis=2))
        waves.append(speaker.wave)
        turn += 1
    return np.concatenate(parts)[:count], np.concatenate(waves)[: count * RATE // FPS]


def write(path: Path, frames: np.ndarray, wave: np.ndarray) -> None:
    """Write a video with sound."""
    sound = torch.from_numpy(wave.astype(np.float32) / 32768)[None]
    write_video(path, iter(frames), FPS, (sound, RATE), preset="veryfast")


def run(command: Sequence[str], threads: int, codes: Sequence[int]) -> dict[str, float]:
    """Time and CPU time of a command of this repository in seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    before, started = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    seconds, after = time.perf_counter() - started, os.times()
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "cpu_seconds": cpu}


def measure_report(people: Sequence[Person], folder: Path, threads: int) -> dict[str, float]:
    """`bya report` with a scene on two people who speak for 10 s."""
    frames, waves = together(people, SECONDS)
    write(folder / "report.mp4", frames, np.sum(waves, axis=0, dtype=np.int32).clip(-32768, 32767).astype(np.int16))
    characters = []
    for n, wave in enumerate(waves):
        wavfile.write(folder / f"{n}.wav", RATE, wave)
        Image.fromarray(people[n].frames[0]).save(folder / f"{n}.png")
        characters.append({"name": f"person {n + 1}", "image": f"{n}.png", "speech": f"{n}.wav"})
    scene = folder / "scene.json"
    scene.write_text(json.dumps({"prompt": "two people talk", "characters": characters}), encoding="utf-8")
    return run(["-m", "bya_core", "report", str(folder / "report.mp4"), "--scene", str(scene)], threads, (0, 3, 4))


def measure_curation(people: Sequence[Person], folder: Path, workers: int) -> dict[str, float]:
    """Curation of 17 s of two people who take turns."""
    footage = folder / "footage"
    footage.mkdir()
    write(footage / "interview.mp4", *interview(people, INTERVIEW))
    command = ["training/curate.py", "--input", str(footage), "--output", str(folder / "shards")]
    options = ["--config", str(RECIPE), "--workers", str(workers)]
    return run([str(ROOT / command[0]), *command[1:], *options], max(1, workers), (0,))


def measure_tracking(people: Sequence[Person]) -> dict[str, float]:
    """Detector and mesh on one core, without decoding: milliseconds per frame and face."""
    from bya_core.encoders.face.mesh import FaceMesh
    from bya_core.encoders.face.tracking import track_faces

    frames, _ = together(people, 4.0)
    before, mesh = torch.get_num_threads(), FaceMesh()
    torch.set_num_threads(1)
    track_faces(frames[:5], mesh)
    started = time.process_time()
    tracks = track_faces(frames, mesh)
    spent = time.process_time() - started
    torch.set_num_threads(before)
    if len(tracks) != len(people):
        raise RuntimeError(f"{len(tracks)} faces found")
    return {"milliseconds": 1000 * spent / len(frames) / len(people)}


def show(what: str, cost: dict[str, float]) -> None:
    """Print the cost of a command."""
    print(f"{what}: {cost['seconds']:.1f} s, CPU time {cost['cpu_seconds']:.1f} s", flush=True)


def main(options: Options) -> None:
    """Measure everything and print the results."""
    clips = options.clips or tuple(sorted((ROOT / "tests/assets/grid").glob("*.mp4"))[:2])
    if len(clips) != 2:
        raise InputError(f"{len(clips)} clips", "two videos of one person each", "name them with --clips")
    people = [read_person(path) for path in clips]
    figures = {"tracking": measure_tracking(people)}
    print(f"detector and mesh, one core: {figures['tracking']['milliseconds']:.1f} ms per frame and face", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures["report"] = cost = measure_report(people, folder, options.threads)
        show(f"report of {SECONDS:.0f} s, {options.threads} threads", cost)
        figures["curation"] = cost = measure_curation(people, folder, options.workers)
        show(f"curation of {INTERVIEW:.0f} s, {options.workers} workers", cost)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    run_command(main, Options)
