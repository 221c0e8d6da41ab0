"""One safetensors file that holds a whole transformer and says what it is: writing, reading.

Written tensor by tensor, so that a model need not fit into memory to be converted. Weights in 8 bits (float8 e4m3)
have a scale beside them, `<name>_scale`: a power of two, so that they are exact in bfloat16, float16 and float32 when
they are read.

What the file says of itself stands in its metadata: `bya_format` (1), `config` (arguments of the transformer),
`flavour`, `precision`, `encoders` (the model whose encoders belong to it), `settings` (native size, sampling, most
characters) and `sources` (files it was made from).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bya_core.errors import InputError
from bya_core.weights.loader import BROKEN, SCALE, Shapes

FORMAT = "1"
EIGHT_BITS = torch.float8_e4m3fn
LARGEST = torch.finfo(EIGHT_BITS).max
KEPT_WIDE = ("patch_embed", "norm", "pos_emb", "embedding", "latents", "proj_out", "tokens")
"""Parts of names of matrices that are not kept in 8 bits: few weights, or every token passes through them."""

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    EIGHT_BITS: "F8_E4M3",
}


def in_8_bits(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is kept in 8 bits where that is asked for: matrices and convolutions, with few exceptions."""
    return len(shape) > 1 and name.endswith(".weight") and not any(part in name for part in KEPT_WIDE)


def to_8_bits(weight: Tensor) -> tuple[Tensor, float]:
    """A weight in 8 bits, and the scale to multiply it with: the smallest power of two with which all values fit."""
    most = float(weight.abs().max()) if weight.numel() else 0.0
    scale = 2.0 ** math.ceil(math.log2(most / LARGEST)) if most > 0 else 1.0
    return (weight.float() / scale).to(EIGHT_BITS), scale


def write_single(
    path: Path,
    weights: Iterable[tuple[str, Tensor]],
    shapes: Shapes,
    dtypes: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
) -> int:
    """Write a file; returns its bytes.

    Args:
        path: of the file.
        weights: all of them, in any order.
        shapes, dtypes: of each, beforehand; those in 8 bits are given wide and get their scale here.
        metadata: what the file says of itself.
    """
    entries = {name: (dtypes[name], shape) for name, shape in shapes.items()}
    entries |= {name + SCALE: (torch.float32, ()) for name, dtype in dtypes.items() if dtype == EIGHT_BITS}
    ordered = sorted(entries, key=lambda name: (-entries[name][0].itemsize, name))  # wide ones first: all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name in ordered:
        dtype, shape = entries[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(begin + end)
        for name, weight in weights:
            if entries[name][0] == EIGHT_BITS:
                weight, scale = to_8_bits(weight)
                _put(out, begin + header[name + SCALE]["data_offsets"][0], torch.tensor(scale))
            _put(out, begin + header[name]["data_offsets"][0], weight.to(entries[name][0]))
    return begin + end


def _put(out: Any, at: int, tensor: Tensor) -> None:
    out.seek(at)
    out.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def read_about(path: Path) -> dict[str, str]:
    """What a file says of itself. Raises InputError where it is not one that `convert` wrote."""
    try:
        with safe_open(path, framework="pt") as opened:
            about = opened.metadata() or {}
    except BROKEN as error:
        raise InputError(f"{path} cannot be read ({error})", "a whole safetensors file", "convert it again") from error
    if about.get("bya_format") != FORMAT:
        came = f"{path} is no converted model" + (f" of format {FORMAT}" if "bya_format" in about else "")
        do = "make one: python -m bya_core convert MODEL -o FILE"
        raise InputError(came, "a file that `convert` wrote; others do not say what they hold", do)
    return about
