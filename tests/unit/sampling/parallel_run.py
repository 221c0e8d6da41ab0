"""Runs of a small model, also as `torchrun ... parallel_run.py FOLDER`, which writes the results of each process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from bya_core.config import RouterSchedule, SamplingConfig
from bya_core.masks import MaskControl
from bya_core.sampling import build_scheduler, denoise
from bya_core.sampling.acceleration import PRESETS, Acceleration
from bya_core.sampling.cfg_parallel import set_guidance_mode
from tests.unit.sampling.test_denoise_small_model import _conditions, build

CONTROL = MaskControl(torch.linspace(0, 1, 24).view(2, 2, 2, 3), torch.tensor(0.5))
RUNS: dict[str, dict[str, Any]] = {
    "joint": {"guidance_scale": 3.0, "audio_guidance_scale": 3.0},
    "joint, ddim": {"guidance_scale": 3.0, "audio_guidance_scale": 3.0, "scheduler": "ddim"},
    "apart": {"guidance_scale": 3.0, "audio_guidance_scale": 6.0},
    "none": {"guidance_scale": 1.0, "audio_guidance_scale": 1.0},
    "mask control": {"guidance_scale": 3.0, "audio_guidance_scale": 3.0, "drop_identity": True, "control": CONTROL},
}
"""With one or three branches, two processes compute one branch twice."""

SKIPPING: dict[str, dict[str, Any]] = {
    "joint": {"guidance_scale": 3.0, "audio_guidance_scale": 3.0, "steps": 8},
    "apart": {"guidance_scale": 3.0, "audio_guidance_scale": 6.0, "steps": 8},
}
PRESET = Acceleration(
    RouterSchedule(every=2, freeze=True),
    mask_change=2.0,
    cache_threshold=0.3,
    max_skipped=2,
    guidance_interval=(0, 0.75),
)
"""Skipping depends on the branches, but all processes must skip the same steps."""


def skipping(mode: Any, preset: Acceleration = PRESET) -> dict[str, Tensor]:
    """`results` of runs with `preset`."""
    before, PRESETS["fast"] = PRESETS["fast"], preset
    try:
        return results(mode, {name: settings | {"preset": "fast"} for name, settings in SKIPPING.items()})
    finally:
        PRESETS["fast"] = before


def results(mode: Any, runs: dict[str, dict[str, Any]] = RUNS) -> dict[str, Tensor]:
    """Latents, masks and the state of the random generator after each of the runs."""
    found: dict[str, Tensor] = {}
    for name, settings in runs.items():
        model = build()
        set_guidance_mode(model, mode)
        chosen = {"steps": 3} | {key: value for key, value in settings.items() if key != "control"}
        config = SamplingConfig(seed=5, **chosen)
        conditions = _conditions(model, 2, mask_control=settings.get("control"))
        made = denoise(model, build_scheduler(config.scheduler), conditions, config)
        assert made.masks is not None
        parts = {"latents": made.latents, "masks": made.masks, "generator": made.state.generator}
        found |= {f"{name}: {part}": value.contiguous() for part, value in parts.items()}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, made in (("", results("distributed")), ("skipping", skipping("distributed"))):
        save_file(made, Path(sys.argv[1]) / f"{name}{dist.get_rank()}.safetensors")
    dist.destroy_process_group()
