"""The parquet index of a run: one row for every clip, shot or file at its end, kept or not, with all that was measured.

Columns: key, name, content, level, start, end (seconds), kept, stage (that made or rejected it), reason, broken, shard,
single measurements (the most asked for), and measured: everything as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from training.curation.record import FPS, Record

_FACTS = ("width", "height", "fps", "seconds")
_NUMBERS = (*_FACTS, "people", "distance_ratio", "sync_mean", "mask_overlap", "caption_words")
_TEXTS = ("codec", "detector", "caption")
_ROWS = 4096  # written at once


def row_of(record: Record, shard: str | None) -> dict[str, Any]:
    """One row."""
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
        "broken": record.broken,
        "shard": shard,
        **{name: None if data.get(name) is None else float(data[name]) for name in _NUMBERS},
        **{name: data.get(name) for name in _TEXTS},
        "measured": json.dumps(dict(data), ensure_ascii=False, sort_keys=True),
    }


def write_index(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write them, a few thousand at a time; the file appears once it is whole. Returns their number."""
    pa, parquet = _arrow()
    text, number, yes = pa.string(), pa.float64(), pa.bool_()
    kinds = {
        **dict.fromkeys(("key", "name", "content", "level"), text),
        **dict.fromkeys(("start", "end"), number),
        "kept": yes,
        **dict.fromkeys(("stage", "reason"), text),
        "broken": yes,
        "shard": text,
        **dict.fromkeys(_NUMBERS, number),
        **dict.fromkeys(_TEXTS, text),
        "measured": text,
    }
    schema = pa.schema(list(kinds.items()))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    count, waiting = 0, []
    try:
        with parquet.ParquetWriter(temporary, schema) as writer:
            for row in rows:
                waiting.append(row)
                count += 1
                if len(waiting) == _ROWS:
                    writer.write_table(pa.Table.from_pylist(waiting, schema))
                    waiting = []
            writer.write_table(pa.Table.from_pylist(waiting, schema))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def read_index(path: Path) -> list[dict[str, Any]]:
    """All rows, with `measured` as a dict."""
    _, parquet = _arrow()
    rows = parquet.read_table(path).to_pylist()
    return [{**row, "measured": json.loads(row["measured"])} for row in rows]


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError("no pyarrow", "pyarrow 17 or newer", 'pip install "bind-your-avatar[data]"') from error
    return pyarrow, parquet
