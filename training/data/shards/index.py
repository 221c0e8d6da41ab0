"""Random access to the clips of a folder of tar shards.

A table of 56 bytes per clip has its byte range and size, so that reading one takes a single seek. Tables are stored in
the feature cache, keyed by path, size and modification time of the shard.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from training.data.cache import FeatureCache, Tensors
from training.data.clip import ClipSample, LazyClip
from training.data.files import files_fingerprint
from training.data.shards.members import BrokenClip, check_header, unpack
from training.data.shards.reader import OnBroken, find_shards, handle_broken, iterate_members, split_name

READ_ERRORS = (
    tarfile.TarError, OSError, EOFError, StopIteration, ValueError, KeyError, TypeError, AttributeError,
)  # fmt: skip
VERSION = 2  # incremented when the table format changes
SIZES = ("characters", "frames", "height", "width", "fps")
ROW = np.dtype([("offset", "i8"), ("length", "i8"), *((name, "f8" if name == "fps" else "i8") for name in SIZES)])
"""A row of the table; `offset` and `length` are the byte range of the files of a clip in its shard."""


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
        self.folder, self.paths = Path(source), find_shards(source)
        tables = []
        for path in self.paths:
            state = path.stat()
            key = (VERSION, str(path.absolute()), state.st_size, state.st_mtime_ns)
            entry = cache.get("index", key, lambda path=path: _tabulate(path))  # type: ignore[misc]
            for problem in json.loads(bytes(entry["problems"].tolist())):
                handle_broken(
                    BrokenClip(problem, "intact shards", "create it again or skip it"), path, on_broken, skipped
                )
            tables.append(entry["table"].numpy().view(ROW))
        self.table = np.concatenate(tables)
        self.shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])

    def __len__(self) -> int:
        return len(self.table)

    def fingerprint(self) -> str:
        """Hash of the shards, see `files_fingerprint`."""
        return files_fingerprint(self.folder, self.paths)

    def shape(self, number: int) -> tuple[int, int, int, int, float]:
        """(characters, frames, height, width, fps) of clip `number`."""
        return self.table[list(SIZES)][number].item()

    def content(self, number: int) -> LazyClip:
        """Clip `number` without decoding it; only its JSON is read.

        Raises:
            BrokenClip: it cannot be read.
        """
        path = self.paths[self.shard[number]]
        offset, length = self.table[["offset", "length"]][number].item()
        try:
            with path.open("rb") as file:
                file.seek(offset)
                key, text, *_ = next(_headers(file))
            header = json.loads(text)
            check_header(header)
            if self.shape(number) != tuple(header[name] for name in SIZES):
                raise ValueError("the shard has changed")
            return LazyClip(key, header, header["sha256"], lambda: _load(path, offset, length))
        except READ_ERRORS as error:
            raise _changed(f"clip {number} of {path} cannot be read ({error})") from error


def _changed(problem: str) -> BrokenClip:
    return BrokenClip(problem, "the shard as it was when the run started", "do not modify shards during training")


def _load(path: Path, offset: int, length: int) -> ClipSample:
    """Decode a clip. Raises BrokenClip."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = io.BytesIO(file.read(length))
        return next(unpack(key, members) for key, members in iterate_members(content))
    except BrokenClip as error:
        raise BrokenClip(f"{path.name}: {error.problem}", error.expected, error.hint) from error
    except (OSError, StopIteration) as error:
        raise _changed(f"{path} cannot be read ({error})") from error


def _headers(file: BinaryIO) -> Iterator[tuple[str, bytes, int, int]]:
    """(key, JSON, offset, length) of the clips from the current position on, without a truncated last one."""
    key, header, offset, seen = "", b"", 0, set[str]()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            if not entry.isfile():
                continue
            name, extension = split_name(entry.name)
            if name != key or extension in seen:
                if key:
                    yield key, header, offset, entry.offset - offset
                key, header, offset, seen = name, b"", entry.offset, set()
            seen.add(extension)
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
                    header = json.loads(text)
                    check_header(header)
                    rows.append((offset, length, *(header[name] for name in SIZES)))
                except READ_ERRORS as error:
                    problems.append(f"clip {key!r} has invalid JSON ({error})")
    except (tarfile.TarError, OSError, EOFError) as error:
        problems.append(f"unreadable after {len(rows)} clips ({error})")
    return {
        "table": torch.from_numpy(np.array(rows, ROW).view(np.uint8)),
        "problems": torch.tensor(list(json.dumps(problems).encode()), dtype=torch.uint8),
    }
