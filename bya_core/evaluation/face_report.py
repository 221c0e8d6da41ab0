"""Faces of people in photos in a finished video: tracks, lip sync and identity.

Measurements whose weights are missing are skipped with a notice that says how to get them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bya_core.encoders.face.detection import Face, FaceDetector, find_detector, pixels
from bya_core.errors import InputError
from bya_core.evaluation.binding import targets_of
from bya_core.evaluation.face_tracks import assign_faces, face_crops, fill_gaps, lip_crops
from bya_core.evaluation.facenet import FaceNet
from bya_core.evaluation.identity import IdentityTable, cosine_similarity, identity_table
from bya_core.evaluation.metric_weights import ARCFACE, FACENET, SYNCNET
from bya_core.evaluation.report import FaceMetrics
from bya_core.evaluation.sync_metrics import CrossTalk, crosstalk, shifted_distances
from bya_core.evaluation.syncnet import FPS, RATE, WINDOW, SyncEmbedder
from bya_core.evaluation.verdict import QUIET, speech_loudness
from bya_core.io.media import place, resample_mono
from bya_core.scene.types import Speech

STRIDE = 3  # frames between two detections; boxes in between are interpolated
GAP = 25  # maximum number of frames without a face


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
        detector: face detector; None = nothing is measured.
        sync: SyncNet; None = no lip sync.
        identities: face recognition networks; may be empty.
        notices: what is missing and how to get it.
    """

    detector: FaceDetector | None
    sync: SyncEmbedder | None = None
    identities: Sequence[FaceEmbedder] = ()
    notices: tuple[str, ...] = ()

    @staticmethod
    def load(device: torch.device | str = "cpu") -> FaceTools:
        """Load all networks that are available; `notices` lists the others."""
        tools = FaceTools(None)
        notices: list[str] = []
        identities: list[FaceEmbedder] = []
        try:
            tools.detector = find_detector()
        except InputError as error:
            notices.append(f"Faces not measured: {error}")
        if (file := SYNCNET.find()) is not None:
            tools.sync = SyncEmbedder(file, device)
        if (file := FACENET.find()) is not None:
            identities.append(FaceNet(file, device))
        if ARCFACE.find() is not None:
            try:
                identities.append(_ArcFace())
            except (InputError, NotImplementedError) as error:
                notices.append(f"{ARCFACE.metrics} not measured: {error}")
        notices += [weights.missing for weights in (SYNCNET, FACENET, ARCFACE) if weights.find() is None]
        tools.identities, tools.notices = identities, tuple(notices)
        return tools


