"""Painted masks: strokes of a person on the masks of a router.

The strokes are one PNG with a tile per character and latent frame, all frames of the first character first, `columns`
tiles in each row. White pixels belong to the character, black ones do not, and transparent ones keep the mask of the
router. A tile may have any number of pixels per token.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.files import usable_path
from bya_core.io.images import MAX_PIXELS, load_image
from bya_core.masks import MaskControl
from bya_core.validation import Field, from_mapping, parse_json, validated

WHAT = "painted_masks"
INLINE = "data:image/png;base64,"
MAX_INLINE = 8_000_000  # characters
CLEAR = "clear the painting with its button"
RESTORE = f"{CLEAR}, or restore the scene that it was made for"
Positive = Annotated[int, Field(ge=1, le=100_000)]


@validated
class PaintedMasks:
    """Where the strokes are stored, and what they were painted on.

    Args:
        file: The PNG as a data URL, or a reference to it, for the program that stores it.
        grid: T, h, w of the masks.
        characters: Names of the characters, in the order of the tiles.
        columns: Tiles in each row of the file.
        start: First latent frame in the video, of masks of one window.
    """

    file: Annotated[str, Field(min_length=1, max_length=MAX_INLINE)]
    grid: tuple[Positive, Positive, Positive]
    characters: Annotated[list[str], Field(min_length=1, max_length=1000)]
    columns: Positive
    start: Annotated[int, Field(ge=0)] = 0

    @property
    def label(self) -> str:
        """The PNG in messages."""
        return f"the image in {WHAT}" if self.file.startswith(INLINE) else f"the file {self.file[:1000]} of {WHAT}"

    def image(self) -> bytes | None:
        """Content of the PNG; None if `file` is a reference. Raises InputError for damaged content."""
        if not self.file.startswith(INLINE):
            return None
        try:
            return base64.b64decode(self.file.removeprefix(INLINE), validate=True)
        except ValueError as error:
            raise InputError(f"{self.label} is not base64", "a data URL of a PNG", CLEAR) from error


@dataclass(frozen=True)
class Strokes:
    """Strokes on the token grid.

    Args:
        alpha: [N, T, h, w] in 0..1, painted fraction of each token.
        values: [N, T, h, w] in 0..alpha, fraction that is painted as belonging to the character.
    """

    alpha: Tensor
    values: Tensor

    def control(self, masks: Tensor, strength: float, start_percent: float, end_percent: float) -> MaskControl:
        """The painted masks as an override; frames without strokes have strength 0.

        Args:
            masks: [N, T, h, w], the masks that were painted on.
            strength: Strength of the override, 0..1.
            start_percent, end_percent: Fraction of the steps in which it applies.
        """
        painted = (masks.float().cpu() * (1 - self.alpha) + self.values).clamp(0, 1)
        touched = (self.alpha > 0).flatten(2).any(dim=-1)  # [N, T]
        return MaskControl(painted, touched * strength, torch.tensor(start_percent), torch.tensor(end_percent))


def parse_painted_masks(text: str) -> PaintedMasks | None:
    """Read the JSON of painted masks; None if it is empty.

    Raises:
        InputError: Text that is not such JSON.
    """
    return from_mapping(PaintedMasks, parse_json(text, WHAT), WHAT) if text.strip() else None


def read_strokes(painted: PaintedMasks, path: Path, names: Sequence[str], grid: TokenGrid, start: int = 0) -> Strokes:
    """Read the strokes for the characters of a scene, which are matched by name.

    Args:
        painted: Description of the file.
        path: The file.
        names: Of the N characters of the scene.
        grid: Token grid of the masks.
        start: First latent frame of the masks in the video.

    Raises:
        InputError: The file is missing, damaged or of another size, or belongs to another grid, window or cast.
    """
    if painted.grid != grid.shape:
        problem = f"{WHAT} on a grid of {_shape(painted.grid)} tokens"
        raise InputError(problem, f"{_shape(grid.shape)} (latent frames x rows x columns), as in the scene", RESTORE)
    if painted.start != start:
        problem = f"{WHAT} on the window from latent frame {painted.start + 1}"
        raise InputError(problem, f"the one from {start + 1}, as routing", "clear them, or select that window again")
    unknown = [name for name in painted.characters if name not in names]
    if unknown or len(set(painted.characters)) < len(painted.characters):
        problem = f"{WHAT} of {', '.join(painted.characters)}"
        raise InputError(problem, f"masks of {', '.join(names)}", RESTORE)
    alpha, values = _read_tiles(painted, path)
    shape = (len(names), *grid.shape)
    strokes = Strokes(torch.zeros(shape), torch.zeros(shape))
    for row, name in enumerate(painted.characters):
        strokes.alpha[names.index(name)], strokes.values[names.index(name)] = alpha[row], values[row]
    return strokes


def check_file(painted: PaintedMasks, path: Path) -> None:
    """Raise InputError if the file is missing, or has a name that no file can have."""
    if not usable_path(path, f"the file of {WHAT}").is_file():
        problem = f"{painted.label} is missing"
        raise InputError(problem, "an existing file", f"restore the file, or {CLEAR}")


def _read_tiles(painted: PaintedMasks, path: Path) -> tuple[Tensor, Tensor]:
    """Alpha, and value times alpha, of the K painted characters: [K, T, h, w] each."""
    check_file(painted, path)
    black, white = (
        np.asarray(load_image(path, WHAT, background, max_side=MAX_PIXELS).convert("L"), dtype=np.float32) / 255
        for background in ("black", "white")
    )
    frames, height, width = painted.grid
    tiles = len(painted.characters) * frames
    across, down = painted.columns * width, -(-tiles // painted.columns) * height
    if black.shape[0] % down or black.shape[1] % across or black.shape[0] // down != black.shape[1] // across:
        problem = f"{painted.label} with {black.shape[1]} x {black.shape[0]} pixels"
        raise InputError(problem, f"{across} x {down} or an integer multiple", CLEAR)
    layers = torch.from_numpy(np.stack([1 - (white - black), black]))
    tokens = F.adaptive_avg_pool2d(layers, (down, across))
    sheet = rearrange(tokens, "k (r h) (c w) -> k (r c) h w", h=height, w=width)[:, :tiles]
    alpha, values = rearrange(sheet, "k (n t) h w -> k n t h w", t=frames)
    return alpha.clamp(0, 1), torch.minimum(values, alpha).clamp(min=0)


def _shape(grid: Sequence[int]) -> str:
    return " x ".join(map(str, grid))
