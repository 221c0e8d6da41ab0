"""Picture suite: image quality of generated puppet scenes, measured from pixels alone.

Every scene is generated as a still, with 17 and with 49 frames; even scenes with a first frame (stills always without:
they would be the given image). Two frames of each third of a video are evaluated: faces by `picture_metrics`, and the
flicker of the background. The Fréchet distance to the drawn clips of the same scenes uses a small network with fixed
random weights.

The targets "truth" and "shuffled" validate the metrics: about 1, and clearly lower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bya_core.evaluation.frechet import frechet_distance, gaussian
from bya_core.grid import TokenGrid
from bya_core.weights.bundle import ModelBundle
from training.benchmark.gallery import VideoStore
from training.benchmark.picture_metrics import (
    MIN_EYE_CORRELATION,
    FaceMetrics,
    background_flicker,
    evaluate_frame,
    occluded_heads,
)
from training.benchmark.puppet_fit import fit_frame
from training.benchmark.puppet_report import REFERENCE_TARGETS, ReportOptions, scene_report
from training.benchmark.scenes import SceneSettings, suite_scene
from training.benchmark.tables import markdown_table, number
from training.benchmark.targets import EvaluationTarget, ModelTarget, ReconstructionTarget
from training.puppets.world import PuppetClip

LENGTHS = (1, 17, 49)
MEASURE = 1  # version of the metrics
THRESHOLDS = {17: {"intact_faces": 0.95, "outline": 0.90}, 49: {"intact_faces": 0.90, "outline": 0.90}}
"""Required values on 256 mixed scenes, by number of frames."""
MIN_FRECHET_VIDEOS = 16
FIGURES = ("faces", "intact_faces", "outline", "likeness", "sharpness", "flicker", "frechet")

Row = dict[str, Any]


class PictureNetwork(nn.Module):
    """A small convolutional network with fixed random weights, which is not fitted to any images."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0xF1D)
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 5, stride=2, padding=2) for inputs, outputs in ((3, width), (width, 2 * width))
        )
        for parameter in self.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1.0
            parameter.data = torch.randn(parameter.shape, generator=generator) * (2.0 / fan_in) ** 0.5
            parameter.requires_grad_(False)

    def forward(self, frames: np.ndarray) -> np.ndarray:
        """Features [4 * width] of a video uint8 [F, H, W, 3]: spatial mean and deviation, averaged over the frames."""
        x: Tensor = rearrange(torch.from_numpy(frames), "f h w c -> f c h w").float() / 127.5 - 1.0
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return torch.cat([x.mean((2, 3)), x.std((2, 3))], 1).mean(0).double().numpy()


@dataclass(frozen=True)
class PictureEvaluator:
    """Evaluates scenes of one model by index.

    Args:
        targets: one target per number of frames.
        settings: scenes; `num_frames` is ignored.
        videos: saves the videos.
    """

    targets: Mapping[int, EvaluationTarget]
    settings: SceneSettings
    videos: VideoStore | None = None

    @classmethod
    def create(
        cls,
        bundle: ModelBundle | None,
        settings: SceneSettings,
        lengths: Sequence[int] = LENGTHS,
        steps: int | None = None,
        reference: str = "truth",
        codec: bool = False,
        videos: VideoStore | None = None,
    ) -> PictureEvaluator:
        """Create an evaluator for a model (with `codec` for its VAE alone), or for a reference if `bundle` is None."""
        targets: dict[int, EvaluationTarget] = {}
        for frames in lengths:
            sized = replace(settings, num_frames=frames)
            if bundle is None:
                grid = TokenGrid.from_pixels(frames, settings.height, settings.width, space_factor=4)
                targets[frames] = REFERENCE_TARGETS[reference](sized, (), grid)
            else:
                targets[frames] = (
                    ReconstructionTarget(bundle, sized, ()) if codec else ModelTarget(bundle, sized, (), steps)
                )
        return cls(targets, settings, videos)

    def row(self, index: int) -> Row:
        """Results of one scene in all lengths."""
        network = PictureNetwork()
        row: Row = {"seed": self.settings.seed_base + index, "lengths": {}}
        for frames, target in self.targets.items():
            scene = suite_scene(replace(self.settings, num_frames=frames), index)
            scene = replace(scene, first_frame=scene.first_frame and frames > 1)
            generated = target.generate(scene, [scene.clip.matrix])[0].frames
            if self.videos is not None:
                self.videos.save(scene.clip, f"{frames} frames", generated)
            row |= {"characters": len(scene.clip.looks), "motion": scene.clip.motion}
            row["lengths"][str(frames)] = {
                "first_frame": scene.first_frame,
                "thirds": evaluate_video(generated, scene.clip),
                "features": np.round(network(generated), 5).tolist(),
                "features_drawn": np.round(network(scene.clip.frames), 5).tolist(),
            }
        return row


