"""A photo of a real (or painted) person into what the released model knows of a face.

    detect -> align (512 x 512) -> parse -> recognise (ArcFace, 512) + look (EVA02-CLIP: 768, and 5 layers of detail)

Every part is a small class of its own: `retinaface.py` or `scrfd.py` find faces, `face_align.py` turns them upright,
`bisenet.py` tells skin and hair from background, ears, neck, clothes and hats, `arcface.py` says who it is, `eva.py`
what it looks like.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from PIL import Image, ImageDraw
from torch import Tensor

from bya_core.encoders.face.alignment import BORDER, similarity, warp
from bya_core.encoders.face.clip import EvaVision
from bya_core.encoders.face.detection import Face, FaceDetector, pixels
from bya_core.encoders.face.parsing import FaceParser
from bya_core.encoders.face.recognition import ArcFace
from bya_core.encoders.face.weights_file import read_weights
from bya_core.encoders.protocols import FaceFeatures
from bya_core.errors import InputError

log = logging.getLogger(__name__)

VISION_FILE = "EVA02_CLIP_L_336_psz14_s6B.pt (856 MB; MIT)"
UNSURE = 0.3  # detector's score from which a face counts at all: drawings and fantasy faces reach 0.3 to 0.9
_LONGEST = 1024  # pixels, as released; larger pictures are shrunk
_SMALL = 512  # pixels; in smaller pictures faces are also looked for enlarged
_COARSE = 64  # pixels between the corners of a face box below which details are missing
_GREY = (0.299, 0.587, 0.114)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class FaceModels:
    """What `PhotoFaceEncoder` is made of.

    Args:
        detector: finds faces with their five points (eyes, nose, corners of the mouth).
        parser: labels every pixel of an aligned face.
        recognizer: [3, h, w] in 0..1 -> [512].
        vision: EVA02-CLIP-L/14 at 336 pixels.
    """

    detector: FaceDetector
    parser: FaceParser
    recognizer: ArcFace
    vision: EvaVision

    @staticmethod
    def load(detector: Path, parser: Path, recognizer: Path, vision: Path) -> FaceModels:
        """Reads the published files, on the CPU in float32.

        Args:
            detector: detection_Resnet50_Final.pth (facexlib), or an SCRFD model with points (.onnx; antelopev2).
            parser: parsing_bisenet.pth (facexlib).
            recognizer: glintr100.onnx (antelopev2).
            vision: EVA02_CLIP_L_336_psz14_s6B.pt.

        Raises:
            InputError: a file is missing or does not fit its network.
        """
        from bya_core.encoders.face.retinaface import RetinaFaceDetector
        from bya_core.encoders.face.scrfd import ScrfdDetector

        published = read_weights(vision, VISION_FILE)
        finder: FaceDetector
        if detector.suffix == ".onnx" or detector.is_dir():
            finder = ScrfdDetector(detector, least=0.2)
        else:
            finder = RetinaFaceDetector(detector, least=UNSURE)
        with init_empty_weights():
            tower = EvaVision()
        tower.load_published(published)
        return FaceModels(finder, FaceParser(parser), ArcFace(recognizer), tower.float().requires_grad_(False).eval())


@dataclass(frozen=True)
class FaceCrop:
    """What was seen in a reference image.

    Args:
        image: [3, H, W] in 0..1 that was looked at.
        faces: all that were found, the chosen one first.
        crop: [3, 512, 512] in 0..1, the chosen face upright.
        mask: bool [512, 512], where in the crop there is face or hair.
        portrait: [3, 512, 512], the same on white.
        notices: what a person should know, one sentence each.
    """

    image: Tensor
    faces: tuple[Face, ...]
    crop: Tensor
    mask: Tensor
    portrait: Tensor
    notices: tuple[str, ...]

    def picture(self) -> Image.Image:
        """Preview: the image with every face framed, the chosen one boldly, and beside it what is kept of it."""
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
        parts: its networks.
        choose: which of several faces counts: the largest, or the surest (as released).
    """

    def __init__(self, parts: FaceModels, *, choose: Literal["largest", "surest"] = "largest") -> None:
        self.parts, self.choose = parts, choose

    @torch.no_grad()
    def encode(self, image: Tensor) -> FaceFeatures:
        """[3, H, W] in 0..1 -> features of its face; raises as `look` does.

        They are identity [1280] (ArcFace 512 as it comes, then CLIP 768 of length 1), hidden [5, 577, 1024] and
        portrait [3, 512, 512], all on the CPU.
        """
        seen = self.look(image)
        for notice in seen.notices:
            log.warning("%s", notice)
        vision = self.parts.vision
        given = clip_input(seen.crop, seen.mask, vision.image_size)
        pooled, hidden = vision(given.to(next(vision.parameters())))
        who = self.parts.recognizer.features(seen.crop)
        identity = torch.cat([who, F.normalize(pooled[0].float(), dim=0).cpu()])
        return FaceFeatures(identity, hidden[0].float().cpu(), seen.portrait.cpu(), seen.notices)

    @torch.no_grad()
    def look(self, image: Tensor) -> FaceCrop:
        """Find, turn upright and cut out the face of [3, H, W] in 0..1.

        Raises:
            InputError: no face, with what was looked at and what to do.
        """
        image = _limited(image)
        faces, doubt = self.found(image)
        chosen = max(faces, key=lambda face: face.area if self.choose == "largest" else face.score)
        assert chosen.points is not None
        crop = (warp(image, similarity(chosen.points)) * 255).round() / 255  # a picture of 8 bits, as released
        mask = self.parts.parser.face(crop).to(crop.device)
        portrait = torch.where(mask, crop, torch.ones_like(crop))
        others = tuple(face for face in faces if face is not chosen)
        notices = (*doubt, *self._notices(chosen, len(others), mask))
        return FaceCrop(image, (chosen, *others), crop, mask, portrait, notices)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PhotoFaceEncoder:
        """Move all networks (ONNX models stay on the CPU); `dtype` is that of the vision tower. Returns itself."""
        detector: Any = self.parts.detector
        if hasattr(detector, "to"):
            detector.to(device)
        self.parts.parser.to(device)
        self.parts.vision.to(device, dtype)
        return self

    def release(self) -> None:
        """Move everything to the CPU."""
        self.to("cpu")

    def found(self, image: Tensor) -> tuple[list[Face], tuple[str, ...]]:
        """Faces of [3, H, W] that count, and a word of doubt where the detector is not sure of them.

        Raises:
            InputError: no face, with what was looked at and what to do.
        """
        detector: Any = self.parts.detector
        sure = getattr(detector, "sure", 0.5)
        unsure: list[Face] = []
        looked = []
        for how, faces in self._tries(image):
            looked.append(how)
            usable = [face for face in faces if face.points is not None]
            certain = [face for face in usable if face.score >= sure]
            if certain:
                return certain, ()
            if max((face.score for face in usable), default=0.0) > max((face.score for face in unsure), default=0.0):
                unsure = usable
        if unsure:
            best = max(face.score for face in unsure)
            told = f"{detector.name} gives it {best:.2f}, photos get {sure:g} and more"
            return unsure, (f"A drawn, covered or turned face ({told}): check the crop.",)
        raise InputError(
            f"no face found ({detector.name} looked at {image.shape[2]}x{image.shape[1]} pixels {', '.join(looked)})",
            "a picture in which both eyes, the nose and the mouth can be seen",
            "crop it closer to the face, turn it upright, or use another picture",
        )

    def _tries(self, image: Tensor) -> Iterator[tuple[str, list[Face]]]:
        """What is looked at until there is a sure face, and the faces in coordinates of the image."""
        detect = self.parts.detector.detect
        yield "as they are", detect(image)
        height, width = image.shape[1:]
        if max(height, width) < _SMALL:
            scale = 2 * _SMALL / max(height, width)
            large = F.interpolate(image[None], scale_factor=scale, mode="bicubic", align_corners=False)[0].clamp(0, 1)
            yield "enlarged", [_moved(face, 1 / scale, 0.0) for face in detect(large)]
        margin = max(height, width) // 2  # a face that fills the picture is found once there is something around it
        grey = torch.tensor(BORDER, dtype=image.dtype, device=image.device).view(3, 1, 1) / 255
        wide = F.pad(image - grey, (margin,) * 4) + grey
        yield "with a margin", [_moved(face, 1.0, float(margin)) for face in detect(wide)]

    def _notices(self, chosen: Face, others: int, mask: Tensor) -> Iterator[str]:
        if others:
            told = "the largest" if self.choose == "largest" else "the one found with most certainty"
            yield f"{others + 1} faces in the picture: {told} is used; crop the picture to choose another."
        across = min(chosen.box[2] - chosen.box[0], chosen.box[3] - chosen.box[1])
        if across < _COARSE:
            yield f"The face is only {across:.0f} pixels wide: details will be missing."
        if float(mask.float().mean()) < 0.05:
            yield "Nearly all of the face was taken for background: check the crop."


