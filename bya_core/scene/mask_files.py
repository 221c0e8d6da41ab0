"""Masks of a scene file: one file for all characters, or one per character.

Files that name their characters are matched by name, others by order, with a notice. A shape that can be read in two
ways is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.files import existing_file
from bya_core.io.media import read_gray
from bya_core.masks import MaskControl
from bya_core.scene.mask_archive import MaskArchive, open_archive
from bya_core.scene.schema import CharacterEntry, SceneFile


def read_masks(file: SceneFile, folder: Path, grid: TokenGrid) -> tuple[MaskControl | None, tuple[str, ...]]:
    """Read `router.masks` and the `mask` of each character, which takes precedence.

    Returns:
        The masks, None if there are none, and notices, one sentence each.

    Raises:
        InputError: A file that is invalid or does not match, or a character without a mask in mode "manual".
    """
    cast, router, notices = file.characters, file.router, list[str]()
    if router.masks is None and all(character.mask is None for character in cast):
        return None, ()
    count, names = len(cast), [character.name for character in cast]
    masks, strength = torch.zeros(count, *grid.shape), torch.zeros(count, grid.frames)
    start, end = torch.zeros(count), torch.ones(count)
    if router.masks is not None:
        path = existing_file(folder / router.masks, "the masks")
        wanted = [character.name for character in cast if character.mask is None]
        what, archive = f"the masks {path}", open_archive(path)
        array, rows, notices = select_characters(archive, names, wanted, grid, what)
        part = grid if archive.start is None else _part(grid, archive.start, array.shape[1], what)
        at = slice(archive.start or 0, (archive.start or 0) + part.frames)
        masks[rows, at] = resize_masks(array, part, len(rows), what)
        strength[rows, at] = router.strength
        notices += empty_notices(masks[rows], [names[row] for row in rows], what)
    for index, character in enumerate(cast):
        if character.mask is not None:
            masks[index], new = _mask_of(character, index, names, folder / character.mask, grid)
            notices += new
            strength[index] = character.mask_strength
            start[index], end[index] = character.mask_start_percent, character.mask_end_percent
        elif router.masks is None and router.mode == "manual":
            problem = f'router mode "manual", but {character.name} has no mask'
            raise InputError(problem, "a mask for each character", "add one, or choose another mode")
    constant = bool((strength == strength[:, :1]).all())
    return MaskControl(masks, strength[:, 0] if constant else strength, start, end), tuple(notices)


def select_characters(
    archive: MaskArchive, names: Sequence[str], wanted: Sequence[str], grid: TokenGrid, what: str
) -> tuple[Tensor, list[int], list[str]]:
    """Masks of a file in the order of the characters of a scene.

    Args:
        archive: The file.
        names: Names of all N characters of the scene.
        wanted: Those that need a mask of this file.
        grid: Token grid of the video.
        what: Name of the masks in messages.

    Returns:
        [K, F, H, W] with F = 1 if they are static, the index of the character of each of the K masks, and notices.

    Raises:
        InputError: A wrong number of masks, unknown names, or a shape that can be read in two ways.
    """
    array, count = archive.values, len(names)
    if archive.names is not None:
        array = _rows(archive, grid, what)
        found = _matches(archive.names, names)
        if any(name not in found for name in wanted):
            raise _wrong_names(what, archive.names, wanted, names)
        unused = [name for row, name in enumerate(archive.names) if row not in found.values()]
        notices = (
            [f"{_start(what)} of {_listed(unused)} are not used: the scene has no such character."] if unused else []
        )
        kept = [name for name in names if name in found]
        return array[[found[name] for name in kept]], [names.index(name) for name in kept], notices
    lengths = (grid.frames, grid.video_frames)
    if array.ndim == 3 and array.shape[0] == count and count > 1 and archive.key == "mask" and count in lengths:
        raise _ambiguous(what, array, count)
    if array.ndim == 3 and count == 1 or array.ndim == 2:
        array = array[None]
    _check_axes(array, count, grid, what)
    array = array[:, None] if array.ndim == 3 else array
    notices = [_order_notice(what, names)] if count > 1 else []
    return array, list(range(count)), notices


def _mask_of(
    character: CharacterEntry, index: int, names: Sequence[str], path: Path, grid: TokenGrid
) -> tuple[Tensor, list[str]]:
    """Mask of one character [T, h, w], and notices."""
    what, notices = f"the mask of {character.name}", list[str]()
    path = existing_file(path, what)
    what = f"{what} ({path})"
    if path.suffix.lower() == ".npz":
        array, notices = _one_character(open_archive(path), index, names, grid, what)
    else:
        array = read_gray(path, f"the mask of {character.name}")[None, None]
    mask = resize_masks(array, grid, 1, what)[0]
    if not bool((mask > 0).any()):
        raise InputError(f"{what} is empty", "white pixels on the character", "correct it, or remove it")
    return mask, notices


def _one_character(
    archive: MaskArchive, index: int, names: Sequence[str], grid: TokenGrid, what: str
) -> tuple[Tensor, list[str]]:
    """Masks [1, F, H, W] of character `index` from the file given for it, and notices."""
    array, count, name = archive.values, len(names), names[index]
    if archive.start is not None:
        raise InputError(f"{what} is that of one window", "masks of all frames", "give the file as router.masks")
    if archive.names is not None:
        found = _matches(archive.names, names)
        if name not in found:
            raise _wrong_names(what, archive.names, [name], names)
        return _rows(archive, grid, what)[[found[name]]], []
    length = array.shape[0] if array.ndim else 0
    if array.ndim == 2:
        return array[None, None], []
    frames = length in (1, grid.frames, grid.video_frames)
    if array.ndim == 3 and (archive.key == "mask" or length != count or count == 1):
        return array[None], []
    if array.ndim == 3 and frames:
        raise _ambiguous(what, array, count)
    if array.ndim == 3:
        return array[[index], None], [_order_notice(what, names)]
    if array.ndim == 4 and length == 1:
        return array, []
    _check_axes(array, count, grid, what)
    return array[[index]], [_order_notice(what, names)]


def _rows(archive: MaskArchive, grid: TokenGrid, what: str) -> Tensor:
    """[K, F, H, W] of a file with K names; F = 1 if the masks are static."""
    array, names = archive.values, archive.names
    assert names is not None
    if array.ndim == 2 or (array.ndim == 3 and len(names) == 1 and array.shape[0] != 1):
        array = array[None]
    if array.ndim in (3, 4) and array.shape[0] != len(names):
        problem = f"{what} of shape {_shape(array)} with {len(names)} names"
        raise InputError(problem, f"{len(names)} along the first axis", "store one mask per name")
    _check_axes(array, len(names), grid, what)
    return array[:, None] if array.ndim == 3 else array


def _check_axes(array: Tensor, count: int, grid: TokenGrid, what: str) -> None:
    """Raise InputError for an array that is not [count, H, W] or [count, F, H, W]; a swap of axes is named."""
    problem = f"{what} of shape {_shape(array)}"
    if array.ndim == 4 and array.shape[0] != count == array.shape[1]:
        rule = "characters x frames x height x width"
        raise InputError(problem, rule, "swap the first two axes (masks.swapaxes(0, 1))")
    if array.ndim in (3, 4) and array.shape[0] != count == array.shape[-1]:
        raise InputError(problem, "characters along the first axis", "move the last axis to the front")
    _check_count(array, count, problem)


def _matches(stored: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Index in `stored` of each name that is found there; case and space do not matter where that is unambiguous."""
    exact = {name: stored.index(name) for name in names if name in stored}
    plain = [_plain(name) for name in stored]
    for name in names:
        key = _plain(name)
        alike = [index for index, other in enumerate(plain) if other == key and index not in exact.values()]
        if name not in exact and len(alike) == 1 and sum(_plain(other) == key for other in names) == 1:
            exact[name] = alike[0]
    return exact


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


