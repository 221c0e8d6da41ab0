"""Do listeners keep their mouths shut? Opening during silence over opening during speech, on generated puppets.

    python -m training.benchmark.listeners --scenes 12 --seed-base 2000000

Half of the scenes have one speaker and a listener, in the other half people take turns. A model without any such
problem scores about 0; "drawn" is what the same measurement says of the drawn truth, "codec" of the truth after the
model's video codec, below which no transformer behind it can come.
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

from bya_core.checkpoints.bundle import ModelBundle
from bya_core.checkpoints.registry import load_bundle
from bya_core.encoders.activity import LoudnessActivity, Span, speaking_spans
from bya_core.errors import InputError
from bya_core.metrics.binding import listener_opening_ratio
from bya_core.metrics.mouth import mouth_opening
from bya_core.metrics.segment import segment_characters
from bya_core.scene import Speech
from training.benchmark.scenes import HELD_OUT, SceneSettings, SuiteScene, draw
from training.benchmark.subjects import CodecSubject, ModelSubject, Subject, TruthSubject
from training.puppets.looks import MOUTH_RGB
from training.puppets.world import SAMPLE_RATE, PuppetClip

BAR = 0.15
"""Share of the opening in speech that a listener's mouth may show."""


@dataclass(frozen=True)
class Arguments:
    """Measure how far listeners' mouths open.

    Args:
        model: a name from `python -m bya_core models`.
        scenes: how many.
        seed_base: seed of the first; validation from 2,000,000.
        frames: video frames per scene.
        steps: sampling steps; none = the model's.
        guidance_speech: guidance scale on speech; none = the model's.
        json: file for the figures; none = only shown.
    """

    model: str = "tiny"
    scenes: int = 12
    seed_base: int = HELD_OUT
    frames: int = 33
    steps: int | None = None
    guidance_speech: float | None = None
    json: Path | None = None


@dataclass
class Tracks:
    """What was measured, a row per character: opening [F], speaking [F], closed."""

    opening: list[np.ndarray] = field(default_factory=list)
    speaking: list[np.ndarray] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)

    def ratio(self) -> float:
        """See `listener_opening_ratio`, pooled over all rows."""
        return listener_opening_ratio(np.stack(self.opening), np.stack(self.speaking), np.array(self.closed))


def listener_scene(settings: SceneSettings, index: int) -> SuiteScene:
    """Scene number `index`: in even pairs one talks, in odd ones people take turns; every other has a first frame."""
    clip = draw(settings, settings.seed_base + index, "one" if index // 2 % 2 == 0 else "turns")
    return SuiteScene(clip, index % 2 == 0, clip.portraits[:, None])


def at_frames(spans: list[Span], frames: int, fps: float) -> np.ndarray:
    """bool [F]: whether frame k, at time k / fps, lies in a span."""
    time = np.arange(frames) / fps
    return np.any([(start <= time) & (time < end) for start, end in spans], axis=0) | np.zeros(frames, bool)


def add_clip(tracks: Tracks, frames: np.ndarray, clip: PuppetClip, closed: np.ndarray) -> None:
    """Measure the frames [F, H, W, 3] of a scene whose closed mouths measure `closed` [N]."""
    regions = segment_characters(frames, clip.portraits, shared_rgb=MOUTH_RGB)
    tracks.opening.extend(mouth_opening(frames, regions, MOUTH_RGB))
    for wave in clip.speeches:
        spans = speaking_spans(Speech(torch.from_numpy(wave)[None], SAMPLE_RATE), LoudnessActivity())
        tracks.speaking.append(at_frames(spans, len(frames), clip.fps))
    tracks.closed.extend(closed.tolist())


def closed_mouths(settings: SceneSettings, clip: PuppetClip) -> np.ndarray:
    """[N]: what the measurement says of these puppets drawn with closed mouths."""
    shut = draw(settings, clip.seed, "overlap", (np.zeros_like(clip.opening), clip.speeches))
    regions = segment_characters(shut.frames, shut.portraits, shared_rgb=MOUTH_RGB)
    return mouth_opening(shut.frames, regions, MOUTH_RGB).mean(axis=1)


def measure(subject: Subject, settings: SceneSettings) -> float:
    """The ratio of a model, or of the truth, over all scenes."""
    tracks = Tracks()
    for index in range(settings.scenes):
        scene = listener_scene(settings, index)
        made = subject.make(scene, scene.clip.matrix)
        add_clip(tracks, made.frames, scene.clip, closed_mouths(settings, scene.clip))
    return tracks.ratio()


def evaluate(arguments: Arguments, bundle: ModelBundle) -> dict[str, Any]:
    """Ratios of the model, of its codec and of the drawn truth on the same scenes."""
    settings = SceneSettings(
        arguments.scenes,
        arguments.seed_base,
        height=bundle.native.height,
        width=bundle.native.width,
        num_frames=arguments.frames,
    )
    if arguments.guidance_speech is not None:
        bundle = replace(bundle, sampling=replace(bundle.sampling, guidance_speech=arguments.guidance_speech))
    subject = ModelSubject(bundle, settings, (), arguments.steps)
    return {
        "model": measure(subject, settings),
        "codec": measure(CodecSubject(bundle, settings, ()), settings),
        "drawn": measure(TruthSubject(settings, (), subject.grid), settings),
        "bar": BAR,
        "scenes": arguments.scenes,
        "seed_base": arguments.seed_base,
        "frames": arguments.frames,
        "guidance_speech": subject.sampling.guidance_speech,
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
