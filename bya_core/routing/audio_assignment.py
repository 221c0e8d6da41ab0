"""Assignment of speech streams to characters: given as audio-character matrix, or by matching voices to faces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bya_core.encoders.vad import Span, VoiceActivity, is_audible, load_voice_activity
from bya_core.encoders.voice_face import VoiceFace
from bya_core.errors import InputError
from bya_core.io.media import resample_mono
from bya_core.progress import ProgressTracker
from bya_core.scene.types import Scene, Speech
from bya_core.weights.bundle import ModelBundle

CONFIDENCE_THRESHOLD = 0.8
"""Confidence below which a notice asks the user to check the matrix."""
MAX_SEGMENT_SECONDS = 2.0
"""Longer speech is split into segments of at most this length for scoring."""


@dataclass(frozen=True)
class AudioAssignment:
    """Assignment of M speech streams to N characters.

    Args:
        matrix: audio-character matrix [M, N], 1 where stream m drives character n.
        scores: voice-face scores [M, N] in log odds; 0 for silent streams and for a given matrix.
        confidence: [M], see `pair_confidence`; 1 where there was no choice.
        notices: messages for the user, one sentence each.
    """

    matrix: Tensor
    scores: Tensor
    confidence: Tensor
    notices: tuple[str, ...] = ()


def assign_audio(scene: Scene, bundle: ModelBundle, tracker: ProgressTracker | None = None) -> AudioAssignment:
    """Assignment of a scene: the given matrix, or for `scene.bind == "auto"` by matching voices to faces.

    Raises:
        InputError: the model cannot match voices to faces, or not those of these characters, or there are more voices
            than characters.
        Cancelled: the progress callback cancelled.
    """
    if scene.bind == "given":
        matrix = scene.matrix
        return AudioAssignment(matrix, torch.zeros_like(matrix), torch.ones(matrix.shape[0]))
    if bundle.voice_face is None:
        problem = f'binding "auto", but the model "{bundle.name}" cannot match voices to faces'
        raise InputError(problem, 'binding "given"', "omit it, or provide the audio-character matrix")
    voices = check_voices(scene)
    unknown = unknown_faces(scene, bundle) if voices and len(scene.names) > 1 else []
    if unknown:
        problem = (
            f'binding "auto" for {", ".join(unknown)}, but {bundle.name} knows the voices of drawn puppets only, not '
            "of people as in photographs"
        )
        hint = "provide the matrix, or a reference_video in which they speak"
        raise InputError(problem, "a given audio-character matrix", hint)
    activity = load_voice_activity()
    with (tracker or ProgressTracker()).stage("Matching voices to faces"):
        images = [character.image for character in scene.characters]
        assignment = match_voices(scene.speeches, images, bundle.voice_face, activity)
    return replace(assignment, notices=tuple(_notices(assignment, voices, scene, activity)))


def check_voices(scene: Scene) -> list[int]:
    """Numbers of the streams with a voice. Raises InputError if there are more than characters."""
    names = scene.names
    voices = [m for m, speech in enumerate(scene.speeches) if is_audible(speech)]
    if len(voices) > len(names):
        problem = f"{len(voices)} voices ({', '.join(map(stream_name, voices))}) for {len(names)} characters"
        hint = f"remove a speech, or add a character to {', '.join(names)}"
        raise InputError(problem, "at most one voice per character", hint)
    return voices


def unknown_faces(scene: Scene, bundle: ModelBundle) -> list[str]:
    """Names of the characters whose reference images the voice-face network of the model was not trained for."""
    meter = bundle.meter
    return [] if meter is None else [each.name for each in scene.characters if not meter.is_portrait(each.image)]


def match_scene(scene: Scene, bundle: ModelBundle, tracker: ProgressTracker | None = None) -> Scene:
    """The scene with its audio-character matrix; voices are matched to faces for `scene.bind == "auto"`.

    Raises as `assign_audio` does.
    """
    if scene.bind == "given":
        return scene
    assignment = assign_audio(scene, bundle, tracker)
    notices = (*scene.notices, *assignment.notices)
    return replace(scene, audio_character_matrix=assignment.matrix, bind="given", notices=notices)


def match_voices(
    speeches: Sequence[Speech | None],
    images: Sequence[Tensor],
    voice_face: VoiceFace,
    activity: VoiceActivity,
) -> AudioAssignment:
    """Match M voices to N faces: the Hungarian assignment with the largest sum of `voice_scores`.

    Silent streams are assigned to the remaining characters in order. Further characters are listeners.

    Args:
        speeches: M streams; None = silent. At most N with a voice.
        images: N portraits [3, H, W] in 0..1.
    """
    from scipy.optimize import linear_sum_assignment

    matrix, confidence = torch.zeros(len(speeches), len(images)), torch.ones(len(speeches))
    scores = torch.zeros_like(matrix)
    voices = {m: speech for m, speech in enumerate(speeches) if speech is not None and is_audible(speech)}
    free = list(range(len(images)))
    if voices:
        rows = list(voices)
        scores[rows] = torch.stack([voice_scores(voices[m], images, voice_face, activity) for m in rows])
        log_odds = scores[rows].cpu().double().numpy()  # MPS has no float64
        confidence[rows] = torch.from_numpy(pair_confidence(log_odds)).float()
        for row, n in zip(*linear_sum_assignment(log_odds, maximize=True), strict=True):
            matrix[rows[row], n] = 1.0
            free.remove(n)
    for m, n in zip((m for m in range(len(speeches)) if m not in voices), free, strict=False):
        matrix[m, n] = 1.0
    return AudioAssignment(matrix, scores, confidence)


def voice_scores(speech: Speech, images: Sequence[Tensor], voice_face: VoiceFace, activity: VoiceActivity) -> Tensor:
    """Scores [N] of a voice with each face: the mean over its speech segments, weighted by their length."""
    rate = voice_face.sample_rate
    mono = resample_mono(speech.waveform, speech.sample_rate, rate)
    seconds = mono.shape[0] / rate
    spans = activity.spans(mono, rate) or [(0.0, seconds)]  # no speech detected: use the whole stream
    segments = [mono[round(start * rate) : round(end * rate)] for start, end in split_spans(spans)]
    lengths = torch.tensor([float(len(segment)) for segment in segments])
    return lengths / lengths.sum() @ voice_face.scores(segments, images)


def split_spans(spans: Sequence[Span]) -> list[Span]:
    """Split spans longer than `MAX_SEGMENT_SECONDS` into equal parts."""
    parts: list[Span] = []
    for start, end in spans:
        count = max(1, math.ceil((end - start) / MAX_SEGMENT_SECONDS - 1e-6))
        step = (end - start) / count
        parts += [(start + k * step, start + (k + 1) * step) for k in range(count)]
    return parts


def pair_confidence(scores: np.ndarray) -> np.ndarray:
    """Confidence of each pair of the best assignment.

    It is 1 / (1 + exp(-margin)), where the margin is the difference between the best assignment and the best one
    without this pair: 0.5 = chance, 1 = no alternative (one voice and one face).

    Args:
        scores: log odds [V, N], V <= N.

    Returns:
        [V] in 0.5..1.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    best = scores[rows, columns].sum()
    confidence = np.ones(scores.shape[0])
    if scores.shape[1] == 1:
        return confidence
    penalty = 4.0 * (np.abs(scores).sum() + 1.0)  # worse than any alternative
    for row, column in zip(rows, columns, strict=True):
        without = scores.copy()
        without[row, column] -= penalty
        other = linear_sum_assignment(without, maximize=True)
        confidence[row] = 1.0 / (1.0 + np.exp(-(best - without[other].sum())))
    return confidence


