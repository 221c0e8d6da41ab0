"""All that is ComfyUI's: model memory, progress, previews, cancelling, folders, and how errors are told.

Model memory. Each part of a model (transformer, encoders, video codec) is held by a classic `ModelPatcher` and loaded
whole whenever it is asked for; ComfyUI moves other models away to make room. Loading layer by layer was left out:
layers that are no ComfyUI operations would stay on the CPU without being cast, and `ModelPatcherDynamic` refuses to
load whole.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from bya_core.checkpoints.registry import MODELS
from bya_core.doctor import PACKAGES
from bya_core.errors import Cancelled, InputError

if TYPE_CHECKING:
    from bya_core.checkpoints.bundle import ModelBundle
    from bya_core.progress import Progress, Watcher
    from bya_core.scene import Scene

log = logging.getLogger(__name__)

FOLDER = "bindyouravatar"
PREVIEW_SIDE = 512  # pixels; ComfyUI scales larger previews down


def register_folder() -> None:
    """Make `models/bindyouravatar` known; folders named in extra_model_paths.yaml are kept."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER), is_default=True)


def model_place(name: str) -> tuple[str, Path | None]:
    """Name of a model, and its folder where it is not one of the registry."""
    folder = None if name in MODELS else model_folders().get(name)
    return name, None if folder is None else Path(folder)


def model_folders() -> dict[str, str]:
    """Name -> path of every model folder (one that holds a bundle.json) in the registered places."""
    found: dict[str, str] = {}
    for place in folder_paths.get_folder_paths(FOLDER):
        if os.path.isdir(place):
            for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
                if os.path.isfile(os.path.join(entry.path, "bundle.json")):
                    found.setdefault(entry.name, entry.path)
    return found


def temporary_folder() -> Path:
    """Where finished parts of a long video wait for the rest; ComfyUI empties it when it starts."""
    return Path(folder_paths.get_temp_directory()) / FOLDER


class Holder(nn.Module):
    """What a `ModelPatcher` moves: it wants to set `device`, which the classes of diffusers do not allow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Resident:
    """A part of a model that is on ComfyUI's device whenever something of it is called.

    Args:
        name: of the part in a bundle.
        part: the transformer, an encoder or the codec.
        module: its weights.
    """

    def __init__(self, name: str, part: Any, module: nn.Module) -> None:
        self._part, self.name = part, name
        self.room = 0  # bytes beside the weights
        holder = type(type(module).__name__, (Holder,), {})(module)  # the log names what is loaded by its class
        self.patcher = ModelPatcher(
            holder, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
        )

    def __getattr__(self, name: str) -> Any:
        if name == "_part":  # not there yet: while being copied
            raise AttributeError(name)
        value = getattr(self._part, name)
        if callable(value):
            self.load()
        return value

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.load()
        return self._part(*given, **named)

    def load(self) -> None:
        """Onto the device, whole, with room for what it computes."""
        management.load_models_gpu([self.patcher], memory_required=self.room, force_full_load=True)

    def release(self) -> None:
        """Off the device, and off ComfyUI's list of what is loaded."""
        for index, loaded in reversed(list(enumerate(management.current_loaded_models))):
            if loaded.model is self.patcher:
                management.current_loaded_models.pop(index).model_unload()


@dataclass(frozen=True)
class HostModel:
    """BYA_MODEL: a model whose parts ComfyUI moves.

    Args:
        bundle: with residents as parts.
        residents: those of them that have weights.
        low_memory: each part leaves the device as soon as a node is done with it.
    """

    bundle: ModelBundle
    residents: tuple[Resident, ...]
    low_memory: bool = False


def adopt(bundle: ModelBundle, dtype: torch.dtype | None = None, low_memory: bool = False) -> HostModel:
    """Hand a model that was loaded on the CPU over to ComfyUI.

    Args:
        dtype: of the transformer; None = as its weights are.
    """
    if dtype is not None:
        bundle.transformer.to(dtype)
    parts: dict[str, Any] = {}
    residents = []
    for name in ("transformer", "text", "face", "speech", "codec"):
        part = getattr(bundle, name)
        module = _weights(part)
        if module is not None:
            parts[name] = Resident(name, part, module)
            residents.append(parts[name])
    return HostModel(replace(bundle, **parts), tuple(residents), low_memory)


