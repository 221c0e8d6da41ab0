"""Curation models for synthetic puppet footage, selected by the name "puppet".

`PuppetVoices` reads the ground-truth speech of the footage and assigns it to faces by mouth motion; all other models
use frames and audio only, like the models for real footage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from bya_core.encoders.face.detection import Face
from bya_core.errors import InputError
from bya_core.evaluation.sync_metrics import SHIFT, Sync
from bya_core.io.loudness import loudness_track
from bya_core.toy.mouth import mouth_opening
from bya_core.toy.segmentation import segment_characters
from training.curation.footage import SAMPLE_RATE
from training.curation.models import SpeechMixture
from training.curation.record import FPS
from training.puppets.looks import MOUTH_RGB, add_article, color_name

_MIN_WHITE, _MAX_CHROMA = 0.62, 0.2  # minimum channel value and range of channels of the sclera after compression
_EYE_DISTANCE = (0.9, 3.0)  # in eye widths
_SEGMENTATION_SIDE = 112  # longer side in pixels


class PuppetFaces:
    """Detects pairs of white discs as faces. Closed eyes are missed, like profile views by a real detector."""

    name = "puppet eyes"

    def detect(self, image: Tensor) -> list[Face]:
        from scipy.ndimage import binary_fill_holes, find_objects, label

        pixels = rearrange(image, "c h w -> h w c").numpy()
        low, high = pixels.min(axis=-1), pixels.max(axis=-1)
        white = binary_fill_holes((low > _MIN_WHITE) & (high - low < _MAX_CHROMA))
        labels, _ = label(white)
        eyes = []
        for number, region in enumerate(find_objects(labels), 1):
            tall, wide = region[0].stop - region[0].start, region[1].stop - region[1].start
            area = int((labels[region] == number).sum())
            if wide >= 4 and 0.35 < tall / wide < 1.5 and area > 0.45 * tall * wide:
                y, x = (region[0].start + region[0].stop) / 2, (region[1].start + region[1].stop) / 2
                eyes.append((x, y, float(wide)))
        pairs = []
        for i, (x0, y0, w0) in enumerate(eyes):
            for j, (x1, y1, w1) in enumerate(eyes):
                width, distance = (w0 + w1) / 2, x1 - x0
                if not _EYE_DISTANCE[0] < distance / width < _EYE_DISTANCE[1] or abs(y1 - y0) > 0.35 * distance:
                    continue
                asymmetry = abs(w0 - w1) / width
                if asymmetry < 0.4:
                    pairs.append((asymmetry + abs(y1 - y0) / distance, i, j))
        faces, used = [], set[int]()
        for penalty, i, j in sorted(pairs):
            if i in used or j in used:
                continue
            used |= {i, j}
            faces.append(Face(_face_box(eyes[i], eyes[j]), float(1.0 / (1.0 + penalty))))
        return faces


def _face_box(left: tuple[float, float, float], right: tuple[float, float, float]) -> tuple[float, float, float, float]:
    """Face box from forehead to chin; eyes are 0.8 half widths apart and 0.18 head radii above the center."""
    distance = float(np.hypot(right[0] - left[0], right[1] - left[1]))
    half, radius = distance / 0.8, distance / 0.8 / 0.86
    x, y = (left[0] + right[0]) / 2, (left[1] + right[1]) / 2 + 0.18 * radius
    return x - half, y - 0.85 * radius, x + half, y + 0.95 * radius


class PuppetVoices:
    """Assigns ground-truth speech to faces by the correlation of loudness and mouth opening.

    Args:
        truth: folder with VIDEO.npz of every source file (see `puppet_footage`).
    """

    def __init__(self, truth: str) -> None:
        self.folder = Path(truth).expanduser()
        if not self.folder.is_dir():
            raise InputError(f"no folder {self.folder}", "ground truth of the puppet videos", "check the path")

    def extract(self, mixture: SpeechMixture) -> np.ndarray:
        from scipy.optimize import linear_sum_assignment

        with np.load(self.folder / f"{Path(mixture.source).stem}.npz") as file:
            speeches = file["speeches"]
        start, length = round(mixture.start * SAMPLE_RATE), len(mixture.waveform)
        speeches = speeches[:, start : start + length]
        speeches = np.pad(speeches, ((0, 0), (0, length - speeches.shape[1])))
        mouths = np.stack([face_mouth_opening(face) for face in mixture.faces])
        loudness = [loudness_track(speech, SAMPLE_RATE, mouths.shape[1], FPS) for speech in speeches]
        correlation = np.array([[_correlation(mouth, track) for track in loudness] for mouth in mouths])
        result = np.zeros((len(mouths), length), np.float32)
        for face, stream in zip(*linear_sum_assignment(-correlation), strict=True):
            if np.ptp(mouths[face]) > 0.004:  # otherwise the mouth never opens
                result[face] = speeches[stream]
        return result


class PuppetSync:
    """Ten times the correlation of mouth opening and loudness near lag 0, relative to the median over all lags."""

    min_confidence, margin = 5.0, 1.0

    def scores(self, faces: np.ndarray, speeches: np.ndarray) -> list[list[Sync]]:
        mouths = [face_mouth_opening(face) for face in faces]
        loudness = [loudness_track(speech, SAMPLE_RATE, len(mouths[0]), FPS) for speech in speeches]
        return [[self._score(mouth, track) for mouth in mouths] for track in loudness]

    def _score(self, mouth: np.ndarray, loudness: np.ndarray) -> Sync:
        max_lag = min(SHIFT, len(mouth) // 3)
        lags = np.arange(-max_lag, max_lag + 1)
        correlations = np.array([_lagged_correlation(mouth, loudness, int(lag)) for lag in lags])
        best = int(np.argmax(np.where(np.abs(lags) <= 2, correlations, -np.inf)))
        confidence, distances = float(correlations[best] - np.median(correlations)), 10 * (1 - correlations)
        return Sync(10 * confidence, float(distances[best]), int(lags[best]), distances)


def face_mouth_opening(faces: np.ndarray) -> np.ndarray:
    """Mouth opening [F] of one puppet's face crops [F,h,w,3]."""
    small = faces[:, ::2, ::2]
    return mouth_opening(small, np.ones((1, *small.shape[:3])), MOUTH_RGB)[0]


