"""Best take: several seeds are probed, ranked by their masks, and the best are finished and ranked by their binding.

takes = generate_takes(scene, model, Selection(takes=4, keep=2))
takes.videos[0]        # the best video
takes.table()          # all seeds, the best first
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bya_core.encoders.domains import PixelMeter
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools
from bya_core.evaluation.panel import measure_video
from bya_core.evaluation.report import BindingReport
from bya_core.pipelines.long_video import plan
from bya_core.pipelines.prepare import prepare
from bya_core.pipelines.sample import Video, sample
from bya_core.progress import ProgressCallback, ProgressTracker
from bya_core.routing import Routing
from bya_core.routing.intra import ProbedTake, max_probe_steps, probe_takes
from bya_core.routing.layout import LayoutScore
from bya_core.routing.route import postprocess_masks
from bya_core.sampling.conditions import Prepared
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle

_MEASURED_EVERY = 4  # frames of which one is measured for faces and sharpness


@dataclass(frozen=True)
class Selection:
    """How many takes are made.

    Args:
        takes: seeds that are probed, from that of the scene on.
        keep: of them, the best by masks that are finished.

    Raises:
        InputError: more takes to keep than there are.
    """

    takes: int
    keep: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.takes:
            problem = f"keep {self.keep} of {self.takes} takes"
            raise InputError(problem, f"a number from 1 to {self.takes}", "keep fewer, or make more takes")


@dataclass(frozen=True)
class Take:
    """One seed.

    Args:
        seed: random seed.
        missing: names of characters without a region.
        confidence, overlap: of the masks, see `LayoutScore`.
        calls: transformer calls that it took.
        finished: whether the video was made; only then the rest is known.
        bound: fraction of the characters whose mouth follows its voice and no other, or keeps still as it should.
        failed: fraction of the characters of whom the report finds the opposite.
        margin: mean over the speakers of the score of the own voice minus that of the best other one, if measured.
        identity: mean similarity to the reference images, if measured.
        faces: how whole the faces are, 0..1, see `whole_faces`.
        sharpness: mean absolute second difference of brightness in 0..255; compares takes of one scene only.
    """

    seed: int
    missing: tuple[str, ...]
    confidence: float
    overlap: float
    calls: int
    finished: bool = False
    bound: float | None = None
    failed: float | None = None
    margin: float | None = None
    identity: float | None = None
    faces: float | None = None
    sharpness: float | None = None

    @property
    def rank(self) -> tuple[float, ...]:
        """Larger is better: binding, margin, identity and faces in steps too large for noise, then sharpness."""
        bound = (self.bound or 0.0) - (self.failed or 0.0)
        steps = ((bound, 0.01), (self.margin, 0.1), (self.identity, 0.02), (self.faces, 0.02))
        return (*(round((value or 0.0) / step) for value, step in steps), self.sharpness or 0.0)

    @property
    def layout(self) -> LayoutScore:
        """Score of the masks; its character indices are 0, 1 and so on, only their number counts."""
        return LayoutScore(tuple(range(len(self.missing))), self.confidence, self.overlap)

    def row(self) -> dict[str, Any]:
        """The take for JSON."""
        return {**self.__dict__, "missing": list(self.missing)}


@dataclass(frozen=True)
class Takes:
    """Result of `generate_takes`.

    Args:
        rows: all takes, the best first.
        videos: those that were finished, in the same order.
        calls: transformer calls of all takes.
        prepared, routing: of the best take, such as to edit its masks and sample it again.
    """

    rows: tuple[Take, ...]
    videos: tuple[Video, ...]
    calls: int
    prepared: Prepared
    routing: Routing

    def table(self) -> str:
        """All takes as text, the best first."""
        measured = ("confidence", "overlap", "bound", "margin", "identity", "faces", "sharpness")
        head = ("", "seed", "masks", *measured, "calls")
        lines: list[tuple[str, ...]] = [head]
        for place, take in enumerate(self.rows, 1):
            masks = f"no {', '.join(take.missing)}" if take.missing else "complete"
            values = [getattr(take, name) for name in measured]
            numbers = ["-" if value is None else f"{value:.2f}" for value in values]
            lines.append((f"{place}.", str(take.seed), masks, *numbers, str(take.calls)))
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        rows = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join(row.rstrip() for row in rows)


def takes_cost(scene: Scene, selection: Selection) -> tuple[int, int]:
    """Largest number of transformer calls of a selection, and that of a single video."""
    steps = scene.sampling.steps
    probe = max_probe_steps(scene.routing.probe, steps)
    return selection.takes * probe + selection.keep * (steps - probe), steps


def cost_text(scene: Scene, selection: Selection) -> str:
    """The largest cost of a selection in words."""
    calls, single = takes_cost(scene, selection)
    kept = f"the best {selection.keep} finished" if selection.keep > 1 else "the best finished"
    times = f"{calls / single:.1f} times those of one video"
    return f"{selection.takes} takes, {kept}: at most {calls} transformer calls, {times}"


def check_takes(scene: Scene, model: ModelBundle) -> None:
    """Raise InputError if a scene cannot be made in several takes."""
    windows = len(plan(scene, model))
    if windows > 1:
        problem = f"several takes of a video of {windows} windows"
        raise InputError(problem, "a video of one window", "make it shorter, or regenerate single windows")
    if scene.routing.mode != "intra":
        problem = f'several takes with router "{scene.routing.mode}"'
        raise InputError(problem, 'router "intra"', "change the router, or use another seed")


@torch.no_grad()
def generate_takes(
    scene: Scene, model: ModelBundle, selection: Selection, callback: ProgressCallback | None = None
) -> Takes:
    """Probe several seeds, finish the best by masks, and rank those by binding, identity, faces and sharpness.

    Args:
        scene: the scene, of one window, with the intra router.
        model: the model.
        selection: how many takes.
        callback: receives the progress; returning False cancels.

    Raises:
        InputError: as `generate` and `check_takes` do.
        Cancelled: `callback` returned False.
    """
    check_takes(scene, model)
    probe = replace(scene.routing.probe, num_takes=selection.takes)
    scene = replace(scene, routing=replace(scene.routing, probe=probe))
    tracker = ProgressTracker(callback)
    prepared = prepare(scene, model, tracker)
    if scene.mask_control is not None and scene.mask_control.is_active:  # acts while the router denoises
        prepared = replace(prepared, conditions=replace(prepared.conditions, mask_control=scene.mask_control))
    probed = probe_takes(prepared, model, tracker)
    finished: list[tuple[Take, Video, Prepared, Routing]] = []
    tools = None if model.meter is not None else replace(FaceTools.load(), sync=None, notices=())
    for take in probed[: selection.keep]:
        own = replace(prepared, scene=_with_seed(prepared.scene, take.seed))
        routing = postprocess_masks(take.routing, own.scene)
        part = tracker.within(f"Seed {take.seed}")
        video = sample(own, routing, model, part)
        with part.stage("Measuring binding"):
            report = measure_video(video, own.scene, model.meter, tools=tools, identity=True)
        finished.append((_finished(take, scene, report, video, model.meter), video, own, routing))
    finished.sort(key=lambda entry: entry[0].rank, reverse=True)
    made, videos, conditions, routings = zip(*finished, strict=True)
    rows = (*made, *(_row(take, scene) for take in probed[selection.keep :]))
    return Takes(rows, videos, sum(take.calls for take in rows), conditions[0], routings[0])


def _with_seed(scene: Scene, seed: int) -> Scene:
    return replace(scene, sampling=replace(scene.sampling, seed=seed))


def _row(take: ProbedTake, scene: Scene) -> Take:
    missing = tuple(scene.names[n] for n in take.score.missing)
    return Take(take.seed, missing, take.score.confidence, take.score.overlap, take.routing.calls)


def _finished(take: ProbedTake, scene: Scene, report: BindingReport, video: Video, meter: PixelMeter | None) -> Take:
    passed = [lane.passed for lane in report.lanes]
    margins = []
    for own, scores in zip(report.metrics["should_follow"], report.metrics["score"], strict=True):
        others = [score for m, score in enumerate(scores) if m != own and score is not None]
        if own >= 0 and scores[own] is not None:
            margins.append(scores[own] - max(others, default=0.0))
    identity = [value for table in report.metrics["identity"].values() for value in table["mean"] if value is not None]
    return replace(
        _row(take, scene),
        calls=scene.sampling.steps,
        finished=True,
        bound=round(passed.count(True) / len(passed), 3),
        failed=round(passed.count(False) / len(passed), 3),
        margin=round(float(np.mean(margins)), 3) if margins else None,
        identity=round(float(np.mean(identity)), 3) if identity else None,
        faces=whole_faces(video, scene, report, meter),
        sharpness=round(sharpness(video.frames), 3),
    )


def whole_faces(video: Video, scene: Scene, report: BindingReport, meter: PixelMeter | None) -> float | None:
    """How whole the faces of a video are, 0..1, mean over the characters; None if not measured.

    Of drawn characters, the correlation of the eyes with those of the reference image; of real people, the share of
    frames in which a face is found in the mask of the character.
    """
    if meter is None:
        lips = report.metrics.get("lips")
        return None if lips is None else round(float(np.mean(lips["visible"])), 3)
    frames = video.frames[::_MEASURED_EVERY]
    masks = video.grid.latent_to_frames(video.masks, dim=1)[:, ::_MEASURED_EVERY].float()
    regions = interpolate(masks, size=tuple(frames.shape[1:3]), mode="bilinear") > 0.5
    return round(
        float(meter.eye_likeness(frames, regions, [character.image for character in scene.characters]).mean()), 3
    )


def sharpness(frames: Tensor) -> float:
    """Mean absolute second difference of brightness between neighboring pixels, of frames uint8 [F, H, W, 3]."""
    gray = frames[::_MEASURED_EVERY].float().mean(dim=3)
    return float((gray.diff(n=2, dim=1).abs().mean() + gray.diff(n=2, dim=2).abs().mean()) / 2)