def _wrong_names(what: str, stored: Sequence[str], wanted: Sequence[str], names: Sequence[str]) -> InputError:
    expected = f"a mask of {_listed(wanted)}" + (
        "" if len(wanted) == len(names) else f" (characters: {_listed(names)})"
    )
    return InputError(f"{what} is of {_listed(stored)}", expected, "correct the names in the file, or choose another")


def _ambiguous(what: str, array: Tensor, count: int) -> InputError:
    problem = f"{what} of shape {_shape(array)}, which may be {count} frames or {count} characters"
    hint = 'save frames of this character as "mask" of shape 1 x frames x height x width, and masks of all characters '
    return InputError(problem, "one meaning", hint + 'together with an array "names"')


def _order_notice(what: str, names: Sequence[str]) -> str:
    return f"{_start(what)} has no names: matched in the order {_listed(names)}."


def empty_notices(masks: Tensor, names: Sequence[str], what: str = "the masks") -> list[str]:
    """One notice per empty mask of several [K, T, h, w].

    Raises:
        InputError: All of them are empty.
    """
    empty = [name for name, mask in zip(names, masks, strict=True) if not bool((mask > 0).any())]
    if len(empty) == len(names):
        hint = "paint it (the MASK of a picture without transparency is black), or remove it"
        raise InputError(f"{what} of {_listed(names)} is empty", "white pixels on the character", hint)
    return [f"{_start(what)} of {name} is empty: its face and speech have no effect there." for name in empty]


