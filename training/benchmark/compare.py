"""Comparison of two reports of one suite: each metric of both, the difference, and its standard error.

Scenes that both reports have are paired, so the standard error is that of the mean of the paired differences. Metrics
of which a report stores only the total have no standard error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bya_core.errors import InputError
from bya_core.validation import parse_json
from training.benchmark.tables import markdown_table

DIFFERENT = ("transformer_sha256", "codec_sha256", "device", "dtype")
"""Settings that may differ between the reports."""
KEYS = ("seed", "way", "system", "clip", "motion", "characters", "first_frame")
"""Fields of a row that name the scene instead of measuring it."""
LEFT_OUT = ("settings", "versions", "seeds", "seconds", "scenes", "rows", "model", "suite")


def compare_reports(first: Path, second: Path) -> tuple[dict[str, Any], str]:
    """Compare two reports.

    Args:
        first: results.json, or a folder with it.
        second: the same.

    Returns:
        The comparison as JSON types, and as a Markdown table.

    Raises:
        InputError: a file that is no report, or reports of different suites or settings.
    """
    (a, left), (b, right) = _read(first), _read(second)
    if a["suite"] != b["suite"]:
        problem = f"{left} is of the suite {a['suite']}, {right} of {b['suite']}"
        raise InputError(problem, "reports of one suite", "compare others")
    if different := _settings_differ(a.get("settings"), b.get("settings")):
        problem = f"{left} and {right} have other settings: {', '.join(different[:6])}"
        raise InputError(problem, "the same scenes and options", "evaluate one of them again")
    metrics = {**_totals(a, b), **_paired(a, b)}
    if not metrics:
        raise InputError(f"{left} and {right} share no metric", "reports with figures", "compare others")
    names = _names(a["model"], b["model"])
    head = ["metric", *names, "difference", "standard error", "scenes"]
    rows = [[name, *(_text(value) for value in row.values())] for name, row in metrics.items()]
    report = {"suite": a["suite"], "models": [a["model"], b["model"]], "files": [left, right], "metrics": metrics}
    return report, markdown_table(head, rows)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    file = path / "results.json" if path.is_dir() else path
    try:
        report = parse_json(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"no report at {file}", "results.json of an evaluation", "check the path") from error
    if not isinstance(report, dict) or not isinstance(report.get("suite"), str) or "model" not in report:
        raise InputError(f"{file} is not the report of an evaluation", "results.json of evaluate.py", "check the path")
    return report, str(path)


def _settings_differ(a: Any, b: Any) -> list[str]:
    """Names of the settings that make scenes incomparable."""
    left, right = _flat(a or {}), _flat(b or {})
    names = [name for name in {**left, **right} if not set(name.split(".")) & {*DIFFERENT, "scenes"}]
    return [name for name in names if left.get(name) != right.get(name)]


def _totals(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    left, right = (
        {k: v for k, v in _numbers({k: v for k, v in each.items() if k not in LEFT_OUT}).items()} for each in (a, b)
    )
    return {
        name: {"first": value, "second": right[name], "difference": right[name] - value, "error": None, "count": None}
        for name, value in left.items()
        if name in right
    }


def _paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Metrics of the scenes that both reports have."""
    rows = [{_key(row): _numbers(row) for row in each.get("scenes") or each.get("rows") or ()} for each in (a, b)]
    shared = [key for key in rows[0] if key in rows[1]]
    pairs: dict[str, list[tuple[float, float]]] = {}
    for key in shared:
        group = "".join(f"{part}: " for part in key if isinstance(part, str))
        for name, value in rows[0][key].items():
            if name not in KEYS and name in rows[1][key]:
                pairs.setdefault(f"{group}{name} (scenes)", []).append((value, rows[1][key][name]))
    result: dict[str, dict[str, float | None]] = {}
    for name, values in pairs.items():
        left, right = np.array(values).T
        error = float(np.std(right - left, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
        means = {"first": float(left.mean()), "second": float(right.mean())}
        result[name] = {**means, "difference": float((right - left).mean()), "error": error, "count": len(values)}
    return result


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("seed", row.get("clip")), row.get("way")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    parts = [_flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items()]
    return {name: item for part in parts for name, item in part.items()}


def _numbers(value: Any) -> dict[str, float]:
    """Numeric leaves by name; lists of numbers and truth values by their mean."""
    return {name: number for name, item in _flat(value).items() if (number := _number(item)) is not None}


def _number(value: Any) -> float | None:
    leaves = list(_leaves(value))
    if not leaves or any(not isinstance(each, bool | int | float) for each in leaves):
        return None
    mean = float(np.mean([float(each) for each in leaves]))
    return mean if math.isfinite(mean) else None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    elif value is not None:
        yield value


def _names(first: str, second: str) -> list[str]:
    """Two different column heads."""
    return [first, second] if first != second else [f"{first} (1)", f"{second} (2)"]


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
