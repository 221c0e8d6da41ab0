"""Bounds of images and arrays."""

from __future__ import annotations

import io
import resource
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy
from PIL import Image

from bya_core.errors import InputError
from bya_core.io.media import fit_image, read_arrays, read_gray, read_image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def empty_png(path: Path, width: int, height: int) -> Path:
    """A png that claims a size and has no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    return path


def picture(width: int = 96, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.slow
def test_200_megapixels_as_jpeg(tmp_path: Path) -> None:
    tile = np.asarray(picture(500, 500))
    Image.fromarray(np.tile(tile, (20, 40, 1))).save(tmp_path / "a.jpg", quality=40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # includes the picture made here
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (3, 1024, 2048)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= before


def test_jpeg_is_reduced_while_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(4200, 2100).save(tmp_path / "a.jpg")
    monkeypatch.setattr("bya_core.io.images.MAX_PIXELS", 3_000_000)  # the file has more
    assert read_image(tmp_path / "a.jpg").shape == (3, 1024, 2048)


@pytest.mark.parametrize("size", [(100_000, 100_000), (13_300, 13_300), (10_000, 10_000)])
def test_large_images_are_refused_without_a_warning(size: tuple[int, int], tmp_path: Path) -> None:
    path = empty_png(tmp_path / "a.png", *size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (read_image, lambda each: read_gray(each, "the mask of Ada")):
            with pytest.raises(InputError, match="at most 64 megapixels"):
                read(path)


@pytest.mark.parametrize("format", ["EPS", "PDF", "DDS", "SGI"])
def test_other_formats_are_refused_whatever_their_name(format: str, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png", format=format)
    with pytest.raises(InputError, match="cannot be read; expected an image such as png"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("value, problem", [(np.nan, "NaN"), (np.inf, "NaN or infinity"), (-1.0, "pixels of -1")])
def test_float_pixels_are_checked(value: float, problem: str, tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    values[3, 3] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    for read in (read_image, lambda each: read_gray(each, "the mask of Ada")):
        with pytest.raises(InputError, match=problem):
            read(tmp_path / "a.tif")


def test_modes(tmp_path: Path) -> None:
    for mode in ("L", "P", "1", "CMYK", "RGBA", "LA", "YCbCr", "I;16"):
        source = picture()
        gray = np.asarray(source.convert("L"))
        made = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else source.convert(mode)
        made.save(tmp_path / "a.tif")
        assert read_image(tmp_path / "a.tif").shape == (3, 64, 96)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation: int, tmp_path: Path) -> None:
    """The bright corner of the upright picture is at its top left."""
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :32] = 255
    back = {2: [2], 3: [3], 4: [4], 5: [5], 6: [8], 7: [7], 8: [6]}.get(orientation, [])
    stored = Image.fromarray(upright)
    from bya_core.io.images import ORIENTATIONS

    for step in back:
        stored = stored.transpose(ORIENTATIONS[step])
    for name in ("a.jpg", "a.png", "a.tif"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(tmp_path / name, exif=exif)
        image = read_image(tmp_path / name)
        assert image.shape == (3, 64, 96) and image[:, :24, :24].min() > 0.9 and image[:, 40:, 40:].max() < 0.1


def test_long_strips_are_fitted_in_bounded_memory(tmp_path: Path) -> None:
    picture(1, 30_000).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 2048, 1) and fit_image(image, 480, 720).shape == (3, 480, 720)


def npz(path: Path, shape: str, data: bytes, kind: str = "<f4", compressed: bool = False) -> Path:
    """An npz file whose header claims `shape`."""
    buffer = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": (1,)}
    npy.write_array_header_1_0(buffer, header)
    content = buffer.getvalue().replace(b"(1,)", shape.encode())
    content = content[:8] + struct.pack("<H", len(content) - 10) + content[10:]
    mode = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", mode) as archive:
        archive.writestr("masks.npy", content + data)
    return path


def test_arrays(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez_compressed(tmp_path / "a.npz", masks=np.asfortranarray(values), names=np.array(["Ada", "Bo"]))
    arrays = read_arrays(tmp_path / "a.npz", "the masks")
    assert np.array_equal(arrays["masks"], values) and list(arrays["names"]) == ["Ada", "Bo"]
    assert list(read_arrays(tmp_path / "a.npz", "the masks", ("names", "start"))) == ["names"]


@pytest.mark.parametrize(
    "shape, kind, problem",
    [
        ("(99999, 99999, 99)", "<f4", "at most 537 MB"),
        ("(4, 5)", "<f4", "incomplete"),
        ("(-4, 5)", "<f4", "cannot be read"),
        ("(300000000,)", "|u1", "at most 537 MB"),
        ("(2,)", "|O", "Python objects"),
    ],
)
def test_lying_arrays(shape: str, kind: str, problem: str, tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", shape, bytes(40), kind)
    with pytest.raises(InputError, match=problem) as raised:
        read_arrays(path, "the masks")
    assert "\n" not in str(raised.value)


def test_zip_bombs_are_read_as_far_as_the_header_says(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", "(10,)", bytes(200_000_000), compressed=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_arrays(path, "the masks")["masks"].shape == (10,)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
