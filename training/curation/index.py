"""Parquet index of a run: one row per clip, shot or file at the point where it was accepted or rejected.

Columns: key, name, content, level, start, end (seconds), kept, stage (that produced or rejected it), reason, failed,
shard, the most common measurements, and `measured` with all of them as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from training.curation.record import FPS, Record

_NUMBERS = (
    "width", "height", "fps", "seconds", "num_people", "distance_ratio", "sync_mean", "mask_overlap", "caption_words",
)  # fmt: skip
_TEXTS = ("codec", "detector", "caption")
_ROW_GROUP = 4096


def index_row(record: Record, shard: str | None) -> dict[str, Any]:
    """Build the row of a record."""
    data = record.data
    return {
        "key": record.key,
        "name": record.name,
        "content": record.content,
        "level": record.level,
        "start": record.start / FPS,
        "end": record.end / FPS,
        "kept": record.rejected is None,
        "stage": record.stage,
        "reason": record.rejected,
        "failed": record.failed,
        "shard": shard,
        **{name: None if data.get(name) is None else float(data[name]) for name in _NUMBERS},
        **{name: data.get(name) for name in _TEXTS},
        "measured": json.dumps(dict(data), ensure_ascii=False, sort_keys=True),
    }


def write_index(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows in groups of a few thousand."""
    pa, parquet = _import_pyarrow()
    columns = {
        **dict.fromkeys(("key", "name", "content", "level"), pa.string()),
        **dict.fromkeys(("start", "end"), pa.float64()),
        "kept": pa.bool_(),
        **dict.fromkeys(("stage", "reason"), pa.string()),
        "failed": pa.bool_(),
        "shard": pa.string(),
        **dict.fromkeys(_NUMBERS, pa.float64()),
        **dict.fromkeys((*_TEXTS, "measured"), pa.string()),
    }
    schema, iterator = pa.schema(list(columns.items())), iter(rows)
    with atomic_write(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while group := list(islice(iterator, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def read_index(path: Path) -> list[dict[str, Any]]:
    """Read all rows, with `measured` parsed."""
    _, parquet = _import_pyarrow()
    rows = parquet.read_table(path).to_pylist()
    return [{**row, "measured": json.loads(row["measured"])} for row in rows]


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        hint = "run pip install -e .[data]"
        raise InputError("pyarrow is not installed", "pyarrow 17 or newer", hint) from error
    return pyarrow, parquet
