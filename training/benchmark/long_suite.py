"""Long suite: consistency of videos of many windows.

Speeches, portraits and the first frame are drawn, everything else is generated. Each window is evaluated like a
separate clip, from the pixels of the finished video: masks, binding, identity. In addition:

- color: largest change of the mean of a color channel relative to the first window, in percent of its range;
- seam: mean change between frames at window boundaries relative to the rest of the video; 1 = no visible seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bya_core.evaluation import binding as bindings
from bya_core.io.outputs import make_folder
from bya_core.io.workspace import temporary_folder
from bya_core.pipelines.long_video import generate_long, plan
from bya_core.progress import ProgressCallback, ProgressTracker
from bya_core.scene.types import Character, Scene, Speech
from bya_core.scene.windows import Window
from bya_core.weights.bundle import ModelBundle
from training.benchmark.puppet_suite import ClipMetrics, evaluate_clip
from training.benchmark.scenes import HELD_OUT, SceneSettings, SuiteScene, check_held_out, with_references
from training.benchmark.tables import markdown_table, number
from training.benchmark.targets import GeneratedVideo, as_image
from training.puppets.world import SAMPLE_RATE, PuppetClip, make_clip

THRESHOLDS = {"binding": 0.75, "identity": 0.75, "color": 3.0}


@dataclass(frozen=True)
class LongSettings:
    """Selection of scenes.

    Args:
        scenes: number of scenes; every other one has a first frame.
        seed_base: seed of the first scene; the others follow.
        num_frames: number of frames F; 501 frames are 20 seconds.
        characters: number of characters N.
        steps: number of sampling steps; None = default of the model.
    """

    scenes: int = 3
    seed_base: int = HELD_OUT
    num_frames: int = 501
    characters: int = 2
    steps: int | None = None

    def __post_init__(self) -> None:
        check_held_out(self.seed_base)


def long_scene(settings: LongSettings, index: int, bundle: ModelBundle) -> tuple[Scene, SuiteScene]:
    """Build the scene to generate and its ground truth."""
    seed, (height, width) = settings.seed_base + index, (bundle.native.height, bundle.native.width)
    clip = make_clip(seed, settings.characters, height, width, settings.num_frames, motion="still", talk="overlap")
    scene = Scene(
        prompt=clip.prompt,
        characters=[Character(f"puppet {n + 1}", as_image(p)) for n, p in enumerate(clip.portraits)],
        speeches=[Speech(torch.from_numpy(s)[None], SAMPLE_RATE) for s in clip.speeches],
        height=height,
        width=width,
        num_frames=settings.num_frames,
        first_frame=as_image(clip.first_frame) if index % 2 == 0 else None,
        fps=clip.fps,
        sampling=replace(bundle.sampling, steps=settings.steps or bundle.sampling.steps, seed=seed),
    )
    return scene, with_references(SceneSettings(), clip, index % 2 == 0)


def long_report(
    bundle: ModelBundle,
    settings: LongSettings,
    callback: ProgressCallback | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Evaluate each window, aggregated over the scenes, and each scene. The result is JSON-serializable.

    Args:
        bundle: model on its device.
        settings: scenes.
        callback: progress of the generation.
        folder: keeps the windows of each scene, so that the evaluation can be resumed; None = they are deleted.
    """
    rows, metrics = [], []
    for index in range(settings.scenes):
        scene, truth = long_scene(settings, index, bundle)
        tracker = ProgressTracker(callback, prefix=f"Scene {truth.clip.seed}: ")
        with temporary_folder() as temporary:
            if folder is not None:
                make_folder(folder, "the windows")
            work_dir = temporary if folder is None else folder / str(truth.clip.seed)
            video = generate_long(scene, bundle, work_dir, tracker.report)
            frames = torch.stack(list(video.frames)).numpy()
        windows = plan(scene, bundle)
        metrics.append([_evaluate_window(window, frames, video.masks.numpy(), truth, bundle) for window in windows])
        rows.append(_scene_row(truth, windows, metrics[-1], frames))
    aggregated = [
        _aggregate([scene[k] for scene in metrics], [row["windows"][k] for row in rows])
        for k in range(len(rows[0]["windows"]))
    ]
    drift = [row["windows"][-1]["color"] for row in rows]
    return {
        "suite": "long",
        "windows": aggregated,
        "color_first_to_last": round(float(np.max(drift)), 3),
        "seam": round(float(np.mean([row["seam"] for row in rows])), 3),
        "passed": {
            "binding": all(window["binding"] >= THRESHOLDS["binding"] for window in aggregated),
            "identity": all(window["identity"] >= THRESHOLDS["identity"] for window in aggregated),
            "color": max(drift) < THRESHOLDS["color"],
        },
        "scenes": rows,
    }


