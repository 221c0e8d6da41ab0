"""Stages "extract", "sync" and "matrix": speech separation, lip sync filter, audio-character matrix (sec. 4.1, 4.2)."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated

import numpy as np
from scipy.optimize import linear_sum_assignment

from bya_core.evaluation.sync_metrics import Sync
from bya_core.validation import Field, validated
from training.curation.footage import SAMPLE_RATE, clip_points, face_crops, model_size, read_audio
from training.curation.mesh_models import LipSpeakers, LipSyncScorer
from training.curation.models import ModelChoice, ModelOption, SpeechExtractor, SpeechMixture, SyncScorer
from training.curation.record import FPS, Record
from training.curation.stage import Stage, UnusableFootage

_SAMPLES_PER_FRAME = SAMPLE_RATE // FPS


@validated
class ExtractSettings:
    """Options of speech extraction.

    Args:
        extractor: target speaker extraction model; "lips" needs no download, but face meshes (faces.detector:
            blazeface), and does not separate voices; "none" (for one character) uses the recorded audio.
        max_side: longer side in pixels of the frames from which faces are cropped.
        min_rms: RMS of the loudest half second (full scale = 1) below which a stream is silent.
        min_relative_rms: streams below this fraction of the loudest stream are treated as leakage.
        max_overlap: largest fraction of the speech in which several people speak at once, for extractors that do not
            separate voices.
    """

    extractor: ModelOption = ModelChoice("clearvoice")
    max_side: int = 1280
    min_rms: float = 0.005
    min_relative_rms: float = 0.1
    max_overlap: Annotated[float, Field(ge=0, le=1)] = 0.3


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
            speeches = np.asarray(extractor.extract(self._mixture(record, extractor, mix)), np.float32)
        expected = len(record.array("boxes")), len(mix)
        if speeches.shape != expected or not np.isfinite(speeches).all():
            raise UnusableFootage(f"invalid extractor output {speeches.shape}, expected {expected}")
        rms = np.array([peak_rms(speech[inside]) for speech in speeches])
        speaking = (rms >= settings.min_rms) & (rms >= settings.min_relative_rms * rms.max())
        speeches = np.where(speaking[:, None], speeches, np.float32(0.0))
        active = np.stack([frame_rms(speech[inside]) >= settings.min_rms / 2 for speech in speeches])
        overlap = float((active.sum(axis=0) > 1).sum() / max(1, active.any(axis=0).sum()))
        record = record.with_data(
            speaking=speaking.tolist(),
            num_speakers=int(speaking.sum()),
            overlap=round(overlap, 3),
            rms=[round(float(v), 5) for v in rms],
        )
        if not speaking.any():
            return [record.reject("no visible character speaks")]
        if not getattr(extractor, "separates", True) and overlap > settings.max_overlap:
            limit = f"at most {100 * settings.max_overlap:.0f} % without an extractor that separates voices"
            return [record.reject(f"several people speak at once: {100 * overlap:.0f} % of the speech, {limit}")]
        return [record.with_arrays(speeches=speeches)]

    def _mixture(self, record: Record, extractor: SpeechExtractor, mix: np.ndarray) -> SpeechMixture:
        """Input of an extractor: face crops, or meshes for those that use them."""
        faces, points = np.zeros((0, 0, 224, 224, 3), np.uint8), None
        if isinstance(extractor, LipSpeakers):
            points = clip_points(record, model_size(record, self.settings.max_side), context=True)
        else:
            faces = face_crops(record, self.settings.max_side, context=True)
        return SpeechMixture(mix, faces, record.source, record.data["context"][0] / FPS, points)


def frame_rms(waveform: np.ndarray) -> np.ndarray:
    """RMS of each frame of the common timeline."""
    return np.sqrt((waveform.reshape(-1, _SAMPLES_PER_FRAME).astype(np.float64) ** 2).mean(axis=1))


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
        scorer: synchronization model; "lips" needs no download, but face meshes (faces.detector: blazeface); "none"
            accepts all clips and keeps the assignment of the extractor.
        min_confidence: minimum mean score; None = 3 (Sync-C) for "syncnet", 0.1 (correlation) for "lips". The paper
            states the rule without a value.
        max_side: see `ExtractSettings`; an equal value avoids decoding the frames twice.
    """

    scorer: ModelOption = ModelChoice("syncnet")
    min_confidence: float | None = None
    max_side: int = 1280


class SyncFilter(Stage):
    """Rejects clips by the mean Sync-C of each character on its own speech (paper sec. 4.1).

    Silent characters have no score and do not enter the mean; the paper leaves this open. All pairs of speeches and
    faces are scored, because the audio-character matrix is derived from them.
    """

    name = "sync"
    models = {"sync": "scorer"}

    def __call__(self, record: Record) -> list[Record]:
        scorer: SyncScorer | LipSyncScorer | None = self.model("sync")
        if scorer is None:
            return [record]
        rows = np.flatnonzero(record.data["speaking"]).tolist()
        count = len(record.data["speaking"])
        table: list[list[float | None]] = [[None] * count for _ in range(count)]
        distances: list[float | None] = [None] * count
        for m, scores in zip(rows, self._scores(scorer, record, rows), strict=True):
            table[m] = [round(sync.confidence, 4) for sync in scores]
            distances[m] = round(scores[m].distance, 4)
        own = [table[m][m] for m in range(count)]
        mean = float(np.mean([value for value in own if value is not None]))
        record = record.with_data(
            sync_c=own, sync_d=distances, sync_table=table, sync_mean=round(mean, 4), sync_margin=scorer.margin
        )
        least = self.settings.min_confidence
        least = scorer.min_confidence if least is None else least
        if mean < least:
            return [record.reject(f"lip sync too low: mean score {mean:.2f}, at least {least:g}")]
        return [record]

    def _scores(self, scorer: SyncScorer | LipSyncScorer, record: Record, rows: list[int]) -> list[list[Sync]]:
        """Scores of the speeches `rows`; from meshes with the context of the clip, from face crops without."""
        if isinstance(scorer, LipSyncScorer):
            points = clip_points(record, model_size(record, self.settings.max_side), context=True)
            return scorer.scores_of_meshes(points, record.array("speeches")[rows])
        offset = record.start - record.data["context"][0]
        faces = face_crops(record, self.settings.max_side, context=True)[:, offset : offset + record.num_frames]
        return scorer.scores(faces, clip_speeches(record)[rows])


def clip_speeches(record: Record) -> np.ndarray:
    """Speeches of a clip without context: float32 [M,S]."""
    offset = (record.start - record.data["context"][0]) * _SAMPLES_PER_FRAME
    return record.array("speeches")[:, offset : offset + record.num_frames * _SAMPLES_PER_FRAME]


@validated
class MatrixSettings:
    """Options of the audio-character matrix.

    Args:
        margin: a speech is assigned to the face it was extracted for, unless another assignment has a total score
            higher by at least this margin; None = 1 (Sync-C) for "syncnet", 0.15 (correlation) for "lips".
        max_correlation: correlation from which two speeches are duplicates of one extracted for two faces.
    """

    margin: float | None = None
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
        margin = record.data.get("sync_margin", 1.0) if self.settings.margin is None else self.settings.margin
        gain = float(scores[index, best].sum() - scores[index, columns].sum())
        reassigned = gain > 0 and gain >= margin
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