def evaluate_video(frames: np.ndarray, clip: PuppetClip) -> Row:
    """Faces and background flicker of each third of a video uint8 [F, H, W, 3] with the characters of a clip."""
    thirds: Row = {}
    for name, indices in evaluated_frames(len(frames)).items():
        faces: list[Row] = []
        flicker: list[float] = []
        for f in indices:
            fits = fit_frame(frames[f], clip.looks)
            metrics = evaluate_frame(frames[f], clip.looks, clip.portraits, fits, occluded_heads(clip, f))
            faces += [{"character": k, "frame": f, **_face_row(face)} for k, face in enumerate(metrics)]
            change = background_flicker(frames[f - 1], frames[f], fits) if f > 0 else None
            flicker += [] if change is None else [round(change, 4)]
        thirds[name] = {"faces": faces, "flicker": flicker}
    return thirds


def evaluated_frames(count: int) -> dict[str, list[int]]:
    """Frames to evaluate: two of each third, including the last frame of the video; a still is evaluated once."""
    if count == 1:
        return {"first": [0]}
    last = count - 1
    positions = {"first": (1 / last, 0.25), "middle": (0.42, 0.58), "last": (0.8, 1.0)}
    return {name: sorted({round(position * last) for position in pair}) for name, pair in positions.items()}


def _face_row(face: FaceMetrics) -> Row:
    """JSON-serializable values; None is left out."""
    row = {name: value for name, value in asdict(face).items() if value is not None}
    row |= {name: round(value, 4) for name, value in row.items() if isinstance(value, float)}
    return row | ({"eyes": [round(value, 3) for value in face.eyes]} if face.eyes is not None else {})


def picture_report(evaluator: PictureEvaluator, model: str, **options: Unpack[ReportOptions]) -> dict[str, Any]:
    """Evaluate the missing scenes and aggregate all of them; options as of `scene_report`."""
    settings = evaluator.settings
    described = asdict(settings) | next(iter(evaluator.targets.values())).describe()
    described |= {"lengths": list(evaluator.targets), "measure": MEASURE, "list": settings.version}
    del described["num_frames"]

    def summary(rows: list[Row]) -> dict[str, Any]:
        lengths = {str(frames): aggregate(rows, frames) for frames in evaluator.targets} if rows else {}
        return {"suite": "pictures", "model": model, "lengths": lengths}

    return scene_report(evaluator, described, summary, **options)


def aggregate(rows: Sequence[Row], frames: int) -> dict[str, Row]:
    """Figures of one length: all scenes, and by first frame, number of characters and motion."""
    groups: dict[str, list[Row]] = {"all": []}
    for row in rows:
        video = row["lengths"][str(frames)]
        first_frame = f"{'with' if video['first_frame'] else 'without'} first frame"
        for name in ("all", first_frame, f"n = {row['characters']}", row["motion"]):
            groups.setdefault(name, []).append(video)
    order = {name: k for k, name in enumerate(("all", "with first frame", "without first frame"))}
    return {name: _figures(groups[name]) for name in sorted(groups, key=lambda name: (order.get(name, 9), name))}


def _figures(videos: Sequence[Row]) -> Row:
    """Means over videos, also by third of the video; the Fréchet distance needs `MIN_FRECHET_VIDEOS`."""
    parts = {third: [video["thirds"][third] for video in videos] for third in videos[0]["thirds"]}
    figures = {"videos": len(videos), **_means([part for third in parts.values() for part in third]), "frechet": None}
    if len(videos) >= MIN_FRECHET_VIDEOS:
        generated, drawn = (gaussian(np.array([v[key] for v in videos])) for key in ("features", "features_drawn"))
        figures["frechet"] = round(frechet_distance(generated, drawn), 4)
    return figures | {"thirds": {third: _means(part) for third, part in parts.items()}}


def _means(parts: Sequence[Row]) -> Row:
    faces = [face for part in parts for face in part["faces"] if "eyes" in face]
    intact = [min(face["eyes"]) > MIN_EYE_CORRELATION and face["extra"] == 0 for face in faces]
    means = {name: _mean([face[name] for face in faces]) for name in ("outline", "likeness", "sharpness")}
    flicker = _mean([value for part in parts for value in part["flicker"]])
    return {"faces": len(faces), "intact_faces": _mean(intact), **means, "flicker": flicker}


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def picture_table(report: dict[str, Any]) -> str:
    """Format the figures as text with Markdown tables."""
    parts = [f"{report['model']} on {len(report['seeds'])} held-out puppet scenes ({report['settings']['list']})"]
    for frames, groups in report["lengths"].items():
        thirds = groups["all"]["thirds"] if frames != "1" else {}
        rows = []
        for name, figures in {**groups, **{f"{third} third": part for third, part in thirds.items()}}.items():
            rows.append([name, str(figures["faces"]), *(number(figures.get(key), 3) for key in FIGURES[1:])])
        parts.append(markdown_table([f"{frames} frames", *FIGURES], rows))
        if required := THRESHOLDS.get(int(frames)):
            parts.append("required: " + ", ".join(f"{name} {value:g}" for name, value in required.items()))
    return "\n\n".join(parts)
