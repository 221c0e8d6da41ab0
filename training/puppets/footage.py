"""Synthetic puppet videos with ground truth, used to test and demonstrate curation.

python -m training.puppets.footage FOLDER      # writes videos/*.mp4 and truth/*.npz

A shot specifies positions and speakers; the ground truth holds masks, speeches and the frames that should be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from bya_core.io.atomic import atomic_write
from bya_core.io.media import write_video
from training.command_line import OUTPUT, run_command
from training.puppets.conversation import conversation
from training.puppets.draw import Canvas, Pose, draw_puppet
from training.puppets.looks import Look, draw_look, rgb
from training.puppets.voice import random_voice, synthesize, voice_for

FPS, SAMPLE_RATE = 25, 16_000
_CHUNK = 25  # frames drawn at once
_VISIBLE_MARGIN = 0.9  # minimum distance of a visible head from the frame border in head radii


@dataclass(frozen=True)
class Shot:
    """One shot of a video.

    Args:
        seed: seed of appearance, motion and words.
        places: horizontal head positions as fractions of the width.
        seconds: duration.
        radius: head radius as a fraction of the height.
        talk: who speaks when.
        music: amplitude of background music; 0 = none.
        dubbed: replace the audio by other speech, so that no lips match it.
        enters: time in seconds at which each character enters from the nearer side; 0 = present from the start.
        keep: whether curation for two characters should keep the frames in which all of them are visible.
    """

    seed: int
    places: tuple[float, ...]
    seconds: float
    radius: float = 0.22
    talk: Literal["turns", "overlap", "one", "silent"] = "overlap"
    music: float = 0.0
    dubbed: bool = False
    enters: tuple[float, ...] = ()
    keep: bool = True

    @property
    def num_frames(self) -> int:
        return round(self.seconds * FPS)


@dataclass(frozen=True, eq=False)
class Truth:
    """Ground truth of a video with F frames.

    Args:
        masks: bool [4,F,H,W].
        speeches: float32 [4,S].
        mix: audio of the video, float32 [S].
        shot: index of the shot, int [F].
        keep: whether curation for two characters should keep the frame, bool [F].
        visible: bool [4,F].
    """

    masks: np.ndarray
    speeches: np.ndarray
    mix: np.ndarray
    shot: np.ndarray
    keep: np.ndarray
    visible: np.ndarray

    def save(self, path: Path) -> None:
        """Save as npz."""
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, **vars(self))


def draw_video(shots: Sequence[Shot], path: Path, height: int = 192, width: int = 288, audio: bool = True) -> Truth:
    """Draw consecutive shots into an mp4 and return its ground truth."""
    parts = [_DrawnShot(shot, height, width) for shot in shots]
    mix = np.concatenate([part.mix for part in parts])
    masks: list[np.ndarray] = []

    def frames() -> Iterator[np.ndarray]:
        for part in parts:
            for pixels, mask in part.chunks():
                masks.append(mask)
                yield from pixels

    write_video(path, frames(), FPS, (torch.from_numpy(mix[None]), SAMPLE_RATE) if audio else None)
    return Truth(
        masks=np.concatenate(masks, axis=1),
        speeches=np.concatenate([part.speeches for part in parts], axis=1),
        mix=mix,
        shot=np.concatenate([np.full(part.shot.num_frames, n) for n, part in enumerate(parts)]),
        keep=np.concatenate([part.keep for part in parts]),
        visible=np.concatenate([part.visible for part in parts], axis=1),
    )


class _DrawnShot:
    """One shot: audio at once, frames in chunks."""

    def __init__(self, shot: Shot, height: int, width: int) -> None:
        self.shot, self.height, self.width = shot, height, width
        rng = np.random.default_rng([shot.seed, 0xC0DE])
        looks: tuple[Look, ...] = ()
        for _ in shot.places:
            looks += (draw_look(rng, distinct_from=looks),)
        self.looks, self.light = looks, float(rng.uniform(-1, 1))
        self.wall = rgb(0.618 * shot.seed, 0.5, (0.4, 0.85)[shot.seed % 2])  # consecutive shots differ
        samples, seconds = shot.num_frames * SAMPLE_RATE // FPS, shot.num_frames / FPS
        spans = conversation(len(looks), seconds, rng, mode=shot.talk)
        voices = [voice_for(look.voice_traits) for look in looks]
        spoken = [synthesize(v, spans[k], seconds, rng=rng, num_frames=shot.num_frames) for k, v in enumerate(voices)]
        audible = spoken
        if shot.dubbed:
            other = conversation(len(looks), seconds, rng, mode="overlap")
            audible = [synthesize(random_voice(rng), spans, seconds, rng=rng) for spans in other]
        self.speeches = np.zeros((4, samples), np.float32)
        for k, voice in enumerate(audible):
            self.speeches[k] = voice.waveform[:samples]
        time = np.arange(samples) / SAMPLE_RATE
        chord = sum(np.sin(2 * np.pi * f * time + rng.uniform(0, 6)) for f in (196.0, 246.9, 293.7)) / 3
        self.mix = (self.speeches.sum(axis=0) + shot.music * chord).astype(np.float32)
        self.poses = [self._pose(rng, k, s.opening, s.shape) for k, s in enumerate(spoken)]
        self.visible = np.zeros((4, shot.num_frames), bool)
        for k, pose in enumerate(self.poses):
            self.visible[k] = np.minimum(pose.x, width - pose.x) > _VISIBLE_MARGIN * pose.radius
        self.keep = (self.visible.sum(axis=0) == 2) & shot.keep

    def _pose(self, rng: np.random.Generator, k: int, opening: np.ndarray, shape: np.ndarray) -> Pose:
        """Motion of one character: a slow sway around its position, and its entrance."""
        shot, frames = self.shot, self.shot.num_frames
        time = np.arange(frames, dtype=np.float32) / FPS
        radius = shot.radius * self.height
        sway = [np.sin(2 * np.pi * (rng.uniform(0.2, 0.5) * time + rng.random())) for _ in range(3)]
        x = shot.places[k] * self.width + 0.10 * radius * sway[0]
        if shot.enters and shot.enters[k] > 0:
            outside = -1.6 * radius if shot.places[k] < 0.5 else self.width + 1.6 * radius
            progress = np.clip((time - shot.enters[k]) / 0.6, 0, 1)
            x = outside + (x - outside) * progress
        moments = rng.uniform(0.3, max(0.31, shot.seconds - 0.3), 1 + int(shot.seconds / 3))
        blinks = np.exp(-(((time[:, None] - moments) / 0.06) ** 2)).max(axis=1)
        tracks = {
            "x": x, "y": 0.47 * self.height + 0.06 * radius * sway[1], "radius": np.full(frames, radius),
            "tilt": 0.06 * sway[2], "blink": blinks, "gaze": 0.5 * sway[1], "opening": opening, "shape": shape,
        }  # fmt: skip
        return Pose(**{name: np.asarray(track, np.float32) for name, track in tracks.items()})

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield frames uint8 [f,H,W,3] and masks bool [4,f,H,W] of one second after the other."""
        shade = np.linspace(1.0, 0.75, self.height, dtype=np.float32)[:, None, None]
        wall = np.broadcast_to(self.wall * shade, (self.height, self.width, 3))
        for start in range(0, self.shot.num_frames, _CHUNK):
            part = slice(start, min(start + _CHUNK, self.shot.num_frames))
            count = part.stop - part.start
            canvas = Canvas(np.repeat(wall[None], count, axis=0), len(self.looks))
            for k, (look, pose) in enumerate(zip(self.looks, self.poses, strict=True)):
                piece = Pose(**{name: track[part] for name, track in vars(pose).items()})
                draw_puppet(canvas, k, look, piece, self.light)
            masks = np.pad(canvas.coverage > 0.5, ((0, 4 - len(self.looks)), (0, 0), (0, 0), (0, 0)))
            yield (canvas.pixels * 255 + 0.5).astype(np.uint8, order="C"), masks


