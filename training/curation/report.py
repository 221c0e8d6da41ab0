"""HTML report of a run (funnel, rejections, histograms, runtimes, contact sheet) and random clips for manual review."""

from __future__ import annotations

import html
import io
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bya_core.io.atomic import write_text
from bya_core.io.media import write_video
from bya_core.io.overlay import tint_frame
from training.curation.output import CurationOutput, OutputLayout, read_index
from training.curation.pipeline import STAGE_NAMES
from training.curation.record import FPS
from training.curation.stats import stage_costs
from training.data.clip import SAMPLE_RATE, ClipSample
from training.data.shards.reader import read_shards
from training.data.view import STYLE, card, embed_image

_MAX_CLIPS = 60  # on the contact sheet
_MAX_REASONS = 40
_HISTOGRAMS = {
    "sync_mean": "mean lip sync score",
    "distance_ratio": "face size to distance ratio",
    "mask_overlap": "IoU of masks",
    "fps": "source frame rate",
    "height": "source height in pixels",
}


def write_report(path: Path, output: CurationOutput) -> None:
    """Write the report of a finished run as one self-contained HTML file."""
    layout = output.layout
    rows = read_index(layout.index)
    kept = [row for row in rows if row["kept"]]
    parts = ["<h1>Curation report</h1>", _summary(rows, kept)]
    if output.puppet_models:
        names = html.escape(", ".join(output.puppet_models))
        parts.append(f'<p class="warn">Puppet-only models were used ({names}): not valid for real footage.</p>')
    failed = sum(row["failed"] for row in rows)
    if failed:
        parts.append(f'<p class="warn">{failed} records failed with errors; use --resume to retry them.</p>')
    parts += ["<h2>Funnel</h2>", _funnel(layout), "<h2>Rejections</h2>", _rejections(rows)]
    parts += ["<h2>Measurements</h2>", _histograms(rows), "<h2>Clips</h2>"]
    indices = np.linspace(0, len(kept) - 1, min(_MAX_CLIPS, len(kept))).round().astype(int)
    parts += [_card(sample) for sample in _read_clips([kept[k] for k in indices], layout)] or ["<p>No clips.</p>"]
    page = f"<!doctype html><meta charset=utf-8><title>Curation</title><style>{STYLE}</style>{''.join(parts)}"
    write_text(path, page)


def export_random_clips(layout: OutputLayout, count: int, seed: int) -> list[Path]:
    """Export random clips for manual review to audit/: KEY.mp4 (with masks and all speeches) and KEY.txt."""
    rows = sorted((row for row in read_index(layout.index) if row["kept"]), key=lambda row: row["key"])
    chosen = random.Random(seed).sample(rows, min(count, len(rows)))
    folder = layout.folder / "audit"
    folder.mkdir(exist_ok=True)
    paths = []
    for sample in _read_clips(chosen, layout):
        path = folder / f"{sample.key}.mp4"
        frames = (tint_frame(frame, torch.from_numpy(sample.masks[:, k]), 0.4) for k, frame in enumerate(sample.frames))
        mix = torch.from_numpy(sample.speeches.sum(axis=0, keepdims=True)).clamp(-1, 1)
        write_video(path, frames, sample.fps, (mix, SAMPLE_RATE))
        lines = [f"caption: {sample.caption}", f"matrix: {sample.matrix.astype(int).tolist()}"]
        lines += [f"{name}: {value}" for name, value in sample.measured.items() if name != "boxes"]
        questions = ("number of people correct", "masks correct", "speech assignment correct", "caption correct")
        lines += ["", *(f"{question}: ?" for question in questions)]
        write_text(path.with_suffix(".txt"), "\n".join(lines) + "\n")
        paths.append(path)
    return paths


def _read_clips(rows: Iterable[dict[str, Any]], layout: OutputLayout) -> Iterator[ClipSample]:
    shards: dict[str, set[str]] = {}
    for row in rows:
        shards.setdefault(row["shard"], set()).add(row["key"])
    for name, keys in sorted(shards.items()):
        yield from (sample for sample in read_shards([layout.folder / name]) if sample.key in keys)


def _summary(rows: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]]) -> str:
    files = {row["name"]: row["seconds"] or 0.0 for row in rows}
    seconds, total = sum(row["end"] - row["start"] for row in kept), sum(files.values())
    fraction = f" ({100 * seconds / total:.1f} %)" if total else ""
    return (
        f"<p>{len(files)} files, {total / 60:.1f} minutes of footage; "
        f"{len(kept)} clips, {seconds / 60:.1f} minutes{fraction} kept.</p>"
    )


def _funnel(layout: OutputLayout) -> str:
    costs = stage_costs(layout.store, STAGE_NAMES)
    largest = max(1, *(max(inputs, kept) for inputs, kept, *_ in costs.values()))
    lines = ["<tr><th>stage<th>input<th>kept<th>rejected<th>seconds per record<th>"]
    for name, (inputs, kept, rejected, seconds) in costs.items():
        mean = f"{seconds / inputs:.3f}" if inputs else ""
        bar = f'<div class="bar"><div style="width:{100 * kept / largest:.0f}%"></div></div>'
        lines.append(f"<tr><td>{name}<td>{inputs}<td>{kept}<td>{rejected}<td>{mean}<td>{bar}")
    note = "Files are split into shots, shots into clips. Cached results of earlier settings are included."
    return f'<table>{"".join(lines)}</table><p class="small">{note}</p>'


def _rejections(rows: Sequence[dict[str, Any]]) -> str:
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for row in rows:
        if not row["kept"]:
            kind = (row["reason"] or "").split(":")[0].split(" (")[0]
            key = (row["stage"], "".join("#" if c.isdigit() else c for c in kind))
            counts[key] += 1
            examples.setdefault(key, f"{row['name']}, {row['start']:.1f} s: {row['reason']}")
    if not counts:
        return "<p>No rejections.</p>"
    lines = [
        f"<tr><td>{html.escape(key[0])}<td>{count}<td style='text-align:left'>{html.escape(examples[key])}"
        for key, count in counts.most_common(_MAX_REASONS)
    ]
    return f"<table><tr><th>stage<th>count<th style='text-align:left'>example{''.join(lines)}</table>"


def _histograms(rows: Sequence[dict[str, Any]]) -> str:
    """Stacked histograms of kept and rejected records."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), dpi=100, layout="constrained")
    for position, (name, title) in enumerate(_HISTOGRAMS.items(), 1):
        axes = figure.add_subplot(2, 3, position, title=title)
        known = [row for row in rows if row[name] is not None]
        values = [[row[name] for row in known if row["kept"] == kept] for kept in (True, False)]
        if known:
            axes.hist(values, bins=24, stacked=True, color=["#3b76c4", "#c9d1dc"], label=["kept", "rejected"])
            axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return embed_image(buffer)


def _card(sample: ClipSample) -> str:
    """A clip with its source and measurements."""
    measured = sample.measured
    sync = ", ".join("silent" if value is None else f"{value:.2f}" for value in measured.get("sync_c") or [])
    start, seconds = f"start {measured['start']:.2f} s", f"{len(sample.frames) / FPS:.2f} s"
    details = f"{measured['source']}, {start}, {seconds}, lip sync {sync}, matrix {sample.matrix.astype(int).tolist()}"
    return card(sample, details)
