"""Reads npz files with masks, within bounds of memory whatever the file claims."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.files import existing_file

MAX_VALUES = 1 << 27  # 512 MB as float32
MAX_NAMES = 1 << 20  # bytes
DAMAGES = (
    ArithmeticError, BadZipFile, EOFError, LookupError, MemoryError, NotImplementedError, OSError, RuntimeError,
    SyntaxError, TokenError, TypeError, ValueError, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class MaskArchive:
    """Content of an npz file with masks.

    Args:
        values: The array "masks" or "mask", float32, of any shape.
        key: "masks" or "mask".
        names: The array "names": of the characters, one per mask; None if there is none.
        start: The array "start": first latent frame in the video, of masks of a part of it; None = all frames.
    """

    values: Tensor
    key: str
    names: list[str] | None = None
    start: int | None = None


def save_archive(path: Path, masks: Tensor, names: list[str], start: int | None = None) -> None:
    """Write masks [N, T, h, w] with the names of their characters; `start` as in `MaskArchive`."""
    part = {} if start is None else {"start": np.array(start)}
    np.savez_compressed(path, masks=masks.numpy(), names=np.array(names), **part)  # type: ignore[arg-type]


def open_archive(path: Path) -> MaskArchive:
    """Read an npz file with masks.

    Raises:
        InputError: A file that is missing, damaged or too large, without masks, or with invalid names.
    """
    path = existing_file(path, "the masks")
    try:
        with ZipFile(path) as archive:
            keys = {name.removesuffix(".npy") for name in archive.namelist()}
            key = "masks" if "masks" in keys or "mask" not in keys else "mask"
            values = _read(archive, key, path, MAX_VALUES * 4)
            names = _read(archive, "names", path, MAX_NAMES) if "names" in keys else None
            start = _read(archive, "start", path, MAX_NAMES) if "start" in keys else None
    except InputError:
        raise
    except DAMAGES as error:
        problem = f"the masks {path} cannot be read"
        raise InputError(problem, 'an npz file with an array "masks"', "save it with numpy.savez") from error
    if values.dtype.kind not in "buif":
        raise InputError(f"the masks {path} of type {values.dtype}", "numbers in 0..1", "save them as float32")
    masks = torch.from_numpy(np.array(values, dtype=np.float32, order="C", copy=None))
    return MaskArchive(masks, key, None if names is None else _names(names, path), _start(start, path))


def _read(archive: ZipFile, key: str, path: Path, limit: int) -> np.ndarray:
    """One array; its size is checked before it is read."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    size = int(np.prod([float(length) for length in shape])) * max(dtype.itemsize, 4 if key != "names" else 1)
    if dtype.hasobject:
        raise InputError(f'the array "{key}" of {path} holds Python objects', "numbers and text", "save plain arrays")
    if size > limit:
        problem = f'the array "{key}" of {path} has {size / 1e6:.0f} MB'
        raise InputError(problem, f"at most {limit / 1e6:.0f} MB", "save masks per latent frame, or smaller ones")
    with archive.open(f"{key}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _names(array: np.ndarray, path: Path) -> list[str]:
    what = f'the array "names" of {path}'
    if array.dtype.kind not in "USiu" or array.ndim > 1:
        raise InputError(f"{what} of type {array.dtype}", "one text per mask", "save numpy.array of the names")
    names = [
        name.decode("utf-8", "replace").strip() if isinstance(name, bytes) else str(name).strip()
        for name in array.reshape(-1).tolist()
    ]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f'{what} has "{twice[:40]}" twice', "unique names", "correct them")
    return names


def _start(array: np.ndarray | None, path: Path) -> int | None:
    if array is None:
        return None
    if array.size != 1 or array.dtype.kind not in "iu":
        raise InputError(f'the array "start" of {path}', "one latent frame", "correct or remove it")
    return int(array.reshape(-1)[0])
