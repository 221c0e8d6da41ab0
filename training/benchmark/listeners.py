"""Mouth opening of listeners: opening during silence relative to opening during speech, on generated puppet scenes.

    python -m training.benchmark.listeners --scenes 12 --seed-base 2000000

Half of the scenes have one speaker and listeners; in the other half the characters take turns. "drawn" is the same
metric for the ground truth, "codec" for the ground truth reconstructed by the VAE. Mouths are found by color;
characters whose closed mouth measures more than `MAX_CLOSED_OPENING` (mostly because of dark hair) are excluded.
"""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bya_core.encoders.vad import LoudnessActivity, Span, speaking_spans
from bya_core.evaluation.binding import listener_opening_ratio
from bya_core.io.atomic import atomic_write
from bya_core.scene.types import Speech
from bya_core.toy.mouth import mouth_opening
from bya_core.toy.segmentation import segment_characters
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.loader import load_bundle
from training.benchmark.scenes import HELD_OUT, SceneSettings, SuiteScene, draw
from training.benchmark.targets import EvaluationTarget, GroundTruthTarget, ModelTarget, ReconstructionTarget
from training.command_line import OptionalOutput, run_command
from training.puppets.looks import MOUTH_RGB
from training.puppets.world import SAMPLE_RATE, PuppetClip

THRESHOLD = 0.15
"""Maximum opening of a listener's mouth relative to speech."""
MAX_CLOSED_OPENING = 0.004
"""Maximum measured opening of a closed mouth as a fraction of the character's pixels; a speaking one has about 0.01."""


@dataclass(frozen=True)
class ListenerOptions:
    """Measure the mouth opening of listeners.

    Args:
        model: Name of a model, see `bya models`.
        scenes: Number of scenes.
        seed_base: Seed of the first scene; validation seeds start at 2,000,000.
        frames: Video frames per scene.
        steps: Number of sampling steps; none = default of the model.
        audio_guidance_scale: Guidance scale of the audio condition; none = default of the model.
        output: JSON file for the figures.
    """

    model: str = "toy"
    scenes: int = 12
    seed_base: int = HELD_OUT
    frames: int = 17
    steps: int | None = None
    audio_guidance_scale: float | None = None
    output: OptionalOutput = None


def listener_scene(settings: SceneSettings, index: int) -> SuiteScene:
    """Draw a scene: alternating pairs with one speaker and with turn-taking; even scenes have a first frame."""
    clip = draw(settings, settings.seed_base + index, "one" if index // 2 % 2 == 0 else "turns")
    return SuiteScene(clip, index % 2 == 0, clip.portraits[:, None])


def spans_to_frames(spans: list[Span], frames: int, fps: float) -> np.ndarray:
    """Whether each frame k, at time k / fps, is inside a span: bool [F]."""
    time = np.arange(frames) / fps
    return np.any([(start <= time) & (time < end) for start, end in spans], axis=0) | np.zeros(frames, bool)


def mouth_openings(frames: np.ndarray, clip: PuppetClip) -> np.ndarray:
    """Mouth opening [N, F] of the characters of a scene in frames [F, H, W, 3]."""
    return mouth_opening(frames, segment_characters(frames, clip.portraits, shared_rgb=MOUTH_RGB), MOUTH_RGB)


def measurable_characters(settings: SceneSettings, clip: PuppetClip) -> np.ndarray:
    """Characters whose closed mouth measures almost nothing: bool [N]."""
    closed = draw(settings, clip.seed, "overlap", (np.zeros_like(clip.opening), clip.speeches))
    return mouth_openings(closed.frames, closed).mean(axis=1) <= MAX_CLOSED_OPENING


def measure(target: EvaluationTarget, settings: SceneSettings) -> tuple[float, int]:
    """Return `listener_opening_ratio` over all measurable characters (NaN without any), and their number."""
    opening, speaking = [], []
    for index in range(settings.scenes):
        scene = listener_scene(settings, index)
        clip, (video,) = scene.clip, target.generate(scene, [scene.clip.matrix])
        openings = mouth_openings(video.frames, clip)
        for n in np.flatnonzero(measurable_characters(settings, clip)):
            speech = Speech(torch.from_numpy(clip.speeches[n])[None], SAMPLE_RATE)
            opening.append(openings[n])
            speaking.append(spans_to_frames(speaking_spans(speech, LoudnessActivity()), len(video.frames), clip.fps))
    if not opening:
        return float("nan"), 0
    return listener_opening_ratio(np.stack(opening), np.stack(speaking)), len(opening)


def evaluate(options: ListenerOptions, bundle: ModelBundle) -> dict[str, Any]:
    """Ratios of the model, of the VAE reconstruction and of the ground truth on the same scenes."""
    native = bundle.native
    settings = SceneSettings(
        options.scenes, options.seed_base, height=native.height, width=native.width, num_frames=options.frames
    )
    if options.audio_guidance_scale is not None:
        bundle = replace(bundle, sampling=replace(bundle.sampling, audio_guidance_scale=options.audio_guidance_scale))
    target = ModelTarget(bundle, settings, (), options.steps)
    ratio, count = measure(target, settings)
    return {
        "model": ratio,
        "codec": measure(ReconstructionTarget(bundle, settings, ()), settings)[0],
        "drawn": measure(GroundTruthTarget(settings, (), target.grid), settings)[0],
        "judged": count,
        "bar": THRESHOLD,
        "scenes": options.scenes,
        "seed_base": options.seed_base,
        "frames": options.frames,
        "audio_guidance_scale": target.sampling.audio_guidance_scale,
        "steps": target.sampling.steps,
    }


def main(options: ListenerOptions) -> None:
    report = evaluate(options, load_bundle(options.model))
    print("  ".join(f"{name} {value:.3g}" for name, value in report.items()))
    if options.output is not None:
        with atomic_write(options.output) as temporary:
            temporary.write_text(jsonlib.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main, ListenerOptions)
