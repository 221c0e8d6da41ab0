"""Windows of a long video on disk: each with all that going on from it needs, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import bya_core
from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle


@dataclass(frozen=True)
class StoredWindow:
    """A finished window.

    Args:
        frames: uint8 [F, H, W, 3], exactly as they came from the video codec.
        latents: float32 [1, T, C, H, W] they were decoded from.
        masks: float32 [N, T, h, w] that acted in the last step.
        matrix: audio-character matrix [M, N] that acted.
        seed: its own.
        take: how often it had been made before.
        notices: what a person should know, one sentence each.
    """

    frames: Tensor
    latents: Tensor
    masks: Tensor
    matrix: Tensor
    seed: int
    take: int = 0
    notices: tuple[str, ...] = ()


TENSORS = ("frames", "latents", "masks", "matrix")


class WindowFolder:
    """The windows of one scene, made by one model, in a folder; files of anything else are left alone.

    Args:
        folder: made with the first file where it is missing.
        fingerprint: of scene and model, see `fingerprint`.

    Raises:
        InputError: a file in the folder's place.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} for the windows is a file", "a folder, or none yet", "choose another name")

    def path(self, index: int) -> Path:
        """Of window number `index`, counted from 0; people count from 1."""
        return self.folder / f"window_{index + 1:04d}.safetensors"

    @property
    def speech_path(self) -> Path:
        return self.folder / "speech.safetensors"

    def has(self, index: int) -> bool:
        return self.path(index).exists()

    def read(self, index: int) -> StoredWindow:
        """Raises InputError: unreadable, or of another scene or model."""
        with self._opened(self.path(index)) as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in TENSORS}
        return StoredWindow(
            **tensors, seed=int(about["seed"]), take=int(about["take"]), notices=tuple(json.loads(about["notices"]))
        )

    def read_one(self, index: int, name: str) -> Tensor:
        """A single tensor of a window, such as "frames". Raises as `read` does."""
        with self._opened(self.path(index)) as file:
            return file.get_tensor(name)

    def write(self, index: int, window: StoredWindow) -> None:
        """Save or replace a window."""
        about = {"seed": str(window.seed), "take": str(window.take), "notices": json.dumps(window.notices)}
        self._save(self.path(index), {name: getattr(window, name) for name in TENSORS}, about)

    def write_speech(self, features: Tensor) -> None:
        """Save speech features [M, F + 4, blocks, channels] of the whole video."""
        self._save(self.speech_path, {"features": features}, {})

    def read_speech(self, start: int, stop: int) -> Tensor:
        """Features of the video frames start .. stop with two real neighbours on each side."""
        with self._opened(self.speech_path) as file:
            return file.get_slice("features")[:, start : stop + 4]

    def remove(self, windows: int) -> None:
        """Delete what this class wrote, and the folder if nothing else is in it."""
        for path in (self.speech_path, *(self.path(index) for index in range(windows))):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: somebody else's files
            self.folder.rmdir()

    def _save(self, path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            save_file(whole, temporary, metadata={**about, "fingerprint": self.fingerprint})

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("fingerprint") != self.fingerprint:
                    came = f"{path} belongs to another scene, other settings or another model"
                    do = "name another folder, or delete that one to begin anew"
                    raise InputError(came, "windows of this very scene", do)
                yield file
        except (SafetensorError, OSError) as error:
            came = f"{path} cannot be read ({error})"
            raise InputError(came, "a window as it was written", "delete the file: it will be made again") from error


def fingerprint(scene: Scene, bundle: ModelBundle) -> str:
    """Hash of everything that decides what the windows of a scene look like."""
    digest = hashlib.sha256()
    _feed(digest, [bundle.name, bya_core.__version__, str(bundle.dtype), dict(bundle.scheduler_config)])
    _feed(digest, scene)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Add a value of any kind a scene holds; notices are words about it and do not count."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif is_dataclass(value):
        for field in fields(value):
            if field.name != "notices":
                digest.update(field.name.encode())
                _feed(digest, getattr(value, field.name))
    elif isinstance(value, dict):
        _feed(digest, sorted(value.items()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        digest.update(f"[{len(value)}]".encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())
