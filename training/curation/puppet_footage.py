"""Films of drawn puppets with everything known: what curation is tested with, and what it can be tried on.

python -m training.curation.puppet_footage FOLDER      # films/*.mp4 and truth/*.npz, one film a kind of trouble

Each shot says who is where and who speaks; the truth holds masks, voices and which frames ought to be kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bya_core.io.media import write_video
from training.curation.record import FPS
from training.puppets.draw import Canvas, Pose, draw_puppet
from training.puppets.looks import Look, draw_look, rgb
from training.puppets.voice import conversation, random_voice, speak, voice_for

RATE = 16_000
_PIECE = 25  # frames drawn at once
_EDGE = 0.9  # head radii: a head whose middle is that far inside the picture is seen


@dataclass(frozen=True)
class Shot:
    """One shot of a film.

    Args:
        seed: of looks, motion and words.
        places: where heads stand, in shares of the width.
        seconds: length.
        radius: of heads, in shares of the height.
        talk: who speaks when.
        music: loudness of a chord under the voices, 0 = none.
        dubbed: what is heard was spoken by others (no lip follows it).
        enters: second at which each character begins to come in from the nearer side; 0 = there from the start.
        keep: whether a curation for two characters ought to keep the frames in which all of them are seen.
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
    def frames(self) -> int:
        """F."""
        return round(self.seconds * FPS)


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of a film with F frames: masks bool [4,F,H,W], voices float32 [4,S], sound of the film [S],
    shot and wanted (whether a curation for two ought to keep it), int and bool [F], seen bool [4,F]."""

    masks: np.ndarray
    voices: np.ndarray
    mix: np.ndarray
    shot: np.ndarray
    wanted: np.ndarray
    seen: np.ndarray

    def save(self, path: Path) -> None:
        """As npz, masks packed."""
        packed = {"masks": np.packbits(self.masks, axis=-1), "width": self.masks.shape[-1]}
        np.savez_compressed(path, **{**vars(self), **packed})

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Back again."""
        with np.load(path, allow_pickle=False) as file:
            parts = dict(file)
        masks = np.unpackbits(parts.pop("masks"), axis=-1, count=int(parts.pop("width"))).astype(bool)
        return cls(masks=masks, **parts)


def make_film(shots: Sequence[Shot], path: Path, height: int = 192, width: int = 288, audio: bool = True) -> Truth:
    """Draw the shots one after the other into an mp4."""
    parts = [_Drawn(shot, height, width) for shot in shots]
    mix = np.concatenate([part.mix for part in parts])
    masks: list[np.ndarray] = []

    def frames() -> Iterator[np.ndarray]:
        for part in parts:
            for pixels, mask in part.pieces():
                masks.append(mask)
                yield from pixels

    write_video(path, frames(), FPS, (torch.from_numpy(mix[None]), RATE) if audio else None)
    return Truth(
        masks=np.concatenate(masks, axis=1),
        voices=np.concatenate([part.voices for part in parts], axis=1),
        mix=mix,
        shot=np.concatenate([np.full(part.shot.frames, n) for n, part in enumerate(parts)]),
        wanted=np.concatenate([part.wanted for part in parts]),
        seen=np.concatenate([part.seen for part in parts], axis=1),
    )


