"""The models that can be named: what each is for, how large, under which licence, and whether it is here.

Nothing heavy is imported before a model is loaded.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bya_core.errors import InputError
from bya_core.weights.download import Tell, Watch, download
from bya_core.weights.download_record import missing_files
from bya_core.weights.known_files import OFFICIAL, OFFICIAL_SETTINGS, Part
from bya_core.weights.locations import own_models, places

if TYPE_CHECKING:
    import torch

    from bya_core.weights.bundle import ModelBundle

log = logging.getLogger(__name__)

TOY_WEIGHTS = Path(__file__).resolve().parents[1] / "toy" / "weights"


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
        folder: where its weights lie; None = in a folder of its name in one of `places()`.
        loader: makes the bundle from its folder.
        needs: files and folders that must be in it.
        parts: groups of files that can be downloaded; those that are needed must be in it.
        settings: what `fetch` writes into its bundle.json: native size, sampling, most characters.
    """

    name: str
    purpose: str
    size: str
    licence: str
    commercial: str
    how_to_get: str
    folder: Path | None = None
    loader: Callable[..., ModelBundle] | None = None
    needs: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    settings: Mapping[str, Any] | None = None

    @property
    def here(self) -> Path:
        """Its folder: the one that is there, or the one that a download would fill."""
        if self.folder is not None:
            return self.folder
        candidates = [place / self.name for place in places()]
        return next((folder for folder in candidates if folder.is_dir()), candidates[0])

    def in_place(self, models_dir: Path | None) -> Path:
        """Its folder in `models_dir`; None = `here`."""
        return self.here if models_dir is None or not self.parts else models_dir.expanduser() / self.name

    @property
    def present(self) -> bool:
        """Whether all that is needed of it is on this machine."""
        return self.here.is_dir() and not self.missing

    @property
    def missing(self) -> list[str]:
        """Which of `needs` and of the needed parts' files are not there."""
        gone = [name for name in self.needs if not (self.here / name).exists()]
        return gone + [file for part in self.parts if part.needed for file in missing_files(part, self.here)]


def _toy(folder: Path) -> ModelBundle:
    from bya_core.toy.bundle import load_toy

    return load_toy(folder)


def _official(folder: Path, **wishes: Any) -> ModelBundle:
    from bya_core.weights.official import load_official

    return load_official(folder, **wishes)


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            name="toy",
            purpose="trying everything out without GPU or download: drawn puppets at 96x64, no real people",
            size="at most 20 MB",
            licence="Apache-2.0",
            commercial="yes",
            how_to_get="it comes with the project; where it is missing: "
            "python training/run_stage.py --recipe toy --stage 1 (then 2 and 3)",
            folder=TOY_WEIGHTS,
            loader=_toy,
            needs=("bundle.json", "transformer", "vae", "face.safetensors", "speech.safetensors"),
        ),
        ModelEntry(
            name="official",
            purpose="real people at 720x480, 49 frames, two characters: the weights the authors released",
            size="about 30 GB: 17 GB (bfloat16), 10 GB for its text encoder (T5-XXL) and video codec, 3 GB others",
            licence="none stated by its authors; its base, CogVideoX-5B-I2V, is under the CogVideoX licence",
            commercial="its base only after registering with its makers; its face recognition (insightface's "
            "antelopev2) is for research only; ask the authors for the rest",
            how_to_get="python -m bya_core download official (python -m bya_core models tells every part's licence)",
            loader=_official,
            parts=OFFICIAL,
            settings=OFFICIAL_SETTINGS,
        ),
    )
}


def find_model(name: str) -> ModelEntry:
    """The entry of that name. Raises InputError where there is none."""
    if name in MODELS:
        return MODELS[name]
    own = own_models()
    near = difflib.get_close_matches(name, [*MODELS, *own], n=1)
    hint = f"use --model {near[0]}" if near else "see python -m bya_core models"
    known = " or ".join([*MODELS, *own])
    raise InputError(f'no model is called "{name}"', f"{known}, or the path of a file or folder", hint)


