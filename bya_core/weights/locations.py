"""Where models lie on this machine: the folders that are looked through, and where a download goes.

Order: folders that a host added (ComfyUI's models/bindyouravatar), the folder that the environment variable
BYA_MODELS_DIR names, ~/.cache/bind-your-avatar. The first one is where downloads go.
"""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT = "BYA_MODELS_DIR"

_added: list[Path] = []


def add_place(folder: Path) -> None:
    """Look into `folder` too, after those added before and ahead of the others."""
    if folder not in _added:
        _added.append(folder)


def places(first: Path | None = None) -> list[Path]:
    """The folders that are looked through, existing or not; `first` ahead of all, where it is given."""
    named = os.environ.get(ENVIRONMENT)
    found = [*_added, *([Path(named).expanduser()] if named else [])]
    found.append(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bind-your-avatar")
    return list(dict.fromkeys([first, *found] if first is not None else found))


def own_models() -> dict[str, Path]:
    """Models of one's own in those folders: name -> a folder with a bundle.json, or a converted .safetensors file."""
    found: dict[str, Path] = {}
    for place in places():
        if not place.is_dir():
            continue
        for path in sorted(place.iterdir()):
            if (path / "bundle.json").is_file() or (path.suffix == ".safetensors" and path.is_file()):
                found.setdefault(path.name, path)
    return found


def fetched(repository: str) -> str:
    """Folder of a part that `download` fetched from a repository ("owner/name"); else the name itself."""
    name = repository.rpartition("/")[2]
    folders = [place / "official" / name for place in places()] if "/" in repository else []
    return next((str(folder) for folder in folders if (folder / "config.json").is_file()), repository)
