"""Data, recipes and subprocesses for runs of the training loop on a model of a few thousand weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from bya_core.weights.registry import MODELS
from tests.training.stage_parts import SMALL, small_model
from training.data.batches import Clips
from training.data.clip_folder import ClipFolder
from training.engine.checkpointing import Checkpoints, TrainerState, TrainingObjects, fingerprint
from training.engine.distributed import build_accelerator
from training.engine.loop import train
from training.engine.lora import add_lora, load_model
from training.engine.optim import select_trainable, unused_prefixes
from training.engine.recipe import load_recipe
from training.engine.record import describe_model
from training.engine.settings import RunSettings
from training.engine.stages import Stage

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "training" / "run_stage.py"


def write_data(folder: Path, groups: Sequence[tuple[int, int]] = ((2, 2), (1, 2), (2, 4)), channels: int = 4) -> Path:
    """Write encoded clips, six for each (characters, latent frames) in `groups`, with so many latent channels."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng).half()

    folder.mkdir(parents=True)
    for n, frames in groups:
        left = torch.zeros(6, n, frames, 2, 3, dtype=torch.uint8)
        left[:, 0, :, :, 0] = 255
        first = normal(6, channels, 4, 6)
        clip = {
            "latents": first[:, None].repeat(1, frames, 1, 1, 1),
            "canvas": normal(6, channels, 4, 6),
            "first_frame": first,
            "text": normal(6, 4, 8),
            "masks": left,
            "emphasis": torch.zeros(6, frames, 4, 6, dtype=torch.uint8),
            "identity": normal(6, n, 8),
            "hidden": normal(6, n, 5, 3, 8),
            "speech": normal(6, n, (frames - 1) * 4 + 5, 2, 4),
            "seed": torch.arange(6),
        }
        save_file(clip, folder / f"n{n}_t{frames}.safetensors")
    return folder


def write_recipe(path: Path, dropout: float = 0.1, **changes: Any) -> Path:
    """Write a recipe of the published stages for the small model, and initial weights beside it.

    Args:
        path: recipe file.
        dropout: dropout of the blocks, so that random states matter.
        changes: values of all stages.
    """
    stages = {
        "batch_size": 4,
        "steps": 12,
        "lora": {"rank": 2, "alpha": 4, "targets": ["attn1.to_q", "attn1.to_k"]},
        "optimizer": {"lr": 0.01, "warmup_steps": 3, "ema_decay": 0.9, "lr_schedule": "constant"},
        **changes,
    }
    path.write_text(yaml.safe_dump({"model": {**SMALL, "dropout": dropout}, "all_stages": stages}))
    small_model(dropout=dropout).save_pretrained(path.parent / "init")
    return path


def run(
    data: Path | Clips, stage: Stage, output: Path, model: Any = None, callback: Any = None, **settings: Any
) -> dict[str, float]:
    """Train a new small model (or `model`) on a folder of encoded clips or another source, with a log line per step."""
    clips = ClipFolder(data) if isinstance(data, Path) else data
    options = RunSettings(output, **{"logging_steps": 1, "report_to": (), **settings})
    return train(
        small_model() if model is None else model,
        clips,
        stage,
        options,
        callbacks=() if callback is None else (callback,),
    )


def toy_checkpoint(output: Path) -> Path:
    """A checkpoint of the toy model with adapters of rank 2 that change it."""
    recipe = load_recipe("toy", ("stage.3.lora={rank: 2, alpha: 4, targets: [attn1.to_q]}",))
    stage, settings = recipe.stages[3], RunSettings(output, init="toy", report_to=())
    model = load_model(MODELS["toy"].path)
    add_lora(model, stage.lora)
    select_trainable(model, (), unused_prefixes(stage))
    identity = {"stage": 3, "seed": 0, "frozen": fingerprint(model), "init": "toy"}
    identity["model"] = describe_model(model, stage, settings, recipe)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.1 if ".lora_B." in name else 0.0)
    output.mkdir()
    run = TrainingObjects(build_accelerator(settings), model, [], None, identity)
    Checkpoints(output).save(run, TrainerState(step=7))
    (checkpoint,) = Checkpoints(output).all()
    return checkpoint


def command(recipe: Path, data: Path, output: Path, *more: str, processes: int = 1, stage: int = 3) -> list[str]:
    """The command line of a run, with the launcher of torch for several processes.

    The launcher of accelerate starts a single process on machines without GPU.
    """
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    given: dict[str, Any] = {"stage": stage, "recipe": recipe, "data": data, "output": output}
    given |= {"init": recipe.parent / "init", "threads": 1, "logging-steps": 1}
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return [*launcher, str(SCRIPT), *flags, "--report-to", *more]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a run in the background."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, env={**kept, **quiet}, **pipes)


def finish(arguments: list[str]) -> str:
    """Run to the end and return the output."""
    process = start(arguments)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-12000:]
    return output


def lines(output: Path) -> list[dict[str, Any]]:
    """The entries of the log."""
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def losses(output: Path) -> dict[int, tuple[float, ...]]:
    """Losses and gradient norm by step; stages before the third have no cross-entropy."""
    names = ("step_loss", "loss", "diffusion", "cross_entropy", "grad_norm")
    steps = [line for line in lines(output) if "kind" not in line]
    return {line["step"]: tuple(line[name] for name in names if name in line) for line in steps}
