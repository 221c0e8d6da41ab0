"""Who hears whom: the audio-character matrix, given by a person or found by matching voices to faces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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

SURE = 0.8  # confidence below which a person should look at the matrix
PIECE = 2.0  # seconds; longer speech is judged in pieces of at most that


@dataclass(frozen=True)
class Binding:
    """Who hears whom.

    Args:
        matrix: [M, N], 1 where stream m moves character n.
        scores: [M, N], how well voice and face go together (log odds); 0 for streams without a voice, and where a
            person gave the matrix.
        confidence: [M], of the pair each stream is in, see `pair_confidence`; 1 where nothing was to be decided.
        notices: what a person should know, one sentence each.
    """

    matrix: Tensor
    scores: Tensor
    confidence: Tensor
    notices: tuple[str, ...] = ()


def bind(scene: Scene, bundle: ModelBundle, tracker: ProgressTracker | None = None) -> Binding:
    """Who hears whom in a scene: as given, or with `scene.bind == "auto"` by matching voices to faces.

    Raises:
        InputError: "auto" with a model that cannot match voices to faces, or more voices than characters.
        Cancelled: the watcher asked to stop.
    """
    if scene.bind == "given":
        matrix = scene.matrix
        return Binding(matrix, torch.zeros_like(matrix), torch.ones(matrix.shape[0]))
    if bundle.voice_face is None:
        came = f'binding "auto", but the model "{bundle.name}" cannot match voices to faces'
        raise InputError(came, 'binding "given"', "leave it out, or give the audio-character matrix")
    names = [character.name for character in scene.characters]
    voices = [m for m, speech in enumerate(scene.speeches) if is_audible(speech)]
    if len(voices) > len(names):
        came = f"{len(voices)} voices ({_listed(stream_name(m) for m in voices)}) for {len(names)} characters"
        do = f"leave out a speech, or add a character to {_listed(names)}"
        raise InputError(came, "at most one voice for each character", do)
    activity = load_voice_activity()
    with (tracker or ProgressTracker()).stage("Matching voices to faces"):
        images = [character.image for character in scene.characters]
        found = match(scene.speeches, images, bundle.voice_face, activity)
    return replace(found, notices=tuple(_notices(found, voices, names, activity)))


def bound(scene: Scene, bundle: ModelBundle, tracker: ProgressTracker | None = None) -> Scene:
    """The scene once it is settled who hears whom; a scene whose matrix is given comes back as it is.

    Raises as `bind` does.
    """
    if scene.bind == "given":
        return scene
    found = bind(scene, bundle, tracker)
    notices = (*scene.notices, *found.notices)
    return replace(scene, audio_character_matrix=found.matrix, bind="given", notices=notices)


def match(
    speeches: Sequence[Speech | None],
    images: Sequence[Tensor],
    voice_face: VoiceFace,
    activity: VoiceActivity,
) -> Binding:
    """Match M voices to N faces: scores per stretch of speech, vote, Hungarian assignment.

    Every stretch of speech votes for the faces with its scores, weighted by its length; the assignment with the largest
    sum of votes wins. Streams without a voice go to whoever is left, in order; faces that are left over listen.

    Args:
        speeches: M of them; None or silent = no voice. At most N with one.
        images: N portraits [3, H, W] in 0..1.
    """
    from scipy.optimize import linear_sum_assignment

    matrix, confidence = torch.zeros(len(speeches), len(images)), torch.ones(len(speeches))
    scores = torch.zeros_like(matrix)
    voices = [m for m, speech in enumerate(speeches) if is_audible(speech)]
    for m in voices:
        speech = speeches[m]
        assert speech is not None  # audible
        scores[m] = vote(speech, images, voice_face, activity)
    free = list(range(len(images)))
    if voices:
        heard = scores[voices].double().numpy()
        rows, columns = linear_sum_assignment(heard, maximize=True)
        sure = pair_confidence(heard)
        for row, n in zip(rows.tolist(), columns.tolist(), strict=True):
            matrix[voices[row], n] = 1.0
            confidence[voices[row]] = float(sure[row])
            free.remove(n)
    for m, n in zip((m for m in range(len(speeches)) if m not in voices), free, strict=False):
        matrix[m, n] = 1.0
    return Binding(matrix, scores, confidence)


def vote(speech: Speech, images: Sequence[Tensor], voice_face: VoiceFace, activity: VoiceActivity) -> Tensor:
    """Scores [N] of a voice with each face: the mean over its stretches of speech, weighted by their length."""
    rate = voice_face.sample_rate
    mono = resample_mono(speech.waveform, speech.sample_rate, rate)
    seconds = mono.shape[0] / rate
    spans = activity.spans(mono, rate) or [(0.0, seconds)]  # audible, yet no speech found: judged as a whole
    pieces = [mono[round(start * rate) : round(end * rate)] for start, end in split_spans(spans)]
    length = torch.tensor([float(piece.shape[0]) for piece in pieces])
    votes = voice_face.scores(pieces, images)
    return (votes * (length / length.sum())[:, None]).sum(0)


def split_spans(spans: Sequence[Span], longest: float = PIECE) -> list[Span]:
    """Spans, those longer than `longest` seconds cut into equal parts."""
    pieces: list[Span] = []
    for start, end in spans:
        count = max(1, math.ceil((end - start) / longest - 1e-6))
        step = (end - start) / count
        pieces += [(start + k * step, start + (k + 1) * step) for k in range(count)]
    return pieces


def pair_confidence(scores: np.ndarray) -> np.ndarray:
    """How sure each pair of the best assignment is, [V] in 0.5..1, from log odds [V, N] with V <= N.

    The margin of a pair is the sum of the best assignment less that of the best one without this pair; the confidence
    is 1 / (1 + exp(-margin)), the probability of the one against the other where scores are log odds. 0.5 = as good as
    a coin, 1 = no other way (always so for one voice and one face).
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    best = scores[rows, columns].sum()
    sure = np.ones(scores.shape[0])
    if scores.shape[1] == 1:
        return sure
    worst = np.abs(scores).sum() + 1.0
    for row, column in zip(rows, columns, strict=True):
        without = scores.copy()
        without[row, column] -= 4.0 * worst  # less than any other way could lose
        other = linear_sum_assignment(without, maximize=True)
        sure[row] = 1.0 / (1.0 + np.exp(-(best - without[other].sum())))
    return sure


