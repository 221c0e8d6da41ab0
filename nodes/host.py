"""Access to ComfyUI: progress, previews, cancellation, folders, errors. Model memory is in host_model."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from bya_core.errors import Cancelled, InputError, out_of_memory
from bya_core.io.atomic import atomic_write
from bya_core.io.files import usable_path
from bya_core.weights.cache import add_foreign_folder, add_model_folder, add_shared_folder, local_models
from bya_core.weights.registry import MODELS

from .host_model import HostModel, host_components, manage_model

if TYPE_CHECKING:
    from bya_core.progress import Progress, ProgressCallback
    from bya_core.scene.types import Scene

log = logging.getLogger(__name__)
__all__ = ["HostModel", "host_components", "manage_model"]  # imported by the nodes from here

FOLDER = "bindyouravatar"
PARTS = 1000  # of the progress bar of a video in several windows
ENCODER_FOLDERS = ("insightface", "facexlib", "facedetection", "clip_vision", "text_encoders", "clip")
"""Folders of ComfyUI in which other nodes keep antelopev2, RetinaFace, BiSeNet and EVA02-CLIP."""
PREVIEW_SIDE = 512  # pixels; ComfyUI scales larger previews down


def register_folder() -> None:
    """Make `models/bindyouravatar` known; folders named in extra_model_paths.yaml are kept."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER), is_default=True)


def add_demo_files() -> None:
    """Put the images and recordings of the workflows that come with the pack into ComfyUI's input folder."""
    from bya_core.toy.demo import copy_demo_files

    folder = Path(folder_paths.get_input_directory())
    try:
        new = copy_demo_files(folder)
    except (InputError, OSError) as error:  # the nodes that load them say what is missing
        log.warning("The demo files of the workflows could not be copied: %s", error)
    else:
        if new:
            log.info("Demo files of the workflows (bya_*) copied to %s", folder)


def model_names() -> list[str]:
    """Names of all models: of the registry, and local ones in the registered folders."""
    return [*MODELS, *(name for name in local_model_paths() if name not in MODELS)]


def resolve_model(name: str) -> tuple[str, Path | None]:
    """Name of a model, and its path if it is not in the registry."""
    return name, None if name in MODELS else local_model_paths().get(name)


def lora_names() -> list[str]:
    """Names of the files in ComfyUI's folders for LoRAs."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> Path:
    """File of a LoRA. Raises InputError if it is not there any more."""
    found = folder_paths.get_full_path("loras", name)
    if found is None:
        raise InputError(f'no LoRA "{name}"', "a file in models/loras", "choose one from the list")
    return Path(found)


def local_model_paths() -> dict[str, Path]:
    """Model folders and converted files in the registered folders, and converted files among diffusion models.

    Published face and vision encoders that other nodes have downloaded are used from the folders of `ENCODER_FOLDERS`.
    """
    for folder in folder_paths.get_folder_paths(FOLDER):
        add_model_folder(Path(folder))
    for folder in folder_paths.get_folder_paths("diffusion_models"):
        add_shared_folder(Path(folder))
    for name in ENCODER_FOLDERS:
        known, _ = folder_paths.folder_names_and_paths.get(name, ([], None))
        for folder in (*known, os.path.join(folder_paths.models_dir, name)):
            add_foreign_folder(Path(folder))
    return local_models()


def download(name: str) -> None:
    """Download missing files of a model into ComfyUI's folder, with progress; cancellation stops it.

    Raises:
        InputError: A model that cannot be downloaded, too little disk space, or a corrupt file.
    """
    from bya_core.weights import registry

    bar = comfy.utils.ProgressBar(1)

    def report(progress: Progress) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(progress.step // 10**6, max(1, progress.total // 10**6))

    if name in MODELS and MODELS[name].components and not MODELS[name].available:
        local_model_paths()  # registers ComfyUI's folders
        registry.download_model(name, callback=report)


def model_defaults() -> dict[str, dict[str, Any]]:
    """Settings of each model that the page fills in: widget -> value."""
    known = {name: entry.settings or _settings(entry.path) for name, entry in MODELS.items()}
    known |= {name: _settings(path) for name, path in local_model_paths().items() if name not in MODELS}
    return {name: _widgets(settings) for name, settings in known.items() if settings is not None}


def _settings(folder: Path) -> Mapping[str, Any] | None:
    """Content of bundle.json; None without a readable one."""
    try:
        settings = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        return settings if {"native", "sampling"} <= settings.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _widgets(settings: Mapping[str, Any]) -> dict[str, Any]:
    native, sampling = settings["native"], settings["sampling"]
    return {
        "width": native.get("width"),
        "height": native.get("height"),
        "window_frames": native.get("num_frames"),
        "steps": sampling.get("steps"),
        "cfg": sampling.get("guidance_scale"),
        "audio_cfg": sampling.get("audio_guidance_scale"),
        "scheduler": sampling.get("scheduler"),
    }


def temporary_file(name: str, suffix: str) -> tuple[Path, dict[str, str]]:
    """A new path in the folder that ComfyUI empties at startup, and how its page addresses it."""
    folder = temporary_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{uuid.uuid4().hex}{suffix}"
    return path, {"filename": path.name, "subfolder": FOLDER, "type": "temp"}


def temporary_copy(content: bytes, suffix: str) -> Path:
    """A file with this content in that folder; the same one for the same content."""
    path = temporary_folder() / f"{hashlib.sha256(content).hexdigest()}{suffix}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return path


def temporary_folder() -> Path:
    """Folder for the finished windows of a long video; ComfyUI empties it at startup."""
    return Path(folder_paths.get_temp_directory()) / FOLDER


def voice(name: str) -> str:
    """A voice of a speech synthesizer; a .onnx file is one of the folders of models.

    Raises:
        InputError: There is no such file.
    """
    if not name.endswith(".onnx"):
        return name
    for folder in map(Path, folder_paths.get_folder_paths(FOLDER)):
        path = (folder / name).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_file():
            return str(path)
    raise InputError(f'no voice "{name}"', f"a file in models/{FOLDER}", "put it there, with its .onnx.json")


def input_file(reference: str) -> Path:
    """Path of a file in a widget, such as "folder/name.png [input]"; the file may be missing.

    Raises:
        InputError: A path outside ComfyUI's folders, or with a name that no file can have.
    """
    name, base = folder_paths.annotated_filepath(reference.strip())
    folder = Path(base or folder_paths.get_input_directory()).resolve()
    path = usable_path(folder / name.strip(), "the file").resolve()
    if not path.is_relative_to(folder):
        problem = f"the file {reference} is outside of {folder.name}/"
        raise InputError(problem, f"a file in {folder.name}/", "choose another file")
    return path


def temporary_video(video: Any) -> dict[str, str]:
    """Save a VIDEO in ComfyUI's temporary folder; returns the file as the page requests it."""
    path, entry = temporary_file("video", ".mp4")
    video.save_to(str(path))
    return entry


