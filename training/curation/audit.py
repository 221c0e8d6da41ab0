"""Clips for a person to look at: a few at random, as they will be trained on, with masks drawn over them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from bya_core.io.media import write_video
from training.curation.index import read_index
from training.curation.output import Layout
from training.data.clip import SAMPLE_RATE, ClipSample
from training.data.shards.reader import read_shards

COLOURS = ((230, 70, 60), (60, 120, 230), (70, 190, 90), (230, 180, 40), (170, 80, 200), (60, 190, 200))


def overlay(frame: np.ndarray, masks: np.ndarray, strength: float = 0.4) -> np.ndarray:
    """uint8 [H,W,3] with each mask of bool [N,H,W] in its own colour."""
    shown = frame.astype(np.float32)
    for n, mask in enumerate(masks):
        colour = np.array(COLOURS[n % len(COLOURS)], np.float32)
        shown[mask] += strength * (colour - shown[mask])
    return shown.astype(np.uint8)


def pick(layout: Layout, count: int, seed: int) -> list[Path]:
    """Write `count` clips at random to audit/: KEY.mp4 (masks drawn, all voices) and KEY.txt (what is known)."""
    rows = {row["key"]: row for row in read_index(layout.index) if row["kept"]}
    chosen = set(random.Random(seed).sample(sorted(rows), min(count, len(rows))))
    shards = sorted({rows[key]["shard"] for key in chosen})
    folder = layout.folder / "audit"
    folder.mkdir(exist_ok=True)
    made = []
    for sample in read_shards([layout.folder / name for name in shards]) if shards else ():
        if sample.key in chosen:
            made.append(_written(sample, folder))
    return made


def _written(sample: ClipSample, folder: Path) -> Path:
    path = folder / f"{sample.key}.mp4"
    frames = (overlay(frame, sample.masks[:, k]) for k, frame in enumerate(sample.frames))
    mix = torch.from_numpy(sample.speeches.sum(axis=0, keepdims=True)).clamp(-1, 1)
    write_video(path, frames, sample.fps, (mix, SAMPLE_RATE))
    told = [f"caption: {sample.caption}", f"matrix: {sample.matrix.astype(int).tolist()}"]
    told += [f"{name}: {value}" for name, value in sample.measured.items() if name not in ("boxes", "tokens_covered")]
    told += ["", "right number of people: ?", "masks on their people: ?", "each voice its own: ?", "caption true: ?"]
    path.with_suffix(".txt").write_text("\n".join(told) + "\n", encoding="utf-8")
    return path