class _Drawn:
    """One shot: sound at once, pictures piece by piece."""

    def __init__(self, shot: Shot, height: int, width: int) -> None:
        self.shot, self.height, self.width = shot, height, width
        rng = np.random.default_rng([shot.seed, 0xC0DE])
        looks: tuple[Look, ...] = ()
        for _ in shot.places:
            looks += (draw_look(rng, apart_from=looks),)
        self.looks, self.light = looks, float(rng.uniform(-1, 1))
        self.wall = rgb(0.618 * shot.seed, 0.5, (0.4, 0.85)[shot.seed % 2])  # neighbours differ as real shots do
        samples, seconds = shot.frames * RATE // FPS, shot.frames / FPS
        spans = conversation(len(looks), seconds, rng, mode=shot.talk)
        voices = [voice_for(look.voice_traits) for look in looks]
        spoken = [speak(v, spans[k], seconds, rng=rng, num_frames=shot.frames) for k, v in enumerate(voices)]
        heard = spoken
        if shot.dubbed:
            other = conversation(len(looks), seconds, rng, mode="overlap")
            heard = [speak(random_voice(rng), spans, seconds, rng=rng) for spans in other]
        self.voices = np.zeros((4, samples), np.float32)
        for k, voice in enumerate(heard):
            self.voices[k] = voice.waveform[:samples]
        time = np.arange(samples) / RATE
        chord = sum(np.sin(2 * np.pi * f * time + rng.uniform(0, 6)) for f in (196.0, 246.9, 293.7)) / 3
        self.mix = (self.voices.sum(axis=0) + shot.music * chord).astype(np.float32)
        self.poses = [self._pose(rng, k, s.opening, s.shape) for k, s in enumerate(spoken)]
        self.seen = np.zeros((4, shot.frames), bool)
        for k, pose in enumerate(self.poses):
            inside = np.minimum(pose.x, width - pose.x) > _EDGE * pose.radius
            self.seen[k] = inside
        count = self.seen.sum(axis=0)
        self.wanted = (count == 2) & shot.keep

    def _pose(self, rng: np.random.Generator, k: int, opening: np.ndarray, shape: np.ndarray) -> Pose:
        """Where one character is: a slow sway around its place, and the way in."""
        shot, frames = self.shot, self.shot.frames
        time = np.arange(frames, dtype=np.float32) / FPS
        radius = shot.radius * self.height
        sway = [np.sin(2 * np.pi * (rng.uniform(0.2, 0.5) * time + rng.random())) for _ in range(3)]
        x = shot.places[k] * self.width + 0.10 * radius * sway[0]
        if shot.enters and shot.enters[k] > 0:
            outside = -1.6 * radius if shot.places[k] < 0.5 else self.width + 1.6 * radius
            way = np.clip((time - shot.enters[k]) / 0.6, 0, 1)
            x = outside + (x - outside) * way
        moments = rng.uniform(0.3, max(0.31, shot.seconds - 0.3), 1 + int(shot.seconds / 3))
        blinks = np.exp(-(((time[:, None] - moments) / 0.06) ** 2)).max(axis=1)
        tracks = {
            "x": x, "y": 0.47 * self.height + 0.06 * radius * sway[1], "radius": np.full(frames, radius),
            "tilt": 0.06 * sway[2], "blink": blinks, "gaze": 0.5 * sway[1], "opening": opening, "shape": shape,
        }  # fmt: skip
        return Pose(**{name: np.asarray(track, np.float32) for name, track in tracks.items()})

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(uint8 [f,H,W,3], bool [4,f,H,W]) for a second after the other."""
        shade = np.linspace(1.0, 0.75, self.height, dtype=np.float32)[:, None, None]
        wall = np.broadcast_to(self.wall * shade, (self.height, self.width, 3))
        for start in range(0, self.shot.frames, _PIECE):
            part = slice(start, min(start + _PIECE, self.shot.frames))
            count = part.stop - part.start
            canvas = Canvas(np.repeat(wall[None], count, axis=0), len(self.looks))
            for k, (look, pose) in enumerate(zip(self.looks, self.poses, strict=True)):
                piece = Pose(**{name: track[part] for name, track in vars(pose).items()})
                draw_puppet(canvas, k, look, piece, self.light)
            masks = np.pad(canvas.coverage > 0.5, ((0, 4 - len(self.looks)), (0, 0), (0, 0), (0, 0)))
            yield (canvas.pixels * 255 + 0.5).astype(np.uint8, order="C"), masks


def demo_film(seed: int = 3_000_000, seconds: float = 4.0) -> list[Shot]:
    """One shot of every kind: good ones, too few and too many people, too far apart, dubbed, silent, with music."""
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


def main(folder: Path) -> None:
    """Three films and their truth."""
    for name in ("films", "truth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(3):
        truth = make_film(demo_film(3_000_000 + 100 * number), folder / "films" / f"film_{number}.mp4")
        truth.save(folder / "truth" / f"film_{number}.npz")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