@contextmanager
def cancellable() -> Iterator[None]:
    """Context in which ComfyUI can interrupt before every layer of any network."""

    def check(module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling():  # would break the graph at every layer
            return
        management.throw_exception_if_processing_interrupted()

    management.throw_exception_if_processing_interrupted()
    with nn.modules.module.register_module_forward_pre_hook(check):
        yield


@contextmanager
def running(model: HostModel, scene: Scene) -> Iterator[None]:
    """Context for work on a scene: cancellable, with memory reserved before and released after."""
    model.reserve_memory(scene)
    with cancellable():
        try:
            yield
            show_text("Done")
        finally:
            model.release_memory()


def progress_callback(model: HostModel, scene: Scene) -> ProgressCallback:
    """A callback for the progress bar of the node, with previews if ComfyUI shows them."""
    bar = comfy.utils.ProgressBar(1)
    painter: list[Callable[..., Any]] = []

    def report(progress: Progress) -> None:
        management.throw_exception_if_processing_interrupted()
        if progress.total == 1:
            show_text(progress.stage)
            return
        picture = None
        if progress.info is not None and args.preview_method != LatentPreviewMethod.NoPreviews:
            if not painter:
                from bya_core.pipelines.preview import painter_for

                painter.append(painter_for(model.bundle, scene))
            picture = ("JPEG", painter[0](progress.info), PREVIEW_SIDE)
        show_text(f"{progress.stage} {progress.step}/{progress.total}")  # in a long video with the time left
        if progress.overall is None:
            bar.update_absolute(progress.step, progress.total, picture)
        else:
            bar.update_absolute(round(PARTS * progress.overall), PARTS, picture)

    return report


def show_text(text: str) -> None:
    """Show a text on the node that runs, where ComfyUI can."""
    try:
        from comfy_execution.utils import get_executing_context
        from server import PromptServer
    except ImportError:  # older versions
        return
    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is not None and server is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, context.node_id)


def show_result(shown: Mapping[str, list[Any]]) -> None:
    """Show the result of the node that runs now, before it raises an error."""
    try:
        from comfy_execution.utils import get_executing_context
        from server import PromptServer
    except ImportError:  # older versions
        return
    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        entry = {"node": context.node_id, "display_node": context.node_id, "output": dict(shown)}
        server.send_sync("executed", entry | {"prompt_id": context.prompt_id}, server.client_id)


def show_notices(notices: Sequence[str]) -> None:
    """Show notices, if any, on the node that runs instead of its progress, and in the log of ComfyUI."""
    for notice in notices:
        log.warning("%s", notice)
    if notices:
        show_text("\n".join(f"\N{WARNING SIGN} {notice}" for notice in notices))


def to_cpu(value: Any) -> Any:
    """A dataclass, tuple or tensor with all tensors on the CPU: cached outputs must not hold GPU memory."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(to_cpu(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: to_cpu(getattr(value, f.name)) for f in fields(value) if f.init})
    return value


def plain_errors(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for `execute`: missing packages and exhausted memory become one sentence, cancellation ComfyUI's own
    exception."""

    @functools.wraps(execute)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return execute(*args, **kwargs)
        except Cancelled as error:
            raise management.InterruptProcessingException() from error
        except (MemoryError, RuntimeError) as error:
            hint = "lower width, height, frames or window_frames, or set vram_gb or memory_mode of BYA Load Model"
            if (exhausted := out_of_memory(error, hint)) is None:
                raise
            management.unload_all_models()  # as ComfyUI does for the error of torch
            raise exhausted from None
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            project = next((p.project for p in PACKAGES if p.module == missing), missing)
            problem = f"the Python package {project} is missing"
            hint = f"run pip install {project} with ComfyUI's Python, then start ComfyUI again"
            raise InputError(problem, "it to be installed", hint) from error

    return run
