"""The long suite: does a video of many windows hold together?

Puppets talk for many windows; voices, portraits and the first frame are drawn, the rest is made. Each window is judged
like a clip of its own, from the pixels of the finished video: masks against pixels, binding, identity. Beside that:

- colour: largest change of a channel's mean from the first window to this one, in percent of its range;
- seam: mean change from frame to frame where two windows are joined, over that in the rest of the video. 1 = a seam
  moves as much as everything else does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bya_core.errors import InputError
from bya_core.evaluation import binding as bindings
from bya_core.pipelines.long_video import generate_long, plan
from bya_core.sampling.windows import Window
from bya_core.scene.types import Character, Scene, Speech
from bya_core.weights.bundle import ModelBundle
from training.benchmark.puppet_suite import Judged, judge
from training.benchmark.scenes import HELD_OUT, SceneSettings, SuiteScene
from training.benchmark.subjects import Made
from training.puppets.looks import draw_look
from training.puppets.world import SAMPLE_RATE, PuppetClip, draw_portrait, make_clip

BARS = {"binding": 0.75, "identity": 0.75, "colour": 3.0}
Tick = Callable[[str], object]


@dataclass(frozen=True)
class LongSettings:
    """Which scenes.

    Args:
        scenes: how many; every other one is given its first frame.
        seed_base: seed of the first; the others follow.
        num_frames: F; 501 frames are 20 seconds.
        characters: N in every scene.
        steps: sampling steps; None = the model's.
    """

    scenes: int = 3
    seed_base: int = HELD_OUT
    num_frames: int = 501
    characters: int = 2
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.seed_base < HELD_OUT:
            came = f"seed base {self.seed_base}"
            raise InputError(came, f"{HELD_OUT} or more", "lower seeds are trained on")


def long_scene(settings: LongSettings, index: int, bundle: ModelBundle) -> tuple[Scene, SuiteScene]:
    """Scene number `index`: what is asked, and what it is judged by."""
    seed, count = settings.seed_base + index, settings.characters
    height, width = bundle.native.height, bundle.native.width
    clip = make_clip(seed, count, height, width, settings.num_frames, motion="still", talk="overlap")
    rng = np.random.default_rng([seed, 0x1D])
    size, known = clip.portraits.shape[1], SceneSettings.references - count
    strangers = [draw_portrait(draw_look(rng), rng, size) for _ in range(known)]
    references = np.stack([np.stack([*np.roll(clip.portraits, -n, axis=0), *strangers]) for n in range(count)])
    steps = settings.steps or bundle.sampling.steps
    scene = Scene(
        prompt=clip.prompt,
        characters=[Character(f"puppet {n + 1}", _picture(p)) for n, p in enumerate(clip.portraits)],
        speeches=[Speech(torch.from_numpy(s)[None], SAMPLE_RATE) for s in clip.speeches],
        height=height,
        width=width,
        num_frames=settings.num_frames,
        first_frame=_picture(clip.first_frame) if index % 2 == 0 else None,
        fps=clip.fps,
        sampling=replace(bundle.sampling, steps=steps, seed=seed),
    )
    return scene, SuiteScene(clip, index % 2 == 0, references)


def measure_long(
    bundle: ModelBundle, settings: LongSettings, tick: Tick | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Figures for each window, pooled over the scenes, and a row per scene. Ready for JSON.

    Args:
        tick: called after each window with what it was.
        folder: keeps the windows of each scene: a measurement that was stopped goes on; None = they are deleted.
    """
    rows = []
    for index in range(settings.scenes):
        scene, suite = long_scene(settings, index, bundle)
        with tempfile.TemporaryDirectory() as passing:
            place = Path(passing) if folder is None else folder / str(suite.clip.seed)

            def watch(progress: Any, seed: int = suite.clip.seed) -> None:
                if tick is not None and progress.stage.endswith("Decoding") and progress.step:
                    tick(f"scene {seed}, {progress.stage}")

            video = generate_long(scene, bundle, place, watch)
            frames = torch.stack(list(video.frames)).numpy()
        windows = plan(scene, bundle)
        judged = [_judge_window(window, frames, video.masks.numpy(), suite, bundle) for window in windows]
        rows.append(_row(suite, windows, judged, frames))
    judgements = [row.pop("judged") for row in rows]
    pooled = [
        _pooled([judged[k] for judged in judgements], [row["windows"][k] for row in rows])
        for k in range(len(rows[0]["windows"]))
    ]
    drift = [row["windows"][-1]["colour"] for row in rows]
    return {
        "suite": "long",
        "windows": pooled,
        "colour_first_to_last": round(float(np.max(drift)), 3),
        "seam": round(float(np.mean([row["seam"] for row in rows])), 3),
        "passed": {
            "binding": all(window["binding"] >= BARS["binding"] for window in pooled),
            "identity": all(window["identity"] >= BARS["identity"] for window in pooled),
            "colour": max(drift) < BARS["colour"],
        },
        "scenes": rows,
    }


