"""Faces of real people in a picture: three detectors behind one Protocol, each imported only when it is used.

`find_detector` takes the best one that is there: insightface's SCRFD (`scrfd.py`) where its weights are on this
machine, else the cascade classifiers that come inside opencv-python 4 or, as OpenCV 5 ships none, inside scikit-image.
Cascades know faces that look into the camera or straight to a side; SCRFD knows far more. Nothing is ever downloaded.
The detector of the released model stands in `retinaface.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from einops import rearrange
from torch import Tensor

from bya_core.errors import InputError

INSIGHTFACE_HOME = Path("~/.insightface")
"""Where insightface itself keeps its models."""

_SCRFD_FILES = ("scrfd_10g_bnkps.onnx", "det_10g.onnx", "scrfd*.onnx", "det_*.onnx")  # antelopev2, buffalo_l, others
_LONGEST = 960  # pixels; larger pictures are shrunk, cascades get slow and no better on them
_SMALLEST = 1 / 24  # of the shorter side: smaller faces have no mouth that a video model could move

Box = tuple[float, float, float, float]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Face:
    """One face found.

    Args:
        box: x0, y0, x1, y1 in pixels, from forehead to chin.
        score: how sure the detector is, 0..1.
        points: x, y of the eyes (left one in the picture first), nose and corners of the mouth; None = not known.
    """

    box: Box
    score: float
    points: Points | None = None

    @property
    def area(self) -> float:
        """Square pixels of the box."""
        return max(0.0, self.box[2] - self.box[0]) * max(0.0, self.box[3] - self.box[1])


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces.

    Attributes:
        name: for messages.
    """

    name: str

    def detect(self, image: Tensor) -> list[Face]:
        """[3, H, W] in 0..1 -> faces, the surest first; none is an empty list."""
        ...


class OpenCvDetector:
    """Haar cascades inside opencv-python 4: faces from the front and, looked at both ways, from the side."""

    name = "OpenCV Haar cascades"

    def __init__(self) -> None:
        cv2: Any = import_module("cv2")
        self.cv2 = cv2
        folder = Path(cv2.data.haarcascades)
        self.front = [
            cv2.CascadeClassifier(str(folder / f"haarcascade_frontalface_{kind}.xml")) for kind in ("alt2", "default")
        ]
        self.side = cv2.CascadeClassifier(str(folder / "haarcascade_profileface.xml"))

    @staticmethod
    def present() -> bool:
        """Whether there is an OpenCV that has cascades; OpenCV 5 has not."""
        if find_spec("cv2") is None:
            return False
        try:
            cv2: Any = import_module("cv2")
        except ImportError:  # installed, but a library of the system that it needs is missing
            return False
        return hasattr(cv2, "CascadeClassifier") and any(Path(cv2.data.haarcascades).glob("haarcascade_frontal*.xml"))

    def detect(self, image: Tensor) -> list[Face]:
        shrunk, scale = _shrunk(image)
        grey = self.cv2.cvtColor(shrunk, self.cv2.COLOR_RGB2GRAY)
        mirrored, width = np.ascontiguousarray(grey[:, ::-1]), grey.shape[1]
        faces = [face for cascade in self.front for face in self._look(cascade, grey, scale)]
        faces += self._look(self.side, grey, scale)
        for face in self._look(self.side, mirrored, scale):
            x0, y0, x1, y1 = face.box
            faces.append(Face((width / scale - x1, y0, width / scale - x0, y1), face.score))
        return _surest(faces)

    def _look(self, cascade: Any, grey: np.ndarray, scale: float) -> list[Face]:
        least = max(20, round(min(grey.shape) * _SMALLEST))
        boxes, hits = cascade.detectMultiScale2(grey, 1.08, 3, minSize=(least, least))
        return [
            Face(_box(np.array([x, y, x + w, y + h]) / scale), float(hit / (hit + 5.0)))
            for (x, y, w, h), hit in zip(boxes, hits, strict=True)
        ]


