"""Reading of npz files whose size is bounded before anything is allocated."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.lib import format as npy

from bya_core.errors import InputError
from bya_core.io.files import existing_file, file_label

MAX_BYTES = 1 << 29  # of one array, as float32
ERRORS = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError, RuntimeError,
    SyntaxError, TokenError, TypeError, ValueError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_arrays(path: str | os.PathLike[str], what: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read arrays of an npz file. Pickled objects are never loaded.

    Args:
        path: npz file.
        what: the file in messages, such as "the masks".
        names: arrays to read, of those that are there; None reads all.

    Raises:
        InputError: The file is missing, unreadable, or claims larger arrays than it has or than are allowed.
    """
    path = existing_file(path, what)
    try:
        with path.open("rb") as file:
            return load_arrays(file, names)
    except _TooLarge as error:
        expected = f"arrays of at most {MAX_BYTES / 1e6:.0f} MB as float32"
        raise InputError(f"{file_label(what, path)} has {error}", expected, "use fewer or smaller arrays") from error
    except ERRORS as error:
        reason = str(error).split("\n")[0].strip().rstrip(".")[:100] or type(error).__name__
        problem = f"{file_label(what, path)} cannot be read ({reason})"
        raise InputError(problem, "an npz file", "save it with numpy.savez") from error


class _TooLarge(ValueError):
    """An array beyond the limit."""


def load_arrays(
    file: IO[bytes], names: Sequence[str] | None = None, max_bytes: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """`read_arrays` from an open file; raises ValueError and the errors of zipfile."""
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        for name in members if names is None else [name for name in names if name in members]:
            member = members[name]
            with archive.open(member) as stream:
                shape, fortran, kind = _header(stream)
                if kind.hasobject or kind.names:
                    raise ValueError(f'the array "{name}" holds Python objects')
                count = math.prod(shape)
                size = count * kind.itemsize
                if max(size, 4 * count) > max_bytes:
                    raise _TooLarge(f'an array "{name}" of {max(size, 4 * count) / 1e6:.0f} MB')
                content = stream.read(size)
                if len(content) < size:
                    raise ValueError(f'the array "{name}" of {" x ".join(map(str, shape))} is incomplete')
            values = np.frombuffer(bytearray(content), kind)
            arrays[name] = values.reshape(shape, order="F") if fortran else values.reshape(shape)
    return arrays


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an npy file, up to its data."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran, kind = npy.read_array_header_1_0(stream)
    elif version in ((2, 0), (3, 0)):
        shape, fortran, kind = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of the npy format")
    if any(side < 0 for side in shape):
        raise ValueError(f"an array of {shape}")
    return shape, fortran, kind
