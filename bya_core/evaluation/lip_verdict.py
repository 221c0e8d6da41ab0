"""Verdicts from `lip_sync`: scores are compared with those of the other voices, mouths and times.

Shapes: N characters, M voices, L frames at 25 per second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bya_core.evaluation.lip_sync import EARLY, FPS, LATE, STILL_MOUTH, LipSync
from bya_core.evaluation.sync_metrics import failing_spans
from bya_core.evaluation.verdict import LIPS, MouthScores

REFERENCE = 75  # frames of evidence for which the margins hold
PASSED = 0.04  # smallest margin of the assigned voices
FAILED = 0.075  # smallest margin of other voices with two people; more with more, one of whom may fit by chance
LEAST_FAILED = 0.06  # smallest margin of others in long videos
AROUND = 25  # frames without speech around it that are evidence, too
FOLLOWS = 0.07  # smallest score of a mouth that follows a voice, if it is the only one that speaks
EVIDENCE, LEAST_EVIDENCE = 1.5, 0.0  # if several speak: smallest mean over the mouths, and smallest of one mouth
MIN_SPEECH = 20  # frames of a visible mouth and of its voice that are needed
CLEAR = 0.25  # difference of two voices for one mouth that needs no comparison with the other mouths
SHIFT_SCORE, SHIFT_GAIN = 0.2, 0.08  # smallest score at a shift, and gain over no shift
STILL, TALKING = 0.5, 0.8  # movement of listeners relative to speakers: below = still, above = moves
LONGEST_SLIP = 0.6  # seconds; longer spans with another voice are not passed


class LipScores(MouthScores):
    """Lip movement of real people compared with each voice.

    Args:
        lips: comparison of all mouths and voices.
        speech: loudness of the streams [M, F].
        targets: stream of each character [N]; -1 = listener.
        fps: frames per second of `speech`.
    """

    def __init__(self, lips: LipSync, speech: np.ndarray, targets: np.ndarray, fps: float) -> None:
        frames = np.minimum((np.arange(speech.shape[1]) / fps * FPS).round().astype(int), lips.opening.shape[1] - 1)
        opening = np.maximum(lips.opening - np.quantile(lips.opening, 0.05, axis=1, keepdims=True), 0.0)
        super().__init__(opening[:, frames], speech, targets, lips.visible[:, frames], fps, LIPS)
        ticks = np.minimum((np.arange(lips.opening.shape[1]) / FPS * fps).round().astype(int), speech.shape[1] - 1)
        self.lips, self.heard = lips, self.audible[:, ticks]
        moving = lips.movement >= STILL_MOUTH
        self.scores = np.where(moving[:, None], lips.scores, 0.0)
        self.offset = lips.offsets
        self.shifted = np.take_along_axis(lips.curves, self.offset[..., None] + lips.curves.shape[2] // 2, 2)[..., 0]
        if self.length / fps * FPS >= MIN_SPEECH:
            local = np.where(moving[:, None, None], lips.local, 0.0)
            gains, self.local = self._local_gains(local), local[..., frames]
            self.failing = failing_spans(gains, targets, self.heard, FPS, min_seconds=0.4)

    @property
    def rate(self) -> float:
        return float(FPS)

    def margin(self, n: int) -> tuple[float, int]:
        """Evidence for the assigned voice of `n`.

        Returns:
            Gain of the best assignment of voices to mouths with the assigned voice of `n` over the best without it, and
            the voice of `n` in the latter; -1 = none.
        """
        from scipy.optimize import linear_sum_assignment

        voices = self._voices()
        table, column = self.scores[:, voices], voices.index(int(self.targets[n]))
        result, other = [], -1
        for bonus in (10.0, -10.0):
            changed = table.copy()
            changed[n, column] += bonus
            rows, columns = linear_sum_assignment(changed, maximize=True)
            result.append(table[rows, columns].sum())
            other = next((voices[m] for k, m in zip(rows, columns, strict=True) if k == n and m != column), -1)
        return float(result[0] - result[1]), other

    def needed(self, n: int) -> tuple[float, float]:
        """Margins that are needed to pass and to fail character `n`: larger with less evidence.

        The evidence is that of the frames of the visible mouth in and around speech.
        """
        own = int(self.targets[n])
        frames = min(int(self.lips.visible[n].sum()), int(self.heard[own].sum()) + AROUND)
        short = max(1.0, REFERENCE / max(frames, 1))
        people = np.sqrt(max(len(self._voices()), 2) / 2)
        return PASSED * short, max(LEAST_FAILED, FAILED * people * short**1.5)

    def _joint_evidence(self) -> float:
        """Mean evidence of all mouths that should speak; NaN if fewer than two do."""
        voices = self._voices()
        values = [
            self.lips.evidence[k, own]
            for k, own in enumerate(self.targets)
            if own in voices and self.lips.movement[k] >= STILL_MOUTH and self.lips.visible[k].any()
        ]
        return float(np.mean(values)) if len(values) > 1 else float("nan")

    def _voices(self) -> list[int]:
        """Voices that can be heard."""
        return [m for m in range(len(self.speech)) if self.heard[m].sum() >= MIN_SPEECH]

    def _local_gains(self, local: np.ndarray) -> np.ndarray:
        """By how much the mouths fit better around each frame if `n` followed voice m instead of its own [N, M, L]."""
        gains = np.full(local.shape, -1.0)
        for n, own in enumerate(self.targets):
            if own < 0:
                continue
            gains[n, own] = 0.0
            for m in range(local.shape[1]):
                owner = next((k for k, target in enumerate(self.targets) if target == m), None)
                here = local[n, m] - local[n, own]
                if m == own or self.heard[m].sum() < MIN_SPEECH:
                    continue
                there = here if owner is None else local[owner, own] - local[owner, m]
                together = np.where(self.heard[m], here + there - LIPS.moment, -1.0)
                gains[n, m] = np.maximum(together, here - 2 * LIPS.moment) if owner is None else together
        return gains

    def verdict(self, n: int, name: str, owners: Sequence[str]) -> tuple[str, str]:
        own = int(self.targets[n])
        visible = int(self.lips.visible[n].sum())
        if visible == 0:
            return "unclear", f"No face was found for {name}; nothing was measured."
        if own < 0:
            return self._listener_verdict(n, name, owners)
        frames = int((self.lips.visible[n] & self.heard[own]).sum())
        if frames < MIN_SPEECH or own not in self._voices():
            return (
                "unclear",
                f"{name}: {frames / FPS:.1f} s of a visible mouth and its voice are too few; inconclusive.",
            )
        if self.lips.movement[n] < STILL_MOUTH:
            return "silent", f"{name} should speak, but the mouth keeps still."
        value, row = float(self.scores[n, own]), self.scores[n].copy()
        row[[m for m in range(len(row)) if m == own or m not in self._voices()]] = -np.inf
        rival, best = int(row.argmax()), float(row.max())
        late, shifted = int(self.offset[n, own]), float(self.shifted[n, own])
        alone = abs(late - self.lips.offset) > 1
        late = late if alone else self.lips.offset  # that of the video is measured by all mouths
        center = self.lips.curves.shape[2] // 2
        unshifted = float(self.lips.curves[n, own, center - 1 : center + 2].max())
        (gain, other), (passed, failed) = self.margin(n), self.needed(n)
        short = failed / FAILED
        if not np.isfinite(best) and len(self.scores) == 1:  # nothing to compare with but other times
            gain = value - float(self.lips.elsewhere[n, own])
        preferred = value >= float(self.lips.elsewhere[n, own]) or value - best >= 2 * passed
        joint = self._joint_evidence()
        if np.isnan(joint):
            follows = value >= FOLLOWS and preferred
        else:
            follows = joint >= EVIDENCE and float(self.lips.evidence[n, own]) >= LEAST_EVIDENCE
        follows = follows and gain >= passed and best - value < CLEAR
        gains = shifted >= SHIFT_SCORE * (
            max(1.0, short) if alone else 1.0
        ) and shifted >= unshifted + SHIFT_GAIN * max(1.0, short)
        if not EARLY < late < LATE and gains and gain > 0:
            return "shifted", f"{name} follows the assigned voice, but {self.delay(late)} ({shifted:.2f})."
        slips = [span for span in self.failing if span.character == n]
        if follows and sum(span.end - span.start for span in slips) > LONGEST_SLIP:
            worst = max(slips, key=lambda span: span.end - span.start)
            return "wrong", (
                f"{name} follows its voice most of the time, but that of {owners[worst.rival]} from {worst.start:.1f} "
                f"to {worst.end:.1f} s."
            )
        if follows:
            timing = f"; {self.delay(late)}" if abs(late) > 1 else ""
            return "own", self.own_text(n, name, owners).removesuffix(".") + timing + "."
        if gain <= -failed and other >= 0 and self.scores[n, other] >= max(LIPS.follows, value):
            rival, best = other, float(self.scores[n, other])
            swapped = True
        else:
            swapped = best >= LIPS.follows and best - value >= CLEAR * max(1.0, short)
        if swapped:
            return "wrong", (
                f"{name} follows the voice of {owners[rival]} ({best:.2f}) more than the assigned one ({value:.2f})."
            )
        second = f", {best:.2f} with the next" if np.isfinite(best) else ""
        return "unclear", f"{name}: inconclusive ({value:.2f} with the assigned voice{second})."

    def _listener_verdict(self, n: int, name: str, owners: Sequence[str]) -> tuple[str, str]:
        share, voices = self._movement_share(n), self._voices()
        if share is None:
            return "unclear", f"{name} is a listener; there is no speaker to compare with."
        words = f"the mouth moves {share:.0%} as much as those that speak"
        if share < STILL:
            return "still", f"{name} listens and keeps still: {words}."
        for m in voices:
            speakers = [k for k, target in enumerate(self.targets) if target == m]
            rival = max((float(self.scores[k, m]) for k in speakers), default=0.0)
            if self.scores[n, m] >= max(LIPS.follows, rival):
                return "moves", f"{name} should listen, but the mouth follows the voice of {owners[m]}."
        if share >= TALKING:
            return "moves", f"{name} should listen, but {words}."
        return "unclear", f"{name} listens; {words}, but follows no voice."

    def _movement_share(self, n: int) -> float | None:
        """Movement of mouth `n` relative to those whose voice is heard; None if there are none."""
        speaking = [
            k for k, own in enumerate(self.targets) if own in self._voices() and self.lips.visible[k].any() and k != n
        ]
        if not speaking:
            return None
        return float(self.lips.movement[n] / max(float(np.mean(self.lips.movement[speaking])), 1e-9))
