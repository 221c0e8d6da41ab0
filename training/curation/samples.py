"""Finished clips as samples of training shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from training.curation.crops import boxes_in, clip_frames
from training.curation.footage import still
from training.curation.masks import token_masks
from training.curation.record import FPS, Record
from training.curation.settings import CurationSettings
from training.curation.speech import clip_speeches
from training.data.clip import ClipSample
from training.data.shards.writer import ShardWriter

_NOT_KEPT = ("caption", "context", "window", "seen", "matrix")  # of `data`: told elsewhere, or of no use in training
_EMPTY = 1 / 64  # share of a token from which it counts as covered


def sample_of(record: Record, settings: CurationSettings, seed: int, stand_ins: Sequence[str]) -> ClipSample:
    """The clip as training reads it.

    Raises:
        Unusable: the footage cannot be read any more.
    """
    size = settings.segments.size
    frames = clip_frames(record, size)
    masks = _resized(record.array("masks"), size)
    tokens = token_masks(masks, size)["token"] if _fits_tokens(size) else None
    measured: dict[str, Any] = {name: value for name, value in record.data.items() if name not in _NOT_KEPT}
    measured |= {
        "seed": seed,
        "source": record.name,
        "start": record.start / FPS,
        "boxes": np.round(boxes_in(record, size), 1).tolist(),
    }
    if tokens is not None:
        measured["tokens_covered"] = (tokens >= _EMPTY).sum(axis=(2, 3)).tolist()
    if stand_ins:
        measured["stand_ins"] = list(stand_ins)
    shards = settings.shards
    return ClipSample(
        key=record.key,
        frames=np.array(frames),
        fps=float(FPS),
        speeches=clip_speeches(record),
        masks=masks,
        portraits=tuple(
            _portrait(record, entry, shards.portrait, shards.portrait_margin) for entry in record.data["portrait"]
        ),
        caption=record.data["caption"],
        matrix=np.array(record.data["matrix"], np.float32),
        measured=measured,
        speech_features=record.array("features") if "features" in record.arrays else None,
    )


def write_shard(
    folder: Path, number: int, records: Sequence[Record], settings: CurationSettings, stand_ins: Sequence[str]
) -> Path:
    """One tar file with these clips; it appears whole or not at all, and is the same each time."""
    with ShardWriter(folder, per_shard=len(records), max_bytes=1 << 62, first=number) as writer:
        for record in records:
            seed = int(record.trail[:7], 16) % 1_000_000  # training seeds lie below a million
            writer.write(sample_of(record, settings, seed, stand_ins))
    return writer.shards[0]


def _fits_tokens(size: tuple[int, int]) -> bool:
    return size[0] % 16 == 0 and size[1] % 16 == 0


def _resized(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [N,F,H,W] at another size: a pixel belongs to whoever covers half of it."""
    if masks.shape[2:] == tuple(size):
        return masks
    made = np.empty((*masks.shape[:2], *size), bool)
    for n, track in enumerate(masks):
        values = torch.from_numpy(track).float()[:, None]
        small = torch.nn.functional.interpolate(values, size=size, mode="bilinear", antialias=True)
        made[n] = small[:, 0].numpy() >= 0.5
    return made


def _portrait(record: Record, entry: dict[str, Any], side: int, margin: float) -> np.ndarray:
    """uint8 [side,side,3]: the face with some room around it, as square as the picture allows."""
    x0, y0, x1, y1 = entry["box"]
    picture = still(record.source, entry["frame"])
    half = max(x1 - x0, y1 - y0) * (0.5 + margin)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    half = min(half, picture.shape[0] / 2, picture.shape[1] / 2)
    x, y = np.clip(x, half, picture.shape[1] - half), np.clip(y, half, picture.shape[0] - half)
    box = (x - half, y - half, x + half, y + half)
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS, box=box))
