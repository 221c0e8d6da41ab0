"""Cost of curation without models: throughput per stage on one core, and peak memory.

    python benchmarks/curation_throughput.py [--minutes 1 2 4] [--height 720] [--megabits 2]

Synthetic footage (moving texture, noise, cuts) is repeated to the requested lengths. All stages without models are run,
and face detection with a model that returns immediately. Each length is measured in a separate process.
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

SECONDS, CUT_INTERVAL = 12, 6  # duration of the footage, and from one cut to the next
GAP = 0.2  # seconds between two repetitions: audio is slightly longer than video


def write_footage(path: Path, height: int, megabits: float) -> None:
    """Write `SECONDS` of footage with audio."""
    import av
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    width = height * 8 // 9 * 2
    texture = gaussian_filter(rng.normal(128, 400, (height + 200, width + 200, 3)), (4, 4, 0)).clip(0, 255)
    texture = texture.astype(np.uint8)
    noise = [rng.integers(0, 4, (height, width, 3), dtype=np.uint8) for _ in range(8)]
    with av.open(os.fspath(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "veryfast", "b": f"{megabits}M"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = out.add_stream("aac", rate=48_000, layout="stereo")
        for k in range(25 * SECONDS):
            x, y = int(100 + 90 * np.sin(k / 37)), int(100 + 90 * np.cos(k / 53))
            pixels = texture[y : y + height, x : x + width]
            if k // (25 * CUT_INTERVAL) % 2:
                pixels = 255 - pixels
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels // 2 + 60 + noise[k % 8]), format="rgb24")
            out.mux(video.encode(frame))
            samples = (rng.standard_normal((2, 1920)) * 0.05).astype(np.float32)
            audio_frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            audio_frame.sample_rate, audio_frame.pts = 48_000, 1920 * k
            out.mux(audio.encode(audio_frame))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))


def repeat(source: Path, path: Path, times: int) -> None:
    """Repeat footage without encoding it again."""
    import av

    with av.open(os.fspath(path), "w") as out:
        streams: dict[int, av.stream.Stream] = {}
        for number in range(times):
            with av.open(os.fspath(source)) as container:
                for stream in container.streams:
                    if number == 0:
                        streams[stream.index] = out.add_stream_from_template(stream)
                for packet in container.demux():
                    if packet.dts is None:
                        continue
                    shift = round(number * (SECONDS + GAP) / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)


class ConstantFaces:
    """Face detector and identity model without cost."""

    name = "constant"
    threshold = 0.5

    def detect(self, image):
        from bya_core.encoders.face.detection import Face

        height, width = image.shape[1:]
        side = height / 5
        return [Face((x * width - side, height / 3, x * width + side, height / 3 + 2 * side), 0.9) for x in (0.3, 0.7)]

    def embed(self, face):
        return np.zeros(1)

    def similarity(self, query, embeddings):
        return np.ones(len(embeddings))


def measure(path: Path) -> dict[str, float]:
    """CPU seconds of each stage, number of clips, and peak memory in MiB."""
    from bya_core.pipelines.run_report import peak_ram
    from training.curation.faces import Faces, FaceSettings
    from training.curation.models import MODELS, ModelChoice, ModelEntry
    from training.curation.probe import Probe, ProbeSettings
    from training.curation.record import Record
    from training.curation.segments import Distance, DistanceSettings, Segments, SegmentSettings
    from training.curation.shots import Shots, ShotSettings
    from training.curation.sources import hash_source
    from training.curation.store import Store

    MODELS["detector"]["constant"] = MODELS["identity"]["constant"] = ModelEntry(f"{__name__}:ConstantFaces", "")
    choice = ModelChoice("constant")
    stages = [
        Probe(ProbeSettings()),
        Shots(ShotSettings()),
        Faces(FaceSettings(choice, choice)),
        Segments(SegmentSettings()),
        Distance(DistanceSettings()),
    ]
    warmup = [Record(os.fspath(path.with_name("footage.mkv")), "footage")]
    for stage in stages:
        warmup = [child for record in warmup for child in stage(record)]
    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        records = [hash_source(Record(os.fspath(path), path.name), Store(Path(folder)))]
        costs["hash"] = time.process_time() - started
    for stage in stages:
        started = time.process_time()
        records = [child for record in records for child in stage(record)]
        costs[stage.name] = time.process_time() - started
        rejected = [record.rejected for record in records if record.rejected]
        assert not rejected, rejected[0]
    return {**costs, "clips": len(records), "peak": (peak_ram() or 0) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--megabits", type=float, default=2.0, help="bit rate in Mbit/s")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        footage = Path(folder) / "footage.mkv"
        write_footage(footage, options.height, options.megabits)
        for minutes in options.minutes:
            path, times = Path(folder) / f"{minutes:g}.mkv", round(60 * minutes / SECONDS)
            repeat(footage, path, times)
            command = [sys.executable, __file__, "--measure", str(path)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            costs = json.loads(result.stdout.splitlines()[-1])
            clips, peak = costs.pop("clips"), costs.pop("peak")
            seconds = times * (SECONDS + GAP)
            total = sum(costs.values())
            rates = "  ".join(f"{name} {seconds / max(cost, 1e-3):.0f}x" for name, cost in costs.items())
            megabits = path.stat().st_size * 8 / seconds / 1e6
            without, full = seconds / (total - costs["faces"]), seconds / total
            print(f"{minutes:g} min at {options.height}p, {megabits:.1f} Mbit/s, on one core:")
            print(f"  {without:.1f}x real time, {full:.1f}x with decoding for face detection")
            print(f"  {rates}; {clips:.0f} clips; peak {peak:.0f} MiB", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
