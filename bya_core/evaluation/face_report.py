"""Faces of real people in a finished video: tracks, characters, lip sync and identity.

Face detection, mesh and lip sync are part of the package. SyncNet and face recognition are measured besides where their
weights are present; a notice says how to get them otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from bya_core.encoders.face.mesh import FaceMesh
from bya_core.encoders.face.tracking import FaceTrack, track_faces
from bya_core.errors import InputError
from bya_core.evaluation.binding import targets_of
from bya_core.evaluation.face_likeness import likeness, track_descriptor
from bya_core.evaluation.face_tracks import cast_tracks, cover, face_crops, fill_gaps, lip_crops, merge_tracks
from bya_core.evaluation.facenet import FaceNet
from bya_core.evaluation.identity import IdentityTable, cosine_similarity, identity_table
from bya_core.evaluation.lip_sync import FPS as LIP_FPS
from bya_core.evaluation.lip_sync import RATE as LIP_RATE
from bya_core.evaluation.lip_sync import (
    STILL_MOUTH,
    LipSync,
    LipSyncModel,
    best_pairs,
    compare,
    load_lip_sync,
    mouth_shapes,
)
from bya_core.evaluation.metric_weights import ARCFACE, FACENET, SYNCNET
from bya_core.evaluation.sync_metrics import CrossTalk, crosstalk, shifted_distances
from bya_core.evaluation.syncnet import FPS, RATE, WINDOW, SyncEmbedder
from bya_core.evaluation.verdict import QUIET, speech_loudness
from bya_core.io.media import speech_signal
from bya_core.scene.types import Speech

GAP = 25  # maximum number of frames without a face for SyncNet
LIKENESS_MARGIN = 0.05  # of the assignment of faces to characters
EMBEDDING_MARGIN = 0.1
LEAST_LIKENESS = 0.7  # of the face of a character; faces of other people are below it, with few exceptions
LEAST_SIMILARITY = 0.2  # the same for embeddings


class FaceEmbedder(Protocol):
    """A face recognition network.

    Attributes:
        name: for tables.
        size: side of the input images in pixels.
    """

    name: str
    size: int

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeddings [K, D] of images uint8 [K, size, size, 3]."""
        ...


class _ArcFace:
    """ArcFace as a `FaceEmbedder`; faces are not aligned, which lowers the similarity a little."""

    name, size = "ArcFace", 112

    def __init__(self) -> None:
        from bya_core.encoders.face.recognition import ArcFace

        self.network = ArcFace(ARCFACE.require())

    def embed(self, images: np.ndarray) -> np.ndarray:
        features = [self.network.features(torch.from_numpy(each).permute(2, 0, 1).float() / 255) for each in images]
        return torch.stack(features).float().cpu().numpy()


@dataclass
class FaceTools:
    """Networks for measuring faces.

    Args:
        mesh: face detector and mesh.
        sync: SyncNet; None = not measured.
        identities: face recognition networks; may be empty.
        notices: what is missing and how to get it.
        lip_sync: None = the model of the package.
    """

    mesh: FaceMesh | None = None
    sync: SyncEmbedder | None = None
    identities: Sequence[FaceEmbedder] = ()
    notices: tuple[str, ...] = ()
    lip_sync: LipSyncModel | None = None

    @staticmethod
    def load(device: torch.device | str = "cpu") -> FaceTools:
        """Load all networks that are available; `notices` lists the others."""
        tools, notices = FaceTools(FaceMesh()), [w.missing for w in (SYNCNET, FACENET, ARCFACE) if w.find() is None]
        identities: list[FaceEmbedder] = []
        if (file := SYNCNET.find()) is not None:
            tools.sync = SyncEmbedder(file, device)
        if (file := FACENET.find()) is not None:
            identities.append(FaceNet(file, device))
        if ARCFACE.find() is not None:
            try:
                identities.append(_ArcFace())
            except (InputError, NotImplementedError) as error:
                notices.append(f"{ARCFACE.metrics} not measured: {error}")
        tools.identities, tools.notices = identities, tuple(notices)
        return tools


@dataclass(frozen=True)
class FaceMetrics:
    """Measurements of the faces of N characters.

    Args:
        lips: every mouth with every voice; None = not measured.
        sync: lip sync by SyncNet; None = not measured.
        identity: similarity to the reference images, by name of the network.
        boxes: of the faces [N, F, 4], NaN where there is none; None = not detected.
        matrix: audio-character matrix [M, N] by lip sync, if it was asked for.
        notices: what could not be measured, why, and how to get it; one sentence each.
    """

    lips: LipSync | None = None
    sync: CrossTalk | None = None
    identity: dict[str, IdentityTable] = field(default_factory=dict)
    boxes: np.ndarray | None = None
    matrix: Tensor | None = None
    notices: tuple[str, ...] = ()


