"""Training checkpoints: atomic, small, and sufficient to continue a run bit for bit.

    OUTPUT/checkpoints/step-00001200/
        trainer_state.json     step (= number of the next batch), time, averages, skipped steps; identity of the run;
                               `model`: what bya_core/weights/checkpoints.py needs to load the checkpoint as a model
        weights.safetensors    trained weights and adapters. Frozen weights are those of `init` and are not stored; a
                               fingerprint detects a different `init`
        frozen.safetensors     the frozen weights, only if the run started from random weights
        ema.safetensors        exponential moving average of the weights, if the stage has one
        optimizers.pt          optimizer state by parameter name
        random_states.pt       random states of all processes, and the loss scale of fp16
        deepspeed/             with DeepSpeed: its own shards instead of optimizers.pt

A checkpoint becomes visible when it is completely on disk, so that a crash or a full disk leaves the earlier ones
intact. Tensors are stored unsharded by name: a run can resume with another number of processes, except with DeepSpeed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_folder, format_size, free_space
from bya_core.weights.checkpoints import FROZEN_FILE
from training.engine.random_state import random_state, set_random_state

log = logging.getLogger(__name__)


@dataclass
class TrainerState:
    """Progress of a run.

    Args:
        step: finished steps, which is also the number of the next batch.
        minutes: training time, over all restarts.
        samples: number of samples seen.
        skipped: steps without an update because their loss or gradient was not finite.
        averages: smoothed metrics.
    """

    step: int = 0
    minutes: float = 0.0
    samples: int = 0
    skipped: int = 0
    averages: dict[str, float] = field(default_factory=dict)


@dataclass
class TrainingObjects:
    """Everything that changes during training.

    Args:
        accelerator: the accelerator that prepared the others.
        model: the unwrapped transformer.
        optimizers: prepared optimizers.
        ema: average of the trainable weights in the order of `trainable()`, or None.
        identity: values that must not change on resume (stage, seed, fingerprint of the frozen weights) and, for
            information, `init`.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizers: list[Any]
    ema: EMAModel | None
    identity: dict[str, Any]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def deepspeed_engine(self) -> Any:
        """The DeepSpeed engine, or None."""
        if self.accelerator.distributed_type is not DistributedType.DEEPSPEED:
            return None
        return self.accelerator.deepspeed_engine_wrapped.engine


class Checkpoints:
    """The checkpoints of one run.

    Args:
        output: folder of the run.
        limit: number of checkpoints to keep.
    """

    def __init__(self, output: Path, limit: int = 2) -> None:
        self.folder, self.limit = output / "checkpoints", max(1, limit)

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix == "")

    def save(self, run: TrainingObjects, state: TrainerState) -> None:
        """Write a checkpoint; called by all processes.

        Raises:
            InputError: it cannot be written, for example because the disk is full. Earlier checkpoints are unchanged.
        """
        main, content = run.accelerator.is_main_process, _capture(run)
        target = self.folder / f"step-{state.step:08d}"
        with shared_atomic_folder(target, run.accelerator, f"the checkpoint of step {state.step}", self) as folder:
            if run.deepspeed_engine is not None:
                run.deepspeed_engine.save_checkpoint(str(folder / "deepspeed"), exclude_frozen_parameters=True)
            if main:
                for name, tensors in content.items():
                    if name.endswith(".safetensors"):
                        save_file(tensors, folder / name)
                    else:
                        _torch_save(tensors, folder / name)
                info = {**asdict(state), "processes": run.accelerator.num_processes, **run.identity}
                (folder / "trainer_state.json").write_text(json.dumps(info, indent=1, default=str))
        if main:
            for old in self.all()[: -self.limit]:
                shutil.rmtree(old)

    def resume(self, run: TrainingObjects, allow_change: Sequence[str] = ()) -> TrainerState:
        """Load the latest checkpoint, or return a new state if there is none.

        Args:
            run: receives the state.
            allow_change: names in its identity that may differ.

        Raises:
            InputError: the checkpoint belongs to another run, or is damaged.
        """
        latest: list[Any] = [self.all()[-1:]]
        broadcast_object_list(latest)  # all processes use the same one
        if not latest[0]:
            return TrainerState()
        folder = latest[0][0]
        try:
            info = json.loads((folder / "trainer_state.json").read_text())
            _check_identity(folder, info, run, allow_change)
            _restore(folder, info, run)
        except InputError:
            raise
        except (OSError, ValueError, RuntimeError, SafetensorError, EOFError) as error:
            problem = f"checkpoint {folder} cannot be read ({error})"
            hint = "remove that folder to resume from the checkpoint before it"
            raise InputError(problem, "an intact checkpoint", hint) from error
        log.info("resuming from %s", folder)
        return TrainerState(**{name: info[name] for name in TrainerState.__dataclass_fields__})


@contextmanager
def shared_atomic_folder(
    target: Path, accelerator: Accelerator, what: str, checkpoints: Checkpoints | None = None
) -> Iterator[Path]:
    """`atomic_folder` for all processes of a run: each of them may write to the temporary folder that is yielded.

    Args:
        target: final path; an existing folder is replaced.
        accelerator: accelerator of the run.
        what: description for error messages.
        checkpoints: the latest of these is named in the error, as the run can be resumed from it.

    Raises:
        InputError: it cannot be written; nothing is left behind.
    """

    def share(path: Path | None) -> Path | None:
        return broadcast_object_list([path])[0]

    latest = checkpoints.all()[-1:] if checkpoints is not None else []
    resume = f"start again to resume from {latest[0].name}" if latest else "start again"
    with atomic_folder(target, accelerator.is_main_process, share) as folder:
        try:
            yield folder
        except (OSError, SafetensorError) as error:
            problem = f"{what} cannot be written to {target.parent} ({format_size(free_space(target))} free): {error}"
            raise InputError(problem, "free disk space", f"free some space and {resume}") from error


