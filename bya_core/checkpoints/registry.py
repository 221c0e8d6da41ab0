"""The models that can be named: what each is for, how large, under which licence, and whether it is here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bya_core.errors import InputError

if TYPE_CHECKING:
    from bya_core.checkpoints.bundle import ModelBundle

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class ModelEntry:
    """One model of the registry.

    Args:
        name: what `--model` takes.
        purpose: what it is for.
        size: of its weights, in words.
        licence: of its weights.
        commercial: whether and how commercial use is allowed, in words.
        how_to_get: what to do where it is not here.
        folder: where its weights lie; None = nothing can be loaded under this name yet.
        loader: makes the bundle from `folder`.
        needs: files and folders that must be in it.
    """

    name: str
    purpose: str
    size: str
    licence: str
    commercial: str
    how_to_get: str
    folder: Path | None = None
    loader: Callable[[Path], ModelBundle] | None = None
    needs: tuple[str, ...] = ()

    @property
    def present(self) -> bool:
        """Whether its weights are on this machine."""
        return self.folder is not None and self.folder.is_dir() and not self.missing

    @property
    def missing(self) -> list[str]:
        """Which of `needs` are not there."""
        return [name for name in self.needs if self.folder is None or not (self.folder / name).exists()]


def _tiny(folder: Path) -> ModelBundle:
    from bya_core.checkpoints.tiny_bundle import load_tiny

    return load_tiny(folder)


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name="tiny",
            purpose="trying everything out without GPU or download: drawn puppets at 96x64, no real people",
            size="at most 20 MB",
            licence="Apache-2.0",
            commercial="yes",
            how_to_get="it comes with the project; where it is missing: "
            "python training/run_stage.py --recipe tiny --stage 1 (then 2 and 3)",
            folder=HERE / "tiny",
            loader=_tiny,
            needs=("bundle.json", "transformer", "vae", "face.safetensors", "speech.safetensors"),
        ),
        ModelEntry(
            name="official",
            purpose="real people at 720x480, 49 frames, two characters: the weights the authors released",
            size="about 17 GB in bfloat16, and 10 GB more for its text encoder (T5-XXL) and video codec",
            licence="none stated by its authors; its base, CogVideoX-5B-I2V, is under the CogVideoX licence",
            commercial="its base only after registering with its makers; its face recognition (insightface's "
            "antelopev2) is for research only; ask the authors for the rest",
            how_to_get="loading it is not part of this version; the page of its makers is "
            "https://yubo-shankui.github.io/bind-your-avatar/",
        ),
    )
}


def find_model(name: str) -> ModelEntry:
    """The entry of that name. Raises InputError where there is none."""
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, MODELS, n=1)
    hint = f"use --model {near[0]}" if near else "see python -m bya_core models"
    raise InputError(f'no model is called "{name}"', " or ".join(MODELS), hint)


def load_bundle(name: str) -> ModelBundle:
    """Load a model of the registry, on the CPU.

    Raises:
        InputError: no such model, or its weights are not here (with how to get them).
    """
    entry = find_model(name)
    if entry.folder is None or entry.loader is None:
        raise InputError(f'the model "{name}" cannot be used yet', "one that can", entry.how_to_get)
    if not entry.present:
        came = f'the model "{name}" is not complete in {entry.folder}'
        raise InputError(came, "there " + ", ".join(entry.missing or entry.needs), entry.how_to_get)
    return entry.loader(entry.folder)
