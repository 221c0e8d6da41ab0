"""Self-test of this machine: the toy model end to end, or one step at full size.

The full-size test needs no download: the released architecture is built with random weights, so time and memory are
those of the released model.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bya_core.config import SamplingConfig
from bya_core.io.workspace import temporary_folder
from bya_core.memory.planner import MEMORY_PLANS, apply_memory_plan, free_host_memory, free_vram, plan_memory
from bya_core.memory.sizes import ENCODER_BYTES, component_sizes
from bya_core.pipelines.full_size import (
    CHARACTERS,
    NATIVE,
    STEPS,
    build_full_size,
    run_steps,
    synchronize,
)
from bya_core.progress import ProgressTracker
from bya_core.weights.bundle import NativeSize


@dataclass(frozen=True)
class SelfTestResult:
    """Result of a self-test.

    Args:
        lines: What was run, including every difference from a full run.
        seconds: Duration of each stage.
        checksum: Mean and standard deviation of the result, comparable between machines, and a CRC-32, which is equal
            on equal machines only.
    """

    lines: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    checksum: str = ""


def checksum(tensor: Tensor) -> str:
    """Mean, standard deviation and CRC-32 of a tensor."""
    values = tensor.detach().float().cpu()
    code = zlib.crc32(values.numpy().tobytes())
    return f"mean {float(values.mean()):+.4f} deviation {float(values.std()):.4f} crc32 {code:08x}"


def check_toy_model(device: torch.device | str | None = None) -> SelfTestResult:
    """Generate 4 steps of a toy video with two characters, write it to a file and read it back.

    Raises:
        InputError: The toy model is missing.
        RuntimeError: The result is not a video.
    """
    from bya_core.io.media import read_video, write_video
    from bya_core.pipelines.generate import generate
    from bya_core.pipelines.load import load_model
    from bya_core.scene.types import Character, Scene, Speech

    tracker = ProgressTracker()
    with tracker.stage("Loading model"):
        bundle = load_model("toy", device=device, vram=None)
    size, frames, rate = bundle.native, 9, 16000
    colors = {"one": (0.8, 0.3, 0.2), "two": (0.2, 0.4, 0.8)}
    seconds = torch.arange(round(frames / 25 * rate)) / rate
    scene = Scene(
        prompt="two puppets talk",
        characters=[Character(name, _draw_head(color)) for name, color in colors.items()],
        speeches=[Speech(0.3 * (2 * math.pi * pitch * seconds).sin()[None], rate) for pitch in (180, 260)],
        height=size.height,
        width=size.width,
        num_frames=frames,
        sampling=SamplingConfig(steps=4),
    )
    video = generate(scene, bundle)
    with tracker.stage("Saving"), temporary_folder() as folder:
        file = folder / "selftest.mp4"
        write_video(file, (frame.numpy() for frame in video.frames), scene.fps, video.audio)
        decoded = len(read_video(file)[0])
    flat = video.frames.float().std() < 1 or not video.masks.isfinite().all()
    if video.frames.shape != (frames, size.height, size.width, 3) or decoded != frames or flat:
        raise RuntimeError(
            f"the toy model generated {tuple(video.frames.shape)} and {decoded} frames were decoded: this machine or "
            "its packages compute incorrect results (see bya doctor)"
        )
    line = f"toy model: generated {frames} frames of {size.width}x{size.height} in 4 steps on {bundle.device}"
    return SelfTestResult((line,), {**tracker.seconds, **video.seconds}, checksum(video.frames))


def _draw_head(color: tuple[float, float, float]) -> Tensor:
    """Drawn head on white, [3, 96, 96] in [0, 1]."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    image = torch.ones(3, 96, 96)
    image[:, rows**2 + columns**2 < 0.6] = torch.tensor(color)[:, None]
    image[:, (rows + 0.2) ** 2 + (columns.abs() - 0.3) ** 2 < 0.015] = 0.0
    image[:, ((rows - 0.35) ** 2 * 4 + columns**2) < 0.06] = 0.1
    return image


def check_full_size(
    layers: int | None = None,
    vram: str | None = None,
    device: torch.device | str | None = None,
    config: dict[str, Any] | None = None,
    native: NativeSize = NATIVE,
) -> SelfTestResult:
    """Run one step of the released architecture at its native resolution.

    On a GPU in bfloat16 with guidance and decoding; on the CPU in float32 with one block unless `layers` is given,
    without guidance and decoding.

    Args:
        layers: Transformer blocks.
        vram: VRAM budget, see `memory.planner.place_model`.
        device: Device; `None` selects the first GPU, or the CPU if there is none.
        config: Other arguments of the transformer.
        native: Other resolution and length.

    Raises:
        InputError: Too little memory.
        RuntimeError: The result is not finite.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cpu = device.type == "cpu"
    dtype, branches = (torch.float32, 1) if cpu else (torch.bfloat16, 2)
    layers = 1 if cpu and layers is None else layers
    tracker = ProgressTracker()
    with tracker.stage("Loading model"):
        bundle = build_full_size(layers, dtype, config, codec=not cpu, native=native, branches=int(cpu))
    plan = MEMORY_PLANS[0]
    if not cpu:
        free = free_vram(device) if vram in (None, "auto") else vram
        plan = plan_memory(free or 0, component_sizes(bundle) | ENCODER_BYTES, free_host_memory())
        torch.cuda.reset_peak_memory_stats(device)
    with tracker.stage("Placing model"):
        apply_memory_plan(bundle, plan, device)
    latents = run_steps(bundle, branches, tracker)
    depth = bundle.transformer.config.num_layers
    count = sum(p.numel() for p in bundle.transformer.parameters())
    guidance = "with guidance" if branches > 1 else "without guidance"
    lines = [
        f"{count / 1e9:.2f} billion random weights ({dtype}), {depth} blocks, on {device}; memory plan: {plan.name}",
        f"one step of {STEPS} at {native.width}x{native.height}, {native.num_frames} frames, {CHARACTERS} characters, "
        + guidance,
    ]
    if cpu:
        lines.append(
            f"Not a full run, because there is no GPU: {depth} of 42 blocks, without guidance, in float32, and without "
            "decoding"
        )
    else:
        with tracker.stage("Decoding"), torch.no_grad():
            bundle.codec.decode(latents.to(device, dtype))
            synchronize(device)
    if not latents.isfinite().all():
        raise RuntimeError(
            "the step produced non-finite values: this machine or its packages compute incorrect results"
        )
    return SelfTestResult(tuple(lines), tracker.seconds, checksum(latents))
