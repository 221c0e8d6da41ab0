"""Windows of a long video on disk, with everything that the next window needs, and the video joined from them."""

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
from bya_core.grid import TokenGrid
from bya_core.io.atomic import atomic_write
from bya_core.io.locks import folder_lock
from bya_core.io.outputs import make_folder
from bya_core.pipelines.kept_latents import KeptLatents, latents_inputs
from bya_core.pipelines.sample import Video
from bya_core.scene.types import Scene
from bya_core.scene.windows import Window, WindowJoiner
from bya_core.weights.bundle import ModelBundle


@dataclass(frozen=True)
class StoredWindow:
    """A finished window.

    Args:
        frames: uint8 [F, H, W, 3], as decoded by the VAE.
        latents: float32 [1, T, C, H, W], clean.
        masks: float32 [N, T, h, w] of the last denoising step.
        matrix: audio-character matrix [M, N].
        seed: of this window.
        take: number of earlier versions of this window.
        notices: what the user should know, one sentence each.
    """

    frames: Tensor
    latents: Tensor
    masks: Tensor
    matrix: Tensor
    seed: int
    take: int = 0
    notices: tuple[str, ...] = ()


@contextmanager
def locked_windows(folder: Path) -> Iterator[None]:
    """Create the folder of a `WindowFolder` if it is missing, and lock it against a second run.

    A process may enter several times. The folder is removed at the end if its last file was removed.

    Raises:
        InputError: another process holds the lock, or the folder cannot be created.
    """
    was_empty = folder.is_dir() and not any(folder.iterdir())
    created = make_folder(folder, "the windows")
    removable = created[::-1] or ([] if was_empty else [folder])
    try:
        with folder_lock(folder, "the windows", "wait for it to finish, or choose another --work-dir"):
            yield
    finally:
        with suppress(OSError):  # not empty
            for each in removable:
                each.rmdir()


TENSORS = ("frames", "latents", "masks", "matrix")


