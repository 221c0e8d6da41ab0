"""Refinement suite: predicted masks with synthetic errors, before and after refinement.

The router predicts masks on held-out clips with noise at several points of the sampling schedule, as in the puppet
suite. Errors are added, and the masks are compared with the ground truth before and after refinement: IoU (a token
belongs to a character that covers at least half of it) and flicker (fraction of a mask's area that changes between
frames; that of the ground truth is not zero, because the characters move).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from bya_core.config import RefineConfig
from bya_core.evaluation import mask_metrics as masking
from bya_core.routing.refine import refine_masks
from training.benchmark.scenes import SuiteScene
from training.benchmark.tables import markdown_table, number
from training.benchmark.targets import EvaluationTarget

REFINE_SHARES = (0.7, 0.3)  # remaining fraction of the schedule: typical end of a probe, and late
Corruption = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _logit_noise(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise (standard deviation 2) on the logits of all classes."""
    classes = np.concatenate([masks, 1.0 - masks.sum(axis=0, keepdims=True)]).clip(1e-4)
    logits = np.log(classes) + rng.normal(0.0, 2.0, classes.shape)
    weight = np.exp(logits - logits.max(axis=0))
    return (weight / weight.sum(axis=0))[:-1]


def _flipped_labels(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random labels for one token in ten."""
    count = masks.shape[0]
    label = rng.integers(0, count + 1, masks.shape[1:])
    flipped = np.arange(count)[:, None, None, None] == label
    return np.where(rng.random(masks.shape[1:]) < 0.1, flipped, masks)


def _holes(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In every frame, an empty rectangle on each character."""
    masks = masks.copy()
    height, width = masks.shape[-2:]
    for mask in masks:
        for t in range(masks.shape[1]):
            tokens = np.argwhere(mask[t] > 0.5)
            if len(tokens):
                y, x = tokens[rng.integers(len(tokens))]
                masks[:, t, max(y - height // 8, 0) : y + height // 8, max(x - width // 8, 0) : x + width // 8] = 0.0
    return masks


def _stray_regions(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In every other frame, an additional random rectangle (a quarter of each side) for each character."""
    masks = masks.copy()
    height, width = masks.shape[-2:]
    for n in range(masks.shape[0]):
        for t in range(n % 2, masks.shape[1], 2):
            y, x = rng.integers(0, height - height // 4 + 1), rng.integers(0, width - width // 4 + 1)
            region = slice(y, y + height // 4), slice(x, x + width // 4)
            masks[:, t, *region] = 0.0
            masks[n, t, *region] = 1.0
    return masks


def _missing_frame(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An empty mask in one frame for each character."""
    masks = masks.copy()
    for n in range(masks.shape[0]):
        masks[n, rng.integers(masks.shape[1])] = 0.0
    return masks


CORRUPTIONS: dict[str, Corruption] = {
    "none": lambda masks, rng: masks,
    "noise on the logits": _logit_noise,
    "labels flipped": _flipped_labels,
    "pieces dropped": _holes,
    "stray regions": _stray_regions,
    "a frame missing": _missing_frame,
}

MaskPair = tuple[int, np.ndarray, np.ndarray]
"""Seed, predicted masks and true masks (bool), both [N, T, h, w]."""


def predict_scenes(target: EvaluationTarget, scenes: Iterable[SuiteScene]) -> list[MaskPair]:
    """Predict the masks of every scene at every noise point."""
    pairs = []
    for scene in scenes:
        truth = target.grid.pixels_to_tokens(torch.from_numpy(scene.clip.masks)).numpy() >= 0.5
        for point in target.points:
            pairs.append((scene.clip.seed, target.predict_masks(scene, point, scene.first_frame)[-1], truth))
    return pairs


def measure_refinement(pairs: list[MaskPair], config: RefineConfig) -> dict[str, dict[str, float]]:
    """IoU and flicker before and after refinement for each corruption, which depends on the seed of the scene only."""
    table = {}
    for kind, (name, corrupt) in enumerate(CORRUPTIONS.items()):
        rows = []
        for seed, masks, truth in pairs:
            corrupted = corrupt(masks, np.random.default_rng([seed, kind, 0x5EF]))
            refined = refine_masks(torch.from_numpy(corrupted).float(), config).numpy()
            row = [masking.flicker(truth)]
            for result in (corrupted, refined):
                owned = masking.to_labels(result)
                row += [np.nan_to_num(masking.mean_iou(owned, truth)), masking.flicker(owned)]
            rows.append(row)
        names = ("flicker of the truth", "iou before", "flicker before", "iou after", "flicker after")
        table[name] = {key: round(float(v), 4) for key, v in zip(names, np.mean(rows, axis=0), strict=True)}
    return table


def refinement_milliseconds(
    config: RefineConfig, shape: tuple[int, int, int, int] = (4, 13, 30, 45), repeats: int = 9
) -> float:
    """Median CPU time of refining synthetic masks (N, T, h, w) of swaying people with noise on the logits."""
    count, frames, height, width = shape
    t, y, x = np.mgrid[:frames, :height, :width].astype(np.float32)
    logits = [np.zeros_like(x)]
    for n in range(count):
        center = (n + 0.5) * width / count + 0.05 * width * np.sin(t / 4 + n)
        logits.append(6 - 4 * ((x - center) * count / width * 2) ** 2 - 4 * ((y - height / 2) * 3 / height) ** 2)
    noisy = np.stack(logits) + np.random.default_rng(0).normal(0.0, 1.5, (count + 1, frames, height, width))
    masks = torch.from_numpy(noisy).softmax(dim=0)[1:].float()
    durations = []
    for _ in range(repeats):
        start = time.process_time()
        refine_masks(masks, config)
        durations.append(time.process_time() - start)
    return round(1000 * float(np.median(durations)), 1)


def refinement_report(target: EvaluationTarget, scenes: list[SuiteScene], config: RefineConfig) -> dict[str, Any]:
    """Run the suite; the result is JSON-serializable."""
    return {
        "config": asdict(config),
        "points": [asdict(point) for point in target.points],
        "noises": measure_refinement(predict_scenes(target, scenes), config),
        "milliseconds for 4 characters on 13x30x45": refinement_milliseconds(config),
    }


def refinement_table(report: dict[str, Any]) -> str:
    """Format the figures as a Markdown table."""
    keys = ("iou before", "iou after", "flicker before", "flicker after", "flicker of the truth")
    rows = [[name, *(number(row[key], 3) for key in keys)] for name, row in report["noises"].items()]
    table = markdown_table(["noise", "IoU before", "after", "flicker before", "after", "truth"], rows)
    duration = report["milliseconds for 4 characters on 13x30x45"]
    return f"{table}\n\n4 characters on 13x30x45: {duration:.0f} ms of CPU time"
