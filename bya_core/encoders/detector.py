"""Faces of real people in a picture: three detectors behind one Protocol, each imported only when it is used.

`find_detector` takes the best one that is there: insightface's SCRFD where its weights are on this machine, else the
cascade classifiers that come inside opencv-python 4 or, as OpenCV 5 ships none, inside scikit-image. Cascades know
faces that look into the camera or straight to a side; SCRFD knows far more. Nothing is ever downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Face:
    """One face found.

    Args:
        box: x0, y0, x1, y1 in pixels, from forehead to chin.
        score: how sure the detector is, 0..1.
    """

    box: Box
    score: float


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


class ScrfdDetector:
    """SCRFD of insightface (https://arxiv.org/abs/2105.04714), on the CPU.

    Args:
        folder: holds the models (antelopev2, buffalo_l, ...), itself or up to three folders deeper: insightface wants
            models/antelopev2, and that archive unpacks one level too deep.
        least: score from which a face counts.

    Raises:
        InputError: no detection model in `folder`, or insightface cannot be imported.
    """

    name = "insightface SCRFD"

    def __init__(self, folder: Path, least: float = 0.5) -> None:
        file = scrfd_file(folder)
        if file is None:
            came = f"no face detection model in {folder}"
            raise InputError(came, " or ".join(_SCRFD_FILES[:2]), "unpack antelopev2 or buffalo_l there")
        try:
            from insightface.model_zoo import get_model
        except ImportError as error:
            came = f"insightface cannot be imported ({error})"
            raise InputError(came, "insightface 1.0 or later", "pip install insightface onnxruntime") from error
        self.model: Any = get_model(str(file), providers=["CPUExecutionProvider"])
        self.model.prepare(ctx_id=-1, input_size=(640, 640), det_thresh=least)

    def detect(self, image: Tensor) -> list[Face]:
        found, _ = self.model.detect(np.ascontiguousarray(_pixels(image)[..., ::-1]))  # it wants BGR
        return _surest([Face(_box(row[:4]), float(row[4])) for row in found])


class OpenCvDetector:
    """Haar cascades inside opencv-python 4: faces from the front and, looked at both ways, from the side."""

    name = "OpenCV Haar cascades"

    def __init__(self) -> None:
        import cv2

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
            import cv2
        except ImportError:  # installed, but a library of the system that it needs is missing
            return False
        return hasattr(cv2, "CascadeClassifier") and any(Path(cv2.data.haarcascades).glob("haarcascade_frontal*.xml"))

    def detect(self, image: Tensor) -> list[Face]:
        pixels, scale = _shrunk(image)
        grey = self.cv2.cvtColor(pixels, self.cv2.COLOR_RGB2GRAY)
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
        pixels, scale = _shrunk(image)
        side = min(pixels.shape[:2])
        least = max(24, round(side * _SMALLEST))  # its window has 24 pixels
        if side < least:
            return []
        found = self.cascade.detect_multi_scale(
            pixels,
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
    if folder is not None:
        return ScrfdDetector(folder)
    if scrfd_file(INSIGHTFACE_HOME / "models") is not None and find_spec("insightface") is not None:
        return ScrfdDetector(INSIGHTFACE_HOME / "models")
    if OpenCvDetector.present():
        return OpenCvDetector()
    if LbpDetector.present():
        return LbpDetector()
    came = "no face detector is installed (OpenCV 5 alone has none)"
    raise InputError(came, "insightface or scikit-image", "pip install insightface onnxruntime, or give masks")


def _pixels(image: Tensor) -> np.ndarray:
    """[3, H, W] in 0..1 -> uint8 [H, W, 3]."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise InputError(f"an image of shape {tuple(image.shape)}", "[3, height, width]", "pass an RGB image")
    scaled = (image.detach().float().cpu().clamp(0, 1) * 255.0).round().byte()
    return np.ascontiguousarray(rearrange(scaled, "c h w -> h w c").numpy())


def _shrunk(image: Tensor) -> tuple[np.ndarray, float]:
    """Pixels no longer than a cascade can use, and their scale to the original."""
    from PIL import Image

    pixels = _pixels(image)
    scale = min(1.0, _LONGEST / max(pixels.shape[:2]))
    if scale == 1.0:
        return pixels, scale
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)), scale


def _box(values: np.ndarray) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


def _surest(faces: list[Face], overlap: float = 0.3) -> list[Face]:
    """The surest first; those that overlap a surer one (IoU above `overlap`) are left out."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(_iou(face.box, other.box) <= overlap for other in kept):
            kept.append(face)
    return kept


def _iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
