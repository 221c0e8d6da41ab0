"""What a model in training is looked at with: held-out puppets, the masks it finds, the videos it makes.

Puppets of seeds from 2,000,000 on: neither training nor the final tables use them. Two kinds of figures:

- masks: the router's own masks (in every layer, nothing forced) on clips noised to points of the schedule, against the
  drawn truth: IoU with and without a first frame, and how much the soft masks change from frame to frame on people
  who keep still;
- videos: a few short generations, of which the mouths are compared with the voices (binding).

And pictures: each scene at five moments, with the drawn masks, with those the router finds at half noise, and as the
model makes it with the masks that acted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from bya_core.encoders.domains import canvas_layout
from bya_core.errors import InputError
from bya_core.evaluation import binding as bindings
from bya_core.evaluation import mask_metrics as masking
from bya_core.grid import TokenGrid
from bya_core.io.media import write_video
from bya_core.io.overlay import render_overlay, tint_frame
from bya_core.pipelines.generate import generate
from bya_core.scene.loader import load_scene
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.loader import load_bundle
from training.benchmark.puppet_suite import judge
from training.benchmark.scenes import SceneSettings, SuiteScene, draw, with_references
from training.benchmark.subjects import Made, ModelSubject

log = logging.getLogger(__name__)

VALIDATION_SEEDS = 2_000_000
"""First seed of the scenes a model may be looked at with while decisions are still made."""

MOMENTS = 5
SMALLEST = 192  # pixels of the shorter side of a picture in a sheet


class PictureTracker(Protocol):
    """The part of `training.engine.trackers.Tracker` that is used here."""

    output: Path
    active: bool

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, picture: Image.Image, step: int) -> None: ...


@dataclass(frozen=True)
class HeldOut:
    """Which puppets, and how closely they are looked at.

    Args:
        masks: scenes whose masks are compared with the truth; in every third of them people keep still.
        videos: of these, how many are generated and judged.
        seed: of the first scene.
        characters: in every scene.
        num_frames: F.
        steps: sampling steps of the generations.
        shares: points of the schedule, 1 = all noise; the headline is the mean of those at half noise and below.
    """

    masks: int = 8
    videos: int = 4
    seed: int = VALIDATION_SEEDS
    characters: int = 2
    num_frames: int = 17
    steps: int = 8
    shares: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3, 0.1)

    def __post_init__(self) -> None:
        if self.seed < VALIDATION_SEEDS:
            came = f"validation seed {self.seed}"
            raise InputError(came, f"{VALIDATION_SEEDS} or more", "lower ones are for training and for final tables")
        if self.masks < 1 or not 0 <= self.videos <= self.masks:
            came = f"{self.videos} videos of {self.masks} scenes"
            raise InputError(came, "at least one scene, and no more videos than scenes", "change the numbers")

    def size(self, bundle: ModelBundle) -> SceneSettings:
        """Settings of the scenes at the size of a model."""
        native = bundle.native
        return SceneSettings(
            self.masks, self.seed, self.characters, native.height, native.width, self.num_frames, self.characters
        )

    def scenes(self, bundle: ModelBundle) -> list[SuiteScene]:
        """The scenes, always the same; every other one is generated from a first frame."""
        settings, drawn = self.size(bundle), []
        for k in range(self.masks):
            clip = draw(settings, self.seed + k, "overlap", motion="still" if k % 3 == 2 else "mixed")
            drawn.append(with_references(settings, clip, k % 2 == 0))
        return drawn


def mask_figures(subject: ModelSubject, scenes: Sequence[SuiteScene]) -> tuple[dict[str, float], list[np.ndarray]]:
    """The router's own masks on held-out clips; see the top of this file.

    Returns:
        Figures, and the masks [N, T, h, w] found in each scene at half noise (mean over the layers, with a first frame
        where the scene has one). The figures:
        "iou" (half noise and below, with and without first frame), "iou_SHARE_first_frame" and "iou_SHARE_alone",
        "flicker" (mean |M_t - M_t-1| of masks of people who keep still, half noise and below) and "flicker_drawn"
        (the same of the drawn truth).
    """
    found: dict[tuple[float, bool], list[float]] = {}
    flicker: dict[str, list[float]] = {"flicker": [], "flicker_drawn": []}
    half, shown = min(subject.points, key=lambda point: abs(point.share - 0.5)), []
    for scene in scenes:
        soft = subject.grid.pixels_to_tokens(torch.from_numpy(scene.clip.masks)).numpy()
        for first_frame in (True, False):
            for point in subject.points:
                layers = subject.find(scene, point, first_frame)
                if point is half and first_frame is scene.first_frame:
                    shown.append(layers.mean(axis=0))
                each = [masking.mean_iou(masking.to_labels(layer), soft >= 0.5) for layer in layers]
                found.setdefault((point.share, first_frame), []).append(float(np.mean(each)))
                if scene.clip.motion == "still" and point.share <= 0.5:
                    flicker["flicker"].append(float(masking.change(layers).mean()))
        if scene.clip.motion == "still":
            flicker["flicker_drawn"].append(float(masking.change(soft).mean()))
    iou = {key: float(np.nanmean(values)) for key, values in found.items()}
    figures = {"iou": float(np.mean([value for (share, _), value in iou.items() if share <= 0.5]))}
    for (share, first_frame), value in iou.items():
        figures[f"iou_{share:g}_{'first_frame' if first_frame else 'alone'}"] = value
    return figures | {name: float(np.mean(values)) for name, values in flicker.items() if values}, shown


def video_figures(subject: ModelSubject, scenes: Sequence[SuiteScene]) -> tuple[dict[str, float], list[Made]]:
    """Binding and masks of generated scenes, and the videos.

    Returns:
        "binding" (share of mouths that follow their own voice most), "own_voice" and "other_voice" (mean correlations)
        and "iou_generated" (masks that acted against regions seen in the pixels).
    """
    made = [subject.make(scene, scene.clip.matrix) for scene in scenes]
    judged = [judge(m, scene, scene.clip.matrix, subject.grid) for m, scene in zip(made, scenes, strict=True)]
    score = bindings.score(result.binding for result in judged)
    figures = {
        "binding": score.accuracy,
        "own_voice": score.own,
        "other_voice": score.other,
        "iou_generated": float(np.mean([result.mask_iou for result in judged])),
    }
    return {name: value for name, value in figures.items() if np.isfinite(value)}, made


def look(
    bundle: ModelBundle, held_out: HeldOut
) -> tuple[dict[str, float], list[SuiteScene], list[np.ndarray], list[Made]]:
    """Everything that is measured: figures, scenes, masks found at half noise (per scene), videos (of the first)."""
    size, scenes = held_out.size(bundle), held_out.scenes(bundle)
    figures, found = mask_figures(ModelSubject(bundle, size, held_out.shares), scenes)
    if not held_out.videos:
        return figures, scenes, found, []
    more, made = video_figures(ModelSubject(bundle, size, (), held_out.steps), scenes[: held_out.videos])
    return figures | more, scenes, found, made


def figures_of(model: Any, held_out: HeldOut, bundle: ModelBundle) -> dict[str, float]:
    """Figures of a model with the encoders of a bundle."""
    whole = replace(bundle, transformer=model, canvas_layout=canvas_layout(model.config.flavour))
    whole.to(whole.device)
    with undisturbed(model):
        return look(whole, held_out)[0]


class Validation:
    """Looks at a model every so many steps; called by the training loop.

    Args:
        every: steps between two looks.
        scenes: how many puppet scenes are drawn, measured and shown; or scene files, which are made and shown only
            (for models that know real faces, and no puppets).
        seed: of the first puppet scene.
        bundle: encoders and video codec that belong to the model: a bundle or the name of one.
        tracker: takes figures and pictures; with None they are only returned.
        held_out: how closely; None = `scenes` with masks compared, half of them generated.
    """

    def __init__(
        self,
        every: int,
        scenes: int | Sequence[Path] = 6,
        seed: int = VALIDATION_SEEDS,
        *,
        bundle: ModelBundle | str = "toy",
        tracker: PictureTracker | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        if every < 1:
            raise InputError(f"validation every {every} steps", "1 or more", "give a number of steps")
        self.every, self.bundle, self.tracker = every, bundle, tracker
        self.files = () if isinstance(scenes, int) else tuple(scenes)
        self.held_out = held_out
        if held_out is None and isinstance(scenes, int):
            self.held_out = HeldOut(masks=scenes, videos=(scenes + 1) // 2, seed=seed)
        self.last: int | None = None

    def due(self, step: int) -> bool:
        """Whether a multiple of `every` has been reached since the last call."""
        before = step - 1 if self.last is None else self.last
        self.last = step
        return step // self.every > before // self.every

    def __call__(self, step: int, means: Mapping[str, float], model: nn.Module) -> dict[str, float]:
        """Look at the model if it is time: figures (empty if it is not). The model and all random states stay.

        Scenes that the model cannot be given (puppets, where it knows real faces) are told of and left out: no training
        ends for that.
        """
        if not self.due(step):
            return {}
        started = time.monotonic()
        with undisturbed(model):
            try:
                figures = self._look(model, step)
            except InputError as error:
                log.warning("step %d is not looked at: %s", step, error)
                return {}
        figures["validation_seconds"] = time.monotonic() - started
        if self.tracker is not None:
            self.tracker.scalars(figures, step)
        return figures

    def _look(self, model: nn.Module, step: int) -> dict[str, float]:
        if isinstance(self.bundle, str):
            self.bundle = load_bundle(self.bundle)
        bundle = replace(self.bundle, transformer=model, canvas_layout=canvas_layout(model.config.flavour))
        bundle.to(bundle.device)
        figures = self._puppets(bundle, step) if self.held_out is not None else {}
        self._files(bundle, step)
        return figures

    def _puppets(self, bundle: ModelBundle, step: int) -> dict[str, float]:
        assert self.held_out is not None
        held = self.held_out
        figures, scenes, found, made = look(bundle, held)
        grid = bundle.grid(held.num_frames, bundle.native.height, bundle.native.width)
        for k, scene in enumerate(scenes):
            drawn = grid.pixels_to_tokens(torch.from_numpy(scene.clip.masks))
            rows = [
                ("drawn", scene.clip.frames, drawn),
                ("found at half noise", scene.clip.frames, torch.from_numpy(found[k])),
            ]
            if k < len(made):
                rows.append(("made, with the masks that acted", made[k].frames, torch.from_numpy(made[k].masks)))
            given = "with first frame" if scene.first_frame else "without first frame"
            self._show(f"puppets_{scene.clip.seed}", sheet(rows, grid, given), step)
            if k < len(made):
                self._film(f"puppets_{scene.clip.seed}", made[k].frames, made[k].masks, grid, scene.clip.fps, step)
        return figures

    def _files(self, bundle: ModelBundle, step: int) -> None:
        for path in self.files:
            scene = load_scene(path, bundle.defaults)
            video = generate(scene, bundle)
            row = ("made, with the masks that acted", video.frames.numpy(), video.masks)
            self._show(path.stem, sheet([row], video.grid, path.stem), step)
            self._film(path.stem, video.frames.numpy(), video.masks.numpy(), video.grid, scene.fps, step)

    def _show(self, name: str, picture: Image.Image, step: int) -> None:
        if self.tracker is not None:
            self.tracker.image(name, picture, step)

    def _film(self, name: str, frames: np.ndarray, masks: np.ndarray, grid: TokenGrid, fps: float, step: int) -> None:
        """The tinted video beside the pictures of the tracker."""
        if self.tracker is None or not self.tracker.active:
            return
        folder = self.tracker.output / "pictures" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        labels = [f"character {n + 1}" for n in range(len(masks))]
        write_video(folder / f"{name}.mp4", render_overlay(frames, torch.from_numpy(masks), grid, labels), fps)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Without gradients, in evaluation mode, and with every random state as it was afterwards."""
    training = model.training
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def sheet(rows: Sequence[tuple[str, np.ndarray, Tensor]], grid: TokenGrid, title: str) -> Image.Image:
    """A picture of one scene: per row a name, frames [F, H, W, 3] uint8 at five moments and masks [N, T, h, w]."""
    height, width = rows[0][1].shape[1:3]
    scale = max(1, -(-SMALLEST // min(height, width)))
    tall, wide, line = height * scale, width * scale, 22
    page = Image.new("RGB", (wide * MOMENTS, line + len(rows) * (tall + line)), (24, 24, 28))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)
    pen.text((8, line / 2), title, fill=(235, 235, 235), font=font, anchor="lm")
    for r, (name, frames, masks) in enumerate(rows):
        top = line + r * (tall + line)
        pen.text((8, top + line / 2), name, fill=(180, 180, 185), font=font, anchor="lm")
        for m, f in enumerate(np.linspace(0, len(frames) - 1, MOMENTS).round().astype(int)):
            tinted = tint_frame(frames[f], masks[:, grid.latent_index(int(f))])
            large = Image.fromarray(tinted).resize((wide, tall), Image.Resampling.BICUBIC)
            page.paste(large, (m * wide, top + line))
    return page
