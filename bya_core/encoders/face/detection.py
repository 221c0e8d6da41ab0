"""Detection of faces in photos: the protocol of detectors, and insightface's SCRFD.

The detector inside the package, which needs no download, is `mesh.FaceMesh`; the one of the released model is in
`retinaface.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bya_core.encoders.checkpoints import open_onnx
from bya_core.errors import InputError

SCRFD_FILE = "scrfd_10g_bnkps.onnx of antelopev2 or det_10g.onnx of buffalo_l (17 MB; insightface, for research only)"

_SCRFD_PATTERNS = ("scrfd_10g_bnkps.onnx", "det_10g.onnx", "scrfd*.onnx", "det_*.onnx")  # antelopev2, buffalo_l, others
_SCRFD_STRIDES = {6: (8, 16, 32), 9: (8, 16, 32), 10: (8, 16, 32, 64, 128), 15: (8, 16, 32, 64, 128)}  # by outputs

Box = tuple[float, float, float, float]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Face:
    """A detected face.

    Args:
        box: (x0, y0, x1, y1) in pixels, from forehead to chin.
        score: Confidence in [0, 1].
        points: (x, y) of the eyes (left one in the image first), nose and mouth corners; `None` if unknown.
    """

    box: Box
    score: float
    points: Points | None = None

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return max(0.0, self.box[2] - self.box[0]) * max(0.0, self.box[3] - self.box[1])


@runtime_checkable
class FaceDetector(Protocol):
    """Detects faces.

    Attributes:
        name: Name for messages.
    """

    name: str

    def detect(self, image: Tensor) -> list[Face]:
        """Faces in an image [3, H, W] in [0, 1], sorted by descending score."""
        ...


class ScrfdDetector:
    """SCRFD (https://arxiv.org/abs/2105.04714), insightface's detector, in onnxruntime on the CPU.

    Args:
        model: The ONNX file, or a folder that contains it up to three levels deep (the antelopev2 archive unpacks one
            level deeper than insightface expects).
        min_score: Faces with a lower score are discarded.
        confident_score: Score threshold of insightface.
        size: Side of the square network input in pixels.

    Raises:
        InputError: If the model or onnxruntime is missing, or the model has other outputs.
    """

    name = "SCRFD"

    def __init__(self, model: Path, min_score: float = 0.5, confident_score: float = 0.5, size: int = 640) -> None:
        file = scrfd_file(model) if model.is_dir() else model
        if file is None:
            raise InputError(f"no face detection model in {model}", SCRFD_FILE, "unpack antelopev2 or buffalo_l there")
        self.min_score, self.confident_score, self.size = min_score, confident_score, size
        self.session = open_onnx(file, SCRFD_FILE)
        outputs = len(self.session.get_outputs())
        if outputs not in _SCRFD_STRIDES:
            raise InputError(f"a face detector with {outputs} outputs ({file})", SCRFD_FILE, "use one of these")
        self.strides = _SCRFD_STRIDES[outputs]
        self.has_points = outputs == 3 * len(self.strides)

    def detect(self, image: Tensor) -> list[Face]:
        """See `FaceDetector`; landmarks are returned if the model predicts them."""
        inputs, scale = self._preprocess(image)
        outputs = self.session.run(None, {self.session.get_inputs()[0].name: inputs})
        outputs = [np.asarray(values).reshape(-1, np.asarray(values).shape[-1]) for values in outputs]
        levels = len(self.strides)
        boxes, scores, points = [], [], []
        for index, stride in enumerate(self.strides):
            score = outputs[index][:, 0]
            selected = score >= self.min_score
            center = self._centers(stride, len(score))[selected]
            near, far = np.split(outputs[index + levels][selected] * stride, 2, axis=1)
            boxes.append(np.concatenate([center - near, center + far], axis=1) / scale)
            scores.append(score[selected])
            if self.has_points:
                offsets = outputs[index + 2 * levels][selected].reshape(-1, 5, 2) * stride
                points.append((center[:, None] + offsets) / scale)
        all_boxes, all_scores = np.concatenate(boxes), np.concatenate(scores)
        all_points = np.concatenate(points) if points else None
        faces = []
        for k in non_max_suppression(all_boxes, all_scores, overlap=0.4):
            landmarks = None if all_points is None else tuple((float(x), float(y)) for x, y in all_points[k])
            faces.append(Face(_box(all_boxes[k]), float(all_scores[k]), landmarks))
        return faces

    def _preprocess(self, image: Tensor) -> tuple[np.ndarray, float]:
        """Network input [1, 3, size, size] with the image in the upper left corner, and the scale of the image."""
        whole = torch.from_numpy(pixels(image)).float()
        height, width = whole.shape[:2]
        if height > width:
            rows, columns = self.size, int(self.size * width / height)
        else:
            rows, columns = int(self.size * height / width), self.size
        whole = rearrange(whole, "h w c -> 1 c h w")
        small = F.interpolate(whole, size=(max(1, rows), max(1, columns)), mode="bilinear", align_corners=False).round()
        square = torch.zeros(1, 3, self.size, self.size)
        square[:, :, : small.shape[2], : small.shape[3]] = small
        return ((square - 127.5) / 128).numpy(), rows / height

    def _centers(self, stride: int, count: int) -> np.ndarray:
        """(x, y) of the anchors of one level, [count, 2]; there are one or two anchors per position."""
        across = self.size // stride
        y, x = np.mgrid[:across, :across]
        positions = np.stack([x, y], axis=-1).reshape(-1, 2) * stride
        return np.repeat(positions, count // len(positions), axis=0).astype(np.float32)


def scrfd_file(folder: Path) -> Path | None:
    """The SCRFD model in `folder`, up to three levels deep."""
    folder = folder.expanduser()
    for pattern in _SCRFD_PATTERNS:
        for depth in ("", "*/", "*/*/", "*/*/*/"):
            for file in sorted(folder.glob(depth + pattern)):
                return file
    return None


def pixels(image: Tensor) -> np.ndarray:
    """Convert an image [3, H, W] in [0, 1] to uint8 [H, W, 3]."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise InputError(f"an image of shape {tuple(image.shape)}", "[3, height, width]", "pass an RGB image")
    scaled = (image.detach().float().cpu().clamp(0, 1) * 255.0).round().byte()
    return np.ascontiguousarray(rearrange(scaled, "c h w -> h w c").numpy())


def non_max_suppression(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Indices of the boxes [K, 4] kept by greedy non-maximum suppression at an IoU of `overlap`, best score first."""
    sizes = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    remaining, kept = np.argsort(-scores, kind="stable"), []
    while len(remaining):
        best, remaining = int(remaining[0]), remaining[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[remaining, :2])
        high = np.minimum(boxes[best, 2:], boxes[remaining, 2:])
        both = np.prod(np.clip(high - low, 0, None), axis=1)
        remaining = remaining[both <= overlap * np.maximum(sizes[best] + sizes[remaining] - both, 1e-12)]
    return kept


def _box(values: np.ndarray) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1
