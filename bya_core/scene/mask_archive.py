"""Reads npz files with masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.media import read_arrays


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
    arrays = read_arrays(path, "the masks", ("masks", "mask", "names", "start"))
    key = "mask" if "mask" in arrays and "masks" not in arrays else "masks"
    if key not in arrays:
        problem = f'the masks {path} cannot be read (no array "masks")'
        raise InputError(problem, 'an npz file with an array "masks"', "save it with numpy.savez")
    values, names, start = arrays[key], arrays.get("names"), arrays.get("start")
    if values.dtype.kind not in "buif":
        raise InputError(f"the masks {path} of type {values.dtype}", "numbers in 0..1", "save them as float32")
    with np.errstate(over="ignore"):  # infinity is refused with the other values outside 0..1
        masks = torch.from_numpy(np.array(values, dtype=np.float32, order="C", copy=None))
    return MaskArchive(masks, key, None if names is None else _names(names, path), _start(start, path))


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
