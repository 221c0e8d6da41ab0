"""Reproducible weights and inputs of the parity fixtures: one random stream per name.

Every entry has a PCG64 stream of its own, seeded by the CRC-32 of salt + name. Gains of normalisation layers
lie around 1, biases around 0, matrices are scaled by their fan-in, other parameters are small.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray


def standard_normal(name: str, shape: tuple[int, ...], salt: str) -> NDArray[np.float64]:
    """The stream of `name`, in C order."""
    bits = np.random.PCG64(zlib.crc32(f"{salt}{name}".encode()))
    return np.random.Generator(bits).standard_normal(shape)


def weight(key: str, shape: tuple[int, ...], salt: str) -> NDArray[np.float32]:
    """The weight that belongs to a state-dict key."""
    z = standard_normal(key, shape, salt)
    is_weight = key.endswith(".weight")
    if is_weight and len(shape) == 1:
        z = 1 + 0.1 * z
    elif is_weight:
        z = z / np.sqrt(np.prod(shape[1:]))
    else:
        z = 0.1 * z
    return z.astype(np.float32)


def input_tensor(name: str, shape: tuple[int, ...], salt: str) -> NDArray[np.float32]:
    """The input of that name, where inputs are not stored."""
    return standard_normal(f"input:{name}", shape, salt).astype(np.float32)