def stream_name(index: int) -> str:
    """Name of a stream in messages."""
    return f"speech {index + 1}"


def matrix_text(matrix: Tensor, names: Sequence[str]) -> str:
    """Format a matrix [M, N], such as "speech 1 -> Ben, speech 2 -> Anna; matrix [[0, 1], [1, 0]]"."""
    pairs = []
    for m, row in enumerate(matrix.tolist()):
        driven = [name for name, weight in zip(names, row, strict=True) if weight > 0]
        pairs.append(f"{stream_name(m)} -> {' + '.join(driven) or 'no character'}")
    rows = ", ".join("[" + ", ".join(f"{weight:g}" for weight in row) + "]" for row in matrix.tolist())
    return f"{', '.join(pairs)}; matrix [{rows}]"


def _notices(assignment: AudioAssignment, voices: list[int], scene: Scene, activity: VoiceActivity) -> Iterator[str]:
    names = scene.names
    pairs = matrix_text(assignment.matrix, names)
    yield f"Voices were matched to faces ({pairs}), speech found by {activity.name}."
    confidence = {stream_name(m): float(assignment.confidence[m]) for m in voices}
    low = ", ".join(f"{name} {100 * value:.0f} %" for name, value in confidence.items() if value < CONFIDENCE_THRESHOLD)
    if low:
        yield f"Low confidence in the assignment of voices to faces ({low}): check {pairs}, or provide the matrix."
    driven = assignment.matrix[voices].sum(0).tolist()
    if listeners := [name for name, weight in zip(names, driven, strict=True) if weight == 0]:
        yield f"No voice was assigned to {', '.join(listeners)}: treated as listeners."
