"""Cost of curation without models: throughput per stage on one core, and peak memory.

    python benchmarks/curation_throughput.py [--minutes 1 2 4] [--height 720] [--megabits 2]

Footage is synthetic (moving texture, noise, cuts). All stages without models are run, and face detection with a model
that returns immediately. Each length is measured in a separate process.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.command_line import run_command

FPS, CUT_INTERVAL = 25, 6  # frames per second, seconds between cuts


@dataclass(frozen=True)
class ThroughputOptions:
    """Measure the throughput of curation.

    Args:
        minutes: Lengths of the footage.
        height: Height of the footage in pixels.
        megabits: Bit rate in Mbit/s.
    """

    minutes: tuple[float, ...] = (1.0, 2.0, 4.0)
    height: int = 720
    megabits: float = 2.0


def write_footage(path: Path, seconds: float, height: int, megabits: float) -> None:
    """Write footage with audio."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    width = height * 8 // 9 * 2
    texture = gaussian_filter(rng.normal(128, 400, (height + 200, width + 200, 3)), (4, 4, 0)).clip(0, 255)
    texture = texture.astype(np.uint8)
    noise = [rng.integers(0, 4, (height, width, 3), dtype=np.uint8) for _ in range(8)]
    with av.open(os.fspath(path), "w") as out:
        video = out.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "b": f"{megabits}M"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = out.add_stream("aac", rate=48_000, layout="stereo")
        for k in range(round(FPS * seconds)):
            x, y = int(100 + 90 * np.sin(k / 37)), int(100 + 90 * np.cos(k / 53))
            pixels = texture[y : y + height, x : x + width]
            if k // (FPS * CUT_INTERVAL) % 2:
                pixels = 255 - pixels
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels // 2 + 60 + noise[k % 8]), format="rgb24")
            out.mux(video.encode(frame))
            samples = (rng.standard_normal((2, 1920)) * 0.05).astype(np.float32)
            audio_frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            audio_frame.sample_rate, audio_frame.pts = 48_000, 1920 * k
            out.mux(audio.encode(audio_frame))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))


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


def measure(path: Path) -> tuple[dict[str, float], int, float]:
    """CPU seconds of each stage, number of clips, and peak memory in MiB."""
    from bya_core.pipelines.run_report import peak_ram
    from training.curation.models import MODELS, ModelChoice, ModelEntry
    from training.curation.pipeline import CurationSettings, FaceSettings, build_stages
    from training.curation.record import Record, hash_source
    from training.curation.store import Store

    torch.set_num_threads(1)
    MODELS["detector"]["constant"] = MODELS["identity"]["constant"] = ModelEntry(f"{__name__}:ConstantFaces", "")
    choice = ModelChoice("constant")
    stages = build_stages(CurationSettings(faces=FaceSettings(choice, choice)))[:5]
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        records = [hash_source(Record(os.fspath(path), path.name), Store(Path(folder)))]
    costs = {"hash": time.process_time() - started}
    for stage in stages:
        started = time.process_time()
        records = [child for record in records for child in stage(record)]
        costs[stage.name] = time.process_time() - started
        rejected = [record.rejected for record in records if record.rejected]
        assert not rejected, rejected[0]
    return costs, len(records), (peak_ram() or 0) / 2**20


def main(options: ThroughputOptions) -> None:
    """Measure every length and print the results."""
    with tempfile.TemporaryDirectory() as folder:
        for minutes in options.minutes:
            path, seconds = Path(folder) / f"{minutes:g}.mkv", 60 * minutes
            write_footage(path, seconds, options.height, options.megabits)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                costs, clips, peak = pool.submit(measure, path).result()
            total, megabits = sum(costs.values()), path.stat().st_size * 8 / seconds / 1e6
            rates = "  ".join(f"{name} {seconds / max(cost, 1e-3):.0f}x" for name, cost in costs.items())
            print(f"{minutes:g} min at {options.height}p, {megabits:.1f} Mbit/s, on one core:")
            without, full = seconds / (total - costs["faces"]), seconds / total
            print(f"  {without:.1f}x real time, {full:.1f}x with decoding for face detection")
            print(f"  {rates}; {clips} clips; peak {peak:.0f} MiB", flush=True)
            path.unlink()


if __name__ == "__main__":
    run_command(main, ThroughputOptions)