class LbpDetector:
    """The cascade of local binary patterns inside scikit-image (which insightface brings): faces from the front."""

    name = "scikit-image LBP cascade"

    def __init__(self) -> None:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade

        self.cascade = Cascade(lbp_frontal_face_cascade_filename())

    @staticmethod
    def present() -> bool:
        return find_spec("skimage") is not None

    def detect(self, image: Tensor) -> list[Face]:
        shrunk, scale = _shrunk(image)
        side = min(shrunk.shape[:2])
        least = max(24, round(side * _SMALLEST))  # its window has 24 pixels
        if side < least:
            return []
        found = self.cascade.detect_multi_scale(
            shrunk,
            scale_factor=1.1,
            step_ratio=1,
            min_size=(least, least),
            max_size=(side, side),
            min_neighbor_number=3,
        )
        faces = []
        for box in found:  # it says nothing about how sure it is; large faces are rarely mistakes
            x, y, w, h = box["c"], box["r"], box["width"], box["height"]
            faces.append(Face(_box(np.array([x, y, x + w, y + h]) / scale), float(min(1.0, w / side))))
        return _surest(faces)


def scrfd_file(folder: Path) -> Path | None:
    """The detection model in `folder` or up to three folders below it."""
    folder = folder.expanduser()
    for pattern in _SCRFD_FILES:
        for depth in ("", "*/", "*/*/", "*/*/*/"):
            for file in sorted(folder.glob(depth + pattern)):
                return file
    return None


def find_detector(folder: Path | None = None) -> FaceDetector:
    """The best detector on this machine.

    Args:
        folder: where insightface's models lie; None = where insightface keeps them.

    Raises:
        InputError: a folder was given that holds none, or there is no detector at all.
    """
    from bya_core.encoders.face.scrfd import ScrfdDetector

    if folder is not None:
        return ScrfdDetector(folder)
    if scrfd_file(INSIGHTFACE_HOME / "models") is not None and find_spec("onnxruntime") is not None:
        return ScrfdDetector(INSIGHTFACE_HOME / "models")
    if OpenCvDetector.present():
        return OpenCvDetector()
    if LbpDetector.present():
        return LbpDetector()
    came = "no face detector is installed (OpenCV 5 alone has none)"
    raise InputError(came, "an SCRFD model or scikit-image", "pip install scikit-image, or give masks")


def pixels(image: Tensor) -> np.ndarray:
    """[3, H, W] in 0..1 -> uint8 [H, W, 3]."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise InputError(f"an image of shape {tuple(image.shape)}", "[3, height, width]", "pass an RGB image")
    scaled = (image.detach().float().cpu().clamp(0, 1) * 255.0).round().byte()
    return np.ascontiguousarray(rearrange(scaled, "c h w -> h w c").numpy())


def _shrunk(image: Tensor) -> tuple[np.ndarray, float]:
    """Pixels no longer than a cascade can use, and their scale to the original."""
    from PIL import Image

    whole = pixels(image)
    scale = min(1.0, _LONGEST / max(whole.shape[:2]))
    if scale == 1.0:
        return whole, scale
    size = (round(whole.shape[1] * scale), round(whole.shape[0] * scale))
    return np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.LANCZOS)), scale


def _box(values: np.ndarray) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


def _surest(faces: list[Face], overlap: float = 0.3) -> list[Face]:
    """The surest first; those that overlap a surer one (IoU above `overlap`) are left out."""
    boxes = np.array([face.box for face in faces], dtype=np.float64).reshape(-1, 4)
    return [faces[k] for k in non_max_suppression(boxes, np.array([face.score for face in faces]), overlap)]


def non_max_suppression(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Which of the boxes [K, 4] overlap no surer one that stays (IoU above `overlap`), the surest first."""
    sizes = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    waiting, kept = np.argsort(-scores, kind="stable"), []
    while len(waiting):
        best, waiting = int(waiting[0]), waiting[1:]
        kept.append(best)
        corner, end = np.maximum(boxes[best, :2], boxes[waiting, :2]), np.minimum(boxes[best, 2:], boxes[waiting, 2:])
        both = np.prod(np.clip(end - corner, 0, None), axis=1)
        waiting = waiting[both <= overlap * np.maximum(sizes[best] + sizes[waiting] - both, 1e-12)]
    return kept
