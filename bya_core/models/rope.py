"""Rotary position embedding over a 3D token grid (time, rows, columns)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.grid import TokenGrid


def _crop_span(grid: TokenGrid, base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns (start, stop) of `grid` fitted into `base` (rows, columns) and centered."""
    base_h, base_w = base
    if grid.height * base_w > grid.width * base_h:
        rows, columns = base_h, int(round(base_h / grid.height * grid.width))
    else:
        rows, columns = int(round(base_w / grid.width * grid.height)), base_w
    top, left = int(round((base_h - rows) / 2)), int(round((base_w - columns) / 2))
    return (top, top + rows), (left, left + columns)


def _axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels for time, rows and columns: 1/4, 3/8, 3/8, each even."""
    time = head_dim // 4 // 2 * 2
    rows = (head_dim - time) // 4 * 2
    return time, rows, head_dim - time - rows


@functools.lru_cache(maxsize=16)
def _tables(
    shape: tuple[int, int, int],
    spans: tuple[tuple[float, float], tuple[float, float]],
    head_dim: int,
    device: str,
) -> tuple[Tensor, Tensor]:
    frames, height, width = shape
    (top, bottom), (left, right) = spans
    cpu = torch.device("cpu")  # explicit: transformers may leave another default device set
    with torch.inference_mode(False), torch.no_grad():
        positions = (
            torch.arange(frames, dtype=torch.float32, device=cpu),
            # As in CogVideoX, the last position is a fraction of `stop`, not of `stop - start`.
            torch.linspace(top, bottom * (height - 1) / height, height, device=cpu),
            torch.linspace(left, right * (width - 1) / width, width, device=cpu),
        )
        angles = []
        for axis, (position, dim) in enumerate(zip(positions, _axis_dims(head_dim), strict=True)):
            frequency = 1e4 ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=cpu) / max(dim, 1))
            angle = torch.outer(position, frequency).repeat_interleave(2, dim=1)
            view = [1, 1, 1, dim]
            view[axis] = len(position)
            angles.append(angle.view(view).expand(frames, height, width, dim))
        flat = torch.cat(angles, dim=-1).reshape(-1, head_dim)
        return flat.cos().to(device), flat.sin().to(device)


def rotary_embedding(
    grid: TokenGrid,
    head_dim: int,
    base_grid: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables of a token grid; theta 1e4, adjacent channels form pairs.

    Args:
        grid: token grid (T, h, w).
        head_dim: channels of one attention head, even; a quarter for time, the rest for rows and columns.
        base_grid: rows and columns used in training. Other grids are fitted into it with their aspect ratio, so that
            positions stay in the trained range (CogVideoX's resize-crop rule). None = integer positions.

    Returns:
        (cos, sin), each [S, head_dim] float32. Cached: do not modify them.

    Raises:
        InputError: odd head_dim.
    """
    if head_dim < 4 or head_dim % 2:
        raise InputError(f"rotary head_dim of {head_dim}", "an even number of at least 4", "choose another head size")
    spans = ((0, grid.height), (0, grid.width)) if base_grid is None else _crop_span(grid, base_grid)
    return _tables(grid.shape, spans, head_dim, str(device))


def apply_rotary(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate adjacent channel pairs: x [..., S, heads, d], cos and sin [S, d] -> same shape as x.

    Complex multiplication moves less than half of the bytes. Compiled code and devices without complex numbers use the
    real form.
    """
    cos, sin = (part[:, None, 0::2] for part in table)
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.device.type in ("cpu", "cuda", "meta") and not torch.compiler.is_compiling():
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    else:
        even, odd = pairs.unbind(-1)
        rotated = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return rotated.flatten(-2).to(x.dtype)
