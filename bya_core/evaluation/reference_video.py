"""Assignment of voices to characters by a reference video, in which the characters say the speeches of the scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from bya_core.encoders.domains import guess_domain
from bya_core.encoders.vad import is_audible
from bya_core.errors import InputError
from bya_core.evaluation.binding import targets_of
from bya_core.evaluation.face_report import FaceMetrics, FaceTools, measure_faces
from bya_core.evaluation.lip_verdict import MIN_SPEECH, LipScores
from bya_core.evaluation.verdict import LIPS, speech_loudness
from bya_core.io.video import Video
from bya_core.scene.types import Speech

_HINT = "provide the matrix, or another video"


def match_reference_video(
    video: Video,
    speeches: Sequence[Speech | None],
    portraits: Sequence[Tensor],
    names: Sequence[str],
    tools: FaceTools | None = None,
) -> Tensor:
    """Audio-character matrix [M, N] by lip sync: each voice drives the character whose mouth follows it.

    Faces are assigned to characters by likeness to their reference images, never by position.

    Args:
        video: Video of real people; the speeches start with it.
        speeches: M streams; None = silent.
        portraits: N reference images [3, H, W] in 0..1.
        names: Of the N characters.
        tools: Loaded networks; None to load those that are available.

    Raises:
        InputError: Drawn characters, a character whose face is not found in the video or cannot be told from another
            one, or voices that cannot be matched with certainty.
    """
    if guess_domain(portraits) != "photos":
        problem = "a reference video with drawn characters"
        raise InputError(problem, "photographs of people", "omit it: their voices are matched to their pictures")
    tools = tools or FaceTools.load()
    faces = measure_faces(
        video.frames,
        speeches,
        video.fps,
        portraits,
        replace(tools, sync=None, notices=()),
        matrix="match",
        names=names,
    )
    visible = np.zeros(len(names)) if faces.boxes is None else np.isfinite(faces.boxes[..., 0]).sum(axis=1)
    if missing := [name for name, count in zip(names, visible, strict=True) if not count]:
        reasons = " ".join(faces.notices)
        problem = f"a reference video in which {', '.join(missing)} cannot be recognized ({reasons.rstrip('.')})"
        raise InputError(problem, "the face of every character", "use reference images taken from it, or " + _HINT)
    assert faces.matrix is not None
    matrix = faces.matrix
    silent = [m for m, speech in enumerate(speeches) if not is_audible(speech)]
    unsure = [f"speech {m + 1}" for m in range(len(speeches)) if m not in silent and not matrix[m].any()]
    unsure += _unsure(video, speeches, faces, names)
    if unsure:
        problem = f"a reference video in which the lips do not tell who speaks ({', '.join(unsure)})"
        raise InputError(problem, "at least 3 s of the same speech in the video, from its start", _HINT)
    free = [n for n in range(len(names)) if not matrix[:, n].any()]
    for m, n in zip(silent, free, strict=False):
        matrix[m, n] = 1.0
    return matrix


def _unsure(video: Video, speeches: Sequence[Speech | None], faces: FaceMetrics, names: Sequence[str]) -> list[str]:
    """Characters who do not follow their voice, or not clearly more than in every other assignment."""
    assert faces.lips is not None and faces.matrix is not None
    length = len(video.frames)
    loudness = np.stack([speech_loudness(speech, length, video.fps) for speech in speeches])
    targets = targets_of(faces.matrix.numpy())
    scores = LipScores(faces.lips, loudness, targets, video.fps)
    result = []
    for n in np.flatnonzero(targets >= 0).tolist():
        frames = int((faces.lips.visible[n] & scores.heard[targets[n]]).sum())
        follows = scores.scores[n, targets[n]] >= LIPS.follows
        if frames < MIN_SPEECH or not follows or (len(names) > 1 and scores.margin(n)[0] < scores.needed(n)[1]):
            result.append(names[n])
    return result
