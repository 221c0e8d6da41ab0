"""What curation costs without models: real time over processor time of each stage on one core, and the memory it takes.

    python benchmarks/curation_throughput.py [--minutes 1 2 4] [--height 720] [--megabits 2]

A piece of footage is made first (texture that moves, noise, cuts) and repeated to the lengths asked for. Then every
stage that asks no model runs over it, and those that decode for a model run with one that answers at once. The peak of
memory is that of a process of its own for each length.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PIECE, CUT = 12, 6  # seconds of footage that are made, and from one cut to the next
JOIN = 0.2  # seconds between two pieces: sound is a little longer than pictures


def make(path: Path, height: int, megabits: float) -> None:
    """Write a piece of footage of `PIECE` seconds, with sound."""
    import av
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    width = height * 16 // 9
    texture = gaussian_filter(rng.normal(128, 400, (height + 200, width + 200, 3)), (4, 4, 0)).clip(0, 255)
    texture = texture.astype(np.uint8)
    noise = [rng.integers(0, 4, (height, width, 3), dtype=np.uint8) for _ in range(8)]
    with av.open(os.fspath(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "veryfast", "b": f"{megabits}M"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        sound = out.add_stream("aac", rate=48_000, layout="stereo")
        for k in range(25 * PIECE):
            x, y = int(100 + 90 * np.sin(k / 37)), int(100 + 90 * np.cos(k / 53))
            picture = texture[y : y + height, x : x + width]
            if k // (25 * CUT) % 2:
                picture = 255 - picture
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture // 2 + 60 + noise[k % 8]), format="rgb24")
            out.mux(video.encode(frame))
            piece = (rng.standard_normal((2, 1920)) * 0.05).astype(np.float32)
            heard = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
            heard.sample_rate, heard.pts = 48_000, 1920 * k
            out.mux(sound.encode(heard))
        out.mux(video.encode(None))
        out.mux(sound.encode(None))


def repeat(piece: Path, path: Path, times: int) -> None:
    """The same footage again and again, without encoding it again."""
    import av

    with av.open(os.fspath(path), "w") as out:
        streams: dict[int, av.stream.Stream] = {}
        for number in range(times):
            with av.open(os.fspath(piece)) as source:
                for stream in source.streams:
                    if number == 0:
                        streams[stream.index] = out.add_stream_from_template(stream)
                for packet in source.demux():
                    if packet.dts is None:
                        continue
                    shift = round(number * (PIECE + JOIN) / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)


def measure(path: Path) -> dict[str, float]:
    """Processor seconds of each step, and the peak of memory in MiB."""
    import training.curation.models as models
    from bya_core.encoders.face.detection import Face
    from bya_core.pipelines.run_report import peak_ram
    from training.curation.faces import Faces, FaceSettings
    from training.curation.models import Entry, ModelChoice
    from training.curation.pipeline import first_step
    from training.curation.probe import Probe, ProbeSettings
    from training.curation.record import Record
    from training.curation.segments import Distance, DistanceSettings, Segments, SegmentSettings
    from training.curation.shots import Shots, ShotSettings
    from training.curation.stage import Resources
    from training.curation.store import Store

    class Instant:
        name = "instant"
        same = 0.5

        def detect(self, image):
            height, width = image.shape[1:]
            side = height / 5
            return [
                Face((x * width - side, height / 3, x * width + side, height / 3 + 2 * side), 0.9) for x in (0.3, 0.7)
            ]

        def describe(self, face):
            return np.zeros(1)

        def likeness(self, one, many):
            return np.ones(len(many))

    globals()["Instant"] = Instant
    instant = Entry(f"{__name__}:Instant", "answers at once")
    models.MODELS["detector"]["instant"] = models.MODELS["identity"]["instant"] = instant
    choice = ModelChoice("instant")
    stages = [
        Probe(ProbeSettings(), Resources()),
        Shots(ShotSettings(), Resources()),
        Faces(FaceSettings(choice, choice), Resources()),
        Segments(SegmentSettings(), Resources()),
        Distance(DistanceSettings(), Resources()),
    ]
    told: dict[str, float] = {}
    first = Record(os.fspath(path.with_name("piece.mkv")), "piece")
    warm: list[Record] = []
    for stage in stages:  # load and import everything first
        warm = [child for record in warm for child in stage(record)] if stage is not stages[0] else stage(first)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        records = [first_step(Record(os.fspath(path), path.name), Store(Path(folder)))]
        told["hash"] = time.process_time() - started
        for stage in stages:
            started = time.process_time()
            records = [child for record in records for child in stage(record)]
            told[stage.name] = time.process_time() - started
            dropped = [record.rejected for record in records if record.rejected]
            assert not dropped, dropped[0]
    told["clips"] = len(records)
    told["peak"] = (peak_ram() or 0) / 2**20
    return told


def main() -> None:
    """Make, measure each length in a process of its own, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--megabits", type=float, default=2.0, help="a second; video sites send some 2 at 720p")
    parser.add_argument("--measure", type=Path, help="(internal) measure this file")
    given = parser.parse_args()
    if given.measure is not None:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(measure(given.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        piece = Path(folder) / "piece.mkv"
        make(piece, given.height, given.megabits)
        for minutes in given.minutes:
            path = Path(folder) / f"{minutes:g}.mkv"
            repeat(piece, path, round(60 * minutes / PIECE))
            command = [sys.executable, __file__, "--measure", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            clips, peak = told.pop("clips"), told.pop("peak")
            seconds = round(60 * minutes / PIECE) * (PIECE + JOIN)
            own = seconds / (sum(told.values()) - told["faces"])
            rates = "  ".join(f"{name} {seconds / max(cost, 1e-3):.0f}x" for name, cost in told.items())
            megabits = path.stat().st_size * 8 / seconds / 1e6
            size = f"{minutes:g} min at {given.height}p, {megabits:.1f} Mbit/s"
            every = seconds / sum(told.values())
            print(f"{size}: {own:.1f}x real time on one core, {every:.1f}x with the decoding for a face detector")
            print(f"  {rates}; {clips:.0f} clips; peak {peak:.0f} MiB", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
