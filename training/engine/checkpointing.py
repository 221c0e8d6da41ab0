"""Training checkpoints: atomic, small, and sufficient to continue a run bit for bit.

    OUTPUT/checkpoints/step-00001200/
        trainer_state.json     step (= number of the next batch), time, averages, skipped steps; identity of the run;
                               `model`: what bya_core/weights/checkpoints.py needs to load the checkpoint as a model
        weights.safetensors    trained weights and adapters. Frozen weights are those of `init` and are not stored; a
                               fingerprint detects a different `init`
        frozen.safetensors     the frozen weights, only if the run started from random weights
        ema.safetensors        exponential moving average of the weights, if the stage has one
        optimizers.safetensors optimizer state as NUMBER/NAME/VALUE; values that are no tensors in the metadata
        random_states.pt       random states of all processes, and the loss scale of fp16
        deepspeed/             with DeepSpeed: its own shards instead of optimizers.safetensors

A checkpoint becomes visible when it is completely on disk, so that a crash or a full disk leaves the earlier ones
intact. Tensors are stored unsharded by name and written by the main process one at a time, so that host memory holds
no second copy of the model (benchmarks/checkpoint_memory.py). A run can resume with another number of processes, except
with DeepSpeed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_folder, format_size, free_space
from bya_core.weights.checkpoints import AVERAGES_FILE, FROZEN_FILE, WEIGHTS_FILE
from training.engine.random_state import random_state, set_random_state
from training.engine.tensor_files import TensorFile, shared_failure, write_tensors

log = logging.getLogger(__name__)

OPTIMIZERS_FILE = "optimizers.safetensors"


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
        main, started = run.accelerator.is_main_process, time.monotonic()
        target = self.folder / f"step-{state.step:08d}"
        scaler = getattr(run.accelerator, "scaler", None)
        random_states = {
            "processes": gather_object([random_state()]),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        with shared_atomic_folder(target, run.accelerator, f"the checkpoint of step {state.step}", self) as folder:
            if run.deepspeed_engine is not None:
                run.deepspeed_engine.save_checkpoint(str(folder / "deepspeed"), exclude_frozen_parameters=True)
            _write_tensors(folder, run, main)
            if main:
                _torch_save(random_states, folder / "random_states.pt")
                info = {**asdict(state), "processes": run.accelerator.num_processes, **run.identity}
                (folder / "trainer_state.json").write_text(json.dumps(info, indent=1, default=str))
        if main:
            size = format_size(sum(each.stat().st_size for each in target.rglob("*")))
            log.info("checkpoint %s: %s in %.1f s", target.name, size, time.monotonic() - started)
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
        InputError: a process cannot write to it; nothing is left behind. Raised in all processes.
    """

    main = accelerator.is_main_process
    latest = checkpoints.all()[-1:] if checkpoints is not None else []
    resume = f"start again to resume from {latest[0].name}" if latest else "start again"
    folder: Path | None = None
    with ExitStack() as stack:
        try:
            with shared_failure():
                if main:
                    folder = stack.enter_context(atomic_folder(target))
            folder = broadcast_object_list([folder])[0]
            assert folder is not None
            with shared_failure():
                yield folder
            with shared_failure():
                stack.close()  # the folder gets its final name
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


def checkpoint_size(run: TrainingObjects) -> int:
    """Bytes of a checkpoint, with 8 bytes of optimizer state per trained weight."""
    trained = sum(p.numel() for p in run.trainable().values())
    return trained * (4 + 8 + (4 if run.ema is not None else 0)) + sum(v.nbytes for v in _frozen(run).values())


def _frozen(run: TrainingObjects) -> dict[str, Tensor]:
    """Frozen weights that are stored: all if the run started from random weights, else none."""
    if run.identity.get("init") or run.identity.get("base"):
        return {}
    trainable = run.trainable()
    return {name: value for name, value in run.model.state_dict().items() if name not in trainable}


def _write_tensors(folder: Path, run: TrainingObjects, main: bool) -> None:
    """Write the tensors of a checkpoint; called by all processes."""
    trainable = run.trainable()
    write_tensors(folder / WEIGHTS_FILE, trainable, main)
    if run.ema is not None:
        write_tensors(folder / AVERAGES_FILE, dict(zip(trainable, run.ema.shadow_params, strict=True)), main)
    if frozen := _frozen(run):
        write_tensors(folder / FROZEN_FILE, frozen, main)
    if run.deepspeed_engine is not None:
        return
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for number, optimizer in enumerate(run.optimizers):
        for name, p in trainable.items():
            for key, value in optimizer.state.get(p, {}).items():
                (tensors if isinstance(value, Tensor) else values)[f"{number}/{name}/{key}"] = value
    metadata = {"optimizers": str(len(run.optimizers)), "values": json.dumps(values)}
    write_tensors(folder / OPTIMIZERS_FILE, tensors, main, metadata)


@torch.no_grad()
def _restore(folder: Path, info: dict[str, Any], run: TrainingObjects) -> None:
    """Load a checkpoint into the run; called by all processes."""
    trainable = run.trainable()
    with TensorFile(folder / WEIGHTS_FILE) as weights:
        if set(weights.names()) != trainable.keys():
            problem = f"checkpoint {folder} has {len(weights.names())} trained weights"
            raise InputError(problem, f"the {len(trainable)} that this stage trains", "choose another output folder")
        if run.deepspeed_engine is None:
            for name, parameter in trainable.items():
                weights.copy_to(name, parameter)
    if run.deepspeed_engine is None:
        _restore_optimizers(folder, run, trainable)
    else:
        run.deepspeed_engine.load_checkpoint(str(folder / "deepspeed"), load_module_strict=False)
    if run.ema is not None:
        with TensorFile(folder / AVERAGES_FILE) as averages:
            for name, shadow in zip(trainable, run.ema.shadow_params, strict=True):
                averages.copy_to(name, shadow)
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


def _restore_optimizers(folder: Path, run: TrainingObjects, trainable: Mapping[str, Tensor]) -> None:
    with TensorFile(folder / OPTIMIZERS_FILE) as saved:
        count = int(saved.metadata["optimizers"])
        if count != len(run.optimizers):
            problem = f"checkpoint {folder} has {count} optimizers"
            raise InputError(problem, f"the {len(run.optimizers)} of this stage", "choose another output folder")
        values = json.loads(saved.metadata["values"])
        for entry in (*saved.names(), *values):
            number, name, key = entry.split("/")
            p = trainable[name]
            value = values[entry] if entry in values else saved.like(entry, p)
            run.optimizers[int(number)].state[p][key] = value


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
