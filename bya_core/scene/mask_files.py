"""Masks of a scene file: one file for all characters, or one per character."""

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
from bya_core.io.files import existing_file
from bya_core.masks import MaskControl
from bya_core.scene.schema import CharacterEntry, SceneFile


def read_masks(file: SceneFile, folder: Path, grid: TokenGrid) -> MaskControl | None:
    """Read `router.masks` and the `mask` of each character, which takes precedence; None without masks.

    Raises:
        InputError: A file that is invalid or does not match, or a character without a mask in mode "manual".
    """
    cast, router = file.characters, file.router
    if router.masks is None and all(character.mask is None for character in cast):
        return None
    count = len(cast)
    masks, strength = torch.zeros(count, *grid.shape), torch.zeros(count)
    start, end = torch.zeros(count), torch.ones(count)
    if router.masks is not None:
        path = existing_file(folder / router.masks, "the masks")
        masks = resize_masks(_arrays(path)[0], grid, count, f"the masks {path}")
        strength[:] = router.strength
    for index, character in enumerate(cast):
        if character.mask is not None:
            masks[index] = _mask_of(character, index, folder / character.mask, grid)
            strength[index] = character.mask_strength
            start[index], end[index] = character.mask_start_percent, character.mask_end_percent
        elif router.masks is None and router.mode == "manual":
            problem = f'router mode "manual", but {character.name} has no mask'
            raise InputError(problem, "a mask for each character", "add one, or choose another mode")
    return MaskControl(masks, strength, start, end)


def _mask_of(character: CharacterEntry, index: int, path: Path, grid: TokenGrid) -> Tensor:
    """Mask of one character: [T, h, w]."""
    what = f"the mask of {character.name}"
    path = existing_file(path, what)
    if path.suffix.lower() == ".npz":
        array, names = _arrays(path)
        if array.ndim == 4 and array.shape[0] > 1:
            array = array[_row(array, names, character, index, path)][None]
        elif array.ndim == 2 or array.ndim == 3:
            array = array[None]
    else:
        array = _read_image(path, what)[None]
    mask = resize_masks(array, grid, 1, f"{what} ({path})")[0]
    if not bool((mask > 0).any()):
        raise InputError(f"{what} ({path}) is empty", "white pixels on the character", "correct it, or remove it")
    return mask


def _row(array: Tensor, names: list[str] | None, character: CharacterEntry, index: int, path: Path) -> int:
    """Index of a character in a file of several masks, by name or position."""
    if names is None and index < array.shape[0]:
        return index
    if names is not None and character.name in names:
        return names.index(character.name)
    known = f"of {', '.join(names)}" if names else f"{array.shape[0]} of them"
    problem = f"the masks {path} ({known}) as the mask of {character.name}"
    raise InputError(problem, f"a mask of {character.name}", "choose another file")


def _arrays(path: Path) -> tuple[Tensor, list[str] | None]:
    """The array "masks" or "mask" of an npz file, and its "names" if there are any."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            key = "masks" if "masks" in archive or "mask" not in archive else "mask"
            masks = torch.from_numpy(np.asarray(archive[key], dtype=np.float32))
            return masks, [str(name) for name in archive["names"]] if "names" in archive else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        problem = f"the masks {path} cannot be read"
        raise InputError(problem, 'an npz file with an array "masks"', "save it with numpy.savez") from error


def _read_image(path: Path, what: str) -> Tensor:
    """[H, W] in 0..1: white = 1, black and transparent = 0."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened) or opened
            if image.mode[0] in "IF":  # 16 or 32 bits a pixel
                wide = np.array(image, dtype=np.float32)
                return torch.from_numpy(wide / max(float(wide.max()), 1.0))
            rgba = image.convert("RGBA")
            black = Image.new("RGBA", rgba.size, "black")
            gray = np.array(Image.alpha_composite(black, rgba).convert("L"), dtype=np.float32)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"{what} ({path}) cannot be read"
        raise InputError(problem, "an image such as png, or an npz file", "convert it") from error
    return torch.from_numpy(gray / 255)


def resize_masks(masks: Tensor, grid: TokenGrid, count: int, what: str = "the masks") -> Tensor:
    """Resize masks to the token grid by averaging over the area of each token.

    Args:
        masks: One mask per character, values in 0..1, any height and width: [N, H, W] for all frames, [N, T, H, W] per
            latent frame, or [N, F, H, W] per video frame.
        grid: Token grid of the video.
        count: Number of characters N.
        what: Name of the masks in messages.

    Returns:
        [N, T, h, w] float32.

    Raises:
        InputError: A wrong number of masks or frames, or values outside 0..1.
    """
    problem = f"{what} of shape {' x '.join(map(str, masks.shape))}"
    if masks.ndim not in (3, 4) or masks.numel() == 0:
        rule = "characters x height x width, or characters x frames x height x width"
        raise InputError(problem, rule, "use one mask per character")
    if masks.shape[0] != count:
        characters = f"{count} character{'s' if count > 1 else ''}"
        raise InputError(problem, f"{count} along the first axis, for {characters}", "add one for each")
    masks = (masks[:, None] if masks.ndim == 3 else masks).to(torch.float32)
    if not bool(torch.isfinite(masks).all()) or masks.min() < 0 or masks.max() > 1:
        raise InputError(f"{what} with values outside 0..1", "values in 0..1", "rescale them")
    frames = masks.shape[1]
    if frames not in (1, grid.frames, grid.video_frames):
        rule = f"1 frame, {grid.frames} (latent) or {grid.video_frames} (video)"
        raise InputError(f"{what} with {frames} frames", rule, "use one of these")
    if frames == grid.video_frames:
        return grid.pixels_to_tokens(masks)
    still = TokenGrid(1, grid.height, grid.width)  # each latent frame by itself
    small = torch.cat([still.pixels_to_tokens(frame[:, None]) for frame in masks.unbind(1)], dim=1)
    return small.expand(count, *grid.shape).clone()
