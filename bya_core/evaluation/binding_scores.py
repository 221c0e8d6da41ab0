"""How a mouth goes with each voice, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bya_core.evaluation.binding import lagged, local_correlations
from bya_core.evaluation.sync_metrics import CrossTalk, Span, failing_spans
from bya_core.io.loudness import loudness_track
from bya_core.io.media import place
from bya_core.scene.types import Speech

LAG = 2  # frames by which a mouth may be early or late
REACH = 10  # frames within which a mouth is looked for that is earlier or later than that
STILL = 0.35  # a listener's mouth moves less than this share of what speakers' mouths do
SHORT = 25  # frames below which a correlation says nothing
QUIET = 0.05  # of its loudest moment, below which a voice is silent
PAUSE = 3  # frames around speech in which a mouth may still move, or already


@dataclass(frozen=True)
class Scale:
    """What a score of a mouth and a voice means.

    Args:
        name: of the measure, in words.
        follows: from here a mouth is said to follow a voice.
        margin: of two scores nearer than this, none is the larger.
        full: as good as it gets; for colours.
        moment: by which a foreign voice must win over a second or so to be told.
    """

    name: str
    follows: float
    margin: float
    full: float
    moment: float


COLOUR = Scale("mouth colour", 0.25, 0.1, 0.6, 0.4)
MOTION = Scale("movement of the lower face", 0.25, 0.1, 0.6, 0.4)
SYNC = Scale("lip sync (Sync-C)", 2.0, 0.5, 6.0, 1.0)


class Measured:
    """Mouths and voices of a clip, and how they go together."""

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
        self.scale = COLOUR if drawn else MOTION
        reach = min(REACH, max(LAG, (self.length - SHORT) // 2))
        every = lagged(mouths, voices, reach)
        self.follows = every[..., reach - LAG : reach + LAG + 1].max(axis=2)
        self.offset, self.shifted = every.argmax(axis=2) - reach, every.max(axis=2)
        if self.length >= SHORT:
            local = local_correlations(mouths, voices, SHORT, LAG)
            self.failing = failing_spans(local, targets, self.audible, fps, self.scale.moment)

    def _pauses(self, own: int) -> np.ndarray:
        """bool [F]: well away from any speech of that voice."""
        from scipy.ndimage import binary_dilation

        if own < 0:
            return np.ones(self.length, dtype=bool)
        return ~binary_dilation(self.audible[own], iterations=PAUSE)

    @property
    def speaking_level(self) -> float:
        """Mean movement of mouths that speak; 0 where nobody does."""
        said = [self.mouths[n, self.audible[own]] for n, own in enumerate(self.targets) if own >= 0]
        joined = np.concatenate(said) if said else np.zeros(0)
        return float(joined.mean()) if joined.size else 0.0


def loudness_of(speech: Speech | None, length: int, fps: float) -> np.ndarray:
    """Loudness of a voice as it is heard in the video, per frame [F]; zeros for nobody."""
    if speech is None:
        return np.zeros(length)
    heard = place(speech.waveform.float(), speech.sample_rate, speech.offset, speech.gain)
    return loudness_track(heard.numpy(), speech.sample_rate, length, fps, window=2.0 / fps)


def verdict_of(n: int, measured: Measured, owners: Sequence[str]) -> tuple[str, str]:
    """What is said of one character, as a word and a sentence."""
    name, own, scale = owners[n], int(measured.targets[n]), measured.scale
    if not measured.regions[n].any():
        return "unclear", f"{name} has no place in the masks, so nothing can be measured."
    if own < 0:
        speakers = measured.mouths[measured.targets >= 0].std(axis=1)
        if speakers.size == 0:
            return "unclear", f"{name} listens; nobody speaks, so there is nothing to compare with."
        share = float(measured.mouths[n].std() / max(speakers.mean(), 1e-9))
        if share < STILL:
            return "still", f"{name} listens and keeps still: the mouth moves {share:.0%} as much as those that speak."
        return "moves", f"{name} should listen, but the mouth moves {share:.0%} as much as those that speak."
    if measured.length < SHORT:
        return "unclear", f"{name}: {measured.length} frames are too few to tell."
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
    return "unclear", f"{name}: cannot be told ({mine:.2f} with the right voice{next_to_it})."


def _at_rest(n: int, measured: Measured) -> float:
    """What a shifted mouth must beat: the score without the shift. Sync-C is that of the best shift already."""
    if measured.scale is SYNC:
        return -np.inf
    return float(measured.follows[n, measured.targets[n]]) + measured.scale.margin


def how_measured(measured: Measured) -> str:
    how = {
        COLOUR: "the area in the colour of a puppet's mouth, against the loudness of each voice",
        MOTION: "movement in the lower half of each face beyond that of its upper half, a weak measure",
        SYNC: "lip sync by SyncNet (Sync-C of each face with each voice)",
    }[measured.scale]
    if measured.scale is SYNC:
        return f"Measured: {how}, over {measured.length} frames; higher is better, about 4 and more is good."
    return f"Measured: {how}, over {measured.length} frames; correlations within {LAG} frames, -1 to 1."
