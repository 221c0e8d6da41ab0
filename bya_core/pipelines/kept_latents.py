"""Denoised latents on disk until their video is written, so that a failed decode does not cost the denoising."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bya_core.errors import Cancelled
from bya_core.io.atomic import atomic_write

log = logging.getLogger(__name__)

TENSORS = ("latents", "masks", "matrix")
REUSED = "The denoised latents of an earlier run were used, which failed afterwards."


@dataclass(frozen=True)
class Denoised:
    """A window that has yet to be decoded.

    Args:
        latents: clean latents [1, T, C, H, W].
        masks: character masks [N, T, h, w] of the last step.
        matrix: audio-character matrix [M, N].
        notices: what the user should know, one sentence each.
    """

    latents: Tensor
    masks: Tensor
    matrix: Tensor
    notices: tuple[str, ...]


class KeptLatents:
    """The file of one window.

    Args:
        path: the file, in a folder that is locked.
        inputs: everything that determines the latents, see `latents_inputs`; not needed to delete the file.
    """

    def __init__(self, path: Path, inputs: str = "") -> None:
        self.path, self.inputs = path, inputs

    def load(self) -> Denoised | None:
        """What an earlier run left, with a notice; None without a file, or if it has other inputs or is damaged."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("inputs") != self.inputs:
                    return None
                tensors = {name: file.get_tensor(name) for name in TENSORS}
        except (OSError, SafetensorError):
            return None
        log.info("denoised latents are read from %s", self.path)
        return Denoised(**tensors, notices=(*json.loads(metadata["notices"]), REUSED))

    def save(self, denoised: Denoised) -> None:
        """Write the file. Raises WriteError if the disk is full."""
        tensors = {name: getattr(denoised, name).detach().cpu().contiguous() for name in TENSORS}
        with atomic_write(self.path) as temporary:
            save_file(tensors, temporary, metadata={"inputs": self.inputs, "notices": json.dumps(denoised.notices)})

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)

    @contextmanager
    def until_written(self, warn: Callable[[list[str]], object] = lambda _: None) -> Iterator[None]:
        """Delete the file at the end and after a cancellation; after an error keep it, and call `warn` with a text."""
        try:
            yield
        except Exception as error:
            if isinstance(error, Cancelled):
                self.remove()
            elif self.path.exists():
                warn([f"The denoised latents are kept in {self.path.parent}; the same command resumes with decoding."])
            raise
        except BaseException:
            self.remove()
            raise
        self.remove()


def latents_inputs(*parts: str) -> str:
    """Hash of the inputs of a window."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
