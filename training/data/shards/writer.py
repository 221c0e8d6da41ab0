"""Atomic, deterministic writing of tar shards with webdataset."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from webdataset import TarWriter

from bya_core.errors import InputError
from bya_core.io.atomic import AtomicFiles
from training.data.clip import ClipSample
from training.data.shards.members import pack


class ShardWriter:
    """Context manager that writes clips to `folder/PREFIX-000000.tar` and so on.

    A shard gets its name once it is complete and on disk. An exception (or a kill) leaves the complete shards. The same
    clips give the same bytes.

    Args:
        folder: output folder, created if missing.
        per_shard: clips per shard.
        max_bytes: a shard is closed when its content reaches this size.
        prefix: start of the file names; concurrent writers need different prefixes.
        first: number of the first shard; None = after the existing ones with this prefix.

    Raises:
        InputError: the folder is not writable.
    """

    def __init__(
        self,
        folder: Path | str,
        per_shard: int = 64,
        max_bytes: int = 1 << 30,
        prefix: str = "clips",
        first: int | None = None,
    ) -> None:
        self.folder, self.per_shard, self.max_bytes, self.prefix = Path(folder), per_shard, max_bytes, prefix
        self.shards: list[Path] = []
        self.clips = 0
        self._keys: set[str] = set()
        self._file: BinaryIO | None = None
        self._tar: TarWriter | None = None
        self._clips_in_shard = self._bytes_in_shard = 0
        self._files = AtomicFiles()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.number = self._next_number() if first is None else first
        except OSError as error:
            raise self._write_error(self.folder, error) from error

    def write(self, sample: ClipSample) -> None:
        """Add a clip.

        Raises:
            InputError: a duplicate key, `measured` that is not valid JSON, or a full disk.
        """
        self._check_key(sample.key)
        self.write_members(sample.key, pack(sample))

    def write_members(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add a clip as its files by extension, see `pack`. Raises as `write`."""
        self._check_key(key)
        try:
            if self._tar is None:
                self._files = AtomicFiles()
                self._file = self._files.at(self._path).open("wb")
                self._tar = TarWriter(self._file, user="", group="", mode=0o644, mtime=0, encoder=False)
                self._clips_in_shard = self._bytes_in_shard = 0
            self._bytes_in_shard += self._tar.write({"__key__": key, **members})
            self._keys.add(key)
            self._clips_in_shard, self.clips = self._clips_in_shard + 1, self.clips + 1
            if self._clips_in_shard >= self.per_shard or self._bytes_in_shard >= self.max_bytes:
                self._finish()
        except OSError as error:
            failure = self._files.failure(error) or self._write_error(self._path, error)
            self._discard()
            raise failure from error

    def _check_key(self, key: str) -> None:
        if key in self._keys:
            raise InputError(f"a second clip with key {key!r}", "unique keys", "rename one of them")

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.prefix}-{self.number:06d}.tar"

    def _next_number(self) -> int:
        pattern = re.compile(re.escape(self.prefix) + r"-(\d{6,})\.tar")
        numbers = [int(m[1]) for name in os.listdir(self.folder) if (m := pattern.fullmatch(name))]
        return max(numbers, default=-1) + 1

    def _finish(self) -> None:
        """Close the open shard, flush it to disk, and rename it."""
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.close()
        self._files.__exit__(None, None, None)
        self.shards.append(self._path)
        self._tar = self._file = None
        self.number += 1

    def _discard(self) -> None:
        """Delete the open shard."""
        if self._tar is not None and self._file is not None:
            with suppress(OSError, ValueError):
                self._tar.close()
            with suppress(OSError):
                self._file.close()
            self._files.discard()
        self._tar = self._file = None

    def _write_error(self, path: Path, error: OSError) -> InputError:
        problem = f"the shard {path} cannot be written ({error.strerror or error})"
        return InputError(problem, "a writable folder with free space", "free some space or choose another folder")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except OSError as failed:
            failure = self._files.failure(failed) or self._write_error(self._path, failed)
            self._discard()
            raise failure from failed