def stream_name(index: int) -> str:
    """What stream number `index` is called in messages."""
    return f"speech {index + 1}"


def matrix_text(matrix: Tensor, names: Sequence[str]) -> str:
    """A matrix [M, N] in words and numbers: "speech 1 -> Ben, speech 2 -> Anna; matrix [[0, 1], [1, 0]]"."""
    pairs = []
    for m, row in enumerate(matrix.tolist()):
        moved = [name for name, weight in zip(names, row, strict=True) if weight > 0]
        pairs.append(f"{stream_name(m)} -> {' + '.join(moved) or 'nobody'}")
    rows = ", ".join("[" + ", ".join(f"{weight:g}" for weight in row) + "]" for row in matrix.tolist())
    return f"{', '.join(pairs)}; matrix [{rows}]"


def _notices(found: Binding, voices: list[int], names: list[str], activity: VoiceActivity) -> list[str]:
    shown = matrix_text(found.matrix, names)
    notices = [f"Voices were matched to faces ({shown}), speech found by {activity.name}."]
    doubtful = [m for m in voices if found.confidence[m] < SURE]
    if doubtful:
        sure = _listed(f"{stream_name(m)} {100 * float(found.confidence[m]):.0f} %" for m in doubtful)
        notices.append(
            f"Low confidence in who hears whom ({sure}; below {100 * SURE:.0f} % is little): "
            f"check {shown}, or give the matrix."
        )
    heard = found.matrix[voices].sum(0) if voices else torch.zeros(len(names))
    listeners = [name for name, weight in zip(names, heard, strict=True) if weight == 0]
    if listeners:
        notices.append(f"No voice is left for {_listed(listeners)}: listening in silence.")
    return notices


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts)
