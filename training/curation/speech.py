"""Stages 6, 7 and 9: each character's own voice, whether lips follow it, and which voice is whose (sec. 4.1, 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from training.curation.crops import boxes_in, clip_frames, face_crops, work_size
from training.curation.footage import RATE, read_sound
from training.curation.models import ModelChoice, SpeechExtractor, SyncScorer, Talk, model_of
from training.curation.record import FPS, Record
from training.curation.stage import Resources, Unusable

_STEP = RATE // FPS


@dataclass(frozen=True)
class ExtractSettings:
    """How voices are taken apart.

    Args:
        extractor: the model.
        longest: pixels of the longer side of what faces are cut from.
        silent: loudness (root mean square of the loudest half second, full scale = 1) below which nobody speaks.
        share: a voice whose loudest half second is below this share of the loudest one's is the rest of another.
    """

    extractor: ModelChoice = ModelChoice("clearvoice")
    longest: int = 1280
    silent: float = 0.005
    share: float = 0.1


class Extract:
    """One stream for each character; who says nothing gets true silence."""

    name = "extract"
    version = 1

    def __init__(self, settings: ExtractSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources

    def prepare(self) -> None:
        """Build the model. Raises InputError where it cannot be."""
        model_of("extractor", self.settings.extractor)

    def __call__(self, record: Record) -> list[Record]:
        first, last = record.data["context"]
        mix = read_sound(record.source, first / FPS, (last - first) / FPS)
        offset = (record.start - first) * _STEP
        inside = slice(offset, offset + record.frames * _STEP)
        if loudest(mix[inside]) < self.settings.silent:
            return [record.reject("silent: there is nothing to hear")]
        extractor: SpeechExtractor = model_of("extractor", self.settings.extractor)
        faces = crops_of(record, self.settings.longest, context=True)
        speeches = np.asarray(extractor.extract(Talk(mix, faces, record.source, first / FPS)), np.float32)
        if speeches.shape != (len(faces), len(mix)) or not np.isfinite(speeches).all():
            raise Unusable(f"the extractor gave {speeches.shape} for {len(faces)} voices of {len(mix)} samples")
        loud = np.array([loudest(speech[inside]) for speech in speeches])
        speaks = (loud >= self.settings.silent) & (loud >= self.settings.share * loud.max())
        speeches = np.where(speaks[:, None], speeches, np.float32(0.0))
        seen = record.with_data(speaks=speaks.tolist(), loudness=[round(float(v), 5) for v in loud])
        if not speaks.any():
            return [seen.reject("nobody who is seen speaks")]
        return [seen.with_arrays(speeches=speeches)]


def loudest(sound: np.ndarray) -> float:
    """Root mean square of the loudest half second."""
    piece = RATE // 2
    if len(sound) == 0:
        return 0.0
    padded = np.pad(sound, (0, -len(sound) % piece)).reshape(-1, piece).astype(np.float64)
    return float(np.sqrt((padded**2).mean(axis=1)).max())


def crops_of(record: Record, longest: int, context: bool) -> np.ndarray:
    """uint8 [N,F,224,224,3]: the faces of a clip."""
    size = work_size(record, longest)
    return face_crops(clip_frames(record, size, context), boxes_in(record, size, context))


@dataclass(frozen=True)
class SyncSettings:
    """Which clips are in step.

    Args:
        scorer: the model.
        least: smallest mean Sync-C. The paper gives the rule and no number.
        longest: as in ExtractSettings, so that pictures are read once.
    """

    scorer: ModelChoice = ModelChoice("syncnet")
    least: float = 3.0
    longest: int = 1280


class SyncFilter:
    """Sync-C of each character on its own voice; the mean decides (sec. 4.1).

    Whoever says nothing in a clip has no voice that lips could follow and does not count in the mean; the paper leaves
    this open. All pairs of voices and faces are scored: the audio-character matrix comes from that.
    """

    name = "sync"
    version = 1

    def __init__(self, settings: SyncSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources

    def prepare(self) -> None:
        """Build the model. Raises InputError where it cannot be."""
        model_of("sync", self.settings.scorer)

    def __call__(self, record: Record) -> list[Record]:
        scorer: SyncScorer = model_of("sync", self.settings.scorer)
        offset = record.start - record.data["context"][0]
        faces = crops_of(record, self.settings.longest, context=True)[:, offset : offset + record.frames]
        voices = clip_speeches(record)
        speaks = record.data["speaks"]
        table: list[list[float | None]] = []
        distances: list[float | None] = []
        rows = [m for m, speaking in enumerate(speaks) if speaking]
        scored = dict(zip(rows, scorer.scores(faces, voices[rows]), strict=True))
        for m in range(len(voices)):
            row = scored.get(m, [])
            table.append([round(sync.confidence, 4) for sync in row] or [None] * len(faces))
            distances.append(round(row[m].distance, 4) if row else None)
        own = [table[m][m] for m in range(len(voices))]
        mean = float(np.mean([value for value in own if value is not None]))
        seen = record.with_data(sync_c=own, sync_d=distances, sync_table=table, sync_mean=round(mean, 4))
        if mean < self.settings.least:
            least = f"at least {self.settings.least:g}"
            return [seen.reject(f"lips do not follow the voices: mean Sync-C {mean:.2f}, {least}")]
        return [seen]


def clip_speeches(record: Record) -> np.ndarray:
    """float32 [M,S]: the voices without their context."""
    offset = (record.start - record.data["context"][0]) * _STEP
    return record.array("speeches")[:, offset : offset + record.frames * _STEP]


@dataclass(frozen=True)
class MatrixSettings:
    """How sure the matrix must be.

    Args:
        margin: a voice belongs to the face that it was extracted for, unless another assignment of all voices to
            faces scores higher by this much Sync-C in total.
        alike: correlation of two voices from which they are one and the same: the extractor was mistaken.
    """

    margin: float = 1.0
    alike: float = 0.7


class Matrix:
    """The audio-character matrix A^ac (sec. 4.2) of zeros and ones: row m says whom voice m belongs to.

    A voice found for two faces is kept where it fits better, and taken from the other.
    """

    name = "matrix"
    version = 1

    def __init__(self, settings: MatrixSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources

    def __call__(self, record: Record) -> list[Record]:
        table = record.data["sync_table"]
        speaks = [bool(value) for value in record.data["speaks"]]
        speeches = record.array("speeches").copy()
        voices = clip_speeches(record)
        twins = []
        for m in range(len(voices)):
            for other in range(m):
                if speaks[m] and speaks[other] and correlation(voices[m], voices[other]) >= self.settings.alike:
                    drop = m if table[m][m] <= table[other][other] else other
                    speaks[drop] = False
                    speeches[drop] = 0.0
                    twins.append([other, m])
        rows = [m for m, speaking in enumerate(speaks) if speaking]
        score = np.array([table[m] for m in rows], np.float64)
        found = np.array(rows)
        better = linear_sum_assignment(-score)[1]
        gain = float(score[range(len(rows)), better].sum() - score[range(len(rows)), found].sum())
        if gain >= self.settings.margin:
            found = better
        matrix = np.zeros((len(voices), len(voices)), int)
        matrix[rows, found] = 1
        free = sorted(set(range(len(voices))) - set(found.tolist()))
        for m, n in zip([m for m, speaking in enumerate(speaks) if not speaking], free, strict=True):
            matrix[m, n] = 1  # a listener has a stream too: silence
        rebound = gain >= self.settings.margin
        seen = record.with_data(matrix=matrix.tolist(), speaks=speaks, twins=twins, rebound=rebound)
        return [seen.with_arrays(speeches=speeches)]


def correlation(one: np.ndarray, two: np.ndarray, reach: int = RATE // 50) -> float:
    """Largest normalised correlation of two sounds shifted by up to 20 ms, 0..1."""
    from scipy.signal import correlate

    scale = float(np.linalg.norm(one) * np.linalg.norm(two))
    if scale < 1e-9:
        return 0.0
    middle = len(two) - 1
    return float(np.abs(correlate(one, two, "full", "fft")[middle - reach : middle + reach + 1]).max()) / scale
