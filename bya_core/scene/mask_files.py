"""Masks that a scene file names: one file for all characters, or one for each."""

from __future__ import annotations

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.media import existing_file
from bya_core.masks import MaskControl
from bya_core.scene.mask_control import given_masks
from bya_core.scene.schema import CharacterEntry, SceneFile


def read_masks(given: SceneFile, folder: Path, grid: TokenGrid) -> MaskControl | None:
    """Everything under `router.masks` and the `mask` of each character, which goes before; None where there is none.

    Raises:
        InputError: a file that cannot be read or does not fit; a character without a mask in mode "manual".
    """
    cast, router = given.characters, given.router
    if router.masks is None and all(character.mask is None for character in cast):
        return None
    count = len(cast)
    masks, strength = torch.zeros(count, *grid.shape), torch.zeros(count)
    start, end = torch.zeros(count), torch.ones(count)
    if router.masks is not None:
        path = existing_file(folder / router.masks, "the masks")
        masks = given_masks(_arrays(path)[0], grid, count, f"the masks {path}")
        strength[:] = router.strength
    for index, character in enumerate(cast):
        if character.mask is not None:
            masks[index] = _mask_of(character, index, folder / character.mask, grid)
            strength[index] = character.mask_strength
            start[index], end[index] = character.mask_start_percent, character.mask_end_percent
            if character.mask_start_percent >= character.mask_end_percent:
                start_percent, end_percent = character.mask_start_percent, character.mask_end_percent
                came = f"the mask of {character.name} acts from {start_percent:g} to {end_percent:g}"
                raise InputError(came, "mask_start_percent below mask_end_percent", "correct them")
        elif router.masks is None and router.mode == "manual":
            came = f'router mode "manual", but {character.name} has no mask'
            raise InputError(came, "a mask for each character", f"give {character.name} one, or choose another mode")
    return MaskControl(masks, strength, start, end)


def _mask_of(character: CharacterEntry, index: int, path: Path, grid: TokenGrid) -> Tensor:
    """[T, h, w] of one character."""
    what = f"the mask of {character.name}"
    path = existing_file(path, what)
    if path.suffix.lower() == ".npz":
        array, names = _arrays(path)
        if array.ndim == 4 and array.shape[0] > 1:
            array = array[_row(array, names, character, index, path)][None]
        elif array.ndim == 2 or array.ndim == 3:
            array = array[None]
    else:
        array = _picture(path, what)[None]
    mask = given_masks(array, grid, 1, f"{what} ({path})")[0]
    if not bool((mask > 0).any()):
        raise InputError(f"{what} ({path}) is empty", "white where the character is", "paint it, or leave it out")
    return mask


def _row(array: Tensor, names: list[str] | None, character: CharacterEntry, index: int, path: Path) -> int:
    """Which mask of a file for several characters is meant: that of the name, or of the place."""
    if names is None and index < array.shape[0]:
        return index
    if names is not None and character.name in names:
        return names.index(character.name)
    known = f"of {', '.join(names)}" if names else f"{array.shape[0]} of them"
    came = f"the masks {path} ({known}) as the mask of {character.name}"
    raise InputError(came, f"one of {character.name}", "choose another file")


def _arrays(path: Path) -> tuple[Tensor, list[str] | None]:
    """ "masks" (or "mask") of an npz file, and "names" where it has them."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            key = "masks" if "masks" in archive or "mask" not in archive else "mask"
            masks = torch.from_numpy(np.asarray(archive[key], dtype=np.float32))
            return masks, [str(name) for name in archive["names"]] if "names" in archive else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        came = f"the masks {path} cannot be read"
        raise InputError(came, 'an npz file with an array "masks"', "write it with numpy.savez") from error


def _picture(path: Path, what: str) -> Tensor:
    """[H, W] in 0..1: white = 1, black and transparent = 0."""
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened) or opened
            if picture.mode[0] in "IF":  # 16 or 32 bits a pixel
                wide = np.array(picture, dtype=np.float32)
                return torch.from_numpy(wide / max(float(wide.max()), 1.0))
            rgba = picture.convert("RGBA")
            black = Image.new("RGBA", rgba.size, "black")
            grey = np.array(Image.alpha_composite(black, rgba).convert("L"), dtype=np.float32)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        came = f"{what} ({path}) cannot be read"
        raise InputError(came, "a picture such as png, or an npz file", "save it again as one of them") from error
    return torch.from_numpy(grey / 255)
