"""Did every mouth follow its own voice? Measured in the finished pictures, told in sentences and a picture.

What is measured is movement, not sense: the area that has the colour of a mouth's inside for drawn puppets; for real
people lip sync by SyncNet where its weights are there (`binding_faces`), else how much the lower half of a face changes
from frame to frame beyond what its upper half does. The last is a weak measure: it tells a talking face from a still
one, but a laugh from a word it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bya_core.encoders.domains import PixelMeter
from bya_core.errors import InputError
from bya_core.evaluation.binding import targets_of
from bya_core.evaluation.binding_scores import STILL, Measured, how_measured, loudness_of, verdict_of
from bya_core.evaluation.identity import IdentityTable
from bya_core.evaluation.mask_metrics import flicker
from bya_core.evaluation.motion import mouth_motion
from bya_core.evaluation.sync_metrics import CrossTalk
from bya_core.masks import mask_statistics
from bya_core.scene.types import Speech


@dataclass(frozen=True)
class Lane:
    """One character over time.

    Args:
        name: of the character.
        heard: index of the voice that should move it; -1 = a listener.
        mouth: [F] movement of the mouth, 0 = shut or still, 1 = the most of anybody in this video.
        loudness: [F] of that voice, 0..1 of its loudest moment; zeros for a listener.
        verdict: "own", "wrong", "shifted", "unclear", "still" or "moves".
        text: the verdict in a sentence.
        listening: bool [F], its voice is silent.
        coverage: [F] share of the picture that its mask claims.
        identity: [F] likeness to its own reference, and to the most similar other (-1 where there is none); None = not
            measured.
        bad: bool [F], something is not as it should be.
    """

    name: str
    heard: int
    mouth: np.ndarray
    loudness: np.ndarray
    verdict: str
    text: str
    listening: np.ndarray
    coverage: np.ndarray
    identity: tuple[np.ndarray, np.ndarray] | None
    bad: np.ndarray

    @property
    def good(self) -> bool | None:
        """True = as expected, False = not, None = inconclusive."""
        return {"own": True, "still": True, "wrong": False, "shifted": False, "moves": False}.get(self.verdict)


@dataclass(frozen=True)
class BindingReport:
    """What was measured.

    Args:
        text: sentences, one a line.
        picture: mouths against voices, and lanes over time.
        figures: everything ready for JSON; "passed" is True, False, or None = inconclusive.
    """

    text: str
    picture: Image.Image
    figures: dict[str, Any]


@dataclass(frozen=True)
class FaceFigures:
    """What networks say of real faces; see `binding_faces`.

    Args:
        sync: every face against every voice; None = not measured.
        identity: faces against references, by name of the network.
        boxes: of the faces [N, F, 4], NaN where there is none; None = not looked for.
        notices: what could not be measured, why, and how to get it; one sentence each.
    """

    sync: CrossTalk | None = None
    identity: dict[str, IdentityTable] = field(default_factory=dict)
    boxes: np.ndarray | None = None
    notices: tuple[str, ...] = ()


def binding_report(
    frames: Tensor,
    masks: Tensor,
    speeches: Sequence[Speech | None],
    fps: float,
    names: Sequence[str],
    *,
    matrix: Tensor | None = None,
    meter: PixelMeter | None = None,
    portraits: Sequence[Tensor] | None = None,
    faces: FaceFigures | None = None,
) -> BindingReport:
    """Measure a finished video.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: [N, F, h, w] in 0..1, whose place is where.
        speeches: M voices; None = nobody.
        fps: frames a second.
        names: of the N characters; voice m is named after character m.
        matrix: audio-character matrix [M, N]; None = voice m moves character m.
        meter: Pixel meter of the characters, see `ModelBundle.meter`; `None` for people in photos.
        portraits: N pictures [3, h, w] in 0..1 on white: likeness of drawn characters by their colours.
        faces: what networks say, for real people.

    Raises:
        InputError: masks of another number of characters or frames.
    """
    count, length = len(names), frames.shape[0]
    if tuple(masks.shape[:2]) != (count, length):
        came = f"masks of {masks.shape[0]} characters and {masks.shape[1]} frames"
        raise InputError(came, f"{count} and {length}", "use the masks of this video")
    matrix = torch.eye(len(speeches), count) if matrix is None else matrix
    faces = faces or FaceFigures()
    voices = np.stack([loudness_of(speech, length, fps) for speech in speeches])
    regions = F.interpolate(masks.float(), size=frames.shape[1:3], mode="bilinear", align_corners=False).numpy() > 0.5
    mouths = _mouths(frames.numpy(), regions, meter)
    heard = np.where(voices.max(axis=1) > 0, 1.0, 0.0)[:, None] * matrix.numpy()
    measured = Measured(mouths, voices, targets_of(heard), regions, fps, faces.sync, meter is not None)
    likeness = dict(faces.identity)
    if meter is not None and portraits is not None:
        likeness["colors"] = IdentityTable(meter.likeness(frames.numpy(), regions, portraits))
    owners = [*names, *(f"voice {m + 1}" for m in range(count, len(speeches)))]
    lanes = [_lane(n, measured, owners, masks, next(iter(likeness.values()), None)) for n in range(count)]
    figures = _figures(lanes, measured, masks, likeness, owners)
    text = "\n".join(
        [
            *(lane.text for lane in lanes),
            *_about_moments(lanes, measured, owners),
            *_about_masks(names, figures),
            *_about_identity(names, likeness),
            *faces.notices,
            how_measured(measured),
        ]
    )
    from bya_core.evaluation.plots import draw_report

    return BindingReport(text, draw_report(lanes, measured.follows, owners, fps, measured.scale), figures)


def _mouths(frames: np.ndarray, regions: np.ndarray, meter: PixelMeter | None) -> np.ndarray:
    """[N, F]: how open, or how much in motion, each mouth is."""
    return mouth_motion(frames, regions) if meter is None else meter.mouth_opening(frames, regions)


def _lane(n: int, measured: Measured, owners: Sequence[str], masks: Tensor, identity: IdentityTable | None) -> Lane:
    verdict, text = verdict_of(n, measured, owners)
    own, mouths = int(measured.targets[n]), measured.mouths
    loud = measured.voices[own] if own >= 0 else np.zeros(measured.length)
    bad = measured.listening[n] & (mouths[n] > STILL * max(measured.speaking_level, 1e-9))
    bad &= measured.speaking_level > 0
    frames = np.arange(measured.length) / measured.fps
    for span in measured.failing:
        if span.character == n:
            bad |= (frames >= span.start) & (frames < span.end)
    if verdict in ("wrong", "shifted"):
        bad |= measured.audible[own]
    likeness = None
    if identity is not None:
        others = np.delete(identity.likeness[n], n, axis=1)
        rival = others.max(axis=1) if others.shape[1] else np.full(measured.length, -1.0)
        likeness = identity.per_frame[n], rival
        bad |= np.nan_to_num(likeness[0], nan=2.0) < np.nan_to_num(rival, nan=-1.0)
    return Lane(
        name=owners[n],
        heard=own,
        mouth=mouths[n] / max(float(mouths.max(initial=0.0)), 1e-9),
        loudness=loud / max(float(loud.max()), 1e-9),
        verdict=verdict,
        text=text,
        listening=measured.listening[n],
        coverage=(masks[n] > 0.5).float().mean(dim=(1, 2)).numpy(),
        identity=likeness,
        bad=bad,
    )


def _figures(
    lanes: Sequence[Lane],
    measured: Measured,
    masks: Tensor,
    likeness: dict[str, IdentityTable],
    owners: Sequence[str],
) -> dict[str, Any]:
    judged = [lane.good for lane in lanes]
    return {
        "passed": False if False in judged else None if None in judged else True,
        "measure": measured.scale.name,
        "characters": list(owners[: len(lanes)]),
        "score": np.round(measured.follows, 3).tolist(),
        "should_follow": measured.targets.tolist(),
        "verdicts": [lane.verdict for lane in lanes],
        "offset": [int(measured.offset[n, own]) if own >= 0 else None for n, own in enumerate(measured.targets)],
        "movement": np.round(measured.mouths.std(axis=1), 5).tolist(),
        "listening": [_spans(lane.listening, measured.fps) for lane in lanes],
        "not_as_it_should_be": [_spans(lane.bad, measured.fps) for lane in lanes],
        "follows_another": [
            {"character": owners[s.character], "voice": owners[s.rival], "from": s.start, "to": s.end}
            for s in measured.failing
        ],
        **_sync(measured.sync),
        "coverage": [figure.coverage for figure in mask_statistics(masks)],
        "flicker": round(flicker(masks.numpy()), 4),
        "identity": {
            name: {
                "mean": _rounded(table.mean),
                "worst": _rounded(table.worst),
                "confusion": [_rounded(row) for row in table.confusion],
                "right": table.right.tolist(),
            }
            for name, table in likeness.items()
        },
    }


def _sync(sync: CrossTalk | None) -> dict[str, Any]:
    """Sync-C and Sync-D of every face with every voice, for the record."""
    if sync is None:
        return {}
    tables = {name: np.round(getattr(sync, name), 4).tolist() for name in ("confidence", "distance", "offset")}
    return {"sync": tables | {"margin": _rounded(sync.margin)}}


def _rounded(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]


def _spans(where: np.ndarray, fps: float) -> list[list[float]]:
    """[F] bool -> [from, to] in seconds."""
    edges = np.flatnonzero(np.diff(where.astype(np.int8), prepend=0, append=0)).tolist()
    return [[round(a / fps, 3), round(b / fps, 3)] for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _about_moments(lanes: Sequence[Lane], measured: Measured, owners: Sequence[str]) -> list[str]:
    """Moments that go wrong; not told of those of whom the whole goes wrong."""
    return [
        f"From {span.start:.2f} to {span.end:.2f} s {owners[span.character]} follows the voice of "
        f"{owners[span.rival]} more than the assigned one."
        for span in measured.failing
        if lanes[span.character].good is not False
    ]


def _about_masks(names: Sequence[str], figures: dict[str, Any]) -> list[str]:
    places = ", ".join(f"{name} {share:.0%}" for name, share in zip(names, figures["coverage"], strict=True))
    return [f"Masks: {places} of the frame; {figures['flicker']:.1%} of their area changes from frame to frame."]


def _about_identity(names: Sequence[str], likeness: dict[str, IdentityTable]) -> list[str]:
    lines = []
    for how, table in likeness.items():
        cells = [
            f"{name} {mean:.2f} (worst frame {worst:.2f}{'' if right else ', CLOSER TO ANOTHER'})"
            for name, mean, worst, right in zip(names, table.mean, table.worst, table.right, strict=True)
        ]
        lines.append(f"Similarity to the own reference by {how}: {', '.join(cells)}.")
    return lines