def find_path(name: str | Path) -> Path | None:
    """Where a model that is no entry of the registry lies: a path, or one of `own_models`; None = nowhere."""
    path = Path(name).expanduser()
    if str(name) in MODELS:
        return None
    return path if path.exists() else own_models().get(str(name))


def fetch(
    name: str = "official",
    parts: Sequence[str] = (),
    models_dir: Path | None = None,
    *,
    tell: Tell = log.info,
    watch: Watch | None = None,
) -> tuple[Path, list[Path]]:
    """Download what is missing of a model; asks nobody where all is here.

    Args:
        name: of an entry with parts.
        parts: names of those to fetch; none = all.
        models_dir: folder that gets a folder of the model's name; None = where it lies, or the first of `places()`.
        tell: gets a sentence per part.
        watch: gets bytes that are here and all that are wanted, while they arrive; may raise Cancelled.

    Returns:
        The model's folder, and the files that were fetched.

    Raises:
        InputError, DownloadStopped: see `download`; also a model or part of no such name.
    """
    entry = find_model(name)
    known = {part.name: part for part in entry.parts}
    if not known:
        came = f'the model "{entry.name}" has nothing to download'
        raise InputError(came, "a model that is fetched from a hub", entry.how_to_get)
    strange = [part for part in parts if part not in known]
    if strange:
        came = f"no part of {entry.name} is called {' or '.join(strange)}"
        raise InputError(came, ", ".join(known), "see python -m bya_core models")
    root = entry.in_place(models_dir)
    fetched = download([known[part] for part in parts or known], root, tell=tell, watch=watch)
    settings = root / "bundle.json"
    if entry.settings and not settings.exists():
        settings.write_text(json.dumps(dict(entry.settings), indent=2) + "\n", encoding="utf-8")
    return root, fetched


def load_bundle(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    vram: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> ModelBundle:
    """Load a model.

    Args:
        name_or_path: a name of the registry; a file that `convert` wrote; the folder of a bundle, of released files or
            of a training run; or the name of one of `own_models`.
        dtype: of the weights; None = as the model wants it (toy float32, official bfloat16).
        device: where to; None = the CPU.
        vram: gigabytes of GPU memory to make do with ("8" to "80", see docs/how-to/memory.md); None = nothing is arranged.
        given: parts of the bundle ("text", "codec") in place of the model's own; files of those need not be here.

    Raises:
        InputError: no such model, or its weights are not here (with how to get them).
    """
    path = find_path(name_or_path)
    first = device if vram is None else None  # where memory is scarce, parts go to the device one by one
    if path is not None:
        from bya_core.weights.from_path import load_path

        bundle = load_path(path, dtype=dtype, device=first, given=given)
    else:
        bundle = _named(find_model(str(name_or_path)), dtype, first, given or {})
    if vram is not None:
        from bya_core.memory.planner import arrange

        arrange(bundle, vram, device)
    return bundle


def _named(
    entry: ModelEntry, dtype: torch.dtype | None, device: torch.device | str | None, given: Mapping[str, Any]
) -> ModelBundle:
    """Load an entry of the registry."""
    if entry.loader is None:
        raise InputError(f'the model "{entry.name}" cannot be used yet', "one that can", entry.how_to_get)
    if entry.parts:  # its loader tells what is missing, with licence and source
        return entry.loader(entry.here, dtype=dtype, device=device, given=given)
    if not entry.present:
        came = f'the model "{entry.name}" is not complete in {entry.here}'
        raise InputError(came, "there " + ", ".join(entry.missing or entry.needs), entry.how_to_get)
    loaded = entry.loader(entry.here)
    bundle = replace(loaded, **given) if given else loaded
    if dtype is not None:
        bundle.transformer.to(dtype)
    return bundle if device is None else bundle.to(device)
