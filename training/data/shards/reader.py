"""Clips out of tar shards, one at a time and in order."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from bya_core.errors import InputError
from training.data.clip import ClipSample, safe_key
from training.data.shards.members import BrokenClip, unpack

log = logging.getLogger(__name__)
OnBroken = Literal["error", "skip"]


def find_shards(source: Path | str | Iterable[Path | str]) -> list[Path]:
    """The tar files of a folder (see `files_of`), or the given paths as they are.

    Raises:
        InputError: no shards, or a path that is none.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        paths = [path] if path.is_file() else files_of(path, ".tar")
    else:
        paths = [Path(p) for p in source]
    missing = [p for p in paths if not p.is_file()]
    if missing or not paths:
        came = f"no shard at {missing[0]}" if missing else f"no *.tar in {source}"
        raise InputError(came, "a folder of tar shards (docs/reference/shards.md)", "check the path")
    return paths


def files_of(folder: Path | str, ending: str) -> list[Path]:
    """Files with that ending in a folder and its subfolders, in the order of their names.

    Left out: hidden files and folders, and folders named `cache` (which may hold millions of features).
    """
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "cache" and name[0] != "."]
        found += [Path(base, name) for name in names if name.endswith(ending) and name[0] != "."]
    return sorted(found)


def read_shards(
    source: Path | str | Iterable[Path | str],
    on_broken: OnBroken = "error",
    skipped: list[str] | None = None,
) -> Iterator[ClipSample]:
    """All clips of these shards; only one clip is in memory at a time.

    Args:
        source: a folder (with its subfolders), one shard, or several.
        on_broken: "skip" goes on with the next clip (of a shard that cannot be read on: with the next shard).
        skipped: takes up why each one was skipped.

    Raises:
        InputError: no shards.
        BrokenClip: one that cannot be read, with "error".
    """
    for path in find_shards(source):
        try:
            with path.open("rb") as file:
                for key, members in members_of(file):
                    try:
                        sample = unpack(key, members)
                    except BrokenClip as error:
                        tell_broken(error, path, on_broken, skipped)
                        continue
                    yield sample
        except BrokenClip as error:
            tell_broken(error, path, on_broken, skipped)


def members_of(file: BinaryIO) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, files by ending) of every clip of an open shard: neighbouring files of one name up to its first dot.

    Raises:
        BrokenClip: it is no tar file, or breaks off.
    """
    key, members = "", dict[str, bytes]()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                if not entry.isfile():
                    continue
                name, ending = split_name(entry.name)
                if name != key and members:
                    yield key, members
                    members = {}
                content = tar.extractfile(entry)
                key, members[ending] = name, b"" if content is None else content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BrokenClip(f"it cannot be read on ({error})", "a whole tar file", "make it again") from error
    if members:
        yield key, members


def split_name(name: str) -> tuple[str, str]:
    """(key, ending) of a file in a shard; folders become part of the key."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    return safe_key(f"{folder}/{stem}" if folder else stem), ending


def tell_broken(error: BrokenClip, path: Path, on_broken: OnBroken, skipped: list[str] | None) -> None:
    """Raise, naming the shard, or log and note."""
    if on_broken == "error":
        raise BrokenClip(f"{path.name}: {error.problem}", error.expected, error.hint) from error
    log.warning("skipped: %s: %s", path.name, error.problem)
    if skipped is not None:
        skipped.append(f"{path.name}: {error.problem}")
