"""Curation models that need no download: masks from face meshes and person segmentation.

They use the mesh of every face that the detector "blazeface" has fitted (array "points" of a clip).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy.ndimage import label

from bya_core.encoders.face.matching import body_boxes
from bya_core.encoders.person import PersonSegmenter

FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""Mesh points along the outline of the face, in order."""
_MASK_SIDE = 360  # longer side in pixels at which masks are computed
_MAX_REACH = 2.2  # largest horizontal distance of a body from the center of its face, in face widths


class MeshSegmenter:
    """Divides the pixels of all people among the faces: each pixel belongs to the nearest face, in face widths.

    Args:
        device: device of the network.
    """

    name = "face mesh and selfie segmentation"

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
        height, width = frames.shape[1:3]
        scale = min(1.0, _MASK_SIDE / max(height, width))
        size = round(height * scale), round(width * scale)
        factor = np.array([size[1] / width, size[0] / height])
        people = self._people(frames, boxes, size)
        small = np.stack(
            [_divide(people[f], boxes[:, f] * np.tile(factor, 2), points[:, f] * factor) for f in range(len(frames))],
            axis=1,
        )
        result = np.empty((len(boxes), *frames.shape[:3]), bool)
        for n, track in enumerate(small):
            values = torch.from_numpy(track).float()[:, None]
            large = F.interpolate(values, (height, width), mode="bilinear", align_corners=False)
            result[n] = large[:, 0].numpy() > 0.5
        return result

    def _people(self, frames: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Pixels of any person [F, *size], from the region around all bodies."""
        bodies = body_boxes(torch.from_numpy(boxes.reshape(-1, 4))).numpy().reshape(boxes.shape)
        low, high = bodies[..., :2].min(axis=0), bodies[..., 2:].max(axis=0)
        found = torch.from_numpy(self.people(frames, np.concatenate([low, high], axis=1)))[:, None]
        return F.interpolate(found, size, mode="bilinear", antialias=True)[:, 0].numpy() > 0.5


def _divide(people: np.ndarray, boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Masks [N, H, W] of one frame from the pixels of all people [H, W]."""
    height, width = people.shape
    y, x = np.mgrid[:height, :width] + 0.5
    center, face_width = (boxes[:, 0] + boxes[:, 2]) / 2, np.maximum(boxes[:, 2] - boxes[:, 0], 1)
    face_height = np.maximum(boxes[:, 3] - boxes[:, 1], 1)
    reach = np.abs(x - center[:, None, None]) / face_width[:, None, None]
    above = np.maximum(boxes[:, 1, None, None] - y, 0) / face_height[:, None, None]
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
        parts, _ = label(own)
        seeds = hull if hull.any() else own & (reach[n] < 0.5)
        masks[n] = np.isin(parts, np.setdiff1d(np.unique(parts[seeds]), 0))
    return masks
