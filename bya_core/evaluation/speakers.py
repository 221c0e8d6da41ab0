"""Who speaks when in a video of several people with one mixed recording: active speakers by lip movement.

The movement that the recording lets expect is compared with every mouth around each frame; a mouth also has to move.
Shapes: N faces, L frames at 25 per second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bya_core.encoders.face.tracking import FaceTrack, track_faces
from bya_core.encoders.vad import VoiceActivity, load_voice_activity
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools, cast_faces
from bya_core.evaluation.face_tracks import merge_tracks
from bya_core.evaluation.lip_sync import FPS, RATE, STILL_MOUTH, LipSyncModel, compare, load_lip_sync, mouth_shapes
from bya_core.io.media import read_frames, read_image, read_recording, resample_mono
from bya_core.scene.schema import read_scene_file
from bya_core.scene.timeline import Turn

TALKING_MOUTH = 0.012  # typical movement of a mouth that speaks
MOVEMENT = 0.2  # weight of the logarithm of the movement
NOBODY = 0.08  # score of speech from outside the picture
SWITCH = 3.0  # cost of a change of speaker
TOGETHER = 0.55  # score above which a second mouth speaks as well
SHORTEST = 0.3  # seconds of a turn
PAUSE = 0.3  # seconds between two turns that are joined


@dataclass(frozen=True)
class Speakers:
    """Who speaks when.

    Args:
        names: of the N faces.
        turns: in order of their start.
        lanes: who speaks in which frame, bool [N, L].
        scores: of each face around each frame [N, L].
        speech: frames with speech, bool [L].
        notices: one sentence each.
    """

    names: tuple[str, ...]
    turns: tuple[Turn, ...]
    lanes: np.ndarray
    scores: np.ndarray
    speech: np.ndarray
    notices: tuple[str, ...] = ()

    @property
    def unseen(self) -> float:
        """Seconds of speech without a visible speaker."""
        return float((self.speech & ~self.lanes.any(axis=0)).sum() / FPS)


def find_speakers(
    tracks: Sequence[FaceTrack],
    waveform: np.ndarray,
    length: int,
    fps: float,
    names: Sequence[str],
    activity: VoiceActivity | None = None,
    model: LipSyncModel | None = None,
) -> Speakers:
    """Find who speaks when.

    Args:
        tracks: N faces over F frames.
        waveform: mixed recording, mono [S] at 16 kHz, which starts with the video.
        length: number F of frames.
        fps: frames per second.
        names: of the N faces.
        activity: detector of speech; None = the best available one.
        model: None = that of the package.
    """
    ticks, times = max(1, round(length / fps * FPS)), np.arange(length) / fps
    speech = np.zeros(ticks, dtype=bool)
    for start, end in (activity or load_voice_activity()).spans(torch.from_numpy(np.float32(waveform)), RATE):
        speech[round(start * FPS) : round(end * FPS)] = True
    model = model or load_lip_sync()
    mouths = [mouth_shapes(track.points, times, ticks) for track in tracks]
    result = compare(mouths, [model.predict(waveform, ticks)], model, own_offsets=True)
    movement = np.stack([mouth.movement_track() for mouth in mouths])
    moves = np.clip(np.log((movement + 1e-4) / TALKING_MOUTH), -2.0, 0.7)
    scores = np.where(movement >= STILL_MOUTH, result.local[:, 0], 0.0) + MOVEMENT * moves
    scores[~result.visible] = -1.0
    main = _best_path(np.concatenate([scores, np.full((1, ticks), NOBODY)]), speech)
    lanes = np.stack([main == n for n in range(len(tracks))])
    lanes |= scores >= TOGETHER
    lanes = np.stack([_joined(lane & speech) for lane in lanes])
    turns = [
        Turn(names[n], round(start / FPS, 2), round(end / FPS, 2))
        for n in range(len(tracks))
        for start, end in _runs(lanes[n])
    ]
    turns.sort(key=lambda turn: (turn.start, turn.speaker))
    return Speakers(tuple(names), tuple(turns), lanes, scores, speech)


def find_speakers_in(video: Path, scene: Path | None = None, tools: FaceTools | None = None) -> Speakers:
    """Find who speaks when in a video file with sound.

    Args:
        video: with one recording of everybody.
        scene: scene file whose reference images name the faces; None = "face 1", ... from left to right.
        tools: loaded networks; None to load those that are available.

    Raises:
        InputError: a file that cannot be read, a video without faces or without sound.
    """
    recording = read_recording(video)
    read = read_frames(video)
    tools = tools or FaceTools.load()
    frames = read.frames.numpy()
    tracks = track_faces(frames, tools.mesh)
    if not tracks:
        raise InputError(f"no face in {video}", "a video with faces of at least 24 pixels", "check the video")
    names, notices = [f"face {k + 1}" for k in range(len(tracks))], [*read.notices, *recording.notices]
    if scene is not None:
        characters = read_scene_file(scene).characters
        portraits = [read_image(scene.parent / character.image) for character in characters]
        names = [character.name for character in characters]
        cast, _, more = cast_faces(frames, tracks, portraits, None, tools, names)
        notices += more
        spare = sorted(set(range(len(tracks))) - {k for members in cast for k in members})
        tracks = [merge_tracks([tracks[k] for k in members], len(frames)) for members in [*cast, *([k] for k in spare)]]
        names += [f"another face ({k + 1})" for k in range(len(spare))]
    waveform = resample_mono(recording.waveform, recording.sample_rate, RATE).numpy()
    found = find_speakers(tracks, waveform, len(frames), read.fps, names, model=tools.lip_sync)
    return Speakers(found.names, found.turns, found.lanes, found.scores, found.speech, tuple(notices))


def _best_path(scores: np.ndarray, speech: np.ndarray) -> np.ndarray:
    """State with the largest sum of scores over time and a cost of changes [L]; -1 without speech (Viterbi)."""
    states, length = scores.shape
    best, back = np.zeros(states), np.zeros((length, states), dtype=int)
    for t in range(length):
        switch = int(best.argmax())
        stay = best >= best[switch] - SWITCH
        back[t] = np.where(stay, np.arange(states), switch)
        best = np.where(stay, best, best[switch] - SWITCH) + (scores[:, t] if speech[t] else 0.0)
    path = np.empty(length, dtype=int)
    state = int(best.argmax())
    for t in range(length - 1, -1, -1):
        path[t] = state
        state = int(back[t, state])
    return np.where(speech, path, -1)


def _joined(lane: np.ndarray) -> np.ndarray:
    """Runs with short pauses joined and short runs removed."""
    result = np.zeros_like(lane)
    last: tuple[int, int] | None = None
    for start, end in _runs(lane):
        if last is not None and start - last[1] <= PAUSE * FPS:
            start = last[0]
        last = start, end
        if end - start >= SHORTEST * FPS:
            result[start:end] = True
    return result


def _runs(lane: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(lane.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