def _weights(part: Any) -> nn.Module | None:
    """The module of a part: itself, or what it holds; None where it has no weights."""
    if isinstance(part, nn.Module):
        return part
    held = [value for value in vars(part).values() if isinstance(value, nn.Module)]
    return nn.ModuleList(held) if len(held) > 1 else next(iter(held), None)


def _make_room(model: HostModel, scene: Scene) -> None:
    """Say what denoising and decoding a scene hold beside the weights."""
    from bya_core.memory import held_while_decoding, held_while_denoising
    from bya_core.sampling.guidance import branches

    bundle, sampling = model.bundle, scene.sampling
    config, size = bundle.transformer.config, bundle.dtype.itemsize
    passes = len(branches(sampling.guidance_text, sampling.guidance_speech))
    grid = bundle.grid(scene.num_frames, scene.height, scene.width)
    width = config.num_attention_heads * config.attention_head_dim
    for resident in model.residents:
        if resident.name == "transformer":
            resident.room = held_while_denoising(grid, width, passes, size)
        elif resident.name == "codec":
            resident.room = held_while_decoding(grid, size)


@contextmanager
def cancellable() -> Iterator[None]:
    """Work that a click on cancel ends within one layer of any network."""

    def ask(module: nn.Module, inputs: Any) -> None:
        management.throw_exception_if_processing_interrupted()

    management.throw_exception_if_processing_interrupted()
    with nn.modules.module.register_module_forward_pre_hook(ask):
        yield


@contextmanager
def working(model: HostModel, scene: Scene) -> Iterator[None]:
    """Cancellable work on a scene; ComfyUI makes room for it, and gets memory back as the model wants it."""
    _make_room(model, scene)
    with cancellable():
        try:
            yield
        finally:
            if model.low_memory:
                for resident in model.residents:
                    resident.release()
                management.soft_empty_cache()


def watcher(model: HostModel, scene: Scene) -> Watcher:
    """Shows each step on the node's progress bar, with a picture where ComfyUI shows previews."""
    bar = comfy.utils.ProgressBar(1)
    painter: list[Callable[..., Any]] = []

    def watch(progress: Progress) -> None:
        management.throw_exception_if_processing_interrupted()
        if progress.total == 1:
            return
        picture = None
        if progress.info is not None and args.preview_method != LatentPreviewMethod.NoPreviews:
            if not painter:
                from bya_core.graph.preview import painter_for

                painter.append(painter_for(model.bundle, scene))
            picture = ("JPEG", painter[0](progress.info), PREVIEW_SIDE)
        bar.update_absolute(progress.step, progress.total, picture)

    return watch


def on_cpu(value: Any) -> Any:
    """A dataclass, tuple or tensor with all its tensors on the CPU: what nodes hand out must not hold GPU memory."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(on_cpu(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: on_cpu(getattr(value, f.name)) for f in fields(value) if f.init})
    return value


def valid(read: Callable[[str], Any], text: str | None) -> bool | str:
    """For `validate_inputs`: whether what is written can be read; None (it comes by a wire) is looked at later."""
    try:
        return text is None or read(text) is not None
    except InputError as error:
        return str(error)


def told_plainly(execute: Callable[..., Any]) -> Callable[..., Any]:
    """For `execute` of a node: what is missing is told in one sentence; being stopped is ComfyUI's own exception."""

    @functools.wraps(execute)
    def run(*given: Any, **named: Any) -> Any:
        try:
            return execute(*given, **named)
        except Cancelled as stopped:
            raise management.InterruptProcessingException() from stopped
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            project = next((p.project for p in PACKAGES if p.module == missing), missing)
            came = f"the Python package {project} is missing"
            do = f"run pip install {project} with ComfyUI's Python, then start ComfyUI again"
            raise InputError(came, "it to be installed", do) from error

    return run
