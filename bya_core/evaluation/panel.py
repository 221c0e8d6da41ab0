"""Binding of a generated video as numbers for a display: scores of each character, and tracks over time.

    data = binding_panel(report, 25.0)      # ready for JSON, a few kilobytes for any length

BYA Sampler sends this to its panel in the page of ComfyUI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bya_core.encoders.domains import PixelMeter
from bya_core.encoders.face.mesh import FaceMesh
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools, measure_faces
from bya_core.evaluation.plots import Lane
from bya_core.evaluation.report import BindingReport, binding_report
from bya_core.io.overlay import character_color

if TYPE_CHECKING:
    from bya_core.pipelines.sample import Video
    from bya_core.scene.types import Scene

POINTS = 400  # of a track; longer ones are averaged
MAX_FRAMES = 1500  # of a video with real people, whose faces have to be found in every frame


def measure_video(
    video: Video,
    scene: Scene,
    meter: PixelMeter | None,
    *,
    tools: FaceTools | None = None,
    identity: bool = False,
) -> BindingReport:
    """Binding report of a generated video, by the masks it was generated with and without any download.

    Args:
        video: the video.
        scene: its scene.
        meter: pixel meter of the model, see `ModelBundle.meter`; None for real people.
        tools: networks for real people; None = those of the package.
        identity: whether to compare the characters with their reference images.

    Raises:
        InputError: a video of real people that is too long to be measured at once.
    """
    frames, names = video.frames, [character.name for character in scene.characters]
    masks = video.grid.latent_to_frames(video.masks, dim=1)
    portraits = [character.image for character in scene.characters] if identity else None
    faces = None
    if meter is None:
        if len(frames) > MAX_FRAMES:
            problem = f"the video has {len(frames)} frames"
            hint = "connect BYA Binding Report to measure longer ones"
            raise InputError(problem, f"at most {MAX_FRAMES} for the panel", hint)
        tools, pixels = tools or FaceTools(mesh=FaceMesh()), masks.numpy() > 0.5
        faces = measure_faces(
            frames, scene.speeches, video.fps, portraits, tools, matrix=video.matrix, masks=pixels, names=names
        )
    return binding_report(
        frames,
        masks,
        scene.speeches,
        video.fps,
        names,
        matrix=video.matrix,
        meter=meter,
        faces=faces,
        portraits=None if meter is None else portraits,
    )


def binding_panel(report: BindingReport, fps: float) -> dict[str, Any]:
    """Numbers of a report for a display.

    Args:
        report: the report.
        fps: frames per second of its video.

    Returns:
        `passed`, `measure`, `duration` in seconds, `voices`, and per character (`characters`): name, color, voice,
        verdict, text, score, margin over the next voice, lag in frames and seconds, coverage, spans in seconds
        (`listening`, `failed`) and tracks over the whole duration (`tracks`: mouth, loudness, coverage, score, other).
        None where nothing was measured.
    """
    metrics = report.metrics
    length = len(report.lanes[0].mouth) if report.lanes else 0
    return {
        "passed": metrics["passed"],
        "measure": metrics["measure"],
        "duration": round(length / fps, 3),
        "fps": fps,
        "voices": metrics["voices"],
        "characters": [_character(n, lane, metrics, fps) for n, lane in enumerate(report.lanes)],
    }


def _character(n: int, lane: Lane, metrics: dict[str, Any], fps: float) -> dict[str, Any]:
    own, row = lane.target, metrics["score"][n]
    score = row[own] if own >= 0 else None
    others = [value for m, value in enumerate(row) if m != own and value is not None]
    measured = score is not None and metrics["offset"][n] is not None
    lag = metrics["offset"][n] if measured else None
    rate = 25.0 if "lips" in metrics else fps
    local = lane.local or (None, None)
    return {
        "name": lane.name,
        "color": "#{:02x}{:02x}{:02x}".format(*character_color(n)),
        "voice": metrics["voices"][own] if own >= 0 else None,
        "verdict": lane.verdict,
        "text": lane.text,
        "passed": lane.passed,
        "score": score,
        "margin": round(score - max(others), 3) if score is not None and others else None,
        "lag": lag,
        "lag_seconds": None if lag is None else round(lag / rate, 3),
        "coverage": round(float(metrics["coverage"][n]), 4),
        "listening": metrics["listening"][n],
        "failed": metrics["failed"][n],
        "tracks": {
            "mouth": track(lane.mouth),
            "loudness": track(lane.loudness),
            "coverage": track(lane.coverage),
            "score": track(local[0]),
            "other": track(local[1]),
        },
    }


def track(values: np.ndarray | torch.Tensor | None, points: int = POINTS) -> list[float] | None:
    """A track [F] as at most `points` rounded means; None if there is none or it is not finite."""
    if values is None or not np.isfinite(values).all() or len(values) == 0:
        return None
    array = np.asarray(values, dtype=np.float64)
    edges = np.linspace(0, len(array), min(points, len(array)) + 1).astype(int)
    means = np.add.reduceat(array, edges[:-1]) / np.diff(edges)
    return [round(float(value), 3) for value in means]