def measure_faces(
    frames: Tensor,
    speeches: Sequence[Speech | None],
    fps: float,
    portraits: Sequence[Tensor] | None,
    tools: FaceTools,
    *,
    matrix: Tensor | Literal["match"] | None = None,
    masks: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    tracks: Sequence[FaceTrack] | None = None,
) -> FaceMetrics:
    """Measure the faces of a video.

    Args:
        frames: uint8 [F, H, W, 3].
        speeches: M speeches; None = listener.
        fps: frames per second.
        portraits: N reference images [3, h, w] in 0..1; None = there are none.
        tools: loaded networks.
        matrix: audio-character matrix [M, N]; "match" = by lip sync; None = speech m drives character m.
        masks: character masks, bool [N, F, h, w] of any size; None = faces are assigned by likeness.
        names: of the N characters, for notices.
        tracks: of the faces; None = they are found here. Without masks and portraits, each is a character.
    """
    video = frames.numpy()
    tracks = track_faces(video, tools.mesh) if tracks is None else tracks
    cast, references, notices = cast_faces(video, tracks, portraits, masks, tools, names)
    faces = [merge_tracks([tracks[k] for k in members], len(frames)) for members in cast]
    boxes = np.stack([face.boxes for face in faces]).astype(np.float64) if faces else np.zeros((0, len(frames), 4))
    lips = measure_lips([face.points for face in faces], speeches, len(frames), fps, tools.lip_sync)
    matched = None
    if isinstance(matrix, str):
        matrix = matched = match_matrix(lips, speeches, len(faces))
    sync = None
    if tools.sync is not None and (tracked := _without_gaps(boxes)) is not None:
        if round(len(frames) / fps * FPS) <= WINDOW:
            notices.append(f"Sync-C and Sync-D not measured: {len(frames)} frames are too few.")
        else:
            matrix = torch.eye(len(speeches), len(faces)) if matrix is None else matrix
            sync = measure_sync(video, tracked, speeches, fps, matrix, tools.sync)
    identity = {
        network.name: _identity(video, boxes, network, known)
        for network, known in zip(tools.identities, references, strict=False)
    }
    return FaceMetrics(lips, sync, identity, boxes, matched, (*tools.notices, *notices))


def measure_lips(
    points: Sequence[np.ndarray],
    speeches: Sequence[Speech | None],
    length: int,
    fps: float,
    model: LipSyncModel | None = None,
) -> LipSync | None:
    """Compare every mouth with every voice.

    Args:
        points: meshes of the N faces [F, 468, 3] in pixels; NaN where a face is not visible.
        speeches: M speeches; None = silence.
        length: number F of frames.
        fps: frames per second.
        model: None = that of the package.
    """
    if not points:
        return None
    model = model or load_lip_sync()
    ticks, times = max(1, round(length / fps * LIP_FPS)), np.arange(length) / fps
    waves = [np.zeros(0) if each is None else speech_signal(each, LIP_RATE, length / fps).numpy() for each in speeches]
    return compare(
        [mouth_shapes(each, times, ticks) for each in points], [model.predict(w, ticks) for w in waves], model
    )


def match_matrix(lips: LipSync | None, speeches: Sequence[Speech | None], count: int) -> Tensor:
    """Audio-character matrix [M, count] that gives each voice to the mouth that fits it in the best assignment."""
    matrix = torch.zeros(len(speeches), count)
    heard = [m for m, speech in enumerate(speeches) if speech is not None and not speech.silent]
    if lips is not None and heard:
        scores = np.where(lips.movement[:, None] >= STILL_MOUTH, lips.scores[:, heard], 0.0)
        for n, k in best_pairs(scores):
            matrix[heard[k], n] = float(scores[n, k] > 0)
    return matrix


def measure_sync(
    frames: np.ndarray,
    boxes: np.ndarray,
    speeches: Sequence[Speech | None],
    fps: float,
    matrix: Tensor,
    embedder: SyncEmbedder,
) -> CrossTalk:
    """Lip sync of each face with each speech, each on its own track and stream (paper sec. 4.1, 5.2.2).

    Args:
        frames: uint8 [F, H, W, 3]; resampled to 25 frames per second.
        boxes: of the faces [N, F, 4].
        speeches, fps, matrix: see `measure_faces`.
        embedder: SyncNet.
    """
    length = round(len(frames) / fps * FPS)
    index = np.minimum((np.arange(length) * fps / FPS).round().astype(int), len(frames) - 1)
    lips = [embedder.lips(lip_crops(frames[index], track[index])) for track in boxes]
    silence = np.zeros(round(length / FPS * RATE))
    waves = [silence if each is None else speech_signal(each, RATE, length / FPS).numpy() for each in speeches]
    voices = [embedder.voice(wave, length) for wave in waves]
    table = np.stack([[shifted_distances(face, voice) for voice in voices] for face in lips])
    loudness = np.stack([speech_loudness(speech, length, FPS) for speech in speeches])[:, : table.shape[2]]
    audible = loudness > QUIET * np.maximum(loudness.max(axis=1, keepdims=True), 1e-9)
    present = np.array([speech is not None for speech in speeches], dtype=np.float64)
    return crosstalk(table, targets_of(present[:, None] * matrix.numpy()), audible, FPS)


