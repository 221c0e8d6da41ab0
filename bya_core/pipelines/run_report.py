"""Contents of report.json: inputs, settings, masks, durations and memory of a run."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

import bya_core
from bya_core.grid import TokenGrid
from bya_core.masks import mask_statistics
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle


class MadeVideo(Protocol):
    """Common interface of `Video` and `LongVideo`."""

    @property
    def frames(self) -> Iterable[Tensor]: ...
    @property
    def masks(self) -> Tensor: ...
    @property
    def grid(self) -> TokenGrid: ...
    @property
    def audio(self) -> tuple[Tensor, int] | None: ...
    @property
    def matrix(self) -> Tensor: ...
    @property
    def notices(self) -> tuple[str, ...]: ...
    @property
    def seconds(self) -> dict[str, float]: ...


def peak_ram() -> int | None:
    """Peak resident memory of this process in bytes; None if the operating system does not report it."""
    status = Path("/proc/self/status")
    # on Linux, ru_maxrss includes the peak of the parent process
    if status.is_file() and (match := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(match[1])
    if sys.platform == "win32":  # has no module `resource`
        return None
    resource = importlib.import_module("resource")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def peak_memory() -> dict[str, float]:
    """Peak memory of this process and of the GPU, in GB."""
    peak: dict[str, float] = {}
    if (ram := peak_ram()) is not None:
        peak["ram_gb"] = round(ram / 1e9, 3)
    if torch.cuda.is_available():
        peak["gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return peak


def build_report(
    scene: Scene,
    scene_path: Path,
    bundle: ModelBundle,
    video: MadeVideo,
    seconds: dict[str, float],
    files: list[Path],
) -> dict[str, Any]:
    """The report of a run, ready for JSON.

    Args:
        scene: the scene.
        scene_path: its file.
        bundle: the model.
        video: the result.
        seconds: duration of stages outside of `generate`, such as loading; added to those of `video.seconds`.
        files: the output files.
    """
    seconds = {**seconds, **video.seconds}
    return {
        "scene": {
            "file": str(scene_path),
            "prompt": scene.prompt,
            "negative_prompt": scene.negative_prompt,
            "size": [scene.width, scene.height],
            "frames": scene.num_frames,
            "fps": scene.fps,
            "audio_character_matrix": video.matrix.tolist(),
            "bind": scene.bind,
            "speech_strength": None if scene.speech_strength is None else scene.speech_strength.tolist(),
            "prompts": [asdict(span) for span in scene.prompts],
            "windows": asdict(scene.windows),
            "first_frame": scene.first_frame is not None,
        },
        "model": {"name": bundle.name, "version": bya_core.__version__},
        "seed": scene.sampling.seed,
        "sampling": asdict(scene.sampling),
        "router": asdict(scene.routing),
        "characters": [
            {"name": character.name, "speech_of": _assigned(scene, video.matrix, index), "mask": asdict(statistics)}
            for index, (character, statistics) in enumerate(
                zip(scene.characters, mask_statistics(video.masks), strict=True)
            )
        ],
        "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
        "peak_memory": peak_memory(),
        "machine": {
            "device": str(bundle.device),
            "dtype": str(bundle.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "warnings": list(video.notices),
        "files": [str(file) for file in files],
    }


def _assigned(scene: Scene, matrix: Tensor, index: int) -> list[str]:
    """Names of the speeches assigned to character `index`; empty = listener."""
    names = [character.name for character in scene.characters]
    names += [f"speech {i + 1}" for i in range(len(names), len(scene.speeches))]
    streams = zip(names, scene.speeches, matrix[:, index], strict=False)
    return [name for name, speech, weight in streams if speech is not None and weight > 0]
