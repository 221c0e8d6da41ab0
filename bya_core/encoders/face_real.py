"""A photo of a real (or painted) person into what the released model knows of a face.

    detect -> align (512 x 512) -> parse -> recognise (ArcFace, 512) + look (EVA02-CLIP: 768, and 5 layers of detail)

Every part is a small class of its own: `retinaface.py` or `detector.py` find faces, `face_align.py` turns them upright,
`bisenet.py` tells skin and hair from background, ears, neck, clothes and hats, `arcface.py` says who it is, `eva.py` what
it looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from bya_core.encoders.arcface import ArcFace
from bya_core.encoders.base import FaceFeatures
from bya_core.encoders.bisenet import FaceParser
from bya_core.encoders.detector import Face, FaceDetector
from bya_core.encoders.eva import EvaVision


@dataclass(frozen=True)
class FaceParts:
    """What `RealFace` is made of.

    Args:
        detector: finds faces with their five points (eyes, nose, corners of the mouth).
        parser: labels every pixel of an aligned face.
        recogniser: [3, h, w] in 0..1 -> [512].
        vision: EVA02-CLIP-L/14 at 336 pixels.
    """

    detector: FaceDetector
    parser: FaceParser
    recogniser: ArcFace
    vision: EvaVision

    @staticmethod
    def load(detector: Path, parser: Path, recogniser: Path, vision: Path) -> FaceParts:
        """Reads the published files, on the CPU in float32.

        Args:
            detector: detection_Resnet50_Final.pth (facexlib), or an SCRFD model with points (.onnx; antelopev2).
            parser: parsing_bisenet.pth (facexlib).
            recogniser: glintr100.onnx (antelopev2).
            vision: EVA02_CLIP_L_336_psz14_s6B.pt.

        Raises:
            InputError: a file is missing or does not fit its network.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FaceLook:
    """What was seen in a reference image.

    Args:
        image: [3, H, W] in 0..1 that was looked at.
        faces: all that were found, the chosen one first.
        crop: [3, 512, 512] in 0..1, the chosen face upright.
        portrait: [3, 512, 512], the same on white.
        notices: what a person should know, one sentence each.
    """

    image: Tensor
    faces: tuple[Face, ...]
    crop: Tensor
    portrait: Tensor
    notices: tuple[str, ...]

    def picture(self) -> Image.Image:
        """Preview: the image with every face framed, the chosen one boldly, and its crop beside it."""
        raise NotImplementedError


class RealFace:
    """`FaceEncoder` of the released weights.

    Args:
        parts: its networks.
        choose: which of several faces counts: the largest, or the surest (as released).
    """

    def __init__(self, parts: FaceParts, *, choose: Literal["largest", "surest"] = "largest") -> None:
        raise NotImplementedError

    def encode(self, image: Tensor) -> FaceFeatures:
        """[3, H, W] in 0..1 -> identity [1280], hidden [5, 577, 1024], portrait [3, 512, 512]; see `look` for errors."""
        raise NotImplementedError

    def look(self, image: Tensor) -> FaceLook:
        """Find, turn upright and cut out the face of [3, H, W] in 0..1.

        Raises:
            InputError: no face, with what was looked at and what to do.
        """
        raise NotImplementedError

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> RealFace:
        """Move all networks (ONNX models stay on the CPU); `dtype` is that of the vision tower. Returns itself."""
        raise NotImplementedError

    def release(self) -> None:
        """Move everything to the CPU."""
        raise NotImplementedError