def boxes_to_masks(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes [N, F, 4] as masks, bool [N, F, height, width]."""
    masks = np.zeros((*boxes.shape[:2], height, width), dtype=bool)
    for n, f in np.argwhere(np.isfinite(boxes).all(axis=2)):
        x0, y0, x1, y1 = boxes[n, f].round().astype(int).clip(0)
        masks[n, f, y0:y1, x0:x1] = True
    return masks


def cast_faces(
    frames: np.ndarray,
    tracks: Sequence[FaceTrack],
    portraits: Sequence[Tensor] | None,
    masks: np.ndarray | None,
    tools: FaceTools,
    names: Sequence[str] | None,
) -> tuple[list[list[int]], list[np.ndarray], list[str]]:
    """Assign tracks to characters: by masks, else by likeness to the reference images, never by position.

    Args:
        frames: uint8 [F, H, W, 3].
        tracks, portraits, masks, tools, names: as in `measure_faces`.

    Returns:
        Indices of the tracks of each character, embeddings [N, D] of the reference images per network, and notices.
    """
    count = len(masks) if masks is not None else len(tracks) if portraits is None else len(portraits)
    named = list(names) if names else [f"Character {n + 1}" for n in range(count)]
    if masks is None and portraits is None:
        return [[k] for k in range(count)], [], []
    references, notices = [], []
    if portraits is not None:
        references = [
            np.stack([_reference(each, network, tools) for each in portraits]) for network in tools.identities
        ]
    if not tracks:
        return [[] for _ in range(count)], references, ["No face was found in the video."]
    if masks is not None:
        scores, margin, what = cover(tracks, masks, frames.shape[1:3]), 0.0, "masks"
    elif references:
        network, known = tools.identities[0], references[0]
        scores = np.stack([_similarity(frames, track, network, known) for track in tracks])
        scores = np.where(scores >= LEAST_SIMILARITY, scores, 0.0)
        margin, what = EMBEDDING_MARGIN, network.name
    else:
        assert portraits is not None
        known = np.stack([_portrait_descriptor(each, tools) for each in portraits])
        scores = likeness([track_descriptor(frames, track.points) for track in tracks], list(known))
        scores = np.where(scores >= LEAST_LIKENESS, scores, 0.0)
        margin, what = LIKENESS_MARGIN, "likeness (proportions and colors)"
    cast, unsure = cast_tracks(scores, tracks, margin)
    notices += [f"{named[n]}: no face was assigned by {what}." for n in range(count) if not cast[n] and n not in unsure]
    if unsure:
        who = ", ".join(named[n] for n in sorted(unsure))
        notices.append(f"Faces cannot be told apart by {what} ({who}): give the masks of the characters.")
    spare = len(tracks) - sum(map(len, cast))
    if spare:
        notices.append(f"{spare} further face{'s belong' if spare > 1 else ' belongs'} to no character.")
    return cast, references, notices


def _without_gaps(boxes: np.ndarray) -> np.ndarray | None:
    """Tracks [N, F, 4] with short gaps filled; None if there are longer ones."""
    try:
        return np.stack([fill_gaps(track, GAP) for track in boxes]) if len(boxes) else None
    except InputError:
        return None


def _similarity(frames: np.ndarray, track: FaceTrack, network: FaceEmbedder, references: np.ndarray) -> np.ndarray:
    """Mean similarity of a track to each reference [N]."""
    visible = np.flatnonzero(track.visible)
    chosen = visible[np.linspace(0, len(visible) - 1, min(8, len(visible))).round().astype(int)]
    faces = network.embed(face_crops(frames[chosen], track.boxes[chosen], network.size))
    return np.mean([cosine_similarity(face, references) for face in faces], axis=0)


def _largest_face(portrait: Tensor, tools: FaceTools) -> tuple[np.ndarray, FaceTrack | None]:
    """A reference image as uint8 [H, W, 3], and its largest face."""
    image = (portrait.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    found = track_faces(image[None], tools.mesh)
    return image, max(found, key=lambda track: float(np.ptp(track.boxes[0, ::2])), default=None)


def _portrait_descriptor(portrait: Tensor, tools: FaceTools) -> np.ndarray:
    image, face = _largest_face(portrait, tools)
    return track_descriptor(image[None], np.full((1, 468, 3), np.nan) if face is None else face.points)


def _reference(portrait: Tensor, network: FaceEmbedder, tools: FaceTools) -> np.ndarray:
    """Embedding of the face in a reference image; of the whole image if no face is found."""
    image, face = _largest_face(portrait, tools)
    box = np.array([[0, 0, image.shape[1], image.shape[0]]], dtype=np.float64) if face is None else face.boxes
    return network.embed(face_crops(image[None], box, network.size))[0]


def _identity(frames: np.ndarray, boxes: np.ndarray, network: FaceEmbedder, references: np.ndarray) -> IdentityTable:
    faces = np.full((*boxes.shape[:2], references.shape[1]), np.nan)
    for n, track in enumerate(boxes):
        visible = np.flatnonzero(np.isfinite(track).all(axis=1))
        if visible.size:
            faces[n, visible] = network.embed(face_crops(frames[visible], track[visible], network.size))
    return identity_table(faces, references)
