"""Stages "extract", "sync" and "matrix": speech separation, lip sync filter, audio-character matrix (sec. 4.1, 4.2)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from bya_core.validation import validated
from training.curation.footage import SAMPLE_RATE, face_crops, read_audio
from training.curation.models import ModelChoice, ModelOption, SpeechExtractor, SpeechMixture, SyncScorer
from training.curation.record import FPS, Record
from training.curation.stage import Stage, UnusableFootage

_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS


@validated
class ExtractSettings:
    """Options of speech extraction.

    Args:
        extractor: target speaker extraction model; "none" (for one character) uses the recorded audio.
        max_side: longer side in pixels of the frames from which faces are cropped.
        min_rms: RMS of the loudest half second (full scale = 1) below which a stream is silent.
        min_relative_rms: streams below this fraction of the loudest stream are treated as leakage.
    """

    extractor: ModelOption = ModelChoice("clearvoice")
    max_side: int = 1280
    min_rms: float = 0.005
    min_relative_rms: float = 0.1


class Extract(Stage):
    """Extracts one audio stream per character; streams of characters that do not speak are exactly silent."""

    name = "extract"
    models = {"extractor": "extractor"}

    def __call__(self, record: Record) -> list[Record]:
        settings: ExtractSettings = self.settings
        first, last = record.data["context"]
        mix = read_audio(record.source, first / FPS, (last - first) / FPS)
        offset = (record.start - first) * _SAMPLES_PER_FRAME
        inside = slice(offset, offset + record.num_frames * _SAMPLES_PER_FRAME)
        if peak_rms(mix[inside]) < settings.min_rms:
            return [record.reject("silent audio")]
        extractor: SpeechExtractor | None = self.model("extractor")
        if extractor is None:
            speeches = mix[None]
        else:
            faces = face_crops(record, settings.max_side, context=True)
            speeches = np.asarray(extractor.extract(SpeechMixture(mix, faces, record.source, first / FPS)), np.float32)
        expected = len(record.array("boxes")), len(mix)
        if speeches.shape != expected or not np.isfinite(speeches).all():
            raise UnusableFootage(f"invalid extractor output {speeches.shape}, expected {expected}")
        rms = np.array([peak_rms(speech[inside]) for speech in speeches])
        speaking = (rms >= settings.min_rms) & (rms >= settings.min_relative_rms * rms.max())
        speeches = np.where(speaking[:, None], speeches, np.float32(0.0))
        record = record.with_data(speaking=speaking.tolist(), rms=[round(float(v), 5) for v in rms])
        if not speaking.any():
            return [record.reject("no visible character speaks")]
        return [record.with_arrays(speeches=speeches)]


def peak_rms(waveform: np.ndarray) -> float:
    """RMS of the loudest half second."""
    window = SAMPLE_RATE // 2
    if len(waveform) == 0:
        return 0.0
    windows = np.pad(waveform, (0, -len(waveform) % window)).reshape(-1, window).astype(np.float64)
    return float(np.sqrt((windows**2).mean(axis=1)).max())


@validated
class SyncSettings:
    """Options of the lip sync filter.

    Args:
        scorer: synchronization model; "none" accepts all clips and keeps the assignment of the extractor.
        min_confidence: minimum mean Sync-C. The paper states the rule without a value.
        max_side: see `ExtractSettings`; an equal value avoids decoding the frames twice.
    """

    scorer: ModelOption = ModelChoice("syncnet")
    min_confidence: float = 3.0
    max_side: int = 1280


class SyncFilter(Stage):
    """Rejects clips by the mean Sync-C of each character on its own speech (paper sec. 4.1).

    Silent characters have no score and do not enter the mean; the paper leaves this open. All pairs of speeches and
    faces are scored, because the audio-character matrix is derived from them.
    """

    name = "sync"
    models = {"sync": "scorer"}

    def __call__(self, record: Record) -> list[Record]:
        scorer: SyncScorer | None = self.model("sync")
        if scorer is None:
            return [record]
        offset = record.start - record.data["context"][0]
        faces = face_crops(record, self.settings.max_side, context=True)[:, offset : offset + record.num_frames]
        speeches = clip_speeches(record)
        rows = np.flatnonzero(record.data["speaking"]).tolist()
        table: list[list[float | None]] = [[None] * len(faces) for _ in speeches]
        distances: list[float | None] = [None] * len(speeches)
        for m, scores in zip(rows, scorer.scores(faces, speeches[rows]), strict=True):
            table[m] = [round(sync.confidence, 4) for sync in scores]
            distances[m] = round(scores[m].distance, 4)
        own = [table[m][m] for m in range(len(speeches))]
        mean = float(np.mean([value for value in own if value is not None]))
        record = record.with_data(sync_c=own, sync_d=distances, sync_table=table, sync_mean=round(mean, 4))
        if mean < self.settings.min_confidence:
            limit = f"at least {self.settings.min_confidence:g}"
            return [record.reject(f"lip sync too low: mean Sync-C {mean:.2f}, {limit}")]
        return [record]


def clip_speeches(record: Record) -> np.ndarray:
    """Speeches of a clip without context: float32 [M,S]."""
    offset = (record.start - record.data["context"][0]) * _SAMPLES_PER_FRAME
    return record.array("speeches")[:, offset : offset + record.num_frames * _SAMPLES_PER_FRAME]


@validated
class MatrixSettings:
    """Options of the audio-character matrix.

    Args:
        margin: a speech is assigned to the face it was extracted for, unless another assignment has a total Sync-C
            higher by at least this margin.
        max_correlation: correlation from which two speeches are duplicates of one extracted for two faces.
    """

    margin: float = 1.0
    max_correlation: float = 0.7


class Matrix(Stage):
    """Computes the binary audio-character matrix A^ac (paper sec. 4.2): row m marks the character of speech m.

    Of two duplicate speeches, the one with the lower Sync-C is silenced.
    """

    name = "matrix"

    def __call__(self, record: Record) -> list[Record]:
        speaking = [bool(value) for value in record.data["speaking"]]
        speeches = record.array("speeches").copy()
        clips = clip_speeches(record)
        table = record.data.get("sync_table")
        if table is None:  # no scorer
            table = np.diag([peak_rms(clip) for clip in clips]).tolist()
        duplicates = []
        for other, m in sorted(combinations(range(len(clips)), 2), key=lambda pair: pair[::-1]):
            if not (speaking[m] and speaking[other]):
                continue
            if max_correlation(clips[m], clips[other]) >= self.settings.max_correlation:
                drop = m if table[m][m] <= table[other][other] else other
                speaking[drop], speeches[drop] = False, 0.0
                duplicates.append([other, m])
        rows = np.flatnonzero(speaking)
        scores = np.array([table[m] for m in rows], np.float64)
        columns, best = rows, linear_sum_assignment(-scores)[1]
        index = np.arange(len(rows))
        reassigned = bool(scores[index, best].sum() - scores[index, columns].sum() >= self.settings.margin)
        if reassigned:
            columns = best
        matrix = np.zeros((len(clips), len(clips)), int)
        matrix[rows, columns] = 1
        silent, listeners = np.flatnonzero(~np.array(speaking)), np.setdiff1d(np.arange(len(clips)), columns)
        matrix[silent, listeners] = 1  # listeners get the silent streams
        record = record.with_data(
            matrix=matrix.tolist(), speaking=speaking, duplicates=duplicates, reassigned=reassigned
        )
        return [record.with_arrays(speeches=speeches)]


def max_correlation(first: np.ndarray, second: np.ndarray, max_lag: int = SAMPLE_RATE // 50) -> float:
    """Largest absolute normalized cross-correlation within a lag of 20 ms."""
    from scipy.signal import correlate

    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    if scale < 1e-9:
        return 0.0
    zero = len(second) - 1
    values = np.abs(correlate(first, second, "full", "fft")[zero - max_lag : zero + max_lag + 1])
    return float(values.max()) / scale
