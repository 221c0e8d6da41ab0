"""Training clips before encoding: frames, speech, masks, portraits and curation data, in memory or loaded on demand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bya_core.errors import InputError
from training.data.cache import digest

SAMPLE_RATE = 16_000
FORBIDDEN = re.compile(r"[./\\\x00-\x1f\x7f]")


@dataclass(frozen=True, eq=False)
class ClipSample:
    """A clip with N characters, M audio streams and F frames.

    Args:
        key: unique name in the data set, without dots, slashes and control characters (see `safe_key`).
        frames: [F,H,W,3] uint8.
        fps: frames per second.
        speeches: [M,S] float32 at 16 kHz, starting at frame 0; S = 0 if only features are available.
        masks: [N,F,H,W] bool, the visible part of each character; may overlap.
        portraits: N reference images [h,w,3] uint8 of any size.
        caption: text prompt.
        matrix: audio-character matrix [M,N] of zeros and ones.
        measured: curation results, JSON-serializable. Reserved keys: "seed" (number of the clip in a batch) and
            "speech_encoder" (version of the encoder that computed `speech_features`, see
            `training.data.cache.encoder_version`).
        speech_features: [M,F+4,blocks,channels] with two frames of context on both sides, or None.
        mouths: [N,F,2] float32, center of each mouth (x, y in pixels), or None; NaN where invisible.

    Raises:
        InputError: inconsistent shapes or dtypes.
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
        if not self.key or FORBIDDEN.search(self.key) or self.key != self.key.strip():
            raise InputError(f"a clip with key {self.key!r}", "a name without dots and slashes", "use safe_key")
        frames, height, width = self._check_array("frames", np.uint8, (None, None, None, 3))[:3]
        characters = self._check_array("masks", np.bool_, (None, frames, height, width))[0]
        streams = self._check_array("speeches", np.float32, (None, None))[0]
        self._check_array("matrix", None, (streams, characters))
        if not (frames and height and width and characters):
            raise self._error(f"{frames} frames of {width}x{height} with {characters} characters", "at least 1 of each")
        if not 0 < self.fps < float("inf"):
            raise self._error(f"{self.fps} frames per second", "a positive number")
        if not np.isfinite(self.speeches).all():
            raise self._error("non-finite values in speeches", "finite samples")
        if not np.isin(self.matrix, (0, 1)).all():
            raise self._error("a matrix with values other than 0 and 1", "zeros and ones")
        if len(self.portraits) != characters:
            raise self._error(f"{len(self.portraits)} portraits", f"{characters}, one per mask")
        for portrait in self.portraits:
            if portrait.dtype != np.uint8 or portrait.ndim != 3 or portrait.shape[2] != 3 or not portrait.size:
                raise self._error(f"a portrait {portrait.shape} {portrait.dtype}", "[h,w,3] uint8")
        if self.speech_features is not None:
            self._check_array("speech_features", None, (streams, frames + 4, None, None))
        if self.mouths is not None:
            self._check_array("mouths", np.float32, (characters, frames, 2))

    def _check_array(self, name: str, kind: Any, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        array = getattr(self, name)
        fits = len(array.shape) == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
        if not fits or (kind is not None and array.dtype != kind):
            wanted = f"{'any dtype' if kind is None else np.dtype(kind).name} {shape} (None = any)"
            raise self._error(f"{name} {array.dtype} {array.shape}", wanted)
        return array.shape

    def _error(self, problem: str, expected: str) -> InputError:
        return InputError(f"clip {self.key!r} has {problem}", expected, "check the source of the clip")


def safe_key(name: str) -> str:
    """A valid key: characters that keys must not contain become underscores."""
    return FORBIDDEN.sub("_", name).strip() or "clip"


def resampled_length(frames: int, fps: float, target: float) -> int:
    """Number of frames of a clip at another frame rate."""
    return frames if abs(fps - target) < 1e-3 else max(1, round(frames * target / fps))


@dataclass(frozen=True)
class LazyClip:
    """A clip that is decoded on demand.

    Args:
        key: unique name.
        header: `frames`, `height`, `width`, `fps`, `characters`, `speeches` ([M,S]), `caption`, `matrix`, `measured`.
        digests: digest of each file, by the extensions of `training.data.shards.members`.
        load: decodes the clip.
    """

    key: str
    header: Mapping[str, Any]
    digests: Mapping[str, str]
    load: Callable[[], ClipSample]

    @staticmethod
    def of(sample: ClipSample) -> LazyClip:
        """A clip in memory."""
        header = {
            "frames": len(sample.frames), "height": sample.frames.shape[1], "width": sample.frames.shape[2],
            "fps": sample.fps, "characters": len(sample.masks), "speeches": list(sample.speeches.shape),
            "caption": sample.caption, "matrix": sample.matrix.tolist(), "measured": sample.measured,
        }  # fmt: skip
        digests = {"mp4": digest(sample.frames), "masks.npz": digest(sample.masks)}
        digests |= {f"portrait{k}.png": digest(portrait) for k, portrait in enumerate(sample.portraits)}
        digests |= {f"speech{m}.wav": digest(speech) for m, speech in enumerate(sample.speeches) if len(speech)}
        if sample.speech_features is not None or sample.mouths is not None:
            digests["features.safetensors"] = digest(sample.speech_features, sample.mouths)
        return LazyClip(sample.key, header, digests, lambda: sample)

    @property
    def seed(self) -> int:
        """The "seed" in `measured`, or a number derived from the key."""
        seed = self.header["measured"].get("seed")
        return seed if type(seed) is int else int(digest(self.key)[:15], 16)

    def length(self, fps: float) -> int:
        """Number of frames at a frame rate."""
        return resampled_length(self.header["frames"], self.header["fps"], fps)
