"""Dub suite: new voices for people in drawn films, found and generated as by `bya dub`.

In each film everybody talks; the first character gets the speech of another film, the others keep their voices. All
figures are measured from the pixels of the dubbed film, inside the drawn masks of its characters:

- bound: the mouth correlates most with the new voice, among the new and all old voices, in the frames in which the
  character is not hidden;
- identity: its colors are closest to its own portrait among K;
- outside: largest difference to the film outside of the generated region, in 0..255;
- kept: mean squared difference to the film inside the masks of the others, and that of the VAE alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import torch

from bya_core.config import DubConfig
from bya_core.evaluation import binding as bindings
from bya_core.io.color import color_descriptor, histogram_similarity
from bya_core.io.loudness import loudness_track
from bya_core.pipelines.dub.dub import dub_film
from bya_core.pipelines.dub.film import film_of
from bya_core.scene.types import Scene, Speech
from bya_core.toy.mouth import in_view, mouth_opening
from bya_core.toy.segmentation import foreground
from bya_core.weights.bundle import ModelBundle
from training.benchmark.gallery import VideoStore
from training.benchmark.puppet_report import ReportOptions, scene_report
from training.benchmark.scenes import SceneSettings, SuiteScene, draw, with_references
from training.benchmark.tables import markdown_table, number
from training.benchmark.targets import ModelTarget, ReconstructionTarget
from training.puppets.looks import MOUTH_RGB
from training.puppets.world import SAMPLE_RATE, make_clip

REQUIRED = {"bound": 0.9, "identity": 0.95, "outside": 0.0}
OTHER = 500_000  # added to the seed of a film for the film whose speech is the new voice
MAX_CHARACTERS = 3

Row = dict[str, Any]


@dataclass(frozen=True)
class DubEvaluator:
    """Evaluates a film by its index; with "mixed" characters, films have one to three in turn."""

    bundle: ModelBundle
    settings: SceneSettings
    config: DubConfig = DubConfig()
    steps: int | None = None
    videos: VideoStore | None = None

    @cached_property
    def target(self) -> ModelTarget:
        return ModelTarget(self.bundle, self.settings, (), self.steps)

    @cached_property
    def codec(self) -> ReconstructionTarget:
        return ReconstructionTarget(self.bundle, self.settings, ())

    def scene(self, index: int) -> tuple[Scene, SuiteScene, np.ndarray]:
        """The scene with the new voice of its first character, the film, and the new voice [S]."""
        settings, seed = self.settings, self.settings.seed_base + index
        count = 1 + index % MAX_CHARACTERS if settings.characters == "mixed" else settings.characters
        film = with_references(settings, draw(settings, seed, "overlap", num_characters=count), first_frame=False)
        other = make_clip(seed + OTHER, count, num_frames=settings.num_frames, talk="overlap", draw_video=False)
        voice = other.speeches[0]
        speeches = [Speech(torch.from_numpy(voice)[None], SAMPLE_RATE), *[None] * (count - 1)]
        scene = self.target.scene(film, film.clip.matrix, first_frame=False)
        return _with_speeches(scene, speeches), film, voice

    def row(self, index: int) -> Row:
        """Figures of one film."""
        scene, film, voice = self.scene(index)
        clip = film.clip
        sound = torch.from_numpy(clip.mix)[None], SAMPLE_RATE
        source = film_of(torch.from_numpy(clip.frames), float(clip.fps), sound)
        made = dub_film(source, scene, self.bundle, self.config).load()
        frames, weights = made.frames.numpy(), made.weights.numpy()
        if self.videos is not None:
            self.videos.save(clip, "film", clip.frames)
            self.videos.save(clip, "dubbed", frames)
        own = clip.masks[:1]
        streams = [loudness_track(each, SAMPLE_RATE, len(frames), clip.fps) for each in (voice, *clip.speeches)]
        binding = bindings.bind(
            mouth_opening(frames, own, MOUTH_RGB), np.stack(streams), np.array([0]), visible=in_view(own)
        )
        known = np.stack([color_descriptor(each, foreground(each)) for each in film.references[0]])
        likeness = histogram_similarity(color_descriptor(frames, own[0]), known)
        (coded,) = self.codec.generate(film, [clip.matrix])
        others = np.asarray(clip.masks[1:].any(axis=0))
        changed = np.abs(frames.astype(int) - clip.frames)
        return {
            "seed": clip.seed,
            "characters": len(clip.portraits),
            "motion": clip.motion,
            "judged": bool(binding.judged[0]),
            "bound": bool(binding.correct[0]),
            "correlation": np.round(binding.correlation[0], 3).tolist(),
            "identity": bool(likeness[0] > likeness[1:].max()),
            "likeness": round(float(likeness[0]), 4),
            "outside": int(changed[weights == 0].max()),
            "region": round(float((weights > 0).mean()), 4),
            "kept": _mean_square(frames, clip.frames, others),
            "kept by the codec": _mean_square(coded.frames, clip.frames, others),
        }


def _with_speeches(scene: Scene, speeches: Sequence[Speech | None]) -> Scene:
    return replace(scene, speeches=tuple(speeches), audio_character_matrix=None, reference_video=None)


def _mean_square(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float | None:
    """Mean squared difference of pixels in 0..255; None without any."""
    if not where.any():
        return None
    return round(float(np.square(one[where].astype(float) - other[where]).mean()), 4)


def dub_report(evaluator: DubEvaluator, **options: Unpack[ReportOptions]) -> dict[str, Any]:
    """Evaluate the missing films and aggregate all of them; options as of `scene_report`."""
    described = {**asdict(evaluator.settings), **evaluator.target.describe(), "dub": asdict(evaluator.config)}

    def summary(rows: list[Row]) -> dict[str, Any]:
        groups = {
            str(count): aggregate([row for row in rows if row["characters"] == count])
            for count in sorted({row["characters"] for row in rows})
        }
        return {"suite": "dub", "all": aggregate(rows), "by characters": groups, "required": REQUIRED}

    return scene_report(evaluator, described, summary, **options)


def aggregate(rows: Sequence[Row]) -> Row:
    """Figures over rows of `DubEvaluator.row`."""
    judged = [row for row in rows if row["judged"]]
    kept = [row for row in rows if row["kept"] is not None]
    return {
        "films": len(rows),
        "bound": _mean([row["bound"] for row in judged]),
        "own voice": _mean([row["correlation"][0] for row in judged]),
        "best other voice": _mean([max(row["correlation"][1:]) for row in judged]),
        "identity": _mean([row["identity"] for row in rows]),
        "outside": max(row["outside"] for row in rows),
        "kept": _mean([row["kept"] <= row["kept by the codec"] for row in kept]),
        "kept exactly": _mean([row["kept"] == 0 for row in kept]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def dub_table(report: dict[str, Any]) -> str:
    """Format the figures as text with a Markdown table."""
    keys = ("bound", "own voice", "best other voice", "identity", "outside", "kept", "kept exactly")
    columns = {
        **{f"{count} character{'' if count == '1' else 's'}": each for count, each in report["by characters"].items()},
        "all": report["all"],
    }
    rows = [
        [name, str(each["films"]), *("-" if each[key] is None else number(each[key], 3) for key in keys)]
        for name, each in columns.items()
    ]
    head = [
        "", "films", "new voice bound", "own voice, correlation", "best other voice", "identity",
        "difference outside", "others kept as by the codec", "others identical",
    ]  # fmt: skip
    required = ", ".join(f"{name} {value:g}" for name, value in report["required"].items())
    return "\n".join([markdown_table(head, rows), "", f"required: {required}, others kept in all films"])
