"""Sequential reading of tar shards."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from bya_core.errors import InputError
from training.data.clip import ClipSample, safe_key
from training.data.files import list_files
from training.data.shards.members import BrokenClip, unpack

log = logging.getLogger(__name__)
OnBroken = Literal["error", "skip"]


def find_shards(source: Path | str | Iterable[Path | str], skipped: list[str] | None = None) -> list[Path]:
    """The tar files of a folder and of its linked folders (see `list_files`), or the given paths.

    Args:
        source: a folder (with subfolders), one shard, or several.
        skipped: receives the entries of a folder that are skipped; None = warn about them.

    Raises:
        InputError: no shards, or a missing file.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        paths = [path] if path.is_file() else list_files(path, ".tar", skipped)
    else:
        paths = [Path(p) for p in source]
    missing = [p for p in paths if not p.is_file()]
    if missing or not paths:
        problem = f"no shard at {missing[0]}" if missing else f"no *.tar in {source}"
        raise InputError(problem, "a folder of tar shards (docs/reference/shards.md)", "check the path")
    return paths


def read_shards(
    source: Path | str | Iterable[Path | str],
    on_broken: OnBroken = "error",
    skipped: list[str] | None = None,
) -> Iterator[ClipSample]:
    """Iterate over the clips of shards, one in memory at a time.

    Args:
        source: a folder (with subfolders), one shard, or several.
        on_broken: "skip" continues with the next clip (for a truncated shard with the next shard).
        skipped: receives the reasons.

    Raises:
        InputError: no shards.
        BrokenClip: an unreadable clip, with "error".
    """
    return (sample for sample, _ in read_members(source, on_broken, skipped))


def read_members(
    source: Path | str | Iterable[Path | str], on_broken: OnBroken = "error", skipped: list[str] | None = None
) -> Iterator[tuple[ClipSample, dict[str, bytes]]]:
    """As `read_shards`, with the files of each clip by extension."""
    for path in find_shards(source):
        try:
            with path.open("rb") as file:
                for key, members in iterate_members(file):
                    try:
                        sample = unpack(key, members)
                    except BrokenClip as error:
                        handle_broken(error, path, on_broken, skipped)
                    else:
                        yield sample, members
        except BrokenClip as error:
            handle_broken(error, path, on_broken, skipped)


def iterate_members(file: BinaryIO) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, files by extension) of the clips of an open shard: consecutive files with the same name before the dot. An
    extension that occurs again starts another clip.

    Raises:
        BrokenClip: not a tar file, or truncated.
    """
    key, members = "", dict[str, bytes]()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                if not entry.isfile():
                    continue
                name, extension = split_name(entry.name)
                if members and (name != key or extension in members):
                    yield key, members
                    members = {}
                content = tar.extractfile(entry)
                key, members[extension] = name, b"" if content is None else content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BrokenClip(f"unreadable ({error})", "an intact tar file", "create it again") from error
    if members:
        yield key, members


def split_name(name: str) -> tuple[str, str]:
    """(key, extension) of a file in a shard; folders become part of the key."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return safe_key(f"{folder}/{stem}" if folder else stem), extension


def handle_broken(error: BrokenClip, path: Path, on_broken: OnBroken, skipped: list[str] | None) -> None:
    """Raise with the name of the shard, or log and record it."""
    if on_broken == "error":
        raise BrokenClip(f"{path.name}: {error.problem}", error.expected, error.hint) from error
    log.warning("skipped: %s: %s", path.name, error.problem)
    if skipped is not None:
        skipped.append(f"{path.name}: {error.problem}")