def demo_shots(seed: int = 3_000_000, seconds: float = 4.0) -> list[Shot]:
    """Shots of every kind: valid, with too few or too many people, too far apart, dubbed, silent, with music."""
    two, s = (0.28, 0.72), seconds
    return [
        Shot(seed, two, s),
        Shot(seed + 1, (0.5,), s, keep=False),
        Shot(seed + 2, two, s, talk="turns", music=0.03),
        Shot(seed + 3, (0.18, 0.5, 0.82), s, radius=0.18, keep=False),
        Shot(seed + 4, two, s, dubbed=True, keep=False),
        Shot(seed + 5, (0.3, 0.68), s, talk="one"),
        Shot(seed + 6, (0.11, 0.89), s, radius=0.13, keep=False),
        Shot(seed + 7, two, s, music=0.05),
        Shot(seed + 8, (0.14, 0.38, 0.62, 0.86), s, radius=0.15, keep=False),
        Shot(seed + 9, (0.25, 0.7), 1.5 * s, enters=(0.0, 0.4 * s)),
        Shot(seed + 10, two, s, talk="silent", keep=False),
        Shot(seed + 11, two, s, talk="overlap"),
    ]


@dataclass(frozen=True)
class Arguments:
    """Write three videos and their ground truth.

    Args:
        folder: Output folder.
    """

    folder: tyro.conf.Positional[Annotated[Path, OUTPUT]]


def main(arguments: Arguments) -> None:
    """Write three videos and their ground truth."""
    folder = arguments.folder
    for name in ("videos", "truth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(3):
        truth = draw_video(demo_shots(3_000_000 + 100 * number), folder / "videos" / f"video_{number}.mp4")
        truth.save(folder / "truth" / f"video_{number}.npz")


if __name__ == "__main__":
    run_command(main, Arguments)
