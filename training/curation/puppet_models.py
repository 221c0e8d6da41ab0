"""Stand-ins for the models of the curation that know drawn puppets only.

They are chosen by the name "puppet", and runs that use them say so. All but `PuppetVoices` look and listen like their
real counterparts; that one takes voices from the film's own recordings and decides by what it sees whose is whose.
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
from training.curation.footage import RATE
from training.curation.models import Talk
from training.curation.record import FPS
from training.puppets.looks import MOUTH_RGB, colour_name, with_article

_WHITE, _GREY = 0.62, 0.2  # darkest channel of the white of an eye, and its colour at most, after video compression
_APART = (0.9, 3.0)  # distance of two eyes in eye widths
_LONGEST = 112  # pixels at which puppets are told from the wall


class PuppetFaces:
    """Two white discs side by side are a face. Shut eyes hide it, as a turned head hides one from a real detector."""

    name = "puppet eyes"

    def detect(self, image: Tensor) -> list[Face]:
        from scipy.ndimage import binary_fill_holes, find_objects, label

        pixels = rearrange(image, "c h w -> h w c").numpy()
        low, high = pixels.min(axis=-1), pixels.max(axis=-1)
        white = binary_fill_holes((low > _WHITE) & (high - low < _GREY))
        labels, _ = label(white)
        eyes = []
        for number, place in enumerate(find_objects(labels), 1):
            tall, wide = place[0].stop - place[0].start, place[1].stop - place[1].start
            area = int((labels[place] == number).sum())
            if wide >= 4 and 0.35 < tall / wide < 1.5 and area > 0.45 * tall * wide:
                y, x = (place[0].start + place[0].stop) / 2, (place[1].start + place[1].stop) / 2
                eyes.append((x, y, float(wide)))
        pairs = []
        for i, (x0, y0, w0) in enumerate(eyes):
            for j, (x1, y1, w1) in enumerate(eyes):
                width, apart = (w0 + w1) / 2, x1 - x0
                if apart <= 0 or not _APART[0] < apart / width < _APART[1] or abs(y1 - y0) > 0.35 * apart:
                    continue
                unlike = abs(w0 - w1) / width
                if unlike < 0.4:
                    pairs.append((unlike + abs(y1 - y0) / apart, i, j))
        faces, used = [], set[int]()
        for badness, i, j in sorted(pairs):
            if i in used or j in used:
                continue
            used |= {i, j}
            faces.append(Face(_head(eyes[i], eyes[j]), float(1.0 / (1.0 + badness))))
        return faces


def _head(left: tuple[float, float, float], right: tuple[float, float, float]) -> tuple[float, float, float, float]:
    """Forehead to chin, ear to ear: eyes are 0.8 face widths (in head radii) apart and 0.18 radii above the middle."""
    apart = float(np.hypot(right[0] - left[0], right[1] - left[1]))
    half, radius = apart / 0.8, apart / 0.8 / 0.86
    x, y = (left[0] + right[0]) / 2, (left[1] + right[1]) / 2 + 0.18 * radius
    return x - half, y - 0.85 * radius, x + half, y + 0.95 * radius


class PuppetVoices:
    """Whose recording fits whose mouth.

    Args:
        truth: folder with FILM.npz of the films (see `puppet_footage`).
    """

    def __init__(self, truth: str) -> None:
        self.folder = Path(truth).expanduser()
        if not self.folder.is_dir():
            raise InputError(f"no folder {self.folder}", "recordings of the puppets' films", "give the right folder")

    def extract(self, talk: Talk) -> np.ndarray:
        from scipy.optimize import linear_sum_assignment

        with np.load(self.folder / f"{Path(talk.source).stem}.npz") as file:
            voices = file["voices"]
        start = round(talk.start * RATE)
        voices = voices[:, start : start + len(talk.mix)]
        voices = np.pad(voices, ((0, 0), (0, len(talk.mix) - voices.shape[1])))
        mouths = np.stack([opening_of(face) for face in talk.faces])
        loud = np.stack([loudness_track(voice, RATE, mouths.shape[1], FPS) for voice in voices])
        fit = np.array([[_correlation(mouth, voice) for voice in loud] for mouth in mouths])
        made = np.zeros((len(mouths), len(talk.mix)), np.float32)
        for face, voice in zip(*linear_sum_assignment(-fit), strict=True):
            if np.ptp(mouths[face]) > 0.004:  # a mouth that never opens says nothing
                made[face] = voices[voice]
        return made


class PuppetSync:
    """Ten times the correlation of mouth and loudness near the same time, above that at other times."""

    def scores(self, faces: np.ndarray, voices: np.ndarray) -> list[list[Sync]]:
        mouths = [opening_of(face) for face in faces]
        loud = [loudness_track(voice, RATE, len(mouths[0]), FPS) for voice in voices]
        return [[self._score(mouth, voice) for mouth in mouths] for voice in loud]

    def _score(self, mouth: np.ndarray, loud: np.ndarray) -> Sync:
        reach = min(SHIFT, len(mouth) // 3)
        shifts = np.arange(-reach, reach + 1)
        fits = np.array([_shifted(mouth, loud, int(shift)) for shift in shifts])
        near = np.abs(shifts) <= 2
        best = int(np.argmax(np.where(near, fits, -np.inf)))
        confidence, curve = float(fits[best] - np.median(fits)), 10 * (1 - fits)
        return Sync(10 * confidence, float(curve[best]), int(shifts[best]), curve)


def opening_of(faces: np.ndarray) -> np.ndarray:
    """[F,h,w,3], one puppet's face -> how far its mouth is open, [F]."""
    small = faces[:, ::2, ::2]
    return mouth_opening(small, np.ones((1, *small.shape[:3])), MOUTH_RGB)[0]


