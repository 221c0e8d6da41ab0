"""Results of stages on disk, so that nothing is lost and nothing is done twice.

Under `root/STAGE/ab/abcd....json` lie the records that one stage made of one record; the name stands for the content
of the file, and for every stage before with its version and settings. Arrays lie beside it. The json is renamed into
place last: where it is, all of the result is. Several processes and machines may share one folder.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bya_core.errors import InputError
from training.curation.record import Record

_PLAIN = ("level", "trail", "content", "start", "end", "data", "stage", "rejected")


class StoreError(InputError):
    """The folder of results cannot be written to or read; unlike a bad file, this stops a run."""


class Store:
    """A folder of results.

    Args:
        root: made where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def get(self, stage: str, key: str, parent: Record) -> tuple[list[Record], float] | None:
        """What was made of `parent` and the seconds it took; None where that is not known."""
        path = self._path(stage, key)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._failed(path, error) from error
        return [self._record(entry, parent, path.parent) for entry in kept["records"]], float(kept["seconds"])

    def put(self, stage: str, key: str, records: Sequence[Record], seconds: float) -> list[Record]:
        """Keep them, all or nothing; returns them with their arrays on disk."""
        path = self._path(stage, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            entries, placed = [], []
            for number, record in enumerate(records):
                files = {name: self._keep(path, number, name, array) for name, array in record.arrays.items()}
                record = replace(record, arrays=files)
                entries.append(self._entry(record))
                placed.append(record)
            text = json.dumps({"seconds": round(seconds, 4), "records": entries}, ensure_ascii=False, default=_plain)
            self._write(path, text.encode())
        except OSError as error:
            raise self._failed(path, error) from error
        return placed

    def note(self, kind: str, key: str) -> str | None:
        """A short text kept under this key, if there is one."""
        try:
            return self._path(kind, key).read_text(encoding="utf-8")
        except OSError:
            return None

    def keep_note(self, kind: str, key: str, text: str) -> None:
        """Keep a short text."""
        path = self._path(kind, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, text.encode())
        except OSError as error:
            raise self._failed(path, error) from error

    def _path(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:2] / f"{key}.json"

    def _keep(self, path: Path, number: int, name: str, array: np.ndarray | Path) -> Path:
        """Write one array beside `path`; what an earlier stage has written stays where it is."""
        if not isinstance(array, np.ndarray):
            return array
        file = path.with_name(f"{path.stem}.{number}.{name}.npz")
        temporary = _temporary(file)
        with temporary.open("wb") as out:
            (np.savez_compressed if array.dtype == bool else np.savez)(out, array=array)
        os.replace(temporary, file)
        return file

    def _write(self, path: Path, content: bytes) -> None:
        temporary = _temporary(path)
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)

    def _entry(self, record: Record) -> dict[str, Any]:
        files = {name: os.path.relpath(file, self.root) for name, file in record.arrays.items()}  # type: ignore[type-var]
        return {**{name: getattr(record, name) for name in _PLAIN}, "arrays": files}

    def _record(self, entry: dict[str, Any], parent: Record, folder: Path) -> Record:
        files = {name: self.root / file for name, file in entry["arrays"].items()}
        plain = {name: entry[name] for name in _PLAIN}
        return Record(source=parent.source, name=parent.name, arrays=files, **plain)

    def _failed(self, path: Path, error: Exception) -> StoreError:
        came = f"the result {path} cannot be kept or read ({error})"
        return StoreError(came, "a folder with room that can be written to", "make room, or delete that file")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be kept")