def _torch_save(content: Any, path: Path) -> None:
    """`torch.save`, which reports a full disk as a RuntimeError, with an OSError instead."""
    try:
        torch.save(content, path)
    except RuntimeError as error:
        raise OSError(str(error)) from error


def fingerprint(model: nn.Module) -> str:
    """Hash of the frozen weights: names, shapes and a few values, the same in any precision."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            values = parameter.detach().flatten()[:8].to(torch.bfloat16).float().cpu().numpy()
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


def unsharded(tensor: Tensor) -> Tensor:
    """The full tensor on the CPU; for a distributed tensor, called by all processes."""
    tensor = tensor.detach()
    tensor = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()
    padded = tensor.untyped_storage().nbytes() > tensor.nbytes  # gathered from unequal shards
    return tensor.clone() if padded else tensor


def _like_parameter(value: Any, parameter: Tensor) -> Any:
    """A stored tensor on the device of a parameter and sharded like it; scalars are unchanged."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def _capture(run: TrainingObjects) -> dict[str, Any]:
    """Content of the files by name; called by all processes, complete in the main process."""
    trainable = run.trainable()
    scaler = getattr(run.accelerator, "scaler", None)
    content: dict[str, Any] = {
        "weights.safetensors": {name: unsharded(p) for name, p in trainable.items()},
        "random_states.pt": {
            "processes": gather_object([random_state()]),
            "scaler": scaler.state_dict() if scaler is not None else None,
        },
    }
    if run.ema is not None:
        shadows = zip(trainable, run.ema.shadow_params, strict=True)
        content["ema.safetensors"] = {name: unsharded(shadow) for name, shadow in shadows}
    if not run.identity.get("init") and not run.identity.get("base"):
        frozen = {name: value for name, value in run.model.state_dict().items() if name not in trainable}
        if frozen:
            content[FROZEN_FILE] = {name: unsharded(value) for name, value in frozen.items()}
    if run.deepspeed_engine is None:
        names = {id(p): name for name, p in trainable.items()}
        content["optimizers.pt"] = [
            {
                names[id(p)]: {k: unsharded(v) if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()}
                for group in optimizer.param_groups
                for p in group["params"]
                if p in optimizer.state
            }
            for optimizer in run.optimizers
        ]
    return content


@torch.no_grad()
def _restore(folder: Path, info: dict[str, Any], run: TrainingObjects) -> None:
    """Load a checkpoint into the run; called by all processes."""
    trainable = run.trainable()
    weights = load_file(folder / "weights.safetensors")
    if weights.keys() != trainable.keys():
        problem = f"checkpoint {folder} has {len(weights)} trained weights"
        raise InputError(problem, f"the {len(trainable)} that this stage trains", "choose another output folder")
    if run.deepspeed_engine is None:
        for name, parameter in trainable.items():
            parameter.copy_(_like_parameter(weights[name], parameter))
        saved = torch.load(folder / "optimizers.pt", map_location="cpu", weights_only=True)
        if len(saved) != len(run.optimizers):
            problem = f"checkpoint {folder} has {len(saved)} optimizers"
            raise InputError(problem, f"the {len(run.optimizers)} of this stage", "choose another output folder")
        for optimizer, states in zip(run.optimizers, saved, strict=True):
            for name, state in states.items():
                p = trainable[name]
                optimizer.state[p] = {key: _like_parameter(value, p) for key, value in state.items()}
    else:
        run.deepspeed_engine.load_checkpoint(str(folder / "deepspeed"), load_module_strict=False)
    if run.ema is not None:
        averages = load_file(folder / "ema.safetensors")
        for (name, p), shadow in zip(trainable.items(), run.ema.shadow_params, strict=True):
            shadow.copy_(_like_parameter(averages[name], p))
        run.ema.optimization_step = info["step"] - info["skipped"]
    random_states = torch.load(folder / "random_states.pt", map_location="cpu", weights_only=True)
    scaler = getattr(run.accelerator, "scaler", None)
    if scaler is not None and random_states["scaler"]:
        scaler.load_state_dict(random_states["scaler"])
    if len(random_states["processes"]) == run.accelerator.num_processes:
        set_random_state(random_states["processes"][run.accelerator.process_index])
    else:
        text = "the checkpoint was written by %d processes, this run has %d: same batches, different rounding"
        log.warning(text, len(random_states["processes"]), run.accelerator.num_processes)


def _check_identity(folder: Path, info: dict[str, Any], run: TrainingObjects, allow_change: Sequence[str] = ()) -> None:
    for name in ("stage", "seed", "frozen"):
        if (name if name != "frozen" else "init") in allow_change and name != "stage":
            continue
        if info.get(name) != run.identity[name]:
            problem = f"checkpoint {folder} has {name} {info.get(name)!r}"
            hint = f"choose another output folder, or start with the same settings (init {info['init']})"
            raise InputError(problem, f"{run.identity[name]!r} as in this run", hint)
    if run.deepspeed_engine is not None and info["processes"] != run.accelerator.num_processes:
        problem = f"{run.accelerator.num_processes} processes for a DeepSpeed checkpoint of {info['processes']}"
        raise InputError(problem, "the same number", "start as many, or train with FSDP2, which takes any number")