def long_table(report: dict[str, Any]) -> str:
    """Format the figures as text with a Markdown table."""
    keys = ("mask_iou", "swap_rate", "binding", "own", "other", "identity", "color")
    rows = []
    for k, window in enumerate(report["windows"], 1):
        start, stop = (frame / 25 for frame in window["frames"])
        rows.append([str(k), f"{start:.1f} - {stop:.1f}", *(number(window[key]) for key in keys)])
    head = ["window", "seconds", "mask IoU", "swaps", "binding", "own speech", "other", "identity", "color %"]
    lines = [f"{len(report['scenes'])} scenes of {len(report['windows'])} windows", "", markdown_table(head, rows), ""]
    drift = report["color_first_to_last"]
    lines.append(f"color drift from first to last window, worst scene: {drift:.2f} % (required: below 3 %)")
    lines.append(f"change at window boundaries relative to other frames: {report['seam']:.2f}")
    lines += [f"{k} in every window: {'passed' if ok else 'failed'}" for k, ok in report["passed"].items()]
    return "\n".join(lines)


def _evaluate_window(
    window: Window, frames: np.ndarray, masks: np.ndarray, truth: SuiteScene, bundle: ModelBundle
) -> ClipMetrics:
    start, stop = window.start, window.stop
    video = GeneratedVideo(frames[start:stop], masks[:, window.latent])
    part = replace(truth, clip=_trim(truth.clip, start, stop))
    return evaluate_clip(video, part, truth.clip.matrix, bundle.grid(stop - start, *frames.shape[1:3]))


def _trim(clip: PuppetClip, start: int, stop: int) -> PuppetClip:
    """Speeches and mouth motion of a range of frames."""
    samples = SAMPLE_RATE // clip.fps
    speeches = clip.speeches[:, start * samples : stop * samples]
    return replace(clip, opening=clip.opening[:, start:stop], shape=clip.shape[:, start:stop], speeches=speeches)


def _scene_row(
    truth: SuiteScene, windows: Sequence[Window], metrics: Sequence[ClipMetrics], frames: np.ndarray
) -> dict[str, Any]:
    means = np.stack([frames[window.start : window.stop].reshape(-1, 3).mean(axis=0) for window in windows])
    drift = np.abs(means - means[0]).max(axis=1) / 2.55
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    at_seam = np.zeros(len(change), dtype=bool)
    for window in windows[1:]:
        at_seam[window.start - 1 : window.start + window.lead] = True
    seam = change[at_seam].mean() / change[~at_seam].mean() if at_seam.any() else 1.0
    return {
        "seed": truth.clip.seed,
        "first_frame": truth.first_frame,
        "seam": round(float(seam), 3),
        "windows": [
            {"frames": [window.start, window.stop], "color": round(float(value), 3), **clip.row()}
            for window, clip, value in zip(windows, metrics, drift, strict=True)
        ],
    }


def _aggregate(metrics: Sequence[ClipMetrics], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    score = bindings.score(clip.binding for clip in metrics)
    return {
        "frames": rows[0]["frames"],
        "mask_iou": round(float(np.mean([clip.mask_iou for clip in metrics])), 4),
        "swap_rate": round(float(np.mean([clip.swap_rate for clip in metrics])), 4),
        "binding": round(score.accuracy, 4),
        "judged": score.judged,
        "own": round(score.own, 3),
        "other": round(score.other, 3),
        "identity": round(float(np.mean([correct for clip in metrics for correct in clip.identity])), 4),
        "color": round(max(row["color"] for row in rows), 3),
    }