def clip_input(crop: Tensor, mask: Tensor, side: int = 336) -> Tensor:
    """Aligned face [3, 512, 512] and where it is [512, 512] -> what the vision tower sees, [1, 3, side, side].

    The face is grey, what was removed is white: colours of a photo's light are not part of who somebody is.
    """
    grey = torch.einsum("chw,c->hw", crop, torch.tensor(_GREY, dtype=crop.dtype, device=crop.device)).expand(3, -1, -1)
    seen = torch.where(mask, grey, torch.ones_like(grey))
    small = F.interpolate(seen[None], size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(small) for values in (_CLIP_MEAN, _CLIP_STD))
    return (small - mean) / std


def _limited(image: Tensor) -> Tensor:
    """[3, H, W] with the longer side at most 1024 pixels, in steps of 1/255 as a file has them."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise InputError(f"an image of shape {tuple(image.shape)}", "[3, height, width]", "pass an RGB image")
    image = image.float().clamp(0, 1)
    scale = _LONGEST / max(image.shape[1:])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale)))
        image = F.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    return (image * 255).round() / 255


def _moved(face: Face, scale: float, margin: float) -> Face:
    """A face found in an enlarged picture, or one with a margin around it."""
    x0, y0, x1, y1 = ((value - margin) * scale for value in face.box)
    points = face.points and tuple(((x - margin) * scale, (y - margin) * scale) for x, y in face.points)
    return Face((x0, y0, x1, y1), face.score, points)
