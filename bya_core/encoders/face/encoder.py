"""Face encoder of the released model, for photos and paintings.

detect -> align (512 x 512) -> parse -> recognize (ArcFace, 512) and encode (EVA02-CLIP: 768, and 5 hidden states)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from PIL import Image, ImageDraw
from torch import Tensor

from bya_core.encoders.checkpoints import read_weights
from bya_core.encoders.face.alignment import BORDER, similarity, warp
from bya_core.encoders.face.clip import EvaVision
from bya_core.encoders.face.detection import Face, FaceDetector, ScrfdDetector, pixels
from bya_core.encoders.face.parsing import FaceParser
from bya_core.encoders.face.recognition import ArcFace
from bya_core.encoders.face.retinaface import RetinaFaceDetector
from bya_core.encoders.person import PersonParser
from bya_core.encoders.protocols import FaceFeatures
from bya_core.errors import InputError

VISION_FILE = "EVA02_CLIP_L_336_psz14_s6B.pt (856 MB; MIT)"
MIN_SCORE = 0.3
"""Detection score below which a face is ignored; drawings and fantasy faces score between 0.3 and 0.9."""
_MAX_SIDE = 1024  # in pixels, as in the released code; larger images are downscaled
_SMALL_SIDE = 512  # in pixels; smaller images are also searched upscaled
_COARSE_FACE = 64  # in pixels; a smaller face lacks details
_MIN_MASK_SHARE = 0.05
_GRAY = (0.299, 0.587, 0.114)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class FaceModels:
    """Networks of `PhotoFaceEncoder`.

    Args:
        detector: Face detector with five landmarks (eyes, nose, mouth corners).
        parser: Segments an aligned face.
        recognizer: Face recognition network; `None` where faces are only cropped.
        vision: EVA02-CLIP-L/14 at 336 pixels; `None` where faces are only cropped.
    """

    detector: FaceDetector
    parser: FaceParser | PersonParser
    recognizer: ArcFace | None
    vision: EvaVision | None

    @staticmethod
    def load(detector: Path, parser: Path, recognizer: Path, vision: Path) -> FaceModels:
        """Load the published files on the CPU in float32.

        Args:
            detector: detection_Resnet50_Final.pth (facexlib), or an SCRFD model with landmarks (.onnx; antelopev2).
            parser: parsing_bisenet.pth (facexlib).
            recognizer: glintr100.onnx (antelopev2).
            vision: EVA02_CLIP_L_336_psz14_s6B.pt.

        Raises:
            InputError: If a file is missing or does not fit its network.
        """
        published = read_weights(vision, VISION_FILE)
        face_detector: FaceDetector
        if detector.suffix == ".onnx" or detector.is_dir():
            face_detector = ScrfdDetector(detector, min_score=0.2)
        else:
            face_detector = RetinaFaceDetector(detector, min_score=MIN_SCORE)
        with init_empty_weights():
            tower = EvaVision()
        tower.load_published(published)
        tower = tower.float().requires_grad_(False).eval()
        return FaceModels(face_detector, FaceParser(parser), ArcFace(recognizer), tower)


@dataclass(frozen=True)
class FaceCrop:
    """The face of a reference image.

    Args:
        image: The searched image, [3, H, W] in [0, 1].
        faces: All detected faces, the selected one first.
        crop: Aligned crop of the selected face, [3, 512, 512] in [0, 1].
        mask: Mask of face and hair in the crop, bool [512, 512].
        portrait: The crop on a white background, [3, 512, 512].
        notices: Warnings for the user, one sentence each.
    """

    image: Tensor
    faces: tuple[Face, ...]
    crop: Tensor
    mask: Tensor
    portrait: Tensor
    notices: tuple[str, ...]

    def preview(self) -> Image.Image:
        """The image with all detected faces, the selected one highlighted, and the portrait beside it."""
        image = Image.fromarray(pixels(self.image))
        scale = self.portrait.shape[1] / image.height
        width = max(1, round(image.width * scale))
        page = Image.new("RGB", (width + self.portrait.shape[2], self.portrait.shape[1]), "white")
        page.paste(image.resize((width, page.height), Image.Resampling.LANCZOS))
        draw = ImageDraw.Draw(page)
        for index, face in reversed(list(enumerate(self.faces))):
            box = [value * scale for value in face.box]
            draw.rectangle(box, outline="#20c060" if index == 0 else "#e08020", width=6 if index == 0 else 2)
            for x, y in face.points or ():
                draw.ellipse([x * scale - 3, y * scale - 3, x * scale + 3, y * scale + 3], fill="#20c060")
        page.paste(Image.fromarray(pixels(self.portrait)), (width, 0))
        return page


class PhotoFaceEncoder:
    """`FaceEncoder` of the released weights.

    Args:
        models: Its networks.
        select: Which of several faces is used: the largest, or the one with the highest score (as in the released
            code).
    """

    def __init__(self, models: FaceModels, *, select: Literal["largest", "most_confident"] = "largest") -> None:
        self.models, self.select = models, select

    @torch.no_grad()
    def encode(self, image: Tensor) -> FaceFeatures:
        """Encode the face in an image [3, H, W] in [0, 1].

        Returns:
            On the CPU: identity [1280] (unnormalized ArcFace 512, then normalized CLIP 768), hidden states
            [5, 577, 1024] and portrait [3, 512, 512].

        Raises:
            InputError: If no face is detected.
        """
        face = self.crop(image)
        vision, recognizer = self.models.vision, self.models.recognizer
        assert vision is not None and recognizer is not None
        inputs = clip_input(face.crop, face.mask, vision.image_size)
        pooled, hidden = vision(inputs.to(next(vision.parameters())))
        embedding = recognizer.features(face.crop)
        identity = torch.cat([embedding, F.normalize(pooled[0].float(), dim=0).cpu()])
        return FaceFeatures(identity, hidden[0].float().cpu(), face.portrait.cpu(), face.notices)

    @torch.no_grad()
    def crop(self, image: Tensor) -> FaceCrop:
        """Detect, align and segment the face in an image [3, H, W] in [0, 1].

        Raises:
            InputError: If no face is detected.
        """
        image = _limited(image)
        faces, warnings = self.detect(image)
        selected = max(faces, key=lambda face: face.area if self.select == "largest" else face.score)
        assert selected.points is not None
        crop = (warp(image, similarity(selected.points)) * 255).round() / 255  # an 8-bit image, as in the released code
        mask = self.models.parser.face(crop).to(crop.device)
        portrait = torch.where(mask, crop, torch.ones_like(crop))
        others = tuple(face for face in faces if face is not selected)
        notices = (*warnings, *self._notices(selected, len(others), mask))
        return FaceCrop(image, (selected, *others), crop, mask, portrait, notices)

    def detect(self, image: Tensor) -> tuple[list[Face], tuple[str, ...]]:
        """Faces with landmarks in an image [3, H, W], and a warning if all have a low score.

        Raises:
            InputError: If no face is detected.
        """
        detector: Any = self.models.detector
        threshold = getattr(detector, "confident_score", 0.5)
        low_confidence: list[Face] = []
        attempts = []
        for attempt, faces in self._attempts(image):
            attempts.append(attempt)
            usable = [face for face in faces if face.points is not None]
            confident = [face for face in usable if face.score >= threshold]
            if confident:
                return confident, ()
            if _best(usable) > _best(low_confidence):
                low_confidence = usable
        if low_confidence:
            score = f"{detector.name} score {_best(low_confidence):.2f}, photos reach {threshold:g}"
            return low_confidence, (f"The face may be drawn, occluded or turned ({score}); check the crop.",)
        raise InputError(
            f"no face detected ({detector.name}, {image.shape[2]}x{image.shape[1]} pixels {', '.join(attempts)})",
            "an image in which both eyes, the nose and the mouth are visible",
            "crop it closer to the face, rotate it upright, or use another image",
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PhotoFaceEncoder:
        """Move all PyTorch networks; ONNX models stay on the CPU, and `dtype` applies to the vision tower only."""
        detector: Any = self.models.detector
        if hasattr(detector, "to"):
            detector.to(device)
        if not isinstance(self.models.parser, PersonParser):
            self.models.parser.to(device)
        if self.models.vision is not None:
            self.models.vision.to(device, dtype)
        return self

    def release(self) -> None:
        """Move all networks to the CPU."""
        self.to("cpu")

    def _attempts(self, image: Tensor) -> Iterator[tuple[str, list[Face]]]:
        """Versions of the image to search, and the faces in each, in coordinates of the image."""
        detect = self.models.detector.detect
        yield "unscaled", detect(image)
        height, width = image.shape[1:]
        if max(height, width) < _SMALL_SIDE:
            scale = 2 * _SMALL_SIDE / max(height, width)
            large = F.interpolate(image[None], scale_factor=scale, mode="bicubic", align_corners=False)[0].clamp(0, 1)
            yield "upscaled", [_moved(face, 1 / scale, 0.0) for face in detect(large)]
        margin = max(height, width) // 2  # a face that fills the image is only detected with a margin
        gray = torch.tensor(BORDER, dtype=image.dtype, device=image.device).view(3, 1, 1) / 255
        padded = F.pad(image - gray, (margin,) * 4) + gray
        yield "padded", [_moved(face, 1.0, float(margin)) for face in detect(padded)]

    def _notices(self, selected: Face, others: int, mask: Tensor) -> Iterator[str]:
        if others:
            which = "largest" if self.select == "largest" else "most confident"
            yield f"{others + 1} faces detected: the {which} one is used; crop the image to select another."
        width = min(selected.box[2] - selected.box[0], selected.box[3] - selected.box[1])
        if width < _COARSE_FACE:
            yield f"The face is only {width:.0f} pixels wide; expect reduced quality."
        if float(mask.float().mean()) < _MIN_MASK_SHARE:
            yield "Most of the face was segmented as background; check the crop."


def clip_input(crop: Tensor, mask: Tensor, size: int = 336) -> Tensor:
    """Input of the vision tower: the face in grayscale on white, normalized.

    Grayscale removes the color of the lighting.

    Args:
        crop: Aligned face [3, 512, 512] in [0, 1].
        mask: Face mask, bool [512, 512].
        size: Side of the input in pixels.

    Returns:
        [1, 3, size, size].
    """
    gray = torch.einsum("chw,c->hw", crop, torch.tensor(_GRAY, dtype=crop.dtype, device=crop.device)).expand(3, -1, -1)
    face = torch.where(mask, gray, torch.ones_like(gray))
    small = F.interpolate(face[None], size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(small) for values in (_CLIP_MEAN, _CLIP_STD))
    return (small - mean) / std


def _best(faces: list[Face]) -> float:
    return max((face.score for face in faces), default=0.0)


def _limited(image: Tensor) -> Tensor:
    """Image [3, H, W] with a longer side of at most 1024 pixels, quantized to 8 bits."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise InputError(f"an image of shape {tuple(image.shape)}", "[3, height, width]", "pass an RGB image")
    image = image.float().clamp(0, 1)
    scale = _MAX_SIDE / max(image.shape[1:])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale)))
        image = F.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    return (image * 255).round() / 255


def _moved(face: Face, scale: float, margin: float) -> Face:
    """A face detected in a padded or scaled image, in coordinates of the original."""
    x0, y0, x1, y1 = ((value - margin) * scale for value in face.box)
    points = face.points and tuple(((x - margin) * scale, (y - margin) * scale) for x, y in face.points)
    return Face((x0, y0, x1, y1), face.score, points)
