"""Faces of people in photos in a finished video: tracks, lip sync and identity.

Measurements whose weights are missing are skipped with a notice that says how to get them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bya_core.encoders.face.detection import Face, FaceDetector, find_detector, pixels
from bya_core.errors import InputError
from bya_core.evaluation.binding import targets_of
from bya_core.evaluation.binding_scores import QUIET, loudness_of
from bya_core.evaluation.face_tracks import crops, face_pictures, filled, tracks
from bya_core.evaluation.facenet import FaceNet
from bya_core.evaluation.identity import IdentityTable, cosine_similarity, identity_table
from bya_core.evaluation.metric_weights import ARCFACE, FACENET, SYNCNET
from bya_core.evaluation.report import FaceFigures
from bya_core.evaluation.sync_metrics import CrossTalk, crosstalk, shifted_distances
from bya_core.evaluation.syncnet import FPS, RATE, WINDOW, SyncEmbedder
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

    def embed(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [K, size, size, 3] RGB -> [K, D]."""
        ...


class _ArcFace:
    """ArcFace as a `FaceEmbedder`; faces are not aligned, which lowers the similarity a little."""

    name, size = "ArcFace", 112

    def __init__(self) -> None:
        from bya_core.encoders.face.recognition import ArcFace

        self.network = ArcFace(ARCFACE.needed())

    def embed(self, pictures: np.ndarray) -> np.ndarray:
        made = [self.network.features(torch.from_numpy(p).permute(2, 0, 1).float() / 255) for p in pictures]
        return torch.stack(made).float().cpu().numpy()


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
    notices: tuple[str, ...] = field(default_factory=tuple)

    @staticmethod
    def here(device: torch.device | str = "cpu") -> FaceTools:
        """All networks that can be loaded; `notices` lists the others."""
        notices: list[str] = []
        detector: FaceDetector | None = None
        try:
            detector = find_detector()
        except InputError as error:
            notices.append(f"Faces not measured: {error}")
        sync = None
        if (file := SYNCNET.find()) is not None:
            sync = SyncEmbedder(file, device)
        else:
            notices.append(SYNCNET.missing)
        identities: list[FaceEmbedder] = []
        if (file := FACENET.find()) is not None:
            identities.append(FaceNet(file, device))
        else:
            notices.append(FACENET.missing)
        if ARCFACE.find() is not None:
            try:
                identities.append(_ArcFace())
            except (InputError, NotImplementedError) as error:
                notices.append(f"{ARCFACE.why} not measured: {error}")
        else:
            notices.append(ARCFACE.missing)
        return FaceTools(detector, sync, identities, tuple(notices))


