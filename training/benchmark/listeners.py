"""Do listeners keep their mouths shut? Opening during silence over opening during speech, on generated puppets.

    python -m training.benchmark.listeners --scenes 12 --seed-base 2000000

Half of the scenes have one speaker and a listener, in the other half people take turns. "drawn" is what the same
measurement says of the drawn truth, "codec" of the truth after the model's video codec. Mouths are found by colour:
characters are left out whose drawn, closed mouth already measures more than `DARK`, mostly for their dark hair.
"""

from __future__ import annotations

import json as jsonlib
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from bya_core.encoders.vad import LoudnessActivity, Span, speaking_spans
from bya_core.errors import InputError
from bya_core.evaluation.binding import listener_opening_ratio
from bya_core.scene.types import Speech
from bya_core.toy.mouth import mouth_opening
from bya_core.toy.segmentation import segment_characters
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.loader import load_bundle
from training.benchmark.scenes import HELD_OUT, SceneSettings, SuiteScene, draw
from training.benchmark.subjects import CodecSubject, ModelSubject, Subject, TruthSubject
from training.puppets.looks import MOUTH_RGB
from training.puppets.world import SAMPLE_RATE, PuppetClip

BAR = 0.15
"""Share of the opening in speech that a listener's mouth may show."""
DARK = 0.004
"""What a closed mouth may measure (share of the character's pixels); a speaking one measures about 0.01."""


@dataclass(frozen=True)
class Arguments:
    """Measure how far listeners' mouths open.

    Args:
        model: a name from `python -m bya_core models`.
        scenes: how many.
        seed_base: seed of the first; validation from 2,000,000.
        frames: video frames per scene.
        steps: sampling steps; none = the model's.
        audio_guidance_scale: guidance scale on speech; none = the model's.
        json: file for the figures; none = only shown.
    """

    model: str = "toy"
    scenes: int = 12
    seed_base: int = HELD_OUT
    frames: int = 17
    steps: int | None = None
    audio_guidance_scale: float | None = None
    json: Path | None = None


@dataclass
class Tracks:
    """What was measured, a row per judged character: opening [F] and speaking [F]."""

    opening: list[np.ndarray] = field(default_factory=list)
    speaking: list[np.ndarray] = field(default_factory=list)

    def ratio(self) -> float:
        """See `listener_opening_ratio`, pooled over all rows; NaN where there are none."""
        if not self.opening:
            return float("nan")
        return listener_opening_ratio(np.stack(self.opening), np.stack(self.speaking))


def listener_scene(settings: SceneSettings, index: int) -> SuiteScene:
    """Scene number `index`: in even pairs one talks, in odd ones people take turns; every other has a first frame."""
    clip = draw(settings, settings.seed_base + index, "one" if index // 2 % 2 == 0 else "turns")
    return SuiteScene(clip, index % 2 == 0, clip.portraits[:, None])


def at_frames(spans: list[Span], frames: int, fps: float) -> np.ndarray:
    """bool [F]: whether frame k, at time k / fps, lies in a span."""
    time = np.arange(frames) / fps
    return np.any([(start <= time) & (time < end) for start, end in spans], axis=0) | np.zeros(frames, bool)


def openings(frames: np.ndarray, clip: PuppetClip) -> np.ndarray:
    """Mouth opening [N, F] of the characters of a scene in its frames [F, H, W, 3]."""
    return mouth_opening(frames, segment_characters(frames, clip.portraits, shared_rgb=MOUTH_RGB), MOUTH_RGB)


def judged(settings: SceneSettings, clip: PuppetClip) -> np.ndarray:
    """bool [N]: who measures nearly nothing when drawn with a closed mouth."""
    shut = draw(settings, clip.seed, "overlap", (np.zeros_like(clip.opening), clip.speeches))
    return openings(shut.frames, shut).mean(axis=1) <= DARK


def add_clip(tracks: Tracks, frames: np.ndarray, clip: PuppetClip, chosen: np.ndarray) -> None:
    """Measure the `chosen` characters of a scene in its frames [F, H, W, 3]."""
    opening = openings(frames, clip)
    for n in np.flatnonzero(chosen):
        speech = Speech(torch.from_numpy(clip.speeches[n])[None], SAMPLE_RATE)
        spans = speaking_spans(speech, LoudnessActivity())
        tracks.opening.append(opening[n])
        tracks.speaking.append(at_frames(spans, len(frames), clip.fps))


def measure(subject: Subject, settings: SceneSettings) -> Tracks:
    """The tracks of a model, or of the truth, over all scenes."""
    tracks = Tracks()
    for index in range(settings.scenes):
        scene = listener_scene(settings, index)
        made = subject.make(scene, scene.clip.matrix)
        add_clip(tracks, made.frames, scene.clip, judged(settings, scene.clip))
    return tracks


def evaluate(arguments: Arguments, bundle: ModelBundle) -> dict[str, Any]:
    """Ratios of the model, of its codec and of the drawn truth on the same scenes."""
    settings = SceneSettings(
        arguments.scenes,
        arguments.seed_base,
        height=bundle.native.height,
        width=bundle.native.width,
        num_frames=arguments.frames,
    )
    if arguments.audio_guidance_scale is not None:
        bundle = replace(bundle, sampling=replace(bundle.sampling, audio_guidance_scale=arguments.audio_guidance_scale))
    subject = ModelSubject(bundle, settings, (), arguments.steps)
    tracks = measure(subject, settings)
    return {
        "model": tracks.ratio(),
        "codec": measure(CodecSubject(bundle, settings, ()), settings).ratio(),
        "drawn": measure(TruthSubject(settings, (), subject.grid), settings).ratio(),
        "judged": len(tracks.opening),
        "bar": BAR,
        "scenes": arguments.scenes,
        "seed_base": arguments.seed_base,
        "frames": arguments.frames,
        "audio_guidance_scale": subject.sampling.audio_guidance_scale,
        "steps": subject.sampling.steps,
    }


def main(arguments: Arguments) -> None:
    """Measure and show."""
    report = evaluate(arguments, load_bundle(arguments.model))
    print("  ".join(f"{name} {value:.3g}" for name, value in report.items()))
    if arguments.json is not None:
        arguments.json.write_text(jsonlib.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
