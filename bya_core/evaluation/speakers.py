"""Who speaks when in a video of several people with one mixed recording: active speakers by lip movement.

The movement that the recording lets expect is compared with every mouth around each frame; a mouth also has to move.
Shapes: N faces, L frames at 25 per second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from bya_core.encoders.face.mesh import EYES
from bya_core.encoders.face.tracking import FaceTrack, track_faces
from bya_core.encoders.vad import VoiceActivity, load_voice_activity
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools, cast_faces
from bya_core.evaluation.face_tracks import merge_tracks
from bya_core.evaluation.lip_sync import FPS, RATE, STILL_MOUTH, LipSyncModel, compare, load_lip_sync, mouth_shapes
from bya_core.io.media import read_frames, read_image, read_recording, resample_mono
from bya_core.scene.schema import read_scene_file
from bya_core.scene.timeline import Turn

TALKING_MOUTH = 0.015  # typical movement of a mouth that speaks
FIT, MOVEMENT, BIAS = 11.0, 2.34, -2.1  # log odds of speaking: of the score, of the logarithm of the movement
WIDTH = 63  # frames around each one that are compared
MOST = 3.0  # log odds of one frame: neighboring frames are not independent
NOBODY = 2.0  # cost of a frame of speech from outside the picture
TOGETHER, JOINING = 0.6, 80.0  # costs of each further person who speaks: of a frame, and once
SWITCH = 6.0  # cost of a change of speaker
HEAD = 1.9  # side of a portrait relative to the face
AT_ONCE = 3  # people who may speak at once
SHORTEST = 0.3  # seconds of a turn
PAUSE = 0.3  # seconds between two turns that are joined


@dataclass(frozen=True)
class Speakers:
    """Who speaks when.

    Args:
        names: of the N faces.
        turns: in order of their start.
        lanes: who speaks in which frame, bool [N, L].
        scores: probability that each face speaks, if there is speech, by the frames around [N, L].
        speech: frames with speech, bool [L].
        notices: one sentence each.
        portraits: of the N faces, uint8 [h, w, 3]; empty if there are no frames, or a scene with reference images.
    """

    names: tuple[str, ...]
    turns: tuple[Turn, ...]
    lanes: np.ndarray
    scores: np.ndarray
    speech: np.ndarray
    notices: tuple[str, ...] = ()
    portraits: tuple[np.ndarray, ...] = ()

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
    result = compare(mouths, [model.predict(waveform, ticks)], model, WIDTH, own_offsets=True)
    movement = np.stack([mouth.movement_track() for mouth in mouths])
    moves = np.clip(np.log((movement + 1e-4) / TALKING_MOUTH), -2.0, 1.2)
    odds = FIT * np.where(movement >= STILL_MOUTH, result.local[:, 0], 0.0) + MOVEMENT * moves + BIAS
    odds[~result.visible] = -np.inf
    lanes = _best_lanes(np.clip(odds, -MOST, MOST), speech)
    lanes = np.stack([_joined(np.asarray(lane & speech)) for lane in lanes])
    turns = [
        Turn(names[n], round(start / FPS, 2), round(end / FPS, 2))
        for n in range(len(tracks))
        for start, end in _runs(lanes[n])
    ]
    turns.sort(key=lambda turn: (turn.start, turn.speaker))
    return Speakers(tuple(names), tuple(turns), lanes, 1 / (1 + np.exp(-odds)), speech)


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
    heads = () if scene is not None else tuple(portrait(frames, track) for track in tracks)
    return replace(found, notices=tuple(notices), portraits=heads)


def portrait(frames: np.ndarray, track: FaceTrack) -> np.ndarray:
    """The head in the frame in which the face looks most to the front with the mouth closed, uint8 [h, w, 3].

    Args:
        frames: uint8 [F, H, W, 3].
        track: of a face that is visible in some frame.
    """
    visible = np.flatnonzero(track.visible)
    points = track.points[visible, :, :2].astype(np.float64)
    left, right, nose = points[:, EYES[0]], points[:, EYES[1]], points[:, 1]
    eyes = np.linalg.norm(right - left, axis=1)
    turned = np.abs(np.linalg.norm(nose - left, axis=1) - np.linalg.norm(nose - right, axis=1)) / eyes
    opened = np.linalg.norm(points[:, 13] - points[:, 14], axis=1) / eyes
    best = int(visible[(turned + opened - eyes / eyes.max()).argmin()])
    box = track.boxes[best].astype(np.float64)
    center, side = (box[:2] + box[2:]) / 2, HEAD * float((box[2:] - box[:2]).max())
    size = np.array(frames.shape[2:0:-1])
    low = np.clip(np.round(center - side / 2), 0, size - 1).astype(int)
    high = np.clip(np.round(center + side / 2), low + 1, size).astype(int)
    return np.ascontiguousarray(frames[best, low[1] : high[1], low[0] : high[0]])


def _best_lanes(odds: np.ndarray, speech: np.ndarray) -> np.ndarray:
    """Who speaks in each frame with speech, bool [N, L]: the sets of people with the least cost (Viterbi).

    Args:
        odds: log odds of speaking [N, L].
        speech: frames with speech, bool [L].
    """
    count, length = odds.shape
    sets = [set(members) for size in range(min(count, AT_ONCE) + 1) for members in combinations(range(count), size)]
    member = np.array([[n in each for n in range(count)] for each in sets])
    further = np.maximum(member.sum(axis=1) - 1, 0)
    gain = member @ odds - TOGETHER * further[:, None] - NOBODY * np.asarray(~member.any(axis=1))[:, None]
    change = SWITCH * ~np.eye(len(sets), dtype=bool) + JOINING * np.maximum(further[:, None] - further[None], 0)
    best, back = np.zeros(len(sets)), np.zeros((length, len(sets)), dtype=int)
    for t in range(length):
        costs = best[None] - change
        back[t] = costs.argmax(axis=1)
        best = costs[np.arange(len(sets)), back[t]] + (gain[:, t] if speech[t] else 0.0)
    path = np.empty(length, dtype=int)
    state = int(best.argmax())
    for t in range(length - 1, -1, -1):
        path[t] = state
        state = int(back[t, state])
    return np.asarray(member[path].T & speech)


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
