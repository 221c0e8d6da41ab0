"""On-disk cache of stage results, which makes runs resumable.

`ROOT/STAGE/ab/abcd....json` holds the records that one stage produced from one record. The name is a hash of the file
content and of all stages so far with their versions and settings. Arrays are stored next to it. The JSON file is
written last, so an entry that exists is complete. Several processes and machines may share one folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from training.curation.record import Record

_FIELDS = ("level", "lineage", "content", "start", "end", "data", "stage", "rejected")


class StoreError(InputError):
    """The result store cannot be read or written. Unlike an unusable source file, this aborts the run."""


class Store:
    """Result store.

    Args:
        root: folder, created if missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def get(self, stage: str, key: str, parent: Record) -> tuple[list[Record], float] | None:
        """Return the records produced from `parent` and the time it took in seconds, or None if not cached."""
        path = self._path(stage, key)
        try:
            cached = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _store_error(path, error) from error
        return [self._from_entry(entry, parent) for entry in cached["records"]], float(cached["seconds"])

    def put(self, stage: str, key: str, records: Sequence[Record], seconds: float) -> list[Record]:
        """Save records and their arrays; return them with their arrays replaced by files."""
        path = self._path(stage, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            saved = []
            for index, record in enumerate(records):
                arrays = {name: _save_array(path, index, name, array) for name, array in record.arrays.items()}
                saved.append(replace(record, arrays=arrays))
            entry = {"seconds": round(seconds, 4), "records": [self._to_entry(record) for record in saved]}
            _write_text(path, json.dumps(entry, ensure_ascii=False, default=_to_json))
        except OSError as error:
            raise _store_error(path, error) from error
        return saved

    def get_text(self, kind: str, key: str) -> str | None:
        """Return a short cached text, or None."""
        try:
            return self._path(kind, key).read_text(encoding="utf-8")
        except OSError:
            return None

    def put_text(self, kind: str, key: str, text: str) -> None:
        """Save a short text."""
        path = self._path(kind, key)
        try:
            _write_text(path, text)
        except OSError as error:
            raise _store_error(path, error) from error

    def _path(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:2] / f"{key}.json"

    def _to_entry(self, record: Record) -> dict[str, Any]:
        arrays = {name: os.path.relpath(str(file), str(self.root)) for name, file in record.arrays.items()}
        return {**{name: getattr(record, name) for name in _FIELDS}, "arrays": arrays}

    def _from_entry(self, entry: dict[str, Any], parent: Record) -> Record:
        arrays = {name: self.root / file for name, file in entry["arrays"].items()}
        return Record(source=parent.source, name=parent.name, arrays=arrays, **{name: entry[name] for name in _FIELDS})


def _save_array(path: Path, index: int, name: str, array: np.ndarray | Path) -> Path:
    """Save an array next to `path`; files written by an earlier stage are referenced."""
    if not isinstance(array, np.ndarray):
        return array
    file = path.with_name(f"{path.stem}.{index}.{name}.npz")
    with atomic_write(file) as temporary, temporary.open("wb") as out:
        (np.savez_compressed if array.dtype == bool else np.savez)(out, array=array)
    return file


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _store_error(path: Path, error: Exception) -> StoreError:
    problem = f"the stage result {path} cannot be read or written ({error})"
    return StoreError(problem, "a writable folder with free disk space", "free some space or delete that file")


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON-serializable")
