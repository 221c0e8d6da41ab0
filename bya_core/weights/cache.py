"""Model folders on this machine, and the manifest of downloaded files.

Model folders are searched in this order: folders registered by a host application (for example ComfyUI), the folder
named by the environment variable BYA_MODELS_DIR, ~/.cache/bind-your-avatar. Downloads go to the first one.

`downloads.json` in a model folder lists repository, commit, size and SHA-256 of every downloaded file. It pins
repositories that have no pinned revision.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.io.atomic import write_json
from bya_core.io.files import expand_user, read_json_object
from bya_core.weights.components import Component

log = logging.getLogger(__name__)

ENVIRONMENT = "BYA_MODELS_DIR"
MANIFEST = "downloads.json"

HEADER_BYTES = 1 << 16  # of a safetensors file, whose metadata comes first

_registered: list[Path] = []
_shared: list[Path] = []
_foreign: list[Path] = []


def add_model_folder(folder: Path) -> None:
    """Register a folder; it is searched after those registered earlier and before the default folders."""
    if folder not in _registered:
        _registered.append(folder)


def add_shared_folder(folder: Path) -> None:
    """Register a folder with models of all kinds, of which only converted files count; searched after all others."""
    if folder not in _shared:
        _shared.append(folder)


def add_foreign_folder(folder: Path) -> None:
    """Register a folder of another application, in which published files may be; see `find_file`."""
    if folder not in _foreign:
        _foreign.append(folder)


def find_file(component: Component, name: str, root: Path) -> Path:
    """Path of a file of a component in the model folder; if it is missing there, that of the same file elsewhere.

    Only files with a published size are looked for, by name and size, in the folders of other applications and below
    them. `download` also compares their hashes.

    Args:
        component: The component.
        name: Name in the repository.
        root: Model folder; the path in it is returned if the file is nowhere.
    """
    own = root / component.folder / name
    size = next((file.size for file in component.known if file.path == name), None)
    if size is None or own.exists():
        return own
    found = (path for folder in _foreign for path in sorted(folder.rglob(Path(name).name)) if _has_size(path, size))
    return next(found, own)


def model_folders(first: Path | None = None) -> list[Path]:
    """Folders to search, whether they exist or not, with `first` prepended if given."""
    named = os.environ.get(ENVIRONMENT)
    folders = [] if first is None else [expand_user(first, "the folder for models")]
    folders += [*_registered, *([expand_user(named, f"the folder in {ENVIRONMENT}")] if named else [])]
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with contextlib.suppress(RuntimeError):  # there is no home directory
        folders.append(Path(cache).expanduser() / "bind-your-avatar")
    return list(dict.fromkeys(folders))


def local_models() -> dict[str, Path]:
    """User models: name -> folder with a bundle.json, or converted .safetensors file."""
    found: dict[str, Path] = {}
    for folder in model_folders():
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if (path / "bundle.json").is_file() or (path.suffix == ".safetensors" and path.is_file()):
                found.setdefault(path.name, path)
    for folder in _shared:
        for path in sorted(folder.glob("*.safetensors")):
            with contextlib.suppress(OSError):
                status = path.stat()
                if _is_converted(path, status.st_mtime_ns, status.st_size):
                    found.setdefault(path.name, path)
    return found


@functools.lru_cache(maxsize=4096)
def _is_converted(path: Path, modified: int, size: int) -> bool:
    """Whether a safetensors file was written by `convert`."""
    with path.open("rb") as file:
        return b'"bya_format"' in file.read(HEADER_BYTES)


def downloaded_folder(repository: str) -> str:
    """Local folder of a downloaded repository ("owner/name"), or the argument itself if it was not downloaded."""
    name = repository.rpartition("/")[2]
    folders = [folder / "official" / name for folder in model_folders()] if "/" in repository else []
    return next((str(folder) for folder in folders if (folder / "config.json").is_file()), repository)


def read_manifest(root: Path) -> dict[str, Any]:
    """Component name -> repository, revision and files; empty if nothing was downloaded."""
    path = root / MANIFEST
    if not path.is_file():
        return {}
    try:
        return read_json_object(path, "the manifest")["components"]
    except (ValueError, KeyError) as error:
        hint = "delete it; the next download verifies the files again"
        raise InputError(f"{path} cannot be read ({error})", "a download manifest", hint) from error


def write_manifest(root: Path, component: Component, commit: str, files: Mapping[str, Any]) -> None:
    """Add a downloaded component to the manifest."""
    components = read_manifest(root)
    pinned = {} if component.revision in (None, commit) else {"requested_revision": component.revision}
    entry = {"repository": component.repository, "revision": commit, **pinned, "files": files}
    components[component.name] = entry
    write_json(root / MANIFEST, {"components": components})


def is_downloaded(component: Component, root: Path) -> bool:
    """Whether a component was downloaded at the pinned revision and all files are present with their sizes."""
    entry = read_manifest(root).get(component.name)
    if entry is None or entry["repository"] != component.repository:
        return False
    revisions = (None, entry["revision"], entry.get("requested_revision"))
    return component.revision in revisions and not missing_files(component, root)


def missing_files(component: Component, root: Path) -> list[str]:
    """Files that are missing or have the wrong size, relative to `root`. Makes no network requests."""
    entry = read_manifest(root).get(component.name)
    folder = root / component.folder
    if entry is not None and entry["repository"] == component.repository:
        files = entry["files"].items()
        missing = [name for name, file in files if not _has_size(find_file(component, name, root), file["size"])]
    else:
        missing = [_example(patterns) for patterns in component.files if not any(_exists(folder, p) for p in patterns)]
        missing = [name for name in missing if not find_file(component, name, root).exists()]
    return [(Path(component.folder) / name).as_posix() for name in missing]


def changed_files(component: Component, root: Path) -> list[str]:
    """Downloaded files whose SHA-256 differs from the manifest. Reads all of them."""
    entry = read_manifest(root).get(component.name, {"files": {}})
    changed = []
    for name, file in entry["files"].items():
        path = find_file(component, name, root)
        if not path.is_file() or sha256_of(path) != file["sha256"]:
            changed.append((Path(component.folder) / name).as_posix())
    return changed


def repair_nested_folder(root: Path) -> None:
    """Move models out of antelopev2/antelopev2, where antelopev2.zip unpacks them."""
    outer = root / "face_encoder" / "models" / "antelopev2"
    inner = outer / "antelopev2"
    if not inner.is_dir():
        return
    for model in sorted(inner.glob("*.onnx")):
        if not (outer / model.name).exists():
            model.rename(outer / model.name)
            log.warning("moved %s out of its nested folder", model.name)
    if not any(inner.iterdir()):
        inner.rmdir()


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _example(patterns: tuple[str, ...]) -> str:
    """The pattern to name in a message: preferably a plain file name, else the last pattern."""
    return next((pattern for pattern in reversed(patterns) if "*" not in pattern), patterns[-1])


def _exists(folder: Path, pattern: str) -> bool:
    """Whether a file exists, also if its archive was unpacked into a nested folder, see `repair_nested_folder`."""
    path = Path(pattern)
    return any(folder.glob(pattern)) or any(folder.glob(str(path.parent / path.parent.name / path.name)))


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