def measure_faces(
    frames: Tensor,
    speeches: Sequence[Speech | None],
    fps: float,
    portraits: Sequence[Tensor],
    tools: FaceTools,
    *,
    matrix: Tensor | None = None,
    masks: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> FaceMetrics:
    """Measure the faces of a video.

    Args:
        frames: uint8 [F, H, W, 3].
        speeches: M speeches; None = listener.
        fps: frames per second.
        portraits: N reference images [3, h, w] in 0..1.
        tools: loaded networks.
        matrix: audio-character matrix [M, N]; None = speech m drives character m.
        masks: character masks, bool [N, F, H, W]; None = faces are assigned by similarity, or from left to right with
            a notice if there is no face recognition.
        names: of the characters, for notices.
    """
    notices, video, count = list(tools.notices), frames.numpy(), len(portraits)
    if tools.detector is None:
        return FaceMetrics(notices=tools.notices)
    references = [
        np.stack([_reference(portrait, network, tools.detector) for portrait in portraits])
        for network in tools.identities
    ]
    detections = _detect(frames, tools.detector)
    if masks is not None:
        boxes = assign_faces(detections, masks)
    else:
        boxes = _link(detections, count)
        if references:
            boxes = _assign_by_similarity(boxes, video, tools.identities[0], references[0])
        else:
            boxes = _sort_left_to_right(boxes)
            notices.append("No masks and no face recognition: faces are assigned to characters from left to right.")
    for n in range(count):
        try:
            boxes[n] = fill_gaps(boxes[n], GAP)
        except InputError as error:
            boxes[n] = np.nan
            notices.append(f"{names[n] if names else f'Character {n + 1}'}: {error}")
    sync = None
    if tools.sync is not None and np.isfinite(boxes).all():
        if round(len(frames) / fps * FPS) <= WINDOW:
            notices.append(f"Sync-C and Sync-D not measured: {len(frames)} frames are too few.")
        else:
            matrix = torch.eye(len(speeches), count) if matrix is None else matrix
            sync = measure_sync(video, boxes, speeches, fps, matrix, tools.sync)
    identity = {
        network.name: _identity(video, boxes, network, known)
        for network, known in zip(tools.identities, references, strict=True)
    }
    return FaceMetrics(sync, identity, boxes, tuple(notices))


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
    voices = [embedder.voice(_waveform(speech, length), length) for speech in speeches]
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


def _waveform(speech: Speech | None, length: int) -> np.ndarray:
    """A speech on the time axis of the video, [samples] at 16 kHz."""
    if speech is None:
        return np.zeros(round(length / FPS * RATE))
    mono = resample_mono(speech.waveform, speech.sample_rate, RATE)
    return place(mono[None], RATE, speech.offset, speech.gain)[0].numpy()


def _detect(frames: Tensor, detector: FaceDetector) -> list[list[Face]]:
    """Faces of every `STRIDE`-th and of the last frame; empty lists for the others."""
    selected = {*range(0, len(frames), STRIDE), len(frames) - 1}
    return [
        detector.detect(frame.permute(2, 0, 1).float() / 255) if f in selected else [] for f, frame in enumerate(frames)
    ]


def _link(detections: Sequence[Sequence[Face]], count: int) -> np.ndarray:
    """The `count` largest faces of each frame, linked to the nearest track: boxes [count, F, 4]."""
    from scipy.optimize import linear_sum_assignment

    boxes = np.full((count, len(detections), 4), np.nan)
    last = np.full((count, 4), np.nan)
    for f, faces in enumerate(detections):
        if not faces:
            continue
        largest = np.array([face.box for face in sorted(faces, key=lambda face: -face.area)[:count]])
        here = largest[np.argsort(largest[:, 0], kind="stable")]
        distance = np.abs(last[:, None] - here[None]).mean(axis=2)
        order = np.arange(count)[:, None] * np.arange(len(here))[::-1][None]  # new tracks: from left to right
        distance = np.where(np.isfinite(distance), distance, 1e6 + order)
        for k, j in zip(*linear_sum_assignment(distance), strict=True):
            boxes[k, f] = last[k] = here[j]
    return boxes


def _assign_by_similarity(
    boxes: np.ndarray, frames: np.ndarray, network: FaceEmbedder, references: np.ndarray
) -> np.ndarray:
    """Tracks [N, F, 4] in the order of the most similar references [N, D]."""
    from scipy.optimize import linear_sum_assignment

    similarity = np.zeros((len(boxes), len(boxes)))
    for k, track in enumerate(boxes):
        visible = np.flatnonzero(np.isfinite(track).all(axis=1))[:8]
        if visible.size:
            faces = network.embed(face_crops(frames[visible], track[visible], network.size))
            similarity[k] = np.mean([cosine_similarity(face, references) for face in faces], axis=0)
    tracks, characters = linear_sum_assignment(-similarity)
    return boxes[tracks[np.argsort(characters)]]


def _sort_left_to_right(boxes: np.ndarray) -> np.ndarray:
    """Tracks [N, F, 4] sorted by their mean left edge; tracks without a face are last."""
    visible = np.isfinite(boxes[:, :, 0])
    left = np.where(visible, boxes[:, :, 0], 0.0).sum(axis=1) / np.maximum(visible.sum(axis=1), 1)
    return boxes[np.argsort(np.where(visible.any(axis=1), left, np.inf), kind="stable")]


def _reference(portrait: Tensor, network: FaceEmbedder, detector: FaceDetector) -> np.ndarray:
    """Embedding of the face in a reference image; of the whole image if no face is found."""
    image, faces = pixels(portrait), detector.detect(portrait)
    box = max(faces, key=lambda face: face.score).box if faces else (0, 0, image.shape[1], image.shape[0])
    return network.embed(face_crops(image[None], np.array([box], dtype=np.float64), network.size))[0]


def _identity(frames: np.ndarray, boxes: np.ndarray, network: FaceEmbedder, references: np.ndarray) -> IdentityTable:
    faces = np.full((*boxes.shape[:2], references.shape[1]), np.nan)
    for n, track in enumerate(boxes):
        visible = np.flatnonzero(np.isfinite(track).all(axis=1))
        if visible.size:
            faces[n, visible] = network.embed(face_crops(frames[visible], track[visible], network.size))
    return identity_table(faces, references)
