"""Puppet scenes from a seed, with ground-truth masks, mouths, speech and prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.puppets.conversation import conversation
from training.puppets.draw import Canvas, Pose, blend, draw_puppet
from training.puppets.looks import Look, add_article, color_name, draw_look, rgb
from training.puppets.voice import SAMPLE_RATE as SAMPLE_RATE
from training.puppets.voice import synthesize, voice_for

Motion = Literal["still", "moving", "crossing", "mixed"]
Talk = Literal["turns", "overlap", "one", "mixed"]
MAX_UNDESCRIBED_DRIFT = 0.02
"""Slower common drift, in frame widths per second, is not described in the prompt."""
POSITIONS = {1: ("in the middle",), 2: ("on the left", "on the right")}


@dataclass(frozen=True)
class PuppetClip:
    """A scene and its ground truth.

    Shapes: frames [F,H,W,3] uint8; masks [N,F,H,W] bool, visible part of each character; opening, shape [N,F] in 0..1;
    speeches [N,S] and mix [S] float32 at 16 kHz; portraits [N,P,P,3] uint8 on white; matrix [N,N] (streams,
    characters); mouth_centers [N,F,2] (x, y in pixels); poses: one per character, with fields [F].
    """

    seed: int
    frames: np.ndarray
    masks: np.ndarray
    opening: np.ndarray
    shape: np.ndarray
    speeches: np.ndarray
    mix: np.ndarray
    portraits: np.ndarray
    prompt: str
    matrix: np.ndarray
    looks: tuple[Look, ...]
    mouth_centers: np.ndarray
    fps: int
    motion: str
    poses: tuple[Pose, ...]

    @property
    def first_frame(self) -> np.ndarray:
        """[H,W,3] uint8."""
        return self.frames[0]

    @property
    def eye_centers(self) -> np.ndarray:
        """Left and right eye of each character [N,F,2,2], (x, y) in pixels."""
        return np.stack(
            [
                np.stack([_head_point(pose, side * 0.40 * look.face_width, -0.18) for side in (-1, 1)], axis=1)
                for look, pose in zip(self.looks, self.poses, strict=True)
            ]
        )


def make_clip(
    seed: int,
    n: int | None = None,
    height: int = 64,
    width: int = 96,
    num_frames: int = 17,
    fps: int = 25,
    motion: Motion = "mixed",
    talk: Talk = "mixed",
    portrait_size: int = 48,
    tracks: tuple[np.ndarray, np.ndarray] | None = None,
    draw_video: bool = True,
    random_first_mouths: bool = False,
    describe_motion: bool = False,
) -> PuppetClip:
    """Draw the scene of a seed; deterministic across machines.

    Args:
        seed: random seed; below 1,000,000 for training, above for evaluation.
        n: number of characters; None = random from 1 to 4 (mostly 2).
        height, width: size in pixels.
        num_frames: F.
        fps: frames per second.
        motion: motion of the characters; "mixed" selects one at random.
        talk: conversation pattern; "mixed" selects one at random.
        portrait_size: side of the portraits in pixels.
        tracks: (opening [N,F], speeches [N,S] at 16 kHz) of recordings that replace the synthetic voices.
        draw_video: False leaves frames and masks empty, for data that needs only portraits or speech.
        random_first_mouths: randomize the mouths of the first frame independently of the speech, as in a photo.
        describe_motion: add the motion of every character and of all together to the prompt.
    """
    rng = np.random.default_rng([seed, 0xB1AD])
    if n is None:
        n = int(rng.choice([1, 2, 3, 4], p=[0.2, 0.6, 0.12, 0.08]))
    looks: tuple[Look, ...] = ()
    for _ in range(n):
        looks += (draw_look(rng, distinct_from=looks),)
    if motion == "mixed":
        motion = str(rng.choice(["still", "moving", "crossing"], p=[0.35, 0.5, 0.15]))  # type: ignore[assignment]
    positions = rng.permutation(n)
    paths, drift, crossing = _paths(rng, n, positions, height, width, num_frames, fps, motion)

    if tracks is None:
        opening, shape, speeches = _voices(rng, looks, num_frames, fps, talk)
    else:
        opening, speeches = (np.asarray(track, np.float32) for track in tracks)
        shape = np.full_like(opening, 0.3)
    if random_first_mouths:
        first_rng = np.random.default_rng([seed, 0xF1])
        opening[:, 0] = first_rng.uniform(0.0, 1.0, n) * (first_rng.random(n) < 0.7)  # the others are closed
        shape[:, 0] = first_rng.uniform(0.0, 1.0, n)
    poses = [Pose(**paths[k], opening=opening[k], shape=shape[k]) for k in range(n)]

    light = float(rng.uniform(-1.0, 1.0))
    background, wall = _background(rng, num_frames, height, width, fps)
    frames, masks = np.zeros((0, height, width, 3), np.uint8), np.zeros((n, 0, height, width), bool)
    order = rng.permutation(n)  # the last one is in front
    if draw_video:
        canvas = Canvas(background, n)
        for k in order:
            draw_puppet(canvas, int(k), looks[k], poses[k], light)
        frames = np.ascontiguousarray((canvas.pixels * 255.0 + 0.5).astype(np.uint8))
        masks = canvas.coverage > 0.5
    centers = np.stack([_head_point(pose, 0.0, 0.50 + 0.10 * pose.opening) for pose in poses])
    portraits = np.stack(
        [draw_portrait(look, np.random.default_rng([seed, k, 7]), portrait_size) for k, look in enumerate(looks)]
    )
    motions, common_motion = ("",) * n, ""
    if describe_motion:
        motions = _motion_phrases(str(motion), positions, order, crossing)
        if abs(drift) > MAX_UNDESCRIBED_DRIFT:
            common_motion = " drifting to the left" if drift < 0 else " drifting to the right"
    return PuppetClip(
        seed, frames, masks, opening, shape, speeches, speeches.sum(0) / max(1.0, np.sqrt(n)), portraits,
        _prompt(looks, positions, wall, motions, common_motion), np.eye(n, dtype=np.float32), looks, centers, fps,
        str(motion), tuple(poses),
    )  # fmt: skip


def draw_portrait(look: Look, rng: np.random.Generator, size: int = 48) -> np.ndarray:
    """A reference image [size,size,3] uint8 on white with random pose, light and expression."""
    one = np.ones(1, np.float32)
    pose = Pose(
        x=one * size * rng.uniform(0.47, 0.53),
        y=one * size * rng.uniform(0.46, 0.52),
        radius=one * size * rng.uniform(0.30, 0.34),
        tilt=one * rng.uniform(-0.2, 0.2),
        blink=one * 0.0,
        gaze=one * rng.uniform(-1, 1),
        opening=one * (rng.uniform(0.0, 0.5) if rng.random() < 0.3 else 0.0),
        shape=one * rng.uniform(0.0, 0.6),
    )
    canvas = Canvas(np.ones((1, size, size, 3), np.float32), 1)
    draw_puppet(canvas, 0, look, pose, float(rng.uniform(-1.0, 1.0)))
    brightness = rng.uniform(0.85, 1.1)
    body = canvas.coverage[0][..., None]
    pixels = canvas.pixels * (1.0 + body * (brightness - 1.0))
    return (np.clip(pixels[0], 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8, order="C")


def _paths(
    rng: np.random.Generator,
    n: int,
    positions: np.ndarray,
    height: int,
    width: int,
    num_frames: int,
    fps: int,
    motion: str,
) -> tuple[list[dict[str, np.ndarray]], float, np.ndarray]:
    """Head motion per character (arguments of `Pose` without the mouth), common drift, and the crossing characters.

    The drift is in frame widths per second; two characters cross, or none.
    """
    time = np.arange(num_frames, dtype=np.float32) / fps
    slot = width / n
    radius = min(0.27 * height, 0.40 * slot)
    moving_camera = motion != "still" and rng.random() < 0.5
    drift = float(rng.uniform(-0.10, 0.10)) if moving_camera else 0.0
    pan = drift * width * (time - time.mean())
    homes = (np.arange(n) + 0.5) * slot
    crossing = rng.permutation(n)[:2] if motion == "crossing" and n > 1 else np.zeros(0, int)
    progress = 1.0 / (1.0 + np.exp(-(time - time.mean()) * rng.uniform(2.5, 4.0)))
    paths = []
    for k in range(n):
        amount = {"still": 0.03, "moving": 0.22, "crossing": 0.12}[motion] * radius
        home = homes[positions[k]] + rng.uniform(-0.10, 0.10) * slot
        x = home + amount * _sway(rng, time, 0.3, 1.0) + pan
        if k in crossing:
            other = crossing[1] if k == crossing[0] else crossing[0]
            x = x + (homes[positions[other]] - homes[positions[k]]) * progress
        y = height * rng.uniform(0.42, 0.52) + 0.6 * amount * _sway(rng, time, 0.4, 1.2)
        tilt = rng.uniform(-0.10, 0.10) + (0.03 if motion == "still" else 0.14) * _sway(rng, time, 0.3, 1.0)
        blink_at = rng.uniform(0.0, 3.0)
        blink = np.exp(-(((time - blink_at) / 0.08) ** 2))
        scale, gaze = radius * rng.uniform(0.90, 1.05) * np.ones(num_frames), _sway(rng, time, 0.2, 0.8)
        path = {"x": x, "y": y, "tilt": tilt, "radius": scale, "blink": blink, "gaze": gaze}
        paths.append({name: track.astype(np.float32) for name, track in path.items()})
    return paths, drift, crossing


def _sway(rng: np.random.Generator, time: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth random motion within about -1..1, with frequencies between `low` and `high` Hz."""
    return 0.6 * np.sin(2 * np.pi * (rng.uniform(low, high) * time + rng.random())) + 0.4 * np.sin(
        2 * np.pi * (rng.uniform(low, high) * time + rng.random())
    )


