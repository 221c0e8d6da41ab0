"""Did every mouth follow its own voice? Measured in the finished pictures, told in sentences and a picture.

What is measured is movement, not sense: the area that has the colour of a mouth's inside for drawn puppets; for real
people how much the lower half of a face changes from frame to frame, beyond what its upper half does. The second is a
weak measure: it tells a talking face from a still one, but a laugh from a word it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bya_core.checkpoints.bundle import ModelBundle
from bya_core.encoders.tiny import ByteTextEncoder
from bya_core.errors import InputError
from bya_core.media import place
from bya_core.metrics.binding import correlations, targets_of
from bya_core.metrics.loudness import loudness_track
from bya_core.metrics.masks import flicker
from bya_core.metrics.mouth import mouth_opening
from bya_core.report import mask_figures
from bya_core.scene import Speech

PUPPET_MOUTH = (0.20, 0.01, 0.07)  # colour of the inside of every drawn puppet's mouth
LAG = 2  # frames by which a mouth may be early or late
MARGIN = 0.1  # of two correlations nearer than this, none is the larger
FOLLOWS = 0.25  # correlation from which a mouth is said to follow a voice
STILL = 0.35  # a listener's mouth moves less than this share of what speakers' mouths do
SHORT = 25  # frames below which a correlation says nothing


@dataclass(frozen=True)
class Lane:
    """One character over time.

    Args:
        name: of the character.
        heard: index of the voice that should move it; -1 = a listener.
        mouth: [F] movement of the mouth, 0 = shut or still, 1 = the most of anybody in this video.
        loudness: [F] of that voice, 0..1 of its loudest moment; zeros for a listener.
        verdict: "own", "wrong", "unclear", "still" or "moves".
        text: the verdict in a sentence.
    """

    name: str
    heard: int
    mouth: np.ndarray
    loudness: np.ndarray
    verdict: str
    text: str

    @property
    def good(self) -> bool | None:
        """True = as it should be, False = not, None = cannot be told."""
        return {"own": True, "still": True, "wrong": False, "moves": False}.get(self.verdict)


@dataclass(frozen=True)
class BindingReport:
    """What was measured.

    Args:
        text: sentences, one a line.
        picture: mouths against voices, and lanes over time.
        figures: everything ready for JSON.
    """

    text: str
    picture: Image.Image
    figures: dict[str, Any]


def mouth_colour(bundle: ModelBundle) -> tuple[float, float, float] | None:
    """Colour of the inside of every mouth where a model draws puppets; None for real people."""
    return PUPPET_MOUTH if isinstance(bundle.text, ByteTextEncoder) else None


def binding_report(
    frames: Tensor,
    masks: Tensor,
    speeches: Sequence[Speech | None],
    fps: float,
    names: Sequence[str],
    *,
    matrix: Tensor | None = None,
    mouth_rgb: tuple[float, float, float] | None = None,
) -> BindingReport:
    """Measure a finished video.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: [N, F, h, w] in 0..1, whose place is where.
        speeches: M voices; None = nobody.
        fps: frames a second.
        names: of the N characters; voice m is named after character m.
        matrix: audio-character matrix [M, N]; None = voice m moves character m.
        mouth_rgb: see `mouth_colour`.

    Raises:
        InputError: masks of another number of characters or frames.
    """
    count, length = len(names), frames.shape[0]
    if tuple(masks.shape[:2]) != (count, length):
        came = f"masks of {masks.shape[0]} characters and {masks.shape[1]} frames"
        raise InputError(came, f"{count} and {length}", "use the masks of this video")
    matrix = torch.eye(len(speeches), count) if matrix is None else matrix
    voices = np.stack([_loudness(speech, length, fps) for speech in speeches])
    regions = F.interpolate(masks.float(), size=frames.shape[1:3], mode="bilinear", align_corners=False).numpy() > 0.5
    mouths = _mouths(frames.numpy(), regions, mouth_rgb)
    follows = correlations(mouths, voices, LAG)  # [N, M]
    heard = np.where(voices.max(axis=1) > 0, 1.0, 0.0)[:, None] * matrix.numpy()
    targets = targets_of(heard)
    scale = max(float(mouths.max(initial=0.0)), 1e-9)
    owners = [*names, *(f"voice {m + 1}" for m in range(count, len(speeches)))]
    lanes = []
    for n, name in enumerate(names):
        verdict, text = _verdict(n, mouths, follows, targets, regions[n], owners, length)
        loud = voices[targets[n]] if targets[n] >= 0 else np.zeros(length)
        lane = Lane(name, int(targets[n]), mouths[n] / scale, loud / max(float(loud.max()), 1e-9), verdict, text)
        lanes.append(lane)
    figures = {
        "correlation": np.round(follows, 3).tolist(),
        "should_follow": targets.tolist(),
        "verdicts": [lane.verdict for lane in lanes],
        "movement": np.round(mouths.std(axis=1), 5).tolist(),
        "coverage": [figure.coverage for figure in mask_figures(masks)],
        "flicker": round(flicker(masks.numpy()), 4),
        "measure": "mouth colour" if mouth_rgb is not None else "movement of the lower face",
    }
    text = "\n".join([*(lane.text for lane in lanes), *_about_masks(names, figures), _honestly(mouth_rgb, length)])
    from bya_core.binding_picture import draw_report

    return BindingReport(text, draw_report(lanes, follows, owners, fps, figures["measure"]), figures)


def _loudness(speech: Speech | None, length: int, fps: float) -> np.ndarray:
    if speech is None:
        return np.zeros(length)
    heard = place(speech.waveform.float(), speech.sample_rate, speech.offset, speech.gain)
    return loudness_track(heard.numpy(), speech.sample_rate, length, fps, window=2.0 / fps)


def _mouths(frames: np.ndarray, regions: np.ndarray, mouth_rgb: tuple[float, float, float] | None) -> np.ndarray:
    """[N, F]: how open, or how much in motion, each mouth is."""
    if mouth_rgb is not None:
        opening = mouth_opening(frames, regions, mouth_rgb)
        return opening - opening.min(axis=1, keepdims=True)
    grey = frames.astype(np.float32).mean(axis=-1) / 255.0
    moved = np.abs(np.diff(grey, axis=0, prepend=grey[:1]))
    made = np.zeros(regions.shape[:2])
    for n, region in enumerate(regions):
        for f, here in enumerate(region):
            rows = np.flatnonzero(here.any(axis=1))
            if rows.size < 2:
                continue
            middle = (rows[0] + rows[-1] + 1) // 2
            upper, lower = here.copy(), here.copy()
            upper[middle:], lower[:middle] = False, False
            made[n, f] = max(0.0, _mean(moved[f], lower) - _mean(moved[f], upper))
    return made


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else 0.0


def _verdict(
    n: int,
    mouths: np.ndarray,
    follows: np.ndarray,
    targets: np.ndarray,
    region: np.ndarray,
    owners: Sequence[str],
    length: int,
) -> tuple[str, str]:
    """What is said of one character, as a word and a sentence."""
    name, own = owners[n], int(targets[n])
    if not region.any():
        return "unclear", f"{name} has no place in the masks, so nothing can be measured."
    if own < 0:
        speakers = mouths[targets >= 0].std(axis=1)
        if speakers.size == 0:
            return "unclear", f"{name} listens; nobody speaks, so there is nothing to compare with."
        share = float(mouths[n].std() / max(speakers.mean(), 1e-9))
        if share < STILL:
            return "still", f"{name} listens and keeps still: the mouth moves {share:.0%} as much as those that speak."
        return "moves", f"{name} should listen, but the mouth moves {share:.0%} as much as those that speak."
    if length < SHORT:
        return "unclear", f"{name}: {length} frames are too few to tell."
    row = follows[n]
    mine, others = float(row[own]), np.delete(row, own)
    rival = int(np.delete(np.arange(len(row)), own)[others.argmax()]) if others.size else -1
    best = float(others.max()) if others.size else -1.0
    voice = "its own voice" if own == n else f"the voice of {owners[own]}, as it should,"
    if mine >= FOLLOWS and mine > best + MARGIN:
        beside = f" (next: the voice of {owners[rival]}, {best:.2f})" if rival >= 0 else ""
        return "own", f"{name} follows {voice} with {mine:.2f}{beside}."
    if best >= FOLLOWS and best > mine + MARGIN:
        wrong = f"the voice of {owners[rival]} ({best:.2f})"
        return "wrong", f"{name} follows {wrong} more than the right one ({mine:.2f})."
    next_to_it = f", {best:.2f} with the next" if rival >= 0 else ""
    return "unclear", f"{name}: cannot be told ({mine:.2f} with the right voice{next_to_it})."


def _about_masks(names: Sequence[str], figures: dict[str, Any]) -> list[str]:
    places = ", ".join(f"{name} {share:.0%}" for name, share in zip(names, figures["coverage"], strict=True))
    return [f"Masks: {places} of the picture; {figures['flicker']:.1%} of their area changes from frame to frame."]


def _honestly(mouth_rgb: tuple[float, float, float] | None, length: int) -> str:
    if mouth_rgb is not None:
        how = "the area in the colour of a puppet's mouth, against the loudness of each voice"
    else:
        how = "movement in the lower half of each face beyond that of its upper half, a weak measure"
    return f"Measured: {how}, over {length} frames; correlations within {LAG} frames, -1 to 1."
