"""One clip before any encoder has seen it: pictures, voices, masks, portraits and what was measured."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bya_core.errors import InputError

SAMPLE_RATE = 16_000
UNFIT = re.compile(r"[./\\\x00-\x1f\x7f]")


@dataclass(frozen=True, eq=False)
class ClipSample:
    """One clip with N characters, M voices and F frames.

    Args:
        key: unique name in its data set; not empty, without dots, slashes and control characters (see `safe_key`).
        frames: [F,H,W,3] uint8.
        fps: frames a second.
        speeches: [M,S] float32 at 16 kHz, sample 0 at the time of frame 0; S = 0 where only features are known.
        masks: [N,F,H,W] bool, the visible whole character; they may overlap.
        portraits: N of [h,w,3] uint8, the reference picture of each character, any sizes.
        caption: text prompt.
        matrix: [M,N] audio-character matrix, zeros and ones: row m says whom voice m belongs to.
        measured: anything curation found out, as JSON can hold it. Keys with a meaning here: "seed" (number of the
            clip in a batch), "speech_encoder" (version of the encoder that made `speech_features`, see
            `training.data.cache.version_of`).
        speech_features: [M,F+4,blocks,channels] with two frames of context on each side, or None.
        mouths: [N,F,2] float32, middle of each mouth (x, y in pixels), or None; NaN where it is not seen.

    Raises:
        InputError: shapes or kinds that do not fit together.
    """

    key: str
    frames: np.ndarray
    fps: float
    speeches: np.ndarray
    masks: np.ndarray
    portraits: tuple[np.ndarray, ...]
    caption: str
    matrix: np.ndarray
    measured: dict[str, Any] = field(default_factory=dict)
    speech_features: np.ndarray | None = None
    mouths: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.key or UNFIT.search(self.key) or self.key != self.key.strip():
            raise InputError(f"a clip with key {self.key!r}", "a name without dots and slashes", "use safe_key")
        frames, height, width = self._fits("frames", np.uint8, (None, None, None, 3))[:3]
        characters = self._fits("masks", np.bool_, (None, frames, height, width))[0]
        streams = self._fits("speeches", np.float32, (None, None))[0]
        self._fits("matrix", None, (streams, characters))
        if not (frames and height and width and characters):
            raise self._error(f"{frames} frames of {width}x{height} with {characters} characters", "at least 1 of each")
        if not 0 < self.fps < float("inf"):
            raise self._error(f"{self.fps} frames a second", "a number above 0")
        if not np.isfinite(self.speeches).all():
            raise self._error("speeches with values that are no numbers", "finite samples")
        if not np.isin(self.matrix, (0, 1)).all():
            raise self._error("a matrix with other values than 0 and 1", "who has which voice")
        if len(self.portraits) != characters:
            raise self._error(f"{len(self.portraits)} portraits", f"{characters}, one for each mask")
        for portrait in self.portraits:
            if portrait.dtype != np.uint8 or portrait.ndim != 3 or portrait.shape[2] != 3 or not portrait.size:
                raise self._error(f"a portrait {portrait.shape} {portrait.dtype}", "[h,w,3] uint8")
        if self.speech_features is not None:
            self._fits("speech_features", None, (streams, frames + 4, None, None))
        if self.mouths is not None:
            self._fits("mouths", np.float32, (characters, frames, 2))

    def _fits(self, name: str, kind: Any, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        array = getattr(self, name)
        fits = len(array.shape) == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
        if not fits or (kind is not None and array.dtype != kind):
            wanted = f"{'any kind' if kind is None else np.dtype(kind).name} {shape} (None = any)"
            raise self._error(f"{name} {array.dtype} {array.shape}", wanted)
        return array.shape

    def _error(self, came: str, expected: str) -> InputError:
        return InputError(f"clip {self.key!r} has {came}", expected, "check what made the clip")


def safe_key(name: str) -> str:
    """A name that can be a key: whatever a key must not hold becomes an underscore."""
    return UNFIT.sub("_", name).strip() or "clip"
