"""Checkpoints of a run: written whole or not at all, small, and enough to go on as if nothing had happened.

    OUTPUT/checkpoints/step-00001200/
        progress.json          step (= number of the next batch), minutes, means, skips; what the run was started with
        weights.safetensors    what learns: trained weights and adapters. Frozen weights are not kept: they are those of
                               `init`, and a fingerprint tells whether they are the same ones
        ema.safetensors        their averages, where the stage keeps some
        optimisers.pt          state of the optimisers by names of parameters
        random.pt              random states of all processes, and the loss scale of fp16
        deepspeed/             with DeepSpeed, in place of optimisers.pt: its own shards

A checkpoint is written beside its final name and renamed when every byte is on the disk, so a kill at any moment, or a
full disk, leaves the ones before untouched. Tensors are stored whole under their names, whatever way they were
distributed in: a run goes on with any number of processes (with DeepSpeed only with the same number).
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from bya_core.errors import InputError
from training.engine.whole_folder import written_whole

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run is.

    Args:
        step: steps done, which is also the number of the next batch.
        minutes: time spent, over all starts.
        samples: samples seen.
        skipped: steps that changed nothing because their loss or gradient was not finite.
        means: smoothed losses.
    """

    step: int = 0
    minutes: float = 0.0
    samples: int = 0
    skipped: int = 0
    means: dict[str, float] = field(default_factory=dict)


@dataclass
class Trained:
    """All that changes while training.

    Args:
        accelerator: that prepared the others.
        model: the network itself, not its wrapper.
        optimisers: as prepared.
        ema: averages of the learned weights in the order of `learned()`, or None.
        started_with: what must be the same after a restart: stage, seed, fingerprint of the frozen weights; and, for
            information, `init`.
    """

    accelerator: Accelerator
    model: nn.Module
    optimisers: list[Any]
    ema: EMAModel | None
    started_with: dict[str, Any]

    def learned(self) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def engine(self) -> Any:
        """DeepSpeed's engine, or None."""
        if self.accelerator.distributed_type is not DistributedType.DEEPSPEED:
            return None
        return self.accelerator.deepspeed_engine_wrapped.engine


class Checkpoints:
    """The checkpoints of one run.

    Args:
        output: folder of the run.
        keep: how many are kept, the newest ones.
    """

    def __init__(self, output: Path, keep: int = 2) -> None:
        self.folder, self.keep = output / "checkpoints", max(1, keep)

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix == "")

    def save(self, run: Trained, progress: Progress) -> None:
        """Write one; called by all processes.

        Raises:
            InputError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        target = self.folder / f"step-{progress.step:08d}"
        main = run.accelerator.is_main_process
        content = _captured(run)
        kept = self.all()[-1:] if main else []
        with written_whole(target, run.accelerator, f"the checkpoint of step {progress.step}", kept) as fresh:
            if run.engine is not None:
                run.engine.save_checkpoint(str(fresh / "deepspeed"), exclude_frozen_parameters=True)
            if main:
                about = {**asdict(progress), "processes": run.accelerator.num_processes, **run.started_with}
                for name, tensors in content.items():
                    if name.endswith(".safetensors"):
                        save_file(tensors, fresh / name)
                    else:
                        torch.save(tensors, fresh / name)
                (fresh / "progress.json").write_text(json.dumps(about, indent=1, default=str))
        if main:
            for old in self.all()[: -self.keep]:
                shutil.rmtree(old)

    def resume(self, run: Trained) -> Progress:
        """Load the newest into all that changes; a fresh `Progress` where there is none.

        Raises:
            InputError: it belongs to another run, or a file of it is damaged.
        """
        newest: list[Any] = [self.all()[-1:]]
        broadcast_object_list(newest)  # one answer for all processes
        if not newest[0]:
            return Progress()
        folder = newest[0][0]
        try:
            about = json.loads((folder / "progress.json").read_text())
            _same_run(folder, about, run)
            _restored(folder, about, run)
        except InputError:
            raise
        except (OSError, ValueError, RuntimeError, SafetensorError, EOFError) as error:
            came = f"checkpoint {folder}, which cannot be read ({error})"
            raise InputError(came, "a whole one", "remove that folder: the run goes on from the one before") from error
        log.info("going on from %s", folder)
        return Progress(**{name: about[name] for name in Progress.__dataclass_fields__})


def fingerprint(model: nn.Module) -> str:
    """Of the weights that do not learn: names, shapes and a few values, the same in any precision."""
    seen = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            some = parameter.detach().flatten()[:8].to(torch.bfloat16).float().cpu().numpy()
            seen.update(f"{name} {tuple(parameter.shape)}".encode() + some.tobytes())
    return seen.hexdigest()[:16]


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece on the CPU; of a distributed one, called by all processes."""
    tensor = tensor.detach()
    tensor = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()
    padded = tensor.untyped_storage().nbytes() > tensor.nbytes  # gathered from unequal shards
    return tensor.clone() if padded else tensor


