"""The report of a run: one HTML file without scripts or links, with funnel, reasons, histograms, costs and clips."""

from __future__ import annotations

import base64
import html
import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bya_core.io.atomic import AtomicFiles
from training.curation.audit import COLOURS, overlay
from training.curation.index import read_index
from training.curation.output import Layout, Output
from training.curation.pipeline import STAGE_NAMES
from training.curation.record import FPS
from training.data.clip import ClipSample
from training.data.shards.reader import read_shards

_SHEET = 60  # clips on the contact sheet
_MOMENTS = 3  # pictures of each
_WIDE = 240  # pixels of one
_REASONS = 40
_MEASURES = {
    "sync_mean": "mean Sync-C",
    "distance_ratio": "face size to distance",
    "mask_overlap": "IoU of masks",
    "fps": "frames a second of the source",
    "height": "height of the source",
}
_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:1180px;color:#1c2430;background:#fff}
h1{font-size:22px}h2{font-size:17px;margin-top:32px}table{border-collapse:collapse}
td,th{padding:3px 10px;text-align:right;border-bottom:1px solid #e4e8ee}td:first-child,th:first-child{text-align:left}
.bar{background:#e4e8ee;width:320px;height:14px}.bar div{background:#3b76c4;height:14px}
.warn{background:#fff1d6;border-left:4px solid #e0a020;padding:8px 12px}.grid{display:flex;flex-wrap:wrap;gap:18px}
.clip{width:740px;border-bottom:1px solid #e4e8ee;padding-bottom:8px}.clip img{display:block;max-width:100%}
.small{color:#5a6676;font-size:12px}svg text{font:11px system-ui,sans-serif;fill:#5a6676}
"""


def write_report(path: Path, layout: Layout, output: Output) -> None:
    """One file; it appears once it is whole."""
    rows = read_index(layout.index)
    kept = [row for row in rows if row["kept"]]
    parts = ["<h1>Curation</h1>", _summary(rows, kept)]
    if output.stand_ins:
        told = html.escape(", ".join(output.stand_ins))
        parts.append(f'<p class="warn">Stand-ins for drawn puppets were used ({told}): unfit for real footage.</p>')
    broken = sum(row["broken"] for row in rows)
    if broken:
        parts.append(f'<p class="warn">{broken} records were given up by errors; --resume tries them again.</p>')
    parts += ["<h2>Funnel</h2>", _funnel(layout), "<h2>Why things were dropped</h2>", _reasons(rows)]
    parts += ["<h2>Measurements</h2>", '<div class="grid">', *(_histogram(name, rows) for name in _MEASURES), "</div>"]
    parts += ["<h2>Clips</h2>", _sheet(kept, layout)]
    page = f"<!doctype html><meta charset=utf-8><title>Curation</title><style>{_STYLE}</style>{''.join(parts)}"
    with AtomicFiles() as files:
        files.at(path).write_text(page, encoding="utf-8")


def _summary(rows: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]]) -> str:
    files = {row["name"]: row["seconds"] or 0.0 for row in rows}
    seconds = sum(row["end"] - row["start"] for row in kept)
    raw = sum(files.values())
    share = f" ({100 * seconds / raw:.1f} %)" if raw else ""
    return (
        f"<p>{len(files)} files with {raw / 60:.1f} minutes of footage; "
        f"{len(kept)} clips with {seconds / 60:.1f} minutes{share} were kept.</p>"
    )


def stage_costs(store: Path) -> dict[str, tuple[int, int, int, float]]:
    """For each stage: records in, kept and rejected ones out, and the seconds they took, from the store."""
    found = {}
    for name in STAGE_NAMES:
        jobs = kept = rejected = 0
        seconds = 0.0
        for path in (store / name).glob("*/*.json"):
            entry = json.loads(path.read_text(encoding="utf-8"))
            jobs, seconds = jobs + 1, seconds + entry["seconds"]
            kept += sum(record["rejected"] is None for record in entry["records"])
            rejected += sum(record["rejected"] is not None for record in entry["records"])
        found[name] = (jobs, kept, rejected, seconds)
    return found


def _funnel(layout: Layout) -> str:
    costs = stage_costs(layout.store)
    most = max((jobs for jobs, *_ in costs.values()), default=1) or 1
    lines = ["<tr><th>stage<th>in<th>kept<th>rejected<th>seconds each<th>"]
    for name, (jobs, kept, rejected, seconds) in costs.items():
        each = f"{seconds / jobs:.3f}" if jobs else ""
        bar = f'<div class="bar"><div style="width:{100 * min(1.0, kept / max(most, kept)):.0f}%"></div></div>'
        lines.append(f"<tr><td>{name}<td>{jobs}<td>{kept}<td>{rejected}<td>{each}<td>{bar}")
    note = (
        "A file becomes shots, a shot becomes clips. All results in the output folder count, of earlier settings too."
    )
    return f'<table>{"".join(lines)}</table><p class="small">{note}</p>'


def _reasons(rows: Sequence[dict[str, Any]]) -> str:
    grouped: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    for row in rows:
        if not row["kept"]:
            kind = (row["stage"], (row["reason"] or "").split(":")[0].split(" (")[0])
            kind = (kind[0], "".join("#" if c.isdigit() else c for c in kind[1]))
            grouped[kind] += 1
            example.setdefault(kind, f"{row['name']}, {row['start']:.1f} s: {row['reason']}")
    if not grouped:
        return "<p>Nothing was dropped.</p>"
    lines = [
        f"<tr><td>{html.escape(stage)}<td>{count}<td style='text-align:left'>{html.escape(example[stage, why])}"
        for (stage, why), count in grouped.most_common(_REASONS)
    ]
    return f"<table><tr><th>stage<th>count<th style='text-align:left'>for example{''.join(lines)}</table>"


def _histogram(name: str, rows: Sequence[dict[str, Any]], bins: int = 24) -> str:
    """Kept and dropped above each other."""
    known = [row for row in rows if row[name] is not None]
    values = {kept: [row[name] for row in known if row["kept"] == kept] for kept in (True, False)}
    both = np.array(values[True] + values[False], np.float64)
    if not len(both):
        return ""
    edges = np.histogram_bin_edges(both, bins)
    counts = {kept: np.histogram(values[kept], edges)[0] for kept in values}
    most = max(1, int((counts[True] + counts[False]).max()))
    bars = []
    for k in range(bins):
        low = 110.0
        for kept, colour in ((True, "#3b76c4"), (False, "#c9d1dc")):
            high = 100.0 * counts[kept][k] / most
            low -= high
            bars.append(f'<rect x="{10 + k * 13}" y="{low:.1f}" width="12" height="{high:.1f}" fill="{colour}"/>')
    ends = f'<text x="10" y="124">{edges[0]:.3g}</text><text x="322" y="124" text-anchor="end">{edges[-1]:.3g}</text>'
    title = f"{_MEASURES[name]} (blue: kept, grey: dropped)"
    return f'<div><svg width="332" height="130">{"".join(bars)}{ends}</svg><div class="small">{title}</div></div>'


def _sheet(kept: Sequence[dict[str, Any]], layout: Layout) -> str:
    """Clips from all over the run, with their masks."""
    if not kept:
        return "<p>No clips.</p>"
    chosen = {kept[k]["key"] for k in np.linspace(0, len(kept) - 1, min(_SHEET, len(kept))).round().astype(int)}
    shards = defaultdict(set)
    for row in kept:
        if row["key"] in chosen:
            shards[row["shard"]].add(row["key"])
    made = []
    for name in sorted(shards):
        for sample in read_shards([layout.folder / name]):
            if sample.key in shards[name]:
                made.append(_card(sample))
    return "".join(made)


def _card(sample: ClipSample) -> str:
    count = len(sample.frames)
    moments = np.linspace(0, count - 1, _MOMENTS).round().astype(int)
    pictures = [Image.fromarray(overlay(sample.frames[k], sample.masks[:, k])) for k in moments]
    high = round(_WIDE * pictures[0].height / pictures[0].width)
    strip = Image.new("RGB", (_WIDE * _MOMENTS, high))
    for n, picture in enumerate(pictures):
        strip.paste(picture.resize((_WIDE, high)), (n * _WIDE, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=80)
    image = base64.b64encode(buffer.getvalue()).decode()
    voices = "".join(_voice(speech, n, sample) for n, speech in enumerate(sample.speeches))
    known = sample.measured
    facts = (
        f"{html.escape(str(known['source']))}, second {known['start']:.2f}, {count / FPS:.2f} s, "
        f"Sync-C {_told(known.get('sync_c'))}, matrix {sample.matrix.astype(int).tolist()}"
    )
    return (
        f'<div class="clip"><img src="data:image/jpeg;base64,{image}" alt="">{voices}'
        f'<div>{html.escape(sample.caption)}</div><div class="small">{facts}</div></div>'
    )


def _told(values: Any) -> str:
    return ", ".join("silent" if value is None else f"{value:.1f}" for value in values or [])


def _voice(speech: np.ndarray, number: int, sample: ClipSample, width: int = 720, high: int = 26) -> str:
    """Loudness of one stream, in the colour of the character whose it is."""
    pieces = np.array_split(np.abs(speech), width // 4)
    peaks = np.array([piece.max() if len(piece) else 0.0 for piece in pieces])
    peaks /= max(1e-3, float(np.abs(sample.speeches).max()))
    owner = int(sample.matrix[number].argmax())
    colour = "#" + bytes(COLOURS[owner % len(COLOURS)]).hex()
    bars = "".join(
        f'<rect x="{4 * k}" y="{(1 - p) * high / 2:.1f}" width="3" height="{max(0.5, p * high):.1f}"/>'
        for k, p in enumerate(peaks)
    )
    return f'<svg width="{width}" height="{high}" fill="{colour}">{bars}</svg>'