class WindowFolder:
    """A folder with the windows of one scene and one model. Other files in it are not touched.

    Args:
        folder: the folder; `locked_windows` creates it.
        fingerprint: of scene and model, see `fingerprint`.
        inputs: of each window, see `window_inputs`; a stored window with other inputs is generated again.

    Raises:
        InputError: the path is a file.
    """

    def __init__(self, folder: Path, fingerprint: str, inputs: Sequence[str]) -> None:
        self.folder, self.fingerprint, self.inputs = folder, fingerprint, inputs
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file", "a folder for the windows", "choose another name")

    def path(self, index: int) -> Path:
        """File of window `index`, counted from 0; the file name counts from 1."""
        return self.folder / f"window_{index + 1:04d}.safetensors"

    def kept_latents(self, index: int, *parts: str) -> KeptLatents:
        """File of the denoised latents of a window until it is saved.

        Args:
            index: of the window, from 0.
            parts: what else determines the window.
        """
        return KeptLatents(self.latents_path(index), latents_inputs(self.fingerprint, self.inputs[index], *parts))

    def latents_path(self, index: int) -> Path:
        """File of the denoised latents of window `index` until it is saved."""
        return self.folder / f"latents_{index + 1:04d}.safetensors"

    @property
    def speech_path(self) -> Path:
        return self.folder / "speech.safetensors"

    def has(self, index: int) -> bool:
        """Whether a window with the same inputs is stored. Raises as `read` does."""
        if not self.path(index).exists():
            return False
        with self._open(self.path(index)) as file:
            return bool(file.metadata().get("inputs") == self.inputs[index])

    def read(self, index: int) -> StoredWindow:
        """Read a window. Raises InputError if it is unreadable or of another scene or model."""
        with self._open(self.path(index)) as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in TENSORS}
        notices = tuple(json.loads(metadata["notices"]))
        return StoredWindow(**tensors, seed=int(metadata["seed"]), take=int(metadata["take"]), notices=notices)

    def read_one(self, index: int, name: str) -> Tensor:
        """Read one tensor of a window, such as "frames". Raises as `read` does."""
        with self._open(self.path(index)) as file:
            return file.get_tensor(name)

    def write(self, index: int, window: StoredWindow) -> None:
        """Save or replace a window."""
        metadata = {"seed": str(window.seed), "take": str(window.take), "notices": json.dumps(window.notices)}
        metadata["inputs"] = self.inputs[index]
        self._save(self.path(index), {name: getattr(window, name) for name in TENSORS}, metadata)

    def write_speech(self, features: Tensor) -> None:
        """Save speech features [M, F + 4, blocks, channels] of the whole video."""
        self._save(self.speech_path, {"features": features}, {})

    def read_speech(self, start: int, stop: int) -> Tensor:
        """Features of the video frames start to stop with two more on each side."""
        with self._open(self.speech_path) as file:
            return file.get_slice("features")[:, start : stop + 4]

    def remove(self, windows: int, keep: int = 0) -> None:
        """Delete the files of this class, except the first `keep` windows, and the folder if it is then empty."""
        speech = () if keep else (self.speech_path,)
        of_windows = [path(index) for index in range(keep, windows) for path in (self.path, self.latents_path)]
        for path in (*speech, *of_windows):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    def _save(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        with atomic_write(path) as temporary:
            contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            save_file(contiguous, temporary, metadata={**metadata, "fingerprint": self.fingerprint})

    @contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("fingerprint") != self.fingerprint:
                    problem = f"{path} belongs to another scene, other settings or another model"
                    hint = "choose another folder, or delete this one to start over"
                    raise InputError(problem, "windows of the same scene", hint)
                yield file
        except (SafetensorError, OSError) as error:
            problem = f"{path} cannot be read ({error})"
            raise InputError(problem, "an intact window", "delete the file to generate it again") from error


@dataclass(frozen=True)
class StoredFrames:
    """Frames of a long video, read and joined window by window."""

    files: WindowFolder
    plan: tuple[Window, ...]

    def __len__(self) -> int:
        return self.plan[-1].stop

    def __iter__(self) -> Iterator[Tensor]:
        """uint8 [H, W, 3] each."""
        joiner = WindowJoiner()
        for window in self.plan:
            yield from joiner.add(self.files.read_one(window.index, "frames"), window.lead, window.tail)


@dataclass(frozen=True)
class LongVideo:
    """Result of `generate_long`. Like `Video`, but the frames are read from disk while iterating.

    Args:
        frames: uint8 [H, W, 3] each; can be iterated repeatedly.
        masks: character masks [N, T, h, w] in 0..1, those of the last denoising step of each window.
        grid: token grid of the masks.
        audio, matrix, notices, seconds: as in `Video`.
        windows: frames, seed and number of earlier versions of each window.
        files: the saved windows; `files.remove(len(windows))` deletes them.
    """

    frames: StoredFrames
    masks: Tensor
    grid: TokenGrid
    audio: tuple[Tensor, int] | None
    matrix: Tensor
    notices: tuple[str, ...]
    seconds: dict[str, float]
    windows: tuple[dict[str, Any], ...]
    files: WindowFolder
    fps: float = 25.0

    def load(self) -> Video:
        """The video with all frames in memory."""
        frames = torch.stack(list(self.frames))
        return Video(frames, self.masks, self.grid, self.audio, self.matrix, self.notices, self.seconds, self.fps)


def fingerprint(scene: Scene, bundle: ModelBundle) -> str:
    """Hash of everything that determines all windows of a scene; see `window_inputs` for the rest."""
    digest = hashlib.sha256()
    _feed(
        digest, [bundle.weights or bundle.name, bya_core.__version__, str(bundle.dtype), dict(bundle.scheduler_config)]
    )
    _feed(digest, scene)
    return digest.hexdigest()


def window_inputs(scene: Scene, window: Window, key: str) -> str:
    """Hash of what determines a window and those before it, but not all windows of the scene.

    Args:
        scene: the scene it is made from: its masks up to the end of the window, their refinement, and the preset.
        window: its position.
        key: of the routing that it or an earlier window was resumed from; empty = none.
    """
    digest, control = hashlib.sha256(), scene.mask_control
    if control is not None:
        control = control.latent_frames(slice(0, window.latent.stop))
    _feed(digest, [key, scene.sampling.preset, scene.routing.refine])
    _feed(digest, control if control is not None and control.is_active else None)
    return digest.hexdigest()


VARIABLE = frozenset(["notices", "mask_control", "refine", "preset", "spatial"])
"""Fields of a scene that are not part of `fingerprint`."""


def _feed(digest: Any, value: Any) -> None:
    """Hash a value of any type in a scene, except `VARIABLE` fields."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        whole = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # also of expanded tensors
        digest.update(whole.reshape(-1).view(torch.uint8).numpy())
    elif is_dataclass(value):
        for field in fields(value):
            if field.name not in VARIABLE:
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