def _as_held(value: Any, parameter: Tensor) -> Any:
    """A stored tensor on the device of a parameter and distributed like it; counters stay as they are."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def _captured(run: Trained) -> dict[str, Any]:
    """Content of the files by name; called by all processes, of use in the main one."""
    learned = run.learned()
    scaler = getattr(run.accelerator, "scaler", None)
    content: dict[str, Any] = {
        "weights.safetensors": {name: whole(p) for name, p in learned.items()},
        "random.pt": {
            "processes": gather_object([_random_state()]),
            "scaler": scaler.state_dict() if scaler is not None else None,
        },
    }
    if run.ema is not None:
        shadows = zip(learned, run.ema.shadow_params, strict=True)
        content["ema.safetensors"] = {name: whole(shadow) for name, shadow in shadows}
    if run.engine is None:
        names = {id(p): name for name, p in learned.items()}
        content["optimisers.pt"] = [
            {
                names[id(p)]: {k: whole(v) if isinstance(v, Tensor) else v for k, v in optimiser.state[p].items()}
                for group in optimiser.param_groups
                for p in group["params"]
                if p in optimiser.state
            }
            for optimiser in run.optimisers
        ]
    return content


@torch.no_grad()
def _restored(folder: Path, about: dict[str, Any], run: Trained) -> None:
    """Read a checkpoint into the run; called by all processes."""
    learned = run.learned()
    weights = load_file(folder / "weights.safetensors")
    if weights.keys() != learned.keys():
        came = f"checkpoint {folder} with {len(weights)} learned weights"
        raise InputError(came, f"the {len(learned)} that this stage trains", "choose another output folder")
    if run.engine is None:
        for name, parameter in learned.items():
            parameter.copy_(_as_held(weights[name], parameter))
        saved = torch.load(folder / "optimisers.pt", map_location="cpu", weights_only=True)
        if len(saved) != len(run.optimisers):
            raise InputError(f"checkpoint {folder} of other optimisers", "the same", "choose another output folder")
        for optimiser, states in zip(run.optimisers, saved, strict=True):
            for name, state in states.items():
                p = learned[name]
                optimiser.state[p] = {key: _as_held(value, p) for key, value in state.items()}
    else:
        run.engine.load_checkpoint(str(folder / "deepspeed"), load_module_strict=False)
    if run.ema is not None:
        averages = load_file(folder / "ema.safetensors")
        for (name, p), shadow in zip(learned.items(), run.ema.shadow_params, strict=True):
            shadow.copy_(_as_held(averages[name], p))
        run.ema.optimization_step = about["step"] - about["skipped"]
    kept = torch.load(folder / "random.pt", map_location="cpu", weights_only=True)
    scaler = getattr(run.accelerator, "scaler", None)
    if scaler is not None and kept["scaler"]:
        scaler.load_state_dict(kept["scaler"])
    if len(kept["processes"]) == run.accelerator.num_processes:
        _set_random_state(kept["processes"][run.accelerator.process_index])
    else:
        log.warning(
            "the checkpoint is of %d processes, this start has %d: the same batches, sums in another order",
            len(kept["processes"]),
            run.accelerator.num_processes,
        )


def _same_run(folder: Path, about: dict[str, Any], run: Trained) -> None:
    for name in ("stage", "seed", "frozen"):
        if about.get(name) != run.started_with[name]:
            came = f"checkpoint {folder} of {name} {about.get(name)!r}"
            expected = f"{run.started_with[name]!r}, as this run was started"
            raise InputError(came, expected, f"choose another output folder, or start as before (init {about['init']})")
    if run.engine is not None and about["processes"] != run.accelerator.num_processes:
        came = f"{run.accelerator.num_processes} processes for a DeepSpeed checkpoint of {about['processes']}"
        raise InputError(came, "as many as before", "start so many, or train with FSDP2, which takes any number")


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
