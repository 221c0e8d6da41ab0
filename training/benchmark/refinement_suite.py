"""What refining masks is worth: router outputs on held-out clips, roughened in known ways, before and after.

The router of a model reads held-out clips noised to points of the sampling schedule, as in the puppet suite. Its
masks are then disturbed on purpose, compared with the drawn truth, refined, and compared again: IoU (a token belongs
to a character that covers at least half of it) and flicker (share of a mask's area that changes from frame to frame,
to be held against that of the truth: people move).
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
from training.benchmark.subjects import Subject

SHARES = (0.7, 0.3)  # of the schedule still ahead: where a probe hands over its masks, and late
Disturb = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _soft_noise(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise (deviation 2) on the logits of all classes."""
    classes = np.concatenate([masks, 1.0 - masks.sum(axis=0, keepdims=True)]).clip(1e-4)
    logits = np.log(classes) + rng.normal(0.0, 2.0, classes.shape)
    weight = np.exp(logits - logits.max(axis=0))
    return (weight / weight.sum(axis=0))[:-1]


def _flips(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One token in ten gets any label, and is sure of it."""
    count = masks.shape[0]
    label = rng.integers(0, count + 1, masks.shape[1:])
    wrong = np.arange(count)[:, None, None, None] == label
    return np.where(rng.random(masks.shape[1:]) < 0.1, wrong, masks)


def _blob(masks: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a rectangle, a quarter of the picture high and wide."""
    height, width = masks.shape[-2:]
    y, x = rng.integers(0, height - height // 4 + 1), rng.integers(0, width - width // 4 + 1)
    return slice(y, y + height // 4), slice(x, x + width // 4)


def _dropped(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In every frame a rectangle somewhere on a character is nobody's."""
    masks = masks.copy()
    height, width = masks.shape[-2:]
    for mask in masks:
        for t in range(masks.shape[1]):
            places = np.argwhere(mask[t] > 0.5)
            if len(places):
                y, x = places[rng.integers(len(places))]
                masks[:, t, max(y - height // 8, 0) : y + height // 8, max(x - width // 8, 0) : x + width // 8] = 0.0
    return masks


def _stray(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In every other frame each character also claims a rectangle anywhere."""
    masks = masks.copy()
    for n in range(masks.shape[0]):
        for t in range(n % 2, masks.shape[1], 2):
            place = _blob(masks, rng)
            masks[:, t, *place] = 0.0
            masks[n, t, *place] = 1.0
    return masks


def _missing(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every character is gone for one frame."""
    masks = masks.copy()
    for n in range(masks.shape[0]):
        masks[n, rng.integers(masks.shape[1])] = 0.0
    return masks


NOISES: dict[str, Disturb] = {
    "none": lambda masks, rng: masks,
    "noise on the logits": _soft_noise,
    "labels flipped": _flips,
    "pieces dropped": _dropped,
    "stray regions": _stray,
    "a frame missing": _missing,
}


def gather(subject: Subject, scenes: Iterable[SuiteScene]) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(seed, router's masks, truth [N, T, h, w] bool) of every scene and point; first frame as the scene has it."""
    found = []
    for scene in scenes:
        truth = subject.grid.pixels_to_tokens(torch.from_numpy(scene.clip.masks)).numpy() >= 0.5
        for point in subject.points:
            found.append((scene.clip.seed, subject.find(scene, point, scene.first_frame)[-1], truth))
    return found


def measure_refinement(
    gathered: list[tuple[int, np.ndarray, np.ndarray]], config: RefineConfig
) -> dict[str, dict[str, float]]:
    """IoU and flicker before and after, for each kind of noise. The noise depends on the seed of the scene alone."""
    table = {}
    for kind, (name, disturb) in enumerate(NOISES.items()):
        rows = []
        for seed, masks, truth in gathered:
            rough = disturb(masks, np.random.default_rng([seed, kind, 0x5EF]))
            fine = refine_masks(torch.from_numpy(rough).float(), config).numpy()
            row = [masking.flicker(truth)]
            for made in (rough, fine):
                owned = masking.to_labels(made)
                row += [np.nan_to_num(masking.mean_iou(owned, truth)), masking.flicker(owned)]
            rows.append(row)
        mean = np.mean(rows, axis=0)
        names = ("flicker of the truth", "iou before", "flicker before", "iou after", "flicker after")
        table[name] = {key: round(float(value), 4) for key, value in zip(names, mean, strict=True)}
    return table


def milliseconds(config: RefineConfig, shape: tuple[int, int, int, int] = (4, 13, 30, 45), tries: int = 9) -> float:
    """Median processor time of refining `shape` (N, T, h, w): upright people who sway, noise on the logits."""
    count, frames, height, width = shape
    t, y, x = np.mgrid[:frames, :height, :width].astype(np.float32)
    logits = [np.zeros_like(x)]
    for n in range(count):
        centre = (n + 0.5) * width / count + 0.05 * width * np.sin(t / 4 + n)
        logits.append(6 - 4 * ((x - centre) * count / width * 2) ** 2 - 4 * ((y - height / 2) * 3 / height) ** 2)
    noisy = np.stack(logits) + np.random.default_rng(0).normal(0.0, 1.5, (count + 1, frames, height, width))
    masks = torch.from_numpy(noisy).softmax(dim=0)[1:].float()
    taken = []
    for _ in range(tries):
        start = time.process_time()
        refine_masks(masks, config)
        taken.append(time.process_time() - start)
    return round(1000 * float(np.median(taken)), 1)


def refinement_report(subject: Subject, scenes: list[SuiteScene], config: RefineConfig) -> dict[str, Any]:
    """Everything for the record."""
    gathered = gather(subject, scenes)
    return {
        "config": asdict(config),
        "points": [asdict(point) for point in subject.points],
        "noises": measure_refinement(gathered, config),
        "milliseconds for 4 characters on 13x30x45": milliseconds(config),
    }


def refinement_table(report: dict[str, Any]) -> str:
    """The figures for people, as a Markdown table."""
    lines = ["| noise | IoU before | after | flicker before | after | truth |", "|---|---|---|---|---|---|"]
    for name, row in report["noises"].items():
        cells = [row["iou before"], row["iou after"], row["flicker before"], row["flicker after"]]
        cells.append(row["flicker of the truth"])
        lines.append(f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    took = report["milliseconds for 4 characters on 13x30x45"]
    return "\n".join([*lines, "", f"4 characters on 13x30x45: {took:.0f} ms of processor time"])