def _part(grid: TokenGrid, start: int, frames: int, what: str) -> TokenGrid:
    """Grid of the latent frames of one window."""
    if not 0 <= start <= start + frames <= grid.frames or frames < 1:
        problem = f"{what} of latent frames {start} to {start + frames}"
        raise InputError(problem, f"a part of the {grid.frames} latent frames of the video", "use those of this scene")
    return TokenGrid(frames, grid.height, grid.width, grid.patch, grid.space_factor, grid.time_factor)


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
    _check_count(masks, count, f"{what} of shape {_shape(masks)}")
    masks = (masks[:, None] if masks.ndim == 3 else masks).to(torch.float32)
    if not bool(torch.isfinite(masks).all()):
        raise InputError(f"{what} with NaN or infinite values", "values in 0..1", "correct them")
    if masks.min() < 0 or masks.max() > 1:
        hint = "divide them by 255" if masks.min() >= 0 and masks.max() == 255 else "rescale them"
        raise InputError(f"{what} with values outside 0..1", "values in 0..1", hint)
    frames = masks.shape[1]
    if frames not in (1, grid.frames, grid.video_frames):
        rule = f"1 frame, {grid.frames} (latent) or {grid.video_frames} (video)"
        raise InputError(f"{what} with {frames} frames", rule, "use one of these")
    if frames == grid.video_frames:
        return grid.pixels_to_tokens(masks)
    still = TokenGrid(1, grid.height, grid.width)  # each latent frame by itself
    small = torch.cat([still.pixels_to_tokens(frame[:, None]) for frame in masks.unbind(1)], dim=1)
    return small.expand(count, *grid.shape).clone()


def _check_count(masks: Tensor, count: int, problem: str) -> None:
    if masks.ndim not in (3, 4) or masks.numel() == 0:
        rule = "characters x height x width, or characters x frames x height x width"
        raise InputError(problem, rule, "use one mask per character")
    if masks.shape[0] != count:
        characters = f"{count} character{'s' if count > 1 else ''}"
        raise InputError(problem, f"{count} along the first axis, for {characters}", "add one for each")


def _shape(array: Tensor) -> str:
    return " x ".join(map(str, array.shape)) or "a single number"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f'"{name[:40]}"' for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _start(what: str) -> str:
    return what[0].upper() + what[1:]
