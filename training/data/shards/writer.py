"""Clips into tar shards that appear whole or not at all."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from bya_core.errors import InputError
from training.data.clip import ClipSample
from training.data.shards.members import pack


class ShardWriter:
    """Writes clips to `folder/PREFIX-000000.tar` and so on; use it in a `with` block.

    A shard gets its name only once it is complete and on disk; leaving the block with an error (or being killed)
    leaves the complete shards and at most one hidden `.part` file. The same clips give the same bytes.

    Args:
        folder: made where it is missing.
        per_shard: clips in a shard.
        max_bytes: a shard is closed when it has grown this large.
        prefix: first part of the names; writers that work at the same time need different ones.
        first: number of the first shard; None = after those of this prefix that are there.

    Raises:
        InputError: the folder cannot be written to.
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
        self._tar: tarfile.TarFile | None = None
        self._held = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.number = self._after_last() if first is None else first
        except OSError as error:
            raise self._failed(self.folder, error) from error

    def write(self, sample: ClipSample) -> None:
        """Add one clip.

        Raises:
            InputError: a key that was used already, a `measured` that JSON cannot hold, or a full disk.
        """
        if sample.key in self._keys:
            raise InputError(f"a second clip with key {sample.key!r}", "a key for each clip", "name them apart")
        members = pack(sample)
        try:
            if self._tar is None:
                self._file = self._part.open("wb")
                self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)
                self._held = 0
            for ending, content in members.items():
                entry = tarfile.TarInfo(f"{sample.key}.{ending}")
                entry.size = len(content)
                self._tar.addfile(entry, io.BytesIO(content))
            self._keys.add(sample.key)
            self._held, self.clips = self._held + 1, self.clips + 1
            if self._held >= self.per_shard or self._tar.offset >= self.max_bytes:
                self._finish()
        except OSError as error:
            self._abandon()
            raise self._failed(self._part, error) from error

    @property
    def _part(self) -> Path:
        return self.folder / f".{self.prefix}-{self.number:06d}.{os.getpid()}.part"

    def _after_last(self) -> int:
        pattern = re.compile(re.escape(self.prefix) + r"-(\d{6,})\.tar")
        found = [int(m[1]) for name in os.listdir(self.folder) if (m := pattern.fullmatch(name))]
        return max(found, default=-1) + 1

    def _finish(self) -> None:
        """Close the open shard, force it to disk and give it its name."""
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self.folder / f"{self.prefix}-{self.number:06d}.tar"
        os.replace(self._part, path)
        self.shards.append(path)
        self._tar = self._file = None
        self.number += 1

    def _abandon(self) -> None:
        """Drop what the open shard holds."""
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)
        self._tar = self._file = None

    def _failed(self, path: Path, error: OSError) -> InputError:
        came = f"the shard {path} cannot be written ({error.strerror or error})"
        return InputError(came, "a folder with room that can be written to", "make room or choose another one")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            self._finish()
        except OSError as problem:
            self._abandon()
            raise self._failed(self._part, problem) from problem