def _voices(
    rng: np.random.Generator, looks: tuple[Look, ...], num_frames: int, fps: int, talk: Talk
) -> tuple[np.ndarray, ...]:
    """Opening [N,F], shape [N,F] and waveform [N,S] of all characters."""
    duration = num_frames / fps
    spans = conversation(len(looks), duration, rng, mode=talk)
    spoken = [
        synthesize(voice_for(look.voice_traits), turns, duration, fps=fps, rng=rng)
        for look, turns in zip(looks, spans, strict=True)
    ]
    return tuple(np.stack([getattr(s, name) for s in spoken]) for name in ("opening", "shape", "waveform"))


def _background(
    rng: np.random.Generator, num_frames: int, height: int, width: int, fps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [F,H,W,3] of a wall with drifting soft light patches, and its color."""
    hue = rng.random()
    wall = rgb(hue, rng.uniform(0.08, 0.35), rng.uniform(0.55, 0.9))
    floor = wall * rng.uniform(0.75, 0.95)
    down = np.linspace(0.0, 1.0, height, dtype=np.float32)[None, :, None, None]
    vertical = np.moveaxis(wall * (1 - down) + floor * down, -1, 0)
    planes = np.broadcast_to(vertical, (3, num_frames, height, width)).copy()
    x = (np.arange(width, dtype=np.float32) + 0.5) / width
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    time = np.arange(num_frames, dtype=np.float32) / fps
    for _ in range(int(rng.integers(1, 3))):
        center = rng.uniform(0.0, 1.0) + rng.uniform(-0.15, 0.15) * time
        across = np.exp(-(((x[None, :] - center[:, None]) / rng.uniform(0.12, 0.3)) ** 2))
        along = np.exp(-(((y - rng.uniform(0.0, 0.7)) / rng.uniform(0.15, 0.4)) ** 2))
        glow = across[:, None, :] * along[None, :, None]
        glow *= 0.6
        tint = rgb(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.1, 0.4), rng.uniform(0.7, 1.0))
        for plane, color in zip(planes, tint, strict=True):
            blend(plane, glow, color)
    return np.moveaxis(np.clip(planes, 0.0, 1.0), 0, -1), wall


def _head_point(pose: Pose, u: float, v: float | np.ndarray) -> np.ndarray:
    """Pixel coordinates [F,2] of the point (u, v) of a head, in head radii from its center."""
    cos, sin = np.cos(pose.tilt), np.sin(pose.tilt)
    return np.stack([pose.x + pose.radius * (cos * u - sin * v), pose.y + pose.radius * (sin * u + cos * v)], -1)


def _motion_phrases(motion: str, positions: np.ndarray, order: np.ndarray, crossing: np.ndarray) -> tuple[str, ...]:
    """Motion of each character in words; `order` is the drawing order, with the character in front last."""
    default = {"still": " keeps still", "moving": " sways", "crossing": " sways slightly"}[motion]
    phrases = [default] * len(positions)
    depth = np.argsort(order)
    for k, other in zip(crossing, crossing[::-1], strict=True):
        side = "right" if positions[other] > positions[k] else "left"
        phrases[k] = f" walks to the {side}, {'in front' if depth[k] > depth[other] else 'behind'}"
    return tuple(phrases)


def _prompt(
    looks: tuple[Look, ...], positions: np.ndarray, wall: np.ndarray, motions: tuple[str, ...], common_motion: str
) -> str:
    n = len(looks)
    names = {1: "One puppet", 2: "Two puppets", 3: "Three puppets", 4: "Four puppets"}
    order = np.argsort(positions)
    words = POSITIONS.get(n) or tuple(
        ("far left", "left", "right", "far right")[i] if n == 4 else ("left", "middle", "right")[i] for i in range(n)
    )
    characters = "; ".join(f"{words[position]} {looks[k].describe()}{motions[k]}" for position, k in enumerate(order))
    wall_phrase = f"before {add_article(color_name(wall))} wall"
    return f"{names.get(n, f'{n} puppets')}{common_motion} {wall_phrase}: {characters}."
