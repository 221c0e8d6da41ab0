"""Single-file checkpoints: one safetensors file that holds a complete transformer and describes itself.

Files are written tensor by tensor, so a model does not have to fit into memory to be converted. Float8 (e4m3) weights
have a scale, `<name>_scale`: a power of two, so that the product is exact in bfloat16, float16 and float32.

Metadata: `bya_format`, `config` (arguments of the transformer), `flavour`, `precision`, `encoders` (the model whose
encoders are used), `domain`, `canvas_layout`, `settings` (native size, sampling, maximum characters) and `sources`
(files it was made from).
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
from bya_core.weights.weight_files import DTYPES, READ_ERRORS, SCALE_SUFFIX, Shapes

FORMAT = "2"
FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
NOT_FP8 = ("patch_embed", "norm", "pos_emb", "embedding", "latents", "proj_out", "tokens")
"""Substrings of the names of matrices that are not stored in float8: small, or on the path of every token."""

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def is_stored_in_fp8(name: str, shape: tuple[int, ...]) -> bool:
    """Whether `--precision fp8` stores a weight in float8: matrices and convolutions, with few exceptions."""
    return len(shape) > 1 and name.endswith(".weight") and not any(part in name for part in NOT_FP8)


def quantize_fp8(weight: Tensor) -> tuple[Tensor, float]:
    """Float8 weight and its scale: the smallest power of two for which all values are in range."""
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    scale = 2.0 ** math.ceil(math.log2(largest / FP8_MAX)) if largest > 0 else 1.0
    return (weight.float() / scale).to(FP8), scale


def write_single_file(
    path: Path,
    weights: Iterable[tuple[str, Tensor]],
    shapes: Shapes,
    dtypes: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
) -> int:
    """Write a safetensors file while iterating over its weights.

    Args:
        path: Output path.
        weights: All weights, in any order.
        shapes: Shape of each weight.
        dtypes: Stored dtype of each weight; float8 weights are passed unquantized.
        metadata: Metadata of the file.

    Returns:
        Size of the file in bytes.
    """
    entries = {name: (dtypes[name], shape) for name, shape in shapes.items()}
    entries |= {name + SCALE_SUFFIX: (torch.float32, ()) for name, dtype in dtypes.items() if dtype == FP8}
    ordered = sorted(entries, key=lambda name: (-entries[name][0].itemsize, name))  # widest first keeps alignment
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name in ordered:
        dtype, shape = entries[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(begin + end)
        for name, weight in weights:
            if entries[name][0] == FP8:
                weight, scale = quantize_fp8(weight)
                _write_at(out, begin + header[name + SCALE_SUFFIX]["data_offsets"][0], torch.tensor(scale))
            _write_at(out, begin + header[name]["data_offsets"][0], weight.to(entries[name][0]))
    return begin + end


def _write_at(out: Any, offset: int, tensor: Tensor) -> None:
    out.seek(offset)
    out.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a single-file checkpoint. Raises `InputError` for other files."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except READ_ERRORS as error:
        expected = "a complete safetensors file"
        raise InputError(f"{path} cannot be read ({error})", expected, "convert it again") from error
    if metadata.get("bya_format") != FORMAT:
        problem = f"{path} is not a converted model" + (f" of format {FORMAT}" if "bya_format" in metadata else "")
        expected = "a file written by `bya convert`; others do not describe their contents"
        raise InputError(problem, expected, "make one with: bya convert MODEL -o FILE")
    return metadata
