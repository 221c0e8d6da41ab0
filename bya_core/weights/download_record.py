"""What was fetched of a model, and whether it is still there: `downloads.json` in the model's folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.weights.known_files import Part

RECORD = "downloads.json"


def read_record(root: Path) -> dict[str, Any]:
    """Part name -> what was fetched of it; empty where nothing was."""
    path = root / RECORD
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["parts"]
    except (ValueError, KeyError) as error:
        do = "delete it; the files are then looked at anew at the next download"
        raise InputError(f"{path} cannot be read ({error})", "the record of a download", do) from error


def missing_files(part: Part, root: Path) -> list[str]:
    """Files of a part that are not there or not of the recorded size, as paths below `root`; asks nobody."""
    recorded = read_record(root).get(part.name)
    folder = root / part.folder
    if recorded is not None and recorded["repository"] == part.repository:
        gone = [name for name, file in recorded["files"].items() if not _has_size(folder / name, file["size"])]
    else:
        gone = [_plainest(options) for options in part.wanted if not any(_any(folder, option) for option in options)]
    return [(Path(part.folder) / name).as_posix() for name in gone]


def _plainest(options: tuple[str, ...]) -> str:
    """The option to name where nothing is there: a file by its name, if there is one; the last, if there are more."""
    return next((option for option in reversed(options) if "*" not in option), options[-1])


def _any(folder: Path, pattern: str) -> bool:
    """Whether a file is there, or one folder too deep (archives unpack so; it is put right when it is loaded)."""
    path = Path(pattern)
    return any(folder.glob(pattern)) or any(folder.glob(str(path.parent / path.parent.name / path.name)))


def complete(part: Part, root: Path) -> bool:
    """Whether a part was fetched, at the pinned commit, and its files are still there with their sizes."""
    recorded = read_record(root).get(part.name)
    if recorded is None or recorded["repository"] != part.repository:
        return False
    return part.revision in (None, recorded["revision"]) and not missing_files(part, root)


def changed_files(part: Part, root: Path) -> list[str]:
    """Files of a fetched part whose SHA-256 is no longer the recorded one; reads all of them."""
    recorded = read_record(root).get(part.name, {"files": {}})
    folder = root / part.folder
    return [
        (Path(part.folder) / name).as_posix()
        for name, file in recorded["files"].items()
        if not (folder / name).is_file() or sha256_of(folder / name) != file["sha256"]
    ]


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def sha256_of(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_record(root: Path, part: Part, commit: str, files: Mapping[str, Any]) -> None:
    parts = read_record(root)
    parts[part.name] = {"repository": part.repository, "revision": commit, "files": files}
    with atomic_write(root / RECORD) as temporary:
        text = json.dumps({"parts": parts}, indent=2, sort_keys=True) + "\n"
        temporary.write_text(text, encoding="utf-8")
