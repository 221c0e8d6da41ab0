"""Registry of named models: purpose, size, license, components, and whether they are available on this machine.

Importing it loads no heavy packages.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bya_core.errors import InputError
from bya_core.io.atomic import write_json
from bya_core.io.files import expand_user
from bya_core.io.inputs import note_input
from bya_core.io.outputs import make_folder
from bya_core.progress import ProgressCallback
from bya_core.weights.cache import local_models, missing_files, model_folders
from bya_core.weights.components import OFFICIAL, OFFICIAL_SETTINGS, Component
from bya_core.weights.download import Notify, download

if TYPE_CHECKING:
    from bya_core.weights.bundle import ModelBundle

log = logging.getLogger(__name__)

TOY_WEIGHTS = Path(__file__).resolve().parents[1] / "toy" / "weights"


@dataclass(frozen=True)
class ModelEntry:
    """One model of the registry.

    Args:
        name: Name used by `--model`.
        purpose: What the model is for.
        size: Human-readable size of the weights.
        license: License of the weights.
        commercial_use: Whether and under which conditions commercial use is allowed.
        how_to_get: What to do if the weights are missing.
        loader: Function that makes the bundle from the model folder: "module:function", imported on first use, or a
            callable.
        folder: Model folder; `None` selects a folder of the model's name in one of `model_folders()`.
        required_files: Files and folders that must be present.
        components: Downloadable components; files of the required ones must be present.
        settings: Contents of the bundle.json that a download creates: native size, sampling, maximum characters.
    """

    name: str
    purpose: str
    size: str
    license: str
    commercial_use: str
    how_to_get: str
    loader: str | Callable[..., ModelBundle]
    folder: Path | None = None
    required_files: tuple[str, ...] = ()
    components: tuple[Component, ...] = ()
    settings: Mapping[str, Any] | None = None

    @property
    def path(self) -> Path:
        """Model folder: the existing one, or the one that a download would create."""
        if self.folder is not None:
            return self.folder
        # without a home directory there may be no folder at all
        candidates = [folder / self.name for folder in model_folders()] or [Path("bind-your-avatar") / self.name]
        return next((folder for folder in candidates if folder.is_dir()), candidates[0])

    def path_in(self, models_dir: Path | None) -> Path:
        """Model folder below `models_dir`; `None` selects `path`."""
        return (
            self.path
            if models_dir is None or not self.components
            else expand_user(models_dir, "the folder for models") / self.name
        )

    @property
    def available(self) -> bool:
        """Whether all required files are present."""
        return self.path.is_dir() and not self.missing

    @property
    def missing(self) -> list[str]:
        """Required files that are not present."""
        missing = [name for name in self.required_files if not (self.path / name).exists()]
        required = [component for component in self.components if component.required]
        return missing + [file for component in required for file in missing_files(component, self.path)]

    def load(self, folder: Path, **options: Any) -> ModelBundle:
        """Import the loader and call it."""
        if isinstance(self.loader, str):
            module, _, function = self.loader.partition(":")
            return getattr(importlib.import_module(module), function)(folder, **options)
        return self.loader(folder, **options)


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name="toy",
            purpose="trying everything without GPU or download: drawn puppets at 96x64, no real people",
            size="at most 20 MB",
            license="Apache-2.0",
            commercial_use="yes",
            how_to_get="it is part of the project; if it is missing: "
            "python training/run_stage.py --recipe toy --stage 1 (then 2 and 3)",
            loader="bya_core.toy.bundle:load_toy",
            folder=TOY_WEIGHTS,
            required_files=("bundle.json", "transformer", "vae", "face.safetensors", "speech.safetensors"),
        ),
        ModelEntry(
            name="official",
            purpose="real people at 720x480, 49 frames, two characters: the weights released by the authors",
            size="about 30 GB: 17 GB (bfloat16), 10 GB for text encoder (T5-XXL) and video VAE, 3 GB others",
            license="none stated by its authors; its base, CogVideoX-5B-I2V, uses the CogVideoX license",
            commercial_use="the base model requires registration with its publisher; its face recognition "
            "(insightface's antelopev2) is research-only; ask the authors for the rest",
            how_to_get="bya download official (`bya models` lists the license of each component)",
            loader="bya_core.weights.official:load_official",
            components=OFFICIAL,
            settings=OFFICIAL_SETTINGS,
        ),
    )
}


def find_model(name: str) -> ModelEntry:
    """Registry entry of that name. Raises `InputError` if there is none."""
    if name in MODELS:
        return MODELS[name]
    names = [*MODELS, *local_models()]
    similar = difflib.get_close_matches(name[:100], names, n=1)
    hint = f"use --model {similar[0]}" if similar else "see bya models"
    raise InputError(f'no model is called "{name}"', f"{' or '.join(names)}, or the path of a file or folder", hint)


def find_path(name: str | Path) -> Path | None:
    """Path of a model that is not in the registry: a file, a folder, or one of `local_models`; `None` if not found."""
    if str(name) in MODELS:
        return None
    path = expand_user(name, "the model") if str(name) else Path("model without a name")
    found = path if path.exists() else local_models().get(str(name))
    if found is not None:
        note_input(found)
    return found


def download_model(
    name: str = "official",
    components: Sequence[str] = (),
    models_dir: Path | None = None,
    *,
    notify: Notify = log.info,
    callback: ProgressCallback | None = None,
) -> tuple[Path, list[Path]]:
    """Download missing components of a model. Makes no network requests if everything is present.

    Args:
        name: Registry name.
        components: Names of the components to download; empty downloads all.
        models_dir: Folder in which the model folder is created; `None` uses the existing model folder, or the first of
            `model_folders()`.
        notify: Receives one message per component.
        callback: Progress callback; steps are bytes.

    Returns:
        Model folder, and files that were downloaded.

    Raises:
        InputError: Unknown model or component, or see `download`.
        DownloadInterrupted: See `download`.
    """
    entry = find_model(name)
    known = {component.name: component for component in entry.components}
    if not known:
        problem = f'the model "{entry.name}" has no downloadable components'
        raise InputError(problem, "a model that is downloaded from a hub", entry.how_to_get)
    if unknown := [component for component in components if component not in known]:
        problem = f"{entry.name} has no component called {' or '.join(unknown)}"
        raise InputError(problem, ", ".join(known), "see bya models")
    if models_dir is None and not model_folders():
        raise InputError("no home directory for the models", "a folder for models", "name one with --models-dir")
    if models_dir is not None:
        make_folder(models_dir.expanduser(), "the models")
    root = entry.path_in(models_dir)
    downloaded = download([known[c] for c in components or known], root, notify=notify, callback=callback)
    settings = root / "bundle.json"
    if entry.settings and not settings.exists():
        write_json(settings, dict(entry.settings))
    return root, downloaded
