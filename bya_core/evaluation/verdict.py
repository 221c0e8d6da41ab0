"""Verdict on each character of a clip: whether its mouth follows the assigned stream.

Shapes: N characters, M audio streams, F video frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bya_core.evaluation.binding import lagged, local_correlations
from bya_core.evaluation.sync_metrics import CrossTalk, Span, failing_spans
from bya_core.io.loudness import loudness_track
from bya_core.io.media import speech_signal
from bya_core.scene.types import Speech

LAG = 2  # frames by which a mouth may be early or late and still be in sync
MAX_OFFSET = 10  # largest shift in frames that is searched for mouths out of sync
STILL = 0.35  # a listener is still if its mouth moves less than this fraction of the movement of speakers
MIN_FRAMES = 25  # shorter videos are not judged by correlation
QUIET = 0.05  # fraction of the maximum loudness below which a stream is silent
PAUSE = 3  # frames around speech in which a mouth may still move


def speech_loudness(speech: Speech | None, length: int, fps: float) -> np.ndarray:
    """Loudness of a speech in each video frame [F]; zeros for a listener."""
    if speech is None:
        return np.zeros(length)
    waveform = speech_signal(speech, speech.sample_rate, length / fps + 1.0)
    return loudness_track(waveform.numpy(), speech.sample_rate, length, fps, window=2.0 / fps)


@dataclass(frozen=True)
class Scale:
    """Thresholds of a score of a mouth with a stream.

    Args:
        name: of the measure.
        description: one sentence for the report, with the number of frames as {frames}.
        follows: minimum score of a mouth that follows a stream.
        margin: minimum significant difference of two scores.
        full: upper end of the color scale.
        moment: minimum difference over about one second to report a mouth that follows another stream.
    """

    name: str
    description: str
    follows: float
    margin: float
    full: float
    moment: float


_CORRELATION = f"over {{frames}} frames; correlations within {LAG} frames, -1 to 1."
COLOR = Scale(
    "mouth color",
    f"Measured: mouth opening of the drawn characters against the loudness of each voice, {_CORRELATION}",
    follows=0.25,
    margin=0.1,
    full=0.6,
    moment=0.4,
)
LIPS = Scale(
    "lip movement",
    "Measured: lip movement (mesh of each face) against the movement that each voice lets expect, over {frames} "
    "frames; correlations, -1 to 1. Only differences between voices and mouths are conclusive.",
    follows=0.1,
    margin=0.07,
    full=0.5,
    moment=0.25,
)
SYNC = Scale(
    "lip sync (Sync-C)",
    "Measured: lip sync by SyncNet (Sync-C of each face with each voice), over {frames} frames; higher is better, "
    "about 4 and more is good.",
    follows=2.0,
    margin=0.5,
    full=6.0,
    moment=1.0,
)


class MouthScores:
    """Scores of each mouth of a clip with each stream.

    Args:
        mouths: opening of the mouths [N, F].
        speech: loudness of the streams [M, F].
        targets: stream of each character [N]; -1 = listener.
        regions: frames in which each character is visible, bool [N, F].
        fps: frames per second.
        scale: meaning of the scores.
        scores: [N, M].
        offset: shift of each mouth with the best score [N, M] in frames; positive = late.
        shifted: the score at that shift [N, M].
        failing: where a mouth follows another voice.
        local: scores around each frame [N, M, F]; None = not measured.
    """

    def __init__(
        self,
        mouths: np.ndarray,
        speech: np.ndarray,
        targets: np.ndarray,
        regions: np.ndarray,
        fps: float,
        scale: Scale,
    ) -> None:
        from scipy.ndimage import binary_dilation

        self.mouths, self.speech, self.targets, self.regions, self.fps = mouths, speech, targets, regions, fps
        self.length, self.scale = mouths.shape[1], scale
        self.audible = speech > QUIET * np.maximum(speech.max(axis=1, keepdims=True), 1e-9)
        spoken = [self.audible[own] if own >= 0 else np.zeros(self.length, dtype=bool) for own in targets]
        self.listening = np.stack([~binary_dilation(frames, iterations=PAUSE) for frames in spoken])
        level = np.concatenate([mouth[frames] for mouth, frames in zip(mouths, spoken, strict=True)])
        self.speaking_level = float(level.mean()) if level.size else 0.0
        self.scores = np.zeros((len(mouths), len(speech)))
        self.offset, self.shifted = np.zeros(self.scores.shape, dtype=int), self.scores
        self.failing: tuple[Span, ...] = ()
        self.local: np.ndarray | None = None

    def verdict(self, n: int, name: str, owners: Sequence[str]) -> tuple[str, str]:
        """Verdict on character `n` as a key and a sentence; `owners` are the names of the M streams."""
        own, scale = int(self.targets[n]), self.scale
        if not self.regions[n].any():
            return "unclear", f"{name} is not visible; nothing was measured."
        if own < 0:
            return self._listener_verdict(n, name, owners)
        if self.length < MIN_FRAMES:
            return "unclear", f"{name}: {self.length} frames are too few; inconclusive."
        value = float(self.scores[n, own])
        others = np.where(np.arange(self.scores.shape[1]) == own, -np.inf, self.scores[n])
        rival, best = int(others.argmax()), float(others.max())
        late, shifted = int(self.offset[n, own]), float(self.shifted[n, own])
        unshifted = -np.inf if scale is SYNC else value  # Sync-C is that of the best shift
        if abs(late) > LAG and shifted >= 2 * scale.follows and shifted > max(best, unshifted) + scale.margin:
            return "shifted", f"{name} follows the assigned voice, but {self.delay(late)} ({shifted:.2f})."
        if value >= scale.follows and value > best + scale.margin:
            return "own", self.own_text(n, name, owners)
        if best >= scale.follows and best > value + scale.margin:
            return "wrong", (
                f"{name} follows the voice of {owners[rival]} ({best:.2f}) more than the assigned one ({value:.2f})."
            )
        second = f", {best:.2f} with the next" if np.isfinite(best) else ""
        return "unclear", f"{name}: inconclusive ({value:.2f} with the assigned voice{second})."

    def own_text(self, n: int, name: str, owners: Sequence[str]) -> str:
        """Sentence: character `n` follows its voice."""
        own = int(self.targets[n])
        others = np.delete(self.scores[n], own)
        voice = "its own voice" if owners[own] == name else f"the voice of {owners[own]}, as assigned,"
        rival = int(np.where(np.arange(self.scores.shape[1]) == own, -np.inf, self.scores[n]).argmax())
        second = f" (next: the voice of {owners[rival]}, {others.max():.2f})" if others.size else ""
        return f"{name} follows {voice} with {self.scores[n, own]:.2f}{second}."

    def delay(self, late: int) -> str:
        """Words for a shift in frames of 1 / `rate` seconds."""
        return f"{abs(late)} frames ({abs(late) / self.rate * 1000:.0f} ms) {'late' if late > 0 else 'early'}"

    @property
    def rate(self) -> float:
        """Frames per second of `offset`."""
        return self.fps

    @property
    def measured(self) -> np.ndarray:
        """bool [N, M]: the character is visible, the voice is heard, and there is a measure for them."""
        visible, heard = np.asarray(self.regions.any(axis=1)), self.speech.max(axis=1, initial=0.0) > 0
        enough = self.scale.name != COLOR.name or self.length >= MIN_FRAMES
        return np.asarray(visible[:, None] & heard[None] & enough)

    def _listener_verdict(self, n: int, name: str, owners: Sequence[str]) -> tuple[str, str]:
        share = self._movement_share(n)
        if share is None:
            return "unclear", f"{name} is a listener; there is no speaker to compare with."
        if share < STILL:
            return "still", f"{name} listens and keeps still: the mouth moves {share:.0%} as much as those that speak."
        return "moves", f"{name} should listen, but the mouth moves {share:.0%} as much as those that speak."

    def _movement_share(self, n: int) -> float | None:
        """Movement of mouth `n` relative to those that speak; None if there are none."""
        speakers = self.mouths[self.targets >= 0].std(axis=1)
        return float(self.mouths[n].std() / max(speakers.mean(), 1e-9)) if speakers.size else None


class ColorScores(MouthScores):
    """Correlation of the opening of drawn mouths with the loudness of each voice; arguments as in `MouthScores`."""

    def __init__(
        self, mouths: np.ndarray, speech: np.ndarray, targets: np.ndarray, regions: np.ndarray, fps: float
    ) -> None:
        super().__init__(mouths, speech, targets, regions, fps, COLOR)
        reach = min(MAX_OFFSET, max(LAG, (self.length - MIN_FRAMES) // 2))
        table = lagged(mouths, speech, reach)
        self.scores = table[..., reach - LAG : reach + LAG + 1].max(axis=2)
        self.offset, self.shifted = table.argmax(axis=2) - reach, table.max(axis=2)
        if self.length >= MIN_FRAMES:
            self.local = local_correlations(mouths, speech, MIN_FRAMES, LAG)
            self.failing = failing_spans(self.local, targets, self.audible, fps, COLOR.moment)


class SyncScores(MouthScores):
    """Sync-C of SyncNet; further arguments as in `MouthScores`."""

    def __init__(
        self,
        mouths: np.ndarray,
        speech: np.ndarray,
        targets: np.ndarray,
        regions: np.ndarray,
        fps: float,
        sync: CrossTalk,
    ) -> None:
        super().__init__(mouths, speech, targets, regions, fps, SYNC)  # both offsets are positive if the mouth is late
        self.scores, self.offset, self.shifted = sync.confidence, sync.offset, sync.confidence
        self.failing = sync.failing

    @property
    def rate(self) -> float:
        return 25.0