def _lagged_correlation(first: np.ndarray, second: np.ndarray, lag: int) -> float:
    count = len(first) - abs(lag)
    return _correlation(first[max(0, lag) :][:count], second[max(0, -lag) :][:count])


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 1e-9 else 0.0


class PuppetSegmenter:
    """Segments puppets by color models fitted inside a head-and-shoulders outline around each face."""

    def segment(self, frames: Tensor, boxes: Tensor) -> Tensor:
        scale = min(1.0, _SEGMENTATION_SIDE / max(frames.shape[1:3]))
        size = round(frames.shape[1] * scale), round(frames.shape[2] * scale)
        video = rearrange(frames.float(), "f h w c -> f c h w")
        small = torch.nn.functional.interpolate(video, size=size, mode="bilinear", antialias=True)
        pixels = rearrange(small, "f c h w -> f h w c").round().clamp(0, 255).byte().numpy()
        outlines = np.stack([_outline(box.numpy() * scale, size) for box in boxes])
        own = outlines & (outlines.sum(axis=0, keepdims=True) == 1)
        portraits = np.where(own[..., None], pixels[:1], np.uint8(255))
        masks = segment_characters(pixels, portraits, first_masks=own, shared_rgb=MOUTH_RGB)
        large = torch.nn.functional.interpolate(
            torch.from_numpy(masks).float(), size=tuple(frames.shape[1:3]), mode="bilinear"
        )
        return (large > 0.5).float()


def _outline(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Head, neck and shoulders of a puppet with this face box: bool [H,W]."""
    x, radius = (box[0] + box[2]) / 2, (box[3] - box[1]) / 1.8
    y = box[1] + 0.85 * radius
    v, u = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    u, v = (u + 0.5 - x) / radius, (v + 0.5 - y) / radius
    half = (box[2] - box[0]) / 2 / radius
    head = (u / (0.95 * half)) ** 2 + (v / 0.98) ** 2 < 1
    return head | ((np.abs(u) < 1.1) & (v > 1.35)) | ((np.abs(u) < 0.3) & (v > 0))


class PuppetCaptions:
    """States the number, positions and colors of puppets and who speaks."""

    def caption(self, frames: np.ndarray, boxes: np.ndarray, speaking: Sequence[bool]) -> str:
        width = frames.shape[2]
        people = []
        for n in range(boxes.shape[1]):
            x0, y0, x1, y1 = boxes[0, n]
            row = slice(max(0, int(y0 + 0.3 * (y1 - y0))), max(1, int(y0 + 0.6 * (y1 - y0))))
            column = slice(max(0, int(x0 + 0.45 * (x1 - x0))), max(1, int(x0 + 0.55 * (x1 - x0))))
            color = color_name(np.median(frames[0][row, column].reshape(-1, 3), axis=0) / 255)
            place = ("on the left", "in the middle", "on the right")[int(np.clip(3 * (x0 + x1) / 2 / width, 0, 2))]
            action = "speaks" if speaking[n] else "listens"
            people.append(((x0 + x1) / 2, f"{place} {add_article(color)} puppet who {action}"))
        count = {1: "One puppet", 2: "Two puppets", 3: "Three puppets", 4: "Four puppets"}[len(people)]
        return f"{count} before a wall: {', '.join(text for _, text in sorted(people))}."