def look(
    frames: Tensor,
    speeches: Sequence[Speech | None],
    fps: float,
    portraits: Sequence[Tensor],
    tools: FaceTools,
    *,
    matrix: Tensor | None = None,
    masks: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> FaceFigures:
    """Measure the faces of a video.

    Args:
        frames: uint8 [F, H, W, 3].
        speeches: M speeches; None = listener.
        fps: frames per second.
        portraits: N reference pictures [3, h, w] in 0..1.
        matrix: audio-character matrix [M, N]; None = speech m drives character m.
        masks: character masks, bool [N, F, H, W]; None = faces are assigned by similarity, or from left to right with
            a notice if there is no face recognition.
        names: of the characters, for notices.
    """
    notices = list(tools.notices)
    if tools.detector is None:
        return FaceFigures(notices=tuple(notices))
    found = _found(frames, tools.detector)
    if masks is None:
        boxes, said = _assigned(found, frames.numpy(), portraits, tools)
        notices += said
    else:
        boxes = tracks(found, masks)
    known: list[np.ndarray | None] = []
    for n, track in enumerate(boxes):
        try:
            known.append(filled(track, GAP))
        except InputError as error:
            known.append(None)
            notices.append(f"{names[n] if names else f'Character {n + 1}'}: {error}")
    matrix = torch.eye(len(speeches), len(portraits)) if matrix is None else matrix
    sync = None
    if tools.sync is not None and all(track is not None for track in known):
        if round(len(frames) / fps * FPS) <= WINDOW:
            notices.append(f"Sync-C and Sync-D not measured: {len(frames)} frames are too few.")
        else:
            whole = np.stack([track for track in known if track is not None])
            sync = measure_sync(frames.numpy(), whole, speeches, fps, matrix, tools.sync)
    filled_in = np.stack([np.full((len(frames), 4), np.nan) if track is None else track for track in known])
    identities = dict(_identities(frames.numpy(), filled_in, portraits, tools, notices))
    return FaceFigures(sync, identities, filled_in, tuple(notices))


def measure_sync(
    frames: np.ndarray,
    boxes: np.ndarray,
    speeches: Sequence[Speech | None],
    fps: float,
    matrix: Tensor,
    embedder: SyncEmbedder,
) -> CrossTalk:
    """Sync of every face with every voice, each on its own track and its own stream (paper sec. 4.1, 5.2.2).

    Args:
        frames: uint8 [F, H, W, 3]; resampled to 25 frames per second.
        boxes: of the faces [N, F, 4].
        speeches, fps, matrix: see `look`.
    """
    length = round(len(frames) / fps * FPS)
    when = np.minimum((np.arange(length) * fps / FPS).round().astype(int), len(frames) - 1)
    lips = [embedder.lips(crops(frames[when], track[when])) for track in boxes]
    voices = [embedder.voice(_heard(speech, length), length) for speech in speeches]
    table = np.stack([[shifted_distances(one, voice) for voice in voices] for one in lips])
    loud = np.stack([loudness_of(speech, length, FPS) for speech in speeches])[:, : table.shape[2]]
    audible = loud > QUIET * np.maximum(loud.max(axis=1, keepdims=True), 1e-9)
    present = np.array([speech is not None for speech in speeches], dtype=np.float64)
    return crosstalk(table, targets_of(present[:, None] * matrix.numpy()), audible, FPS)


def _heard(speech: Speech | None, length: int) -> np.ndarray:
    """A speech on the time axis of the video, [samples] at 16 kHz."""
    if speech is None:
        return np.zeros(round(length / FPS * RATE))
    mono = resample_mono(speech.waveform, speech.sample_rate, RATE)
    return place(mono[None], RATE, speech.offset, speech.gain)[0].numpy()


def _found(frames: Tensor, detector: FaceDetector) -> list[list[Face]]:
    """Faces of every `STRIDE`-th frame; empty lists for the others."""
    looked_at = {*range(0, len(frames), STRIDE), len(frames) - 1}
    return [
        detector.detect(frame.permute(2, 0, 1).float() / 255) if f in looked_at else []
        for f, frame in enumerate(frames)
    ]


def _assigned(
    found: Sequence[Sequence[Face]], frames: np.ndarray, portraits: Sequence[Tensor], tools: FaceTools
) -> tuple[np.ndarray, list[str]]:
    """Boxes [N, F, 4] without masks: faces are linked over time by distance, then assigned to characters."""
    from scipy.optimize import linear_sum_assignment

    count = len(portraits)
    boxes = _chains(found, count, len(frames))
    if not tools.identities:
        seen = np.isfinite(boxes[:, :, 0])
        left = np.where(seen, boxes[:, :, 0], 0.0).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
        order = np.argsort(np.where(seen.any(axis=1), left, np.inf), kind="stable")
        return boxes[order], ["No masks and no face recognition: faces are assigned to characters from left to right."]
    network = tools.identities[0]
    known = np.stack([_reference(portrait, network, tools.detector) for portrait in portraits])
    likeness = np.zeros((count, count))
    for k, track in enumerate(boxes):
        seen = np.flatnonzero(np.isfinite(track).all(axis=1))[:8]
        if seen.size:
            faces = network.embed(face_pictures(frames[seen], track[seen], network.size))
            likeness[k] = np.mean([cosine_similarity(face, known) for face in faces], axis=0)
    rows, owners = linear_sum_assignment(-likeness)
    made = np.full_like(boxes, np.nan)
    made[owners] = boxes[rows]
    return made, []


def _chains(found: Sequence[Sequence[Face]], count: int, length: int) -> np.ndarray:
    """The `count` largest faces of each frame, linked to the nearest track: [count, F, 4]."""
    from scipy.optimize import linear_sum_assignment

    made = np.full((count, length, 4), np.nan)
    last = np.full((count, 4), np.nan)
    for f, faces in enumerate(found):
        if not faces:
            continue
        boxes = np.array([face.box for face in faces], dtype=np.float64)
        largest = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")[:count]
        here = boxes[largest][np.argsort(boxes[largest, 0], kind="stable")]
        far = np.abs(last[:, None] - here[None]).mean(axis=2)
        far = np.where(np.isfinite(far), far, 1e6 + np.arange(count)[:, None] * np.arange(len(here))[::-1][None])
        for k, j in zip(*linear_sum_assignment(far), strict=True):
            made[k, f] = last[k] = here[j]
    return made


def _reference(portrait: Tensor, network: FaceEmbedder, detector: FaceDetector | None) -> np.ndarray:
    """Embedding of the face of a reference picture; of the whole image if no face is found."""
    picture = pixels(portrait)
    faces = detector.detect(portrait) if detector is not None else []
    box = max(faces, key=lambda face: face.score).box if faces else (0, 0, picture.shape[1], picture.shape[0])
    return network.embed(face_pictures(picture[None], np.array([box], dtype=np.float64), network.size))[0]


def _identities(
    frames: np.ndarray, boxes: np.ndarray, portraits: Sequence[Tensor], tools: FaceTools, notices: list[str]
) -> Iterator[tuple[str, IdentityTable]]:
    for network in tools.identities:
        references = np.stack([_reference(portrait, network, tools.detector) for portrait in portraits])
        faces = np.full((*boxes.shape[:2], references.shape[1]), np.nan)
        for n, track in enumerate(boxes):
            seen = np.flatnonzero(np.isfinite(track).all(axis=1))
            if seen.size:
                faces[n, seen] = network.embed(face_pictures(frames[seen], track[seen], network.size))
        yield network.name, identity_table(faces, references)


def regions_of(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes [N, F, 4] as bool [N, F, height, width]."""
    made = np.zeros((*boxes.shape[:2], height, width), dtype=bool)
    for n, f in np.argwhere(np.isfinite(boxes).all(axis=2)):
        x0, y0, x1, y1 = boxes[n, f].round().astype(int).clip(0)
        made[n, f, y0:y1, x0:x1] = True
    return made
