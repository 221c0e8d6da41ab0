"""Random access to the clips of a folder of tar shards.

A table of 56 bytes per clip locates each clip, so that reading one takes a single seek. Tables are stored in the
feature cache, keyed by path, size and modification time of the shard.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from training.data.cache import FeatureCache, Tensors
from training.data.clip import ClipSample, LazyClip
from training.data.shards.members import BrokenClip, check_header, unpack
from training.data.shards.reader import OnBroken, find_shards, handle_broken, iterate_members, split_name

READ_ERRORS = (tarfile.TarError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)
VERSION = 1  # incremented when the table format changes
SIZES = ("characters", "frames", "height", "width", "fps")


@dataclass(frozen=True)
class ClipLocation:
    """Location and size of a clip.

    Args:
        offset, length: byte range of its files in the shard.
        frames, height, width, characters: size of the clip.
        fps: frames per second.
    """

    offset: int
    length: int
    frames: int
    height: int
    width: int
    characters: int
    fps: float


class ShardIndex:
    """The clips of a folder of shards, by number.

    Args:
        source: a folder (with subfolders), or a single shard.
        cache: stores the tables.
        on_broken: what to do with unreadable shards and clips.
        skipped: receives the reasons of skipped ones.

    Raises:
        InputError: no shards.
        BrokenClip: an unreadable shard or clip, with "error".
    """

    def __init__(
        self, source: Path | str, cache: FeatureCache, on_broken: OnBroken = "error", skipped: list[str] | None = None
    ) -> None:
        self.paths = find_shards(source)
        tables = []
        for path in self.paths:
            state = path.stat()
            key = (VERSION, str(path.absolute()), state.st_size, state.st_mtime_ns)
            entry = cache.get("index", key, lambda path=path: _tabulate(path))  # type: ignore[misc]
            for problem in json.loads(bytes(entry["problems"].tolist())):
                handle_broken(
                    BrokenClip(problem, "intact shards", "create it again or skip it"), path, on_broken, skipped
                )
            tables.append(entry["table"].numpy())
        self.table = np.concatenate(tables)
        self.shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])

    def __len__(self) -> int:
        return len(self.table)

    def location(self, number: int) -> ClipLocation:
        """Location and size of clip `number`."""
        offset, length, frames, height, width, characters, fps = (int(value) for value in self.table[number])
        return ClipLocation(offset, length, frames, height, width, characters, float(np.int64(fps).view(np.float64)))

    def shape(self, number: int) -> tuple[int, int, int, int, float]:
        """(characters, frames, height, width, fps) of clip `number`."""
        location = self.location(number)
        return location.characters, location.frames, location.height, location.width, location.fps

    def content(self, number: int) -> LazyClip:
        """Clip `number` without decoding it; only its JSON is read.

        Raises:
            BrokenClip: it cannot be read.
        """
        location, path = self.location(number), self.paths[self.shard[number]]
        try:
            with path.open("rb") as file:
                key, header = _header(file, location.offset)
            check_header(header)
            if self.shape(number) != tuple(header[name] for name in SIZES):
                raise ValueError("the shard has changed")
            return LazyClip(key, header, header["sha256"], lambda: _load(path, location))
        except READ_ERRORS as error:
            problem = f"clip {number} of {path} cannot be read ({error})"
            raise BrokenClip(
                problem, "the shard as it was when the run started", "do not modify shards during training"
            ) from error


def _load(path: Path, location: ClipLocation) -> ClipSample:
    """Decode a clip. Raises BrokenClip."""
    try:
        with path.open("rb") as file:
            file.seek(location.offset)
            content = io.BytesIO(file.read(location.length))
        return next(unpack(key, members) for key, members in iterate_members(content))
    except BrokenClip as error:
        raise BrokenClip(f"{path.name}: {error.problem}", error.expected, error.hint) from error
    except (OSError, StopIteration) as error:
        raise BrokenClip(
            f"{path} cannot be read ({error})", "the shard as it was", "do not modify shards during training"
        ) from error


def _header(file: BinaryIO, start: int) -> tuple[str, dict]:
    """(key, JSON) of the clip at a byte offset."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            name, extension = split_name(entry.name)
            content = tar.extractfile(entry)
            if extension == "json" and content is not None:
                return name, json.loads(content.read())
    raise ValueError("no JSON")


def _headers(file: BinaryIO) -> Iterator[tuple[str, bytes, int, int]]:
    """(key, JSON, offset, length) of the clips of a shard; the last clip of a truncated shard is omitted."""
    key, header, offset = "", b"", 0
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            if not entry.isfile():
                continue
            name, extension = split_name(entry.name)
            if name != key:
                if key:
                    yield key, header, offset, entry.offset - offset
                key, header, offset = name, b"", entry.offset
            if extension == "json":
                content = tar.extractfile(entry)
                header = b"" if content is None else content.read()
        if key:
            yield key, header, offset, tar.offset - offset


def _tabulate(path: Path) -> Tensors:
    """The table of a shard, and its problems as JSON."""
    rows, problems = [], []
    try:
        with path.open("rb") as file:
            for key, text, offset, length in _headers(file):
                try:
                    rows.append([offset, length, *_sizes(json.loads(text))])
                except READ_ERRORS as error:
                    problems.append(f"clip {key!r} has invalid JSON ({error})")
    except (tarfile.TarError, OSError, EOFError) as error:
        problems.append(f"unreadable after {len(rows)} clips ({error})")
    return {
        "table": torch.tensor(rows, dtype=torch.int64).reshape(-1, 7),
        "problems": torch.tensor(list(json.dumps(problems).encode()), dtype=torch.uint8),
    }


def _sizes(header: dict) -> list[int]:
    """The size columns of the table. Raises one of READ_ERRORS."""
    check_header(header)
    return [header["frames"], header["height"], header["width"], header["characters"], _bits(header["fps"])]


def _bits(number: float) -> int:
    """A float64 as the int64 with the same bits."""
    return int(np.float64(number).view(np.int64))
