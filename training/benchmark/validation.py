"""Validation during training: held-out puppets, the predicted masks, and generated videos.

Puppet seeds from 2,000,000 on are used neither for training nor for the benchmark. Two groups of metrics:

- masks: the router's own masks (in every layer, nothing forced) on clips noised to several points of the schedule,
  against the drawn masks: IoU with and without a first frame, and the change of the soft masks from frame to frame for
  characters that keep still (flicker);
- videos: a few short generations in which the mouths are compared with the speech (binding).

Images: each scene at five points in time, with the drawn masks, with those predicted at half noise, and as generated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bya_core.encoders.domains import canvas_layout
from bya_core.encoders.face.mesh import FaceMesh
from bya_core.errors import InputError
from bya_core.evaluation import binding as bindings
from bya_core.evaluation import mask_metrics as masking
from bya_core.evaluation.face_report import FaceTools, measure_faces
from bya_core.grid import TokenGrid
from bya_core.io.media import write_video
from bya_core.io.overlay import render_overlay
from bya_core.pipelines.generate import generate
from bya_core.pipelines.sample import Video
from bya_core.scene.loader import load_scene
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.loader import load_bundle
from training.benchmark.contact_sheet import contact_sheet
from training.benchmark.puppet_suite import evaluate_clip
from training.benchmark.scenes import SceneSettings, SuiteScene, draw, with_references
from training.benchmark.targets import GeneratedVideo, ModelTarget
from training.engine.trackers import MetricLog

log = logging.getLogger(__name__)

VALIDATION_SEEDS = 2_000_000
"""First seed of the validation scenes."""


@dataclass(frozen=True)
class ValidationConfig:
    """Scenes and metrics of a validation.

    Args:
        masks: number of scenes whose masks are evaluated; in every third of them characters keep still.
        videos: number of these scenes that are generated and evaluated.
        seed: seed of the first scene.
        characters: characters per scene.
        num_frames: F.
        steps: sampling steps.
        describe_motion: describe the motion in the prompts.
        noise_levels: points of the schedule, 1 = pure noise; "iou" is the mean over those up to 0.5.
    """

    masks: int = 8
    videos: int = 4
    seed: int = VALIDATION_SEEDS
    characters: int = 2
    num_frames: int = 17
    steps: int = 8
    describe_motion: bool = False
    noise_levels: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3, 0.1)

    def __post_init__(self) -> None:
        if self.seed < VALIDATION_SEEDS:
            problem = f"validation seed {self.seed}"
            raise InputError(problem, f"{VALIDATION_SEEDS} or more", "lower seeds are for training and the benchmark")
        if self.masks < 1 or not 0 <= self.videos <= self.masks:
            problem = f"{self.videos} videos of {self.masks} scenes"
            raise InputError(problem, "at least one scene, and no more videos than scenes", "change the numbers")

    def scene_settings(self, bundle: ModelBundle) -> SceneSettings:
        """Settings of the scenes at the native size of a model."""
        native = bundle.native
        return SceneSettings(
            self.masks,
            self.seed,
            self.characters,
            native.height,
            native.width,
            self.num_frames,
            self.characters,
            self.describe_motion,
        )

    def scenes(self, bundle: ModelBundle) -> list[SuiteScene]:
        """The scenes, always the same; every second one has a first frame."""
        settings, scenes = self.scene_settings(bundle), []
        for k in range(self.masks):
            clip = draw(settings, self.seed + k, "overlap", motion="still" if k % 3 == 2 else "mixed")
            scenes.append(with_references(settings, clip, k % 2 == 0))
        return scenes


def mask_metrics(target: ModelTarget, scenes: Sequence[SuiteScene]) -> tuple[dict[str, float], list[np.ndarray]]:
    """Evaluate the router's own masks on held-out clips.

    Returns:
        Metrics, and the masks [N, T, h, w] predicted in each scene at half noise (mean over the layers, with a first
        frame if the scene has one). The metrics are "iou" (noise levels up to 0.5, with and without first frame),
        "iou_LEVEL_first_frame" and "iou_LEVEL_alone", "flicker" (mean |M_t - M_t-1| for characters that keep still,
        levels up to 0.5) and "flicker_drawn" (the same for the drawn masks).
    """
    ious: dict[tuple[float, bool], list[float]] = {}
    flicker: dict[str, list[float]] = {"flicker": [], "flicker_drawn": []}
    half, predicted = min(target.points, key=lambda point: abs(point.share - 0.5)), []
    for scene in scenes:
        soft = target.grid.pixels_to_tokens(torch.from_numpy(scene.clip.masks)).numpy()
        for first_frame in (True, False):
            for point in target.points:
                layers = target.predict_masks(scene, point, first_frame)
                if point is half and first_frame is scene.first_frame:
                    predicted.append(layers.mean(axis=0))
                each = [masking.mean_iou(masking.to_labels(layer), soft >= 0.5) for layer in layers]
                ious.setdefault((point.share, first_frame), []).append(float(np.mean(each)))
                if scene.clip.motion == "still" and point.share <= 0.5:
                    flicker["flicker"].append(float(masking.change(layers).mean()))
        if scene.clip.motion == "still":
            flicker["flicker_drawn"].append(float(masking.change(soft).mean()))
    iou = {key: float(np.nanmean(values)) for key, values in ious.items()}
    metrics = {"iou": float(np.mean([value for (level, _), value in iou.items() if level <= 0.5]))}
    for (level, first_frame), value in iou.items():
        metrics[f"iou_{level:g}_{'first_frame' if first_frame else 'alone'}"] = value
    return metrics | {name: float(np.mean(values)) for name, values in flicker.items() if values}, predicted


def video_metrics(target: ModelTarget, scenes: Sequence[SuiteScene]) -> tuple[dict[str, float], list[GeneratedVideo]]:
    """Generate scenes and evaluate binding and masks.

    Returns:
        Metrics and videos. The metrics are "binding" (fraction of the mouths that follow their own speech most),
        "own_voice" and "other_voice" (mean correlations), and "iou_generated" (masks that acted against the regions
        detected in the pixels).
    """
    videos = [target.generate(scene, [scene.clip.matrix])[0] for scene in scenes]
    results = [evaluate_clip(v, scene, scene.clip.matrix, target.grid) for v, scene in zip(videos, scenes, strict=True)]
    score = bindings.score(result.binding for result in results)
    metrics = {
        "binding": score.accuracy,
        "own_voice": score.own,
        "other_voice": score.other,
        "iou_generated": float(np.mean([result.mask_iou for result in results])),
    }
    return {name: value for name, value in metrics.items() if np.isfinite(value)}, videos


def evaluate_scenes(
    bundle: ModelBundle, config: ValidationConfig
) -> tuple[dict[str, float], list[SuiteScene], list[np.ndarray], list[GeneratedVideo]]:
    """All metrics, the scenes, the masks predicted at half noise (per scene), and the videos (of the first scenes)."""
    settings, scenes = config.scene_settings(bundle), config.scenes(bundle)
    metrics, predicted = mask_metrics(ModelTarget(bundle, settings, config.noise_levels), scenes)
    if not config.videos:
        return metrics, scenes, predicted, []
    more, videos = video_metrics(ModelTarget(bundle, settings, (), config.steps), scenes[: config.videos])
    return metrics | more, scenes, predicted, videos


def validation_metrics(model: Any, config: ValidationConfig, bundle: ModelBundle) -> dict[str, float]:
    """Metrics of a transformer with the encoders of a bundle."""
    with evaluation_mode(model):
        return evaluate_scenes(with_transformer(bundle, model), config)[0]


def lip_sync_metrics(video: Video, scene: Scene) -> dict[str, float]:
    """How well the mouths of a generated video of real faces follow the voices.

    Returns:
        "lip_sync_own" and "lip_sync_other": mean score of the mouths with their own voice, and with the best other one;
        empty without faces or voices.
    """
    masks = video.grid.latent_to_frames(video.masks, dim=1).numpy() >= 0.5
    tools = FaceTools(FaceMesh())
    faces = measure_faces(video.frames, scene.speeches, video.fps, None, tools, matrix=video.matrix, masks=masks)
    own, other = [], []
    heard = [m for m, speech in enumerate(scene.speeches) if speech is not None]
    for n, scores in enumerate(faces.lips.scores if faces.lips is not None else ()):
        mine = [m for m in heard if float(video.matrix[m, n]) >= 0.5]
        others = [m for m in heard if m not in mine]
        if mine:
            own.append(max(float(scores[m]) for m in mine))
            other += [max(float(scores[m]) for m in others)] if others else []
    return {
        name: float(np.mean(values)) for name, values in (("lip_sync_own", own), ("lip_sync_other", other)) if values
    }


def with_transformer(bundle: ModelBundle, model: Any) -> ModelBundle:
    """The bundle with another transformer."""
    bundle = replace(bundle, transformer=model, canvas_layout=canvas_layout(model.config.flavour))
    bundle.to(bundle.device)
    return bundle


class Validation:
    """Validates a model at regular steps; a callback of the training loop.

    Args:
        every: steps between validations.
        scenes: number of puppet scenes; or scene files, which are generated and shown, with the lip sync of real faces
            as their only metric.
        seed: seed of the first puppet scene.
        bundle: encoders and video codec of the model: a bundle or its name.
        describe_motion: describe the motion in the prompts of puppet scenes.
        tracker: receives metrics and images; None = they are only returned.
        config: scenes and metrics; None = masks of all `scenes`, half of them generated.
    """

    at_ends = True

    def __init__(
        self,
        every: int,
        scenes: int | Sequence[Path] = 6,
        seed: int = VALIDATION_SEEDS,
        *,
        bundle: ModelBundle | str = "toy",
        describe_motion: bool = False,
        tracker: MetricLog | None = None,
        config: ValidationConfig | None = None,
    ) -> None:
        if every < 1:
            raise InputError(f"validation every {every} steps", "1 or more", "give a positive number")
        self.every, self.bundle, self.tracker = every, bundle, tracker
        self.files = () if isinstance(scenes, int) else tuple(scenes)
        self.config = config
        if config is None and isinstance(scenes, int):
            videos = (scenes + 1) // 2
            self.config = ValidationConfig(scenes, videos, seed, describe_motion=describe_motion)

    def __call__(self, step: int, means: Mapping[str, float], model: nn.Module) -> dict[str, float]:
        """Validate the model and return the metrics; the model and random states are unchanged.

        Scenes that the model cannot process are skipped with a warning and do not end the training.
        """
        started = time.monotonic()
        with evaluation_mode(model):
            try:
                metrics = self._validate(model, step)
            except InputError as error:
                log.warning("validation at step %d skipped: %s", step, error)
                return {}
        metrics["validation_seconds"] = time.monotonic() - started
        if self.tracker is not None:
            self.tracker.log(metrics, step, "validation")
        return metrics

    def _validate(self, model: nn.Module, step: int) -> dict[str, float]:
        if isinstance(self.bundle, str):
            self.bundle = load_bundle(self.bundle)
        bundle = with_transformer(self.bundle, model)
        metrics = self._validate_puppets(bundle, self.config, step) if self.config is not None else {}
        return metrics | self._generate_files(bundle, step)

    def _validate_puppets(self, bundle: ModelBundle, config: ValidationConfig, step: int) -> dict[str, float]:
        metrics, scenes, predicted, videos = evaluate_scenes(bundle, config)
        grid = bundle.grid(config.num_frames, bundle.native.height, bundle.native.width)
        for k, scene in enumerate(scenes):
            clip, name = scene.clip, f"puppets_{scene.clip.seed}"
            rows = [
                ("drawn", clip.frames, grid.pixels_to_tokens(torch.from_numpy(clip.masks))),
                ("predicted at half noise", clip.frames, torch.from_numpy(predicted[k])),
            ]
            if k < len(videos):
                frames, masks = videos[k].frames, torch.from_numpy(videos[k].masks)
                rows.append(("generated, with its masks", frames, masks))
                self._log_video(name, frames, masks, grid, clip.fps, step)
            title = "with first frame" if scene.first_frame else "without first frame"
            self._log_image(name, contact_sheet(rows, grid, title), step)
        return metrics

    def _generate_files(self, bundle: ModelBundle, step: int) -> dict[str, float]:
        """Generate the scene files; the metrics of real faces are means over them."""
        found: dict[str, list[float]] = {}
        for path in self.files:
            scene = load_scene(path, bundle.defaults)
            video = generate(scene, bundle)
            frames, masks = video.frames.numpy(), video.masks
            sheet = contact_sheet([("generated, with its masks", frames, masks)], video.grid, path.stem)
            self._log_image(path.stem, sheet, step)
            self._log_video(path.stem, frames, masks, video.grid, scene.fps, step)
            for name, value in (lip_sync_metrics(video, scene) if bundle.domain == "photos" else {}).items():
                found.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in found.items()}

    def _log_image(self, name: str, image: Image.Image, step: int) -> None:
        if self.tracker is not None:
            self.tracker.log_image(name, image, step)

    def _log_video(self, name: str, frames: np.ndarray, masks: Tensor, grid: TokenGrid, fps: float, step: int) -> None:
        """Write the video with overlaid masks beside the images of the tracker."""
        if self.tracker is None or self.tracker.output is None or not self.tracker.active:
            return
        folder = self.tracker.output / "images" / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        labels = [f"character {n + 1}" for n in range(len(masks))]
        write_video(folder / f"{name}.mp4", render_overlay(frames, masks, grid, labels), fps)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Disable gradients, switch to evaluation mode, and restore the random states afterwards."""
    training = model.training
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(training)