def long_table(report: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{len(report['scenes'])} scenes in {len(report['windows'])} windows each", ""]
    lines.append("| window | seconds | mask IoU | swaps | binding | own voice | other | identity | colour % |")
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for k, window in enumerate(report["windows"]):
        start, stop = (second / 25 for second in window["frames"])
        lines.append(
            f"| {k + 1} | {start:.1f} - {stop:.1f} | {window['mask_iou']:.3f} | {window['swap_rate']:.3f} | "
            f"{window['binding']:.2f} | {window['own']:.2f} | {window['other']:.2f} | {window['identity']:.2f} | "
            f"{window['colour']:.2f} |"
        )
    lines += ["", f"colour, first to last window, worst scene: {report['colour_first_to_last']:.2f} % (bar: under 3 %)"]
    lines.append(f"change at the seams over change elsewhere: {report['seam']:.2f}")
    lines += [f"{name} in every window: {'passed' if ok else 'not passed'}" for name, ok in report["passed"].items()]
    return "\n".join(lines)


def _judge_window(
    window: Window, frames: np.ndarray, masks: np.ndarray, suite: SuiteScene, bundle: ModelBundle
) -> Judged:
    start, stop = window.start, window.stop
    made = Made(frames[start:stop], masks[:, window.latent])
    part = replace(suite, clip=_cut(suite.clip, start, stop))
    grid = bundle.grid(stop - start, *frames.shape[1:3])
    return judge(made, part, suite.clip.matrix, grid)


def _cut(clip: PuppetClip, start: int, stop: int) -> PuppetClip:
    """Voices and mouths of some frames of a clip."""
    samples = SAMPLE_RATE // clip.fps
    speeches = clip.speeches[:, start * samples : stop * samples]
    return replace(clip, opening=clip.opening[:, start:stop], shape=clip.shape[:, start:stop], speeches=speeches)


def _row(suite: SuiteScene, windows: Sequence[Window], judged: list[Judged], frames: np.ndarray) -> dict[str, Any]:
    means = np.stack([frames[window.start : window.stop].reshape(-1, 3).mean(axis=0) for window in windows])
    colour = np.abs(means - means[0]).max(axis=1) / 2.55
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    joined = np.zeros(len(change), dtype=bool)
    for window in windows[1:]:
        joined[window.start - 1 : window.start + window.lead] = True
    seam = change[joined].mean() / change[~joined].mean() if joined.any() else 1.0
    return {
        "seed": suite.clip.seed,
        "first_frame": suite.first_frame,
        "seam": round(float(seam), 3),
        "windows": [
            {"frames": [window.start, window.stop], "colour": round(float(shift), 3), **one.row()}
            for window, one, shift in zip(windows, judged, colour, strict=True)
        ],
        "judged": judged,
    }


def _pooled(judged: Sequence[Judged], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    score = bindings.score(one.binding for one in judged)
    return {
        "frames": rows[0]["frames"],
        "mask_iou": round(float(np.mean([one.mask_iou for one in judged])), 4),
        "swap_rate": round(float(np.mean([one.swap_rate for one in judged])), 4),
        "binding": round(score.accuracy, 4),
        "judged": score.judged,
        "own": round(score.own, 3),
        "other": round(score.other, 3),
        "identity": round(float(np.mean([right for one in judged for right in one.identity])), 4),
        "colour": round(max(row["colour"] for row in rows), 3),
    }


def _picture(pixels: np.ndarray) -> torch.Tensor:
    """[H, W, 3] uint8 -> [3, H, W] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).float().movedim(-1, 0) / 255
