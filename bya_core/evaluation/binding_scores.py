"""Scores of each mouth with each voice, and the verdict per character."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bya_core.evaluation.binding import lagged, local_correlations
from bya_core.evaluation.sync_metrics import CrossTalk, Span, failing_spans
from bya_core.io.loudness import loudness_track
from bya_core.io.media import place
from bya_core.scene.types import Speech

LAG = 2  # frames by which a mouth may be early or late in sync
REACH = 10  # largest shift in frames that is searched for mouths out of sync
STILL = 0.35  # a listener's mouth moves less than this share of the movement of speaking mouths
SHORT = 25  # minimum number of frames for a meaningful correlation
QUIET = 0.05  # fraction of the maximum loudness below which a voice is silent
PAUSE = 3  # frames around speech in which a mouth may move


@dataclass(frozen=True)
class Scale:
    """Thresholds of a score of a mouth with a voice.

    Args:
        name: of the measure.
        follows: minimum score of a mouth that follows a voice.
        margin: minimum difference of two scores that is significant.
        full: best score, for the color scale.
        moment: minimum difference over about one second to report a mouth that follows another voice.
    """

    name: str
    follows: float
    margin: float
    full: float
    moment: float


COLOR = Scale("mouth color", 0.25, 0.1, 0.6, 0.4)
MOTION = Scale("movement of the lower face", 0.25, 0.1, 0.6, 0.4)
SYNC = Scale("lip sync (Sync-C)", 2.0, 0.5, 6.0, 1.0)


class Measured:
    """Scores of the mouths of a clip with its voices."""

    def __init__(
        self,
        mouths: np.ndarray,
        voices: np.ndarray,
        targets: np.ndarray,
        regions: np.ndarray,
        fps: float,
        sync: CrossTalk | None,
        drawn: bool,
    ) -> None:
        self.mouths, self.voices, self.targets, self.regions, self.fps = mouths, voices, targets, regions, fps
        self.length = mouths.shape[1]
        self.audible = voices > QUIET * np.maximum(voices.max(axis=1, keepdims=True), 1e-9)
        self.listening = np.stack([self._pauses(own) for own in targets])
        self.failing: tuple[Span, ...] = ()
        self.sync = sync
        if sync is not None:
            self.scale, self.follows = SYNC, sync.confidence
            # SyncNet counts where the sound is too early, which is where the mouth is late
            self.offset, self.shifted, self.failing = sync.offset, sync.confidence, sync.failing
            return
        self.scale = COLOR if drawn else MOTION
        reach = min(REACH, max(LAG, (self.length - SHORT) // 2))
        every = lagged(mouths, voices, reach)
        self.follows = every[..., reach - LAG : reach + LAG + 1].max(axis=2)
        self.offset, self.shifted = every.argmax(axis=2) - reach, every.max(axis=2)
        if self.length >= SHORT:
            local = local_correlations(mouths, voices, SHORT, LAG)
            self.failing = failing_spans(local, targets, self.audible, fps, self.scale.moment)

    def _pauses(self, own: int) -> np.ndarray:
        """Frames away from any speech of a voice, bool [F]."""
        from scipy.ndimage import binary_dilation

        if own < 0:
            return np.ones(self.length, dtype=bool)
        return ~binary_dilation(self.audible[own], iterations=PAUSE)

    @property
    def speaking_level(self) -> float:
        """Mean movement of speaking mouths; 0 if nobody speaks."""
        said = [self.mouths[n, self.audible[own]] for n, own in enumerate(self.targets) if own >= 0]
        joined = np.concatenate(said) if said else np.zeros(0)
        return float(joined.mean()) if joined.size else 0.0


def loudness_of(speech: Speech | None, length: int, fps: float) -> np.ndarray:
    """Loudness of a speech in each video frame [F]; zeros for a listener."""
    if speech is None:
        return np.zeros(length)
    heard = place(speech.waveform.float(), speech.sample_rate, speech.offset, speech.gain)
    return loudness_track(heard.numpy(), speech.sample_rate, length, fps, window=2.0 / fps)


def verdict_of(n: int, measured: Measured, owners: Sequence[str]) -> tuple[str, str]:
    """Verdict on one character as a key and a sentence."""
    name, own, scale = owners[n], int(measured.targets[n]), measured.scale
    if not measured.regions[n].any():
        return "unclear", f"{name} has no region in the masks; nothing was measured."
    if own < 0:
        speakers = measured.mouths[measured.targets >= 0].std(axis=1)
        if speakers.size == 0:
            return "unclear", f"{name} is a listener; there is no speaker to compare with."
        share = float(measured.mouths[n].std() / max(speakers.mean(), 1e-9))
        if share < STILL:
            return "still", f"{name} listens and keeps still: the mouth moves {share:.0%} as much as those that speak."
        return "moves", f"{name} should listen, but the mouth moves {share:.0%} as much as those that speak."
    if measured.length < SHORT:
        return "unclear", f"{name}: {measured.length} frames are too few; inconclusive."
    row = measured.follows[n]
    mine, others = float(row[own]), np.delete(row, own)
    rival = int(np.delete(np.arange(len(row)), own)[others.argmax()]) if others.size else -1
    best = float(others.max()) if others.size else -np.inf
    late, there = int(measured.offset[n, own]), float(measured.shifted[n, own])
    if abs(late) > LAG and there >= 2 * scale.follows and there > best + scale.margin and there > _at_rest(n, measured):
        when = f"{abs(late)} frames ({abs(late) / measured.fps * 1000:.0f} ms) {'late' if late > 0 else 'early'}"
        return "shifted", f"{name} follows the right voice, but {when} ({there:.2f})."
    voice = "its own voice" if own == n else f"the voice of {owners[own]}, as it should,"
    if mine >= scale.follows and mine > best + scale.margin:
        beside = f" (next: the voice of {owners[rival]}, {best:.2f})" if rival >= 0 else ""
        return "own", f"{name} follows {voice} with {mine:.2f}{beside}."
    if best >= scale.follows and best > mine + scale.margin:
        wrong = f"the voice of {owners[rival]} ({best:.2f})"
        return "wrong", f"{name} follows {wrong} more than the right one ({mine:.2f})."
    next_to_it = f", {best:.2f} with the next" if rival >= 0 else ""
    return "unclear", f"{name}: inconclusive ({mine:.2f} with the right voice{next_to_it})."


def _at_rest(n: int, measured: Measured) -> float:
    """Score that a shifted mouth must exceed: without the shift; Sync-C already is that of the best shift."""
    if measured.scale is SYNC:
        return -np.inf
    return float(measured.follows[n, measured.targets[n]]) + measured.scale.margin


def how_measured(measured: Measured) -> str:
    how = {
        COLOR: "mouth opening of the drawn characters against the loudness of each voice",
        MOTION: "movement in the lower half of each face beyond that of its upper half, a weak measure",
        SYNC: "lip sync by SyncNet (Sync-C of each face with each voice)",
    }[measured.scale]
    if measured.scale is SYNC:
        return f"Measured: {how}, over {measured.length} frames; higher is better, about 4 and more is good."
    return f"Measured: {how}, over {measured.length} frames; correlations within {LAG} frames, -1 to 1."
