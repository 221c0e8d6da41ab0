"""Curation models that need no download: who speaks when, lip sync, and masks.

They use the mesh of every face that the detector "blazeface" has fitted (array "points" of a clip).
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import label

from bya_core.encoders.face.matching import body_boxes
from bya_core.encoders.face.tracking import FaceTrack
from bya_core.encoders.person import PersonSegmenter
from bya_core.encoders.vad import load_voice_activity
from bya_core.evaluation.lip_sync import compare, load_lip_sync, mouth_shapes
from bya_core.evaluation.speakers import find_speakers
from bya_core.evaluation.sync_metrics import Sync
from training.curation.footage import SAMPLE_RATE
from training.curation.models import SpeechMixture
from training.curation.record import FPS

FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""Mesh points along the outline of the face, in order."""
_FADE = 0.25  # of a frame at both ends of a turn
_MAX_LAG = 4  # frames that sound and picture of a recording may be apart

_EVERY = 2  # frames between two that are segmented
_MAX_REACH = 2.2  # largest horizontal distance of a body from the center of its face, in face widths


class LipSpeakers:
    """Who speaks when, and the recorded audio of each turn as the speech of that person (see `find_speakers`).

    Voices are not separated: while two people speak at once, both streams hold the recording.
    """

    name = "lip movement"
    separates = False

    def __init__(self) -> None:
        load_lip_sync()
        self.activity = load_voice_activity()

    def extract(self, mixture: SpeechMixture) -> np.ndarray:
        """See `SpeechExtractor`."""
        assert mixture.points is not None  # the settings require the detector that fits meshes
        lanes = self.lanes(mixture.waveform, mixture.points)
        times = np.arange(len(mixture.waveform)) / SAMPLE_RATE
        edges = (np.arange(lanes.shape[1])[:, None] + np.array([_FADE, 1 - _FADE])).flatten() / FPS
        gates = [np.interp(times, edges, np.repeat(lane.astype(np.float32), 2)) for lane in lanes]
        return (np.stack(gates) * mixture.waveform).astype(np.float32)

    def lanes(self, waveform: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Frames in which each person speaks, bool [N,F].

        Args:
            waveform: recorded audio, float32 [S] at 16 kHz.
            points: meshes [N,F,468,2]; NaN where a face is hidden.
        """
        length = points.shape[1]
        tracks = [
            FaceTrack(
                boxes=np.concatenate([each.min(axis=1), each.max(axis=1)], axis=1),
                scores=np.ones(length, np.float32),
                points=each,
                presence=np.ones(length, np.float32),
            )
            for each in points
        ]
        names = [str(n) for n in range(len(tracks))]
        return find_speakers(tracks, waveform, length, FPS, names, self.activity).lanes


class LipSyncScorer:
    """Correlation of the mouth shapes that each voice lets expect with those of each face."""

    name = "lip sync without SyncNet"
    min_confidence, margin = 0.1, 0.15

    def __init__(self) -> None:
        self.model = load_lip_sync()

    def scores_of_meshes(self, points: np.ndarray, speeches: np.ndarray) -> list[list[Sync]]:
        """Score meshes [N,F,468,2] at 25 fps against speeches float32 [M,S] at 16 kHz; returns M rows of N scores."""
        length = points.shape[1]
        mouths = [mouth_shapes(each, np.arange(length) / FPS, length) for each in points]
        voices = [self.model.predict(speech, length) for speech in speeches]
        curves = compare(mouths, voices, self.model).curves
        return [[_sync(curves[n, m]) for n in range(len(mouths))] for m in range(len(voices))]


def _sync(curve: np.ndarray) -> Sync:
    """The best score near the recorded position, of the scores by offset."""
    center = len(curve) // 2
    near = curve[center - _MAX_LAG : center + _MAX_LAG + 1]
    best = int(near.argmax())
    return Sync(float(near[best]), float(1 - near[best]), best - _MAX_LAG, (1 - curve).astype(np.float32))


class MeshSegmenter:
    """Divides the pixels of all people among the faces: each pixel belongs to the nearest face, in face widths.

    Args:
        device: device of the network.
    """

    name = "face mesh and selfie segmentation"
    max_side = 360
    """Longer side in pixels of the frames, and of the masks: finer ones are not more exact."""

    def __init__(self, device: str = "cpu") -> None:
        self.people = PersonSegmenter(device)

    def segment_faces(self, frames: np.ndarray, boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Masks of N people.

        Args:
            frames: uint8 [F, H, W, 3].
            boxes: face boxes [N, F, 4] in pixels, known in all frames.
            points: meshes [N, F, 468, 2] in pixels; NaN where a face is hidden.

        Returns:
            bool [N, F, H, W]; a pixel belongs to one person at most.
        """
        people = self._people(frames, boxes)
        return np.stack([_divide(people[f], boxes[:, f], points[:, f]) for f in range(len(frames))], axis=1)

    def _people(self, frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Pixels of any person, bool [F, H, W], from the region around all bodies; interpolated between frames."""
        bodies = body_boxes(torch.from_numpy(boxes.reshape(-1, 4))).numpy().reshape(boxes.shape)
        regions = np.concatenate([bodies[..., :2].min(axis=0), bodies[..., 2:].max(axis=0)], axis=1)
        last = len(frames) - 1
        known = np.unique([*range(0, last, _EVERY), last])
        found = self.people(frames[known], regions[known])
        after = np.searchsorted(known, np.arange(last + 1))
        before = np.where(known[after] == np.arange(last + 1), after, after - 1)
        return (found[before] + found[after]) / 2 > 0.5


def _divide(people: np.ndarray, boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Masks [N, H, W] of one frame from the pixels of all people [H, W]."""
    height, width = people.shape
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    center, face_width = (boxes[:, 0] + boxes[:, 2]) / 2, np.maximum(boxes[:, 2] - boxes[:, 0], 1)
    face_height = np.maximum(boxes[:, 3] - boxes[:, 1], 1)
    reach = np.abs(x - center[:, None, None]) / face_width[:, None, None]  # [N, 1, W]
    above = np.maximum(boxes[:, 1, None, None] - y, 0) / face_height[:, None, None]  # [N, H, 1]
    owner = (reach + above).argmin(axis=0)
    hulls = np.zeros((len(boxes), height, width), bool)
    for n in np.argsort(-face_width):  # the larger face is in front
        if np.isfinite(points[n]).all():
            image = Image.new("1", (width, height))
            ImageDraw.Draw(image).polygon([tuple(point) for point in points[n, FACE_OVAL, :2].tolist()], fill=1)
            hulls[n] = np.asarray(image) & ~hulls.any(axis=0)
    taken = hulls.any(axis=0)
    masks = np.zeros_like(hulls)
    for n, hull in enumerate(hulls):
        own = people & (owner == n) & (reach[n] < _MAX_REACH) & (above[n] < 1) & ~taken | hull
        parts, count = label(own)
        seeds = hull if hull.any() else own & (reach[n] < 0.5)
        kept = np.zeros(count + 1, bool)
        kept[parts[seeds]] = True
        kept[0] = False
        masks[n] = kept[parts]
    return masks
