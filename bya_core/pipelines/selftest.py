"""Whether this machine can do the work: the toy model from a drawing to a video, or one step at full size.

Full size needs no download: the released architecture is built with random weights (`weights.random_weights`), so time
and memory are those of the real model and only the picture is noise.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bya_core.config import SamplingConfig
from bya_core.memory.planner import LADDER, apply_rung, free_host_memory, free_memory, part_sizes, plan_memory
from bya_core.pipelines.full_size import ENCODERS, FACES, NATIVE, STEPS, build, one_step, wait
from bya_core.progress import ProgressTracker
from bya_core.weights.bundle import NativeSize


@dataclass(frozen=True)
class Outcome:
    """What was found.

    Args:
        lines: what was done, one sentence each, with all that differs from the full job.
        seconds: of each part.
        checksum: mean and deviation of the result, to compare machines by, and a CRC-32, equal on equal machines only.
    """

    lines: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    checksum: str = ""


def checksum(made: Tensor) -> str:
    """Of any tensor."""
    values = made.detach().float().cpu()
    code = zlib.crc32(values.numpy().tobytes())
    return f"mean {float(values.mean()):+.4f} deviation {float(values.std()):.4f} crc32 {code:08x}"


def toy(device: torch.device | str | None = None) -> Outcome:
    """Two drawn figures, two sounds, 4 steps, and a video file that is read again.

    Raises:
        InputError: the toy model is not here.
        RuntimeError: what came out is no video.
    """
    from bya_core.io.media import write_video
    from bya_core.pipelines.generate import generate
    from bya_core.scene.types import Character, Scene, Speech
    from bya_core.weights.loader import load_bundle

    tracker = ProgressTracker()
    with tracker.stage("Loading model"):
        bundle = load_bundle("toy")
        apply_rung(bundle, LADDER[0], device)
    size, frames, rate = bundle.native, 9, 16000
    colours = {"one": (0.8, 0.3, 0.2), "two": (0.2, 0.4, 0.8)}
    seconds = torch.arange(round(frames / 25 * rate)) / rate
    scene = Scene(
        prompt="two puppets talk",
        characters=[Character(name, _figure(colour)) for name, colour in colours.items()],
        speeches=[Speech(0.3 * (2 * math.pi * pitch * seconds).sin()[None], rate) for pitch in (180, 260)],
        height=size.height,
        width=size.width,
        num_frames=frames,
        sampling=SamplingConfig(steps=4),
    )
    video = generate(scene, bundle, tracker.callback)
    with tracker.stage("Saving"), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "selftest.mp4"
        write_video(file, (frame.numpy() for frame in video.frames), scene.fps, video.audio)
        read = _frames_in(file)
    flat = video.frames.float().std() < 1 or not video.masks.isfinite().all()
    if video.frames.shape != (frames, size.height, size.width, 3) or read != frames or flat:
        raise RuntimeError(
            f"the toy model made {tuple(video.frames.shape)}, {read} frames could be read again: this machine or its "
            "packages compute wrongly (see python -m bya_core doctor)"
        )
    lines = (f"the toy model made {frames} frames of {size.width}x{size.height} in 4 steps on {bundle.device}",)
    return Outcome(lines, {**tracker.seconds, **video.seconds}, checksum(video.frames))


def _figure(colour: tuple[float, float, float]) -> Tensor:
    """A drawn head on white: [3, 96, 96] in 0..1."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    image = torch.ones(3, 96, 96)
    image[:, rows**2 + columns**2 < 0.6] = torch.tensor(colour)[:, None]
    image[:, (rows + 0.2) ** 2 + (columns.abs() - 0.3) ** 2 < 0.015] = 0.0
    image[:, ((rows - 0.35) ** 2 * 4 + columns**2) < 0.06] = 0.1
    return image


def _frames_in(file: Path) -> int:
    import av

    with av.open(str(file)) as container:
        return sum(1 for _ in container.decode(video=0))


def full_size(
    layers: int | None = None,
    vram: str | None = None,
    device: torch.device | str | None = None,
    config: dict[str, Any] | None = None,
    native: NativeSize = NATIVE,
) -> Outcome:
    """One step of the released architecture at its native size.

    On a GPU in bfloat16 with guidance, and the video decoded; on the CPU in float32, one block deep unless `layers`
    says otherwise, without guidance and decoding.

    Args:
        vram: as in `bya_core.memory.planner.place_model`.
        config, native: another architecture and size.

    Raises:
        InputError: not enough memory.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cpu = device.type == "cpu"
    dtype, versions = (torch.float32, 1) if cpu else (torch.bfloat16, 2)
    layers = 1 if cpu and layers is None else layers
    tracker = ProgressTracker()
    with tracker.stage("Loading model"):
        bundle = build(layers, dtype, config, codec=not cpu, native=native, versions=int(cpu))
    rung = LADDER[0]
    if not cpu:
        free = free_memory(device) if vram in (None, "auto") else vram
        rung = plan_memory(free or 0, part_sizes(bundle) | ENCODERS, free_host_memory())
        torch.cuda.reset_peak_memory_stats(device)
    with tracker.stage("Placing model"):
        apply_rung(bundle, rung, device)
    latents = one_step(bundle, versions, tracker)
    depth = bundle.transformer.config.num_layers
    count = sum(p.numel() for p in bundle.transformer.parameters())
    lines = [
        f"{count / 1e9:.2f} billion random weights ({dtype}), {depth} blocks, on {device}; memory: {rung.name}",
        f"one step of {STEPS} at {native.width}x{native.height}, {native.num_frames} frames, {FACES} characters, "
        + ("with guidance" if versions > 1 else "without guidance"),
    ]
    if cpu:
        lines.append(
            f"NOT the whole job, because there is no GPU: {depth} of 42 blocks, without guidance (one version of the "
            "video instead of two), in float32, and nothing was decoded"
        )
    else:
        with tracker.stage("Decoding"), torch.no_grad():
            bundle.codec.decode(latents.to(device, dtype))
            wait(device)
    if not latents.isfinite().all():
        raise RuntimeError("the step gave numbers that are not finite: this machine or its packages compute wrongly")
    return Outcome(tuple(lines), tracker.seconds, checksum(latents))
