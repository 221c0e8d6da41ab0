"""Detection and 468-point meshes of faces on any machine: BlazeFace and the face mesh of mediapipe, in torch.

    mesh = FaceMesh()                              # weights are inside the package, 1.4 MB
    faces = mesh.detect(image)                     # `FaceDetector`: image [3, H, W] in [0, 1] -> list of `Face`
    tracks = track_faces(frames, mesh)             # `tracking.FaceTrack`s of a video uint8 [F, H, W, 3]

The detector is fully convolutional and runs on whole images at several scales: faces from 24 pixels up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.encoders.face import blazeface, mesh_network
from bya_core.encoders.face.crops import Squares, cut
from bya_core.encoders.face.detection import Face, non_max_suppression, pixels
from bya_core.encoders.weights import load_weights

_IN_NETWORK = 15.0  # smallest face in pixels of the network input
_MIN_FACE = 24.0  # smallest face in pixels of the image
_MAX_SIDE = 960  # of the network input in pixels: the smallest face grows with images that are larger
_LEVELS = (2.0, 2.0, 4.0)  # ratios of consecutive scales; a scale finds faces of 15 to 100 pixels of its input
_CHEAP = 2.5  # network inputs of 128 x 128 pixels: larger scales are not run on every frame
_RELIABLE = 20.0  # pixels of the network input: boxes of smaller faces are left to the next finer scale
_BORDER = 16  # black pixels around the coarsest input: faces that fill the image
_SINGLE = 0.6  # smallest score of a face in one image, which no other frame confirms
_OVERLAP = 0.3  # IoU of detections that are averaged
_INSIDE = 0.7  # of the area of a detection inside a better one: parts of a face taken for a face
_FACE_TO_SQUARE = 1.5  # side of the crop for the mesh over the side of the face
_BATCH = 16

EYES = (33, 263)
"""Mesh points of the outer eye corners, the one to the left in an upright image first."""
FIVE_POINTS = ((33, 133), (362, 263), (1, 1), (61, 61), (291, 291))
"""Pairs of mesh points whose centers are the eyes, the nose and the mouth corners of `Face.points`."""


@dataclass(frozen=True)
class Detections:
    """Detections of one image.

    Args:
        boxes: (x0, y0, x1, y1) in pixels, from eyebrows to chin, [K, 4].
        points: (x, y) of the eyes, left one in the image first, nose, mouth and ears, [K, 6, 2].
        scores: Confidence in [0, 1], [K].
    """

    boxes: np.ndarray
    points: np.ndarray
    scores: np.ndarray

    @staticmethod
    def none() -> Detections:
        """No detections."""
        return Detections(np.zeros((0, 4)), np.zeros((0, 6, 2)), np.zeros(0))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: np.ndarray | list[int]) -> Detections:
        return Detections(self.boxes[index], self.points[index], self.scores[index])


@dataclass(frozen=True)
class Meshes:
    """Meshes of K faces.

    Args:
        points: (x, y, z) in pixels of the frame, [K, 468, 3]; z is the depth on the same scale.
        presence: Probability of a face in the crop, [K].
    """

    points: np.ndarray
    presence: np.ndarray


class FaceMesh:
    """Face detector (`FaceDetector`) and face mesh.

    Args:
        device: Device of the networks.
        min_score: Detections with a lower score are discarded.
        min_presence: Faces whose mesh network reports a lower probability are discarded.
    """

    name = "BlazeFace"

    def __init__(self, device: torch.device | str = "cpu", min_score: float = 0.5, min_presence: float = 0.5) -> None:
        self.device, self.min_score, self.min_presence = torch.device(device), min_score, min_presence
        self.detector = load_weights(blazeface.BlazeFace(), "blazeface_short_range")
        self.mesh = load_weights(mesh_network.FaceMeshNetwork(), "face_mesh")
        for network in (self.detector, self.mesh):
            network.to(self.device)

    def detect(self, image: Tensor) -> list[Face]:
        """Faces in an image [3, H, W] in [0, 1], sorted by descending score; boxes from forehead to chin."""
        frames = pixels(image)[None]
        detections = self.detections(frames)[0]
        meshes = self.meshes(frames, squares(np.zeros(len(detections), int), detections))
        faces = []
        confirmed = (meshes.presence >= self.min_presence) & (detections.scores >= max(self.min_score, _SINGLE))
        for k in np.flatnonzero(confirmed):
            points = meshes.points[k, :, :2]
            x0, y0, x1, y1 = (float(value) for value in (*points.min(0), *points.max(0)))
            five = tuple((float(x), float(y)) for x, y in five_points(points))
            faces.append(Face((x0, y0, x1, y1), float(detections.scores[k]), five))
        return faces

    @torch.inference_mode()
    def detections(self, frames: np.ndarray, skip: int = 0) -> list[Detections]:
        """Detections in each of the frames uint8 [F, H, W, 3], without verification by the mesh.

        Args:
            frames: Video frames.
            skip: Number of the finest scales to leave out, see `costly_scales`.
        """
        height, width = frames.shape[1:3]
        scales = _scales(height, width)
        found: list[list[Detections]] = [[] for _ in frames]
        for position, scale in enumerate(scales):
            if position < min(skip, len(scales) - 1):
                continue
            size = max(16, round(height / scale)), max(16, round(width / scale))
            batch = max(1, _BATCH * blazeface.SIZE**2 // (size[0] * size[1]))
            for start in range(0, len(frames), batch):
                images = torch.from_numpy(np.require(frames[start : start + batch], requirements=["C", "W"])).permute(
                    0, 3, 1, 2
                )
                if self.device.type != "cpu":
                    images = images.to(self.device).float()
                images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).float()
                border = _BORDER if scale == scales[-1] else 0
                images = F.pad(images.to(self.device) / 255.0, (border,) * 4)
                for offset, detections in enumerate(self._run_detector(images)):
                    if position > 0:
                        detections = detections[mean_size(detections.boxes) >= _RELIABLE]
                    boxes, points = (detections.boxes - border) * scale, (detections.points - border) * scale
                    found[start + offset].append(Detections(boxes, points, detections.scores))
        return [_merged(parts) for parts in found]

    @torch.inference_mode()
    def detections_in(self, frames: np.ndarray, regions: Squares) -> list[Detections]:
        """Detections in square regions of the frames, such as the surroundings of the last position of a face."""
        results: list[Detections] = []
        for start in range(0, len(regions), _BATCH):
            part = regions[slice(start, start + _BATCH)]
            crops = cut(frames, part, blazeface.SIZE, self.device)
            for k, detections in enumerate(self._run_detector(crops)):
                detections = _merged([detections])
                one = part[np.full(len(detections), k)]
                corners = detections.boxes.reshape(-1, 2, 2) / blazeface.SIZE
                boxes = one.to_frame(corners).reshape(-1, 4)
                results.append(Detections(boxes, one.to_frame(detections.points / blazeface.SIZE), detections.scores))
        return results

    @torch.inference_mode()
    def meshes(self, frames: np.ndarray, regions: Squares) -> Meshes:
        """Meshes of the faces in squares of frames uint8 [F, H, W, 3]."""
        points = np.zeros((len(regions), mesh_network.POINTS, 3), np.float32)
        presence = np.zeros(len(regions), np.float32)
        for start in range(0, len(regions), _BATCH):
            part = regions[slice(start, start + _BATCH)]
            crops = cut(frames, part, mesh_network.SIZE, self.device).contiguous(memory_format=torch.channels_last)
            raw, logits = self.mesh(crops)
            points[start : start + _BATCH] = part.to_frame(raw.cpu().numpy() / mesh_network.SIZE)
            presence[start : start + _BATCH] = logits.sigmoid().cpu().numpy()
        return Meshes(points, presence)

    def _run_detector(self, images: Tensor) -> list[Detections]:
        """Raw detections above the threshold in images [B, 3, H, W] in [0, 1], in pixels of the images."""
        height, width = images.shape[2:]
        images = F.pad(images, (0, -width % 16, 0, -height % 16))
        logits, offsets = self.detector((images * 2.0 - 1.0).contiguous(memory_format=torch.channels_last))
        scores = logits.sigmoid()
        centers = blazeface.anchors(*images.shape[2:]).to(self.device)
        results = []
        for score, offset in zip(scores, offsets, strict=True):
            keep = score >= self.min_score
            values = blazeface.decode(offset[keep], centers[keep]).cpu().numpy()
            results.append(Detections(values[:, :4], values[:, 4:].reshape(-1, 6, 2), score[keep].cpu().numpy()))
        return results


def squares(frame: np.ndarray, detections: Detections) -> Squares:
    """Upright squares for the mesh around detections, one per detection."""
    eyes = detections.points[:, 1] - detections.points[:, 0]
    low, high = detections.boxes[:, :2], detections.boxes[:, 2:]
    side = (high - low).max(axis=1, initial=0) * _FACE_TO_SQUARE
    return Squares(frame, (low + high) / 2, side, np.arctan2(eyes[:, 1], eyes[:, 0]))


def squares_of_meshes(frame: np.ndarray, points: np.ndarray) -> Squares:
    """Upright squares around meshes [K, 468, 3], for a second pass."""
    eyes = points[:, EYES[1], :2] - points[:, EYES[0], :2]
    angle = np.arctan2(eyes[:, 1], eyes[:, 0])
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x, y = points[..., 0], points[..., 1]
    across, along = cos * x + sin * y, cos * y - sin * x
    middle = [(values.min(1) + values.max(1)) / 2 for values in (across, along)]
    center = np.stack(
        [cos[:, 0] * middle[0] - sin[:, 0] * middle[1], sin[:, 0] * middle[0] + cos[:, 0] * middle[1]], -1
    )
    side = np.maximum(np.ptp(across, axis=1), np.ptp(along, axis=1)) * _FACE_TO_SQUARE
    return Squares(frame, center, side, angle)


def five_points(points: np.ndarray) -> np.ndarray:
    """Eyes, nose and mouth corners [..., 5, 2] of meshes [..., 468, 2 or 3]."""
    pairs = np.array(FIVE_POINTS)
    return (points[..., pairs[:, 0], :2] + points[..., pairs[:, 1], :2]) / 2


def costly_scales(height: int, width: int) -> int:
    """Number of the finest scales of an image that are too costly for every frame of a video.

    The finest costs about 100 ms a 720p frame on one core, the next one 25 ms, all others together 10 ms.
    """
    limit = _CHEAP * blazeface.SIZE**2
    return sum(height * width / scale**2 > limit for scale in _scales(height, width)[:2])


def _scales(height: int, width: int) -> list[float]:
    """Factors by which an image is downscaled for the detector, finest first."""
    scales = [max(_MIN_FACE / _IN_NETWORK, max(height, width) / _MAX_SIDE)]
    while min(height, width) / scales[-1] > 100:
        scales.append(scales[-1] * _LEVELS[min(len(scales), len(_LEVELS)) - 1])
    return scales


def _merged(parts: list[Detections]) -> Detections:
    """Detections of several scales; overlapping ones are averaged, weighted by their scores, as in mediapipe."""
    boxes = np.concatenate([part.boxes for part in parts])
    points, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in ("points", "scores"))
    kept = non_max_suppression(boxes, scores, _OVERLAP)
    if not kept:
        return Detections(boxes, points, scores)
    low = np.maximum(boxes[kept, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[kept, None, 2:], boxes[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1)
    union = areas[kept, None] + areas[None] - both
    weights = np.where(both > _OVERLAP * union, scores, 0.0)
    weights /= weights.sum(1, keepdims=True)
    inside = np.triu(both[:, kept] > _INSIDE * areas[None, kept], 1).any(0)
    merged = Detections(weights @ boxes, np.einsum("kn,npc->kpc", weights, points), scores[kept])
    return merged[~inside]


def mean_size(boxes: np.ndarray) -> np.ndarray:
    """Mean of width and height of boxes [..., 4]."""
    return (boxes[..., 2:] - boxes[..., :2]).mean(-1)
