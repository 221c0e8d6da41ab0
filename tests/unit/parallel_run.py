"""A small run, in one process or in several that share the branches: `torchrun ... parallel_run.py FOLDER` writes what
each of them ends with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from bya_core.config import SamplingConfig
from bya_core.sampling import build_scheduler, denoise
from bya_core.sampling.parallel import compute_branches
from tests.unit.test_sampling_tiny import _conditions, build

FORCED = {
    "forced_masks": torch.linspace(0, 1, 24).view(1, 2, 2, 2, 3),
    "forced_weight": torch.full((1, 1, 1, 1, 1), 0.5),
}
RUNS: dict[str, dict[str, Any]] = {
    "joint": {"guidance_text": 3.0, "guidance_speech": 3.0},
    "joint, ddim": {"guidance_text": 3.0, "guidance_speech": 3.0, "scheduler": "ddim"},
    "apart": {"guidance_text": 3.0, "guidance_speech": 6.0},
    "none": {"guidance_text": 1.0, "guidance_speech": 1.0},
    "forced": {"guidance_text": 3.0, "guidance_speech": 3.0, "drop_identity": True, "more": FORCED},
}
"""Three branches and one with two processes: then some branch is computed twice."""


def results(way: Any) -> dict[str, Tensor]:
    """Latents, masks and the state of the random generator after each of the runs."""
    found: dict[str, Tensor] = {}
    for name, settings in RUNS.items():
        model = build()
        compute_branches(model, way)
        config = SamplingConfig(steps=3, seed=5, **{key: value for key, value in settings.items() if key != "more"})
        conditions = _conditions(model, 2, **settings.get("more", {}))
        made = denoise(model, build_scheduler(config.scheduler), conditions, config)
        assert made.masks is not None
        parts = {"latents": made.latents, "masks": made.masks, "generator": made.state.generator}
        found |= {f"{name}: {part}": value.contiguous() for part, value in parts.items()}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    save_file(results("processes"), Path(sys.argv[1]) / f"{dist.get_rank()}.safetensors")
    dist.destroy_process_group()
