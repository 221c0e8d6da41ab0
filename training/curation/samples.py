"""Conversion of finished clips to training samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from training.curation.footage import clip_boxes, clip_frames, read_frame
from training.curation.pipeline import CurationSettings, ShardSettings
from training.curation.record import FPS, Record
from training.curation.speech import clip_speeches
from training.data.clip import ClipSample
from training.data.shards.writer import ShardWriter

_EXCLUDED = ("caption", "context", "crop", "visible", "matrix")  # stored elsewhere, or not useful for training


def to_sample(
    record: Record,
    settings: CurationSettings,
    seed: int,
    puppet_models: Sequence[str],
    portraits: Sequence[np.ndarray] | None = None,
) -> ClipSample:
    """Build the training sample of a clip.

    Args:
        record: finished clip.
        settings: settings of the run.
        seed: of the sample.
        puppet_models: see `CurationOutput`.
        portraits: reference images, see `reference_images`; None reads them.

    Raises:
        UnusableFootage: the source file can no longer be read.
    """
    size = settings.segments.size
    measured: dict[str, Any] = {name: value for name, value in record.data.items() if name not in _EXCLUDED}
    measured |= {
        "seed": seed,
        "source": record.name,
        "start": record.start / FPS,
        "boxes": np.round(clip_boxes(record, size), 1).tolist(),
    }
    if puppet_models:
        measured["puppet_models"] = list(puppet_models)
    return ClipSample(
        key=record.key,
        frames=np.array(clip_frames(record, size)),
        fps=float(FPS),
        speeches=clip_speeches(record),
        masks=resize_masks(record.array("masks"), size),
        portraits=tuple(reference_images([record], settings.shards)[0] if portraits is None else portraits),
        caption=record.data["caption"],
        matrix=np.array(record.data["matrix"], np.float32),
        measured=measured,
        speech_features=record.array("features") if "features" in record.arrays else None,
    )


def write_shard(
    folder: Path, index: int, records: Sequence[Record], settings: CurationSettings, puppet_models: Sequence[str]
) -> Path:
    """Write one shard with these clips; the result is deterministic."""
    with ShardWriter(folder, per_shard=len(records), max_bytes=1 << 62, first=index) as writer:
        for _, shot in groupby(records, key=lambda record: (record.source, record.data.get("shot"))):
            clips = list(shot)
            for record, portraits in zip(clips, reference_images(clips, settings.shards), strict=True):
                seed = int(record.lineage[:7], 16) % 1_000_000  # training seeds are below one million
                writer.write(to_sample(record, settings, seed, puppet_models, portraits))
    return writer.shards[0]


def resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize bool [N,F,H,W]; a pixel is set if at least half of it is covered."""
    if masks.shape[2:] == tuple(size):
        return masks
    smaller = size[0] < masks.shape[2] or size[1] < masks.shape[3]
    result = np.empty((*masks.shape[:2], *size), bool)
    for n, f in np.ndindex(*masks.shape[:2]):
        values = torch.from_numpy(masks[n, f]).float()[None, None]
        resized = torch.nn.functional.interpolate(values, size=size, mode="bilinear", antialias=smaller)
        result[n, f] = resized[0, 0].numpy() >= 0.5
    return result


def reference_images(records: Sequence[Record], settings: ShardSettings) -> list[list[np.ndarray]]:
    """Reference images of the characters of each clip, uint8 [P,P,3].

    Clips of one shot share many of them; their frames are read once, in order of time.

    Raises:
        UnusableFootage: the source file can no longer be read.
    """
    wanted = {_reference_key(record, entry) for record in records for entry in record.data["reference"]}
    images = {key: _reference_image(*key, settings) for key in sorted(wanted)}
    return [[images[_reference_key(record, entry)] for entry in record.data["reference"]] for record in records]


def _reference_key(record: Record, entry: dict[str, Any]) -> tuple[str, int, tuple[float, ...]]:
    return record.source, entry["frame"], tuple(entry["box"])


def _reference_image(source: str, k: int, box: tuple[float, ...], settings: ShardSettings) -> np.ndarray:
    """Square crop around a face as uint8 [P,P,3]."""
    x0, y0, x1, y1 = box
    frame, size = read_frame(source, k), settings.reference_size
    half = max(x1 - x0, y1 - y0) * (0.5 + settings.reference_margin)
    half = min(half, frame.shape[0] / 2, frame.shape[1] / 2)
    x = np.clip((x0 + x1) / 2, half, frame.shape[1] - half)
    y = np.clip((y0 + y1) / 2, half, frame.shape[0] - half)
    crop = (x - half, y - half, x + half, y + half)
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS, box=crop))
