"""All that is ComfyUI's: progress, previews, cancelling, folders, and how errors are told; model memory: host_model."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from torch import Tensor, nn

from bya_core.environment import PACKAGES
from bya_core.errors import Cancelled, InputError
from bya_core.weights.cache import add_model_folder, local_models
from bya_core.weights.registry import MODELS

from .host_model import HostModel, adopt, given

if TYPE_CHECKING:
    from bya_core.progress import Progress, ProgressCallback
    from bya_core.scene.types import Scene

__all__ = ["HostModel", "adopt", "given"]  # from host_model, for the nodes

FOLDER = "bindyouravatar"
PREVIEW_SIDE = 512  # pixels; ComfyUI scales larger previews down


def register_folder() -> None:
    """Make `models/bindyouravatar` known; folders named in extra_model_paths.yaml are kept."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER), is_default=True)


def models() -> list[str]:
    """Names of all models that can be chosen: of the registry, and one's own in the registered places."""
    return [*MODELS, *(name for name in _own() if name not in MODELS)]


def model_place(name: str) -> tuple[str, Path | None]:
    """Name of a model, and where it lies if it is not one of the registry."""
    return name, None if name in MODELS else _own().get(name)


def _own() -> dict[str, Path]:
    """Folders with a bundle.json and converted files in the registered places."""
    for place in folder_paths.get_folder_paths(FOLDER):
        add_model_folder(Path(place))
    return local_models()


def fetch(name: str) -> None:
    """Download what is missing of a model into ComfyUI's folder, with progress; a click on cancel stops it.

    Raises:
        InputError: nothing can be downloaded under that name, too little room, a broken file.
    """
    from bya_core.weights import registry

    bar = comfy.utils.ProgressBar(1)

    def watch(progress: Progress) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(progress.step // 10**6, max(1, progress.total // 10**6))

    if name in MODELS and MODELS[name].components and not MODELS[name].available:
        _own()  # so that ComfyUI's folder is the first place
        registry.download_model(name, callback=watch)


def temporary_folder() -> Path:
    """Where finished parts of a long video wait for the rest; ComfyUI empties it when it starts."""
    return Path(folder_paths.get_temp_directory()) / FOLDER


@contextmanager
def cancellable() -> Iterator[None]:
    """Work that a click on cancel ends within one layer of any network."""

    def ask(module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling():  # a question would cut the graph at every layer; blocks are asked still
            return
        management.throw_exception_if_processing_interrupted()

    management.throw_exception_if_processing_interrupted()
    with nn.modules.module.register_module_forward_pre_hook(ask):
        yield


@contextmanager
def working(model: HostModel, scene: Scene) -> Iterator[None]:
    """Cancellable work on a scene; ComfyUI makes room for it, and gets memory back as the model wants it."""
    model.make_room(scene)
    with cancellable():
        try:
            yield
        finally:
            model.rest()


def watcher(model: HostModel, scene: Scene) -> ProgressCallback:
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
                from bya_core.pipelines.preview import painter_for

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
