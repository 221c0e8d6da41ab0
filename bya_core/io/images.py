"""Images: bounded reading, fitting to a size."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.files import existing_file, file_label

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "TGA", "JPEG2000", "AVIF", "MPO", "ICO", "DIB", "PCX")
FLAT = 3 / 255  # images whose colors differ less are rejected as blank
MAX_SIDE = 2048  # pixels; larger images are reduced to it
MAX_PIXELS = 64_000_000  # of an image that has to be decoded at full size
MAX_REDUCED = 500_000_000  # of a JPEG, which is reduced while it is decoded
MAX_PROGRESSIVE = 220_000_000  # of a progressive JPEG, whose coefficients are all held in memory
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
ERRORS = (
    UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError,
    OverflowError, MemoryError, NotImplementedError, Image.DecompressionBombError,
)  # fmt: skip
MAX_CROPPED = 16  # times the target area that is scaled before it is cropped
EXPECTED = "an image such as png, jpg or webp"


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Read an image as [3, H, W] in 0..1, upright (EXIF), on white, at most `MAX_SIDE` pixels high and wide.

    Raises:
        InputError: The file is missing, unreadable, too large, or of a single color.
    """
    path = existing_file(path, "the image")
    pixels = np.array(load_image(path, "the image"))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    if float((image.amax(dim=(1, 2)) - image.amin(dim=(1, 2))).max()) < FLAT:
        raise InputError(f"the image {path} is blank (a single color)", "an image with content", "choose another file")
    return image


def read_gray(path: str | os.PathLike[str], what: str) -> Tensor:
    """Read a mask from an image as [H, W] in 0..1: white = 1, black and transparent = 0.

    Args:
        path: image.
        what: the mask in messages.

    Raises:
        InputError: The file is missing, unreadable or too large.
    """
    path = existing_file(path, what)
    return torch.from_numpy(np.array(load_image(path, what, "black").convert("L"), dtype=np.float32) / 255)


def load_image(path: Path, what: str, background: str = "white", max_side: int = MAX_SIDE) -> Image.Image:
    """Decode the first picture of a file as RGB, upright, on a background, reduced to `max_side`.

    Args:
        path: existing file.
        what: the image in messages.
        background: color behind transparent pixels.
        max_side: pixels.

    Raises:
        InputError: The file cannot be decoded, or is too large to.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings on large or odd files: the limits are checked here
            with _open(path) as opened:
                return _decode(opened, file_label(what, path), background, max_side)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        size = "".join(filter(str.isdigit, str(error).split("pixels")[0]))
        raise _too_large(f"{file_label(what, path)} has {size[:-6] or 0} megapixels") from error
    except ERRORS as error:
        if not path.stat().st_size:
            raise InputError(f"{file_label(what, path)} is an empty file", EXPECTED, "choose another file") from error
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({_reason(error)})"
        hint = "save it in one of these formats"
        raise InputError(f"{file_label(what, path)} cannot be read{reason}", EXPECTED, hint) from error


def _open(path: Path) -> Image.Image:
    """Open a file of one of the `FORMATS`. JPEG has no other limit than those of `_decode`."""
    with path.open("rb") as file:
        if file.read(3) == b"\xff\xd8\xff":
            return JpegImagePlugin.JpegImageFile(path)
    Image.init()
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def _reason(error: BaseException) -> str:
    text = str(error).split("\n")[0].strip().rstrip(".")
    return (text or type(error).__name__)[:100]


def _too_large(problem: str) -> InputError:
    expected = f"at most {MAX_PIXELS // 1_000_000} megapixels ({MAX_REDUCED // 1_000_000} as JPEG)"
    return InputError(problem, expected, "reduce it, for example to 2000 pixels")


def _decode(image: Image.Image, what: str, background: str, max_side: int) -> Image.Image:
    size = f"{image.width}x{image.height} pixels"
    limit = MAX_PIXELS
    if image.format in ("JPEG", "MPO"):
        limit = MAX_PROGRESSIVE if image.info.get("progressive") else MAX_REDUCED
    if image.width * image.height > limit:
        raise _too_large(f"{what} has {size}")
    scale = min(1.0, max_side / max(image.size))
    image.draft(None, (max(1, int(image.width * scale)), max(1, int(image.height * scale))))  # JPEG: at 1/2, 1/4, 1/8
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"{what} has {size}")
    image.load()  # a TIFF is made upright here
    orientation = ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if image.mode[0] in "IF":  # 16 or 32 bits per pixel, which a conversion to RGB would clip
        image = _eight_bits(image, what)
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if max(image.size) > max_side:
        scale = max_side / max(image.size)
        fitted = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(fitted, Image.Resampling.LANCZOS, reducing_gap=2.0)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
    return image if orientation is None else image.transpose(orientation)


def _eight_bits(image: Image.Image, what: str) -> Image.Image:
    """Scale gray pixels so that the brightest is 255, or is full scale if it is less than 1."""
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise InputError(f"{what} contains NaN or infinity", "finite pixels", "export it again")
    if low < 0:
        raise InputError(f"{what} has pixels of {low:.3g}", "pixels of at least 0", "export it again")
    return Image.fromarray((values * (255 / max(high, 1.0))).astype(np.uint8))


def fit_image(image: Tensor, height: int, width: int) -> Tensor:
    """Scale an image [3, H, W] to cover height x width and crop the center: [3, height, width]."""
    rows, columns = image.shape[1:]
    scale = max(height / rows, width / columns)
    if rows * columns * scale**2 > MAX_CROPPED * height * width:  # a long strip: what is cropped is not scaled
        keep = min(rows, math.ceil(height / scale) + 2), min(columns, math.ceil(width / scale) + 2)
        top, left = (rows - keep[0]) // 2, (columns - keep[1]) // 2
        image = image[:, top : top + keep[0], left : left + keep[1]]
    size = max(height, round(image.shape[1] * scale)), max(width, round(image.shape[2] * scale))
    scaled = F.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, top : top + height, left : left + width].clamp(0, 1)