def _shifted(one: np.ndarray, two: np.ndarray, shift: int) -> float:
    count = len(one) - abs(shift)
    a, b = one[max(0, shift) :][:count], two[max(0, -shift) :][:count]
    return _correlation(a, b)


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    a, b = one - one.mean(), two - two.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 1e-9 else 0.0


class PuppetSegmenter:
    """Puppets by their colours, learned from an outline of head and shoulders around each face."""

    def segment(self, frames: Tensor, boxes: Tensor) -> Tensor:
        scale = min(1.0, _LONGEST / max(frames.shape[1:3]))
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
    """bool [H,W]: head, neck and shoulders of the puppet with this face box."""
    x, radius = (box[0] + box[2]) / 2, (box[3] - box[1]) / 1.8
    y = box[1] + 0.85 * radius
    v, u = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    u, v = (u + 0.5 - x) / radius, (v + 0.5 - y) / radius
    half = (box[2] - box[0]) / 2 / radius
    head = (u / (0.95 * half)) ** 2 + (v / 0.98) ** 2 < 1
    return head | ((np.abs(u) < 1.1) & (v > 1.35)) | ((np.abs(u) < 0.3) & (v > 0))


class PuppetCaptions:
    """How many puppets, where, of which colour, and who speaks."""

    def caption(self, frames: np.ndarray, boxes: np.ndarray, speaks: Sequence[bool]) -> str:
        width = frames.shape[2]
        people = []
        for n in range(boxes.shape[1]):
            x0, y0, x1, y1 = boxes[0, n]
            row = slice(max(0, int(y0 + 0.3 * (y1 - y0))), max(1, int(y0 + 0.6 * (y1 - y0))))
            column = slice(max(0, int(x0 + 0.45 * (x1 - x0))), max(1, int(x0 + 0.55 * (x1 - x0))))
            colour = colour_name(np.median(frames[0][row, column].reshape(-1, 3), axis=0) / 255)
            place = ("on the left", "in the middle", "on the right")[int(np.clip(3 * (x0 + x1) / 2 / width, 0, 2))]
            does = "speaks" if speaks[n] else "listens"
            people.append(((x0 + x1) / 2, f"{place} {with_article(colour)} puppet who {does}"))
        count = {1: "One puppet", 2: "Two puppets", 3: "Three puppets", 4: "Four puppets"}[len(people)]
        return f"{count} before a wall: {', '.join(text for _, text in sorted(people))}."
