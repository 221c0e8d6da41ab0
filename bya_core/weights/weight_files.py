"""Strict, memory-bounded loading of weight files into a model.

The model is built on the meta device. Files are memory-mapped; every tensor is allocated on its target device in its
target dtype and filled chunk by chunk. Host memory therefore holds at most the pages of one file and one chunk,
whatever the size of the model.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.weights.comparison import compare_weights

log = logging.getLogger(__name__)

CHUNK_BYTES = 64 * 2**20
SCALE_SUFFIX = "_scale"
"""Suffix of the entry that holds the scale of a float8 tensor."""

READ_ERRORS = (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, TypeError, AttributeError)
"""Raised by the libraries for truncated files and other formats."""

LoraPairs = Mapping[str, tuple[Tensor, Tensor]]
"""Weight name -> (A [r, in], B [out, r])."""
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open file.

    Args:
        shape: Stored shape.
        dtype: Stored dtype.
        read: Reads a slice of the first axis; scalars are returned whole.
        scale: Factor applied after reading, or `None`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[slice], Tensor]
    scale: float | None = None

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the first axis of at most `CHUNK_BYTES` (at least one row) each."""
        if not self.shape:
            yield slice(None), self.load()
            return
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        step = max(1, CHUNK_BYTES // max(1, row_bytes))
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            yield rows, self.load(rows)

    def load(self, rows: slice = slice(None)) -> Tensor:
        """The tensor, or rows of it, with the scale applied."""
        tensor = self.read(rows)
        return tensor if self.scale is None else tensor.float() * self.scale


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file or a pickle of tensors, with names mapped to those of our model.

    Args:
        path: Path of the file.
        unpack: Converts the contents of a pickle to (name, tensor) pairs; not used for safetensors.
        rename: Maps a stored name to ours.
        exclude: Entries whose name contains this are skipped.
        only: Other entries than these are skipped; `None` keeps all.
    """

    path: Path
    unpack: Callable[[Any], Iterable[tuple[str, Tensor]]] = field(default=lambda content: content.items())
    rename: Callable[[str], str] = field(default=lambda name: name)
    exclude: str | None = None
    only: frozenset[str] | None = None

    @contextmanager
    def open(self) -> Iterator[dict[str, StoredTensor]]:
        """Our name -> tensor, readable while the file is open.

        Raises:
            InputError: The file is missing, broken or of another format.
        """
        with ExitStack() as stack:
            try:
                stored = self._read(stack)
            except READ_ERRORS as error:
                problem = f"{self.path} cannot be read ({type(error).__name__}: {error})"
                raise InputError(problem, "a weight file as published", "download it again") from error
            yield stored

    def _read(self, stack: ExitStack) -> dict[str, StoredTensor]:
        if not self.path.is_file():
            raise InputError(f"no file {self.path}", "all files of the model", "download it again")
        if self.path.suffix == ".safetensors":
            opened = stack.enter_context(safe_open(self.path, framework="pt"))
            names = list(opened.keys())
            return self._map((name, _from_safetensors(opened, name)) for name in names)
        return self._map((name, _from_tensor(tensor)) for name, tensor in self.unpack(_load_pickle(self.path)))

    def _map(self, stored: Iterable[tuple[str, StoredTensor]]) -> dict[str, StoredTensor]:
        ours = ((self.rename(name), tensor) for name, tensor in stored)
        found = _attach_scales({n: tensor for n, tensor in ours if self.exclude is None or self.exclude not in n})
        return {n: tensor for n, tensor in found.items() if self.only is None or n in self.only}


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "U8": torch.uint8,
}


def _from_safetensors(opened: Any, name: str) -> StoredTensor:
    view = opened.get_slice(name)
    shape = tuple(view.get_shape())
    dtype = DTYPES.get(view.get_dtype())
    if dtype is None:
        dtype = opened.get_tensor(name).dtype
    if not shape:
        return StoredTensor(shape, dtype, lambda _: opened.get_tensor(name))
    return StoredTensor(shape, dtype, lambda rows: view[rows])


def _from_tensor(tensor: Tensor) -> StoredTensor:
    return StoredTensor(tuple(tensor.shape), tensor.dtype, lambda rows: tensor[rows] if tensor.ndim else tensor)


def _attach_scales(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Combine float8 tensors with their scales."""
    out = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.float8_e4m3fn:
            if name + SCALE_SUFFIX not in stored:
                problem = f"the float8 weight {name!r} without a scale"
                raise InputError(problem, f"an entry {name + SCALE_SUFFIX}", "convert the model again")
            scale = float(stored[name + SCALE_SUFFIX].load())
            tensor = StoredTensor(tensor.shape, tensor.dtype, tensor.read, scale)
        elif name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in stored:
            continue
        out[name] = tensor
    return out


def _load_pickle(path: Path) -> Any:
    """Contents of a .pt file, memory-mapped if its format allows it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        log.warning("%s uses the old torch format and is read into memory as a whole", path)
        return torch.load(path, map_location="cpu", weights_only=True)


def read_shapes(
    files: Sequence[WeightFile], expected: Mapping[str, tuple[int, ...]] | None = None, widen: str | None = None
) -> tuple[Shapes, dict[str, WeightFile]]:
    """Shape of every tensor, and the file it is read from: the last one that has it.

    The weight `widen`, if it has fewer input channels than expected, is reported with its expected shape.
    """
    shapes: Shapes = {}
    owners: dict[str, WeightFile] = {}
    for file in files:
        with file.open() as stored:
            for name, tensor in stored.items():
                shapes[name], owners[name] = tensor.shape, file
    if expected is not None and widen in shapes and widen in expected and _is_narrower(shapes[widen], expected[widen]):
        shapes[widen] = expected[widen]
    return shapes, owners


@torch.no_grad()
def load_weights(
    model: nn.Module,
    files: Sequence[WeightFile],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    lora: LoraPairs | None = None,
    widen: str | None = None,
    never_read: Sequence[str] | None = None,
) -> None:
    """Load all weights into a model made by `build_empty`. Arguments and errors as in `iter_weights`."""
    expected: Shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    options: dict[str, Any] = {"dtype": dtype, "device": device, "lora": lora, "widen": widen, "never_read": never_read}
    for name, tensor in iter_weights(expected, files, **options):
        _assign(model, name, tensor)
    for name, buffer in list(model.named_buffers()):
        if name not in expected:
            _assign(model, name, buffer.to(device))


@torch.no_grad()
def iter_weights(
    expected: Shapes,
    files: Sequence[WeightFile],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    lora: LoraPairs | None = None,
    widen: str | None = None,
    never_read: Sequence[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """All weights of a model, one at a time, file by file.

    Args:
        expected: Name and shape of each weight.
        files: Files to read; the last one that has a weight is used.
        dtype: Dtype of floating point weights; `None` keeps the stored dtype.
        device: Target device.
        lora: Low-rank updates; B A is added in float32 before rounding.
        widen: Name of a weight [D, C, ...] that may be stored with fewer input channels C; the others become zero.
        never_read: For released files: prefixes of weights that no computation reads. They become zero if they are
            missing, and unexpected entries are ignored, both with a warning. `None` accepts no difference.

    Raises:
        InputError: Missing, unexpected or misshapen entries, listed by name.
    """
    shapes, owners = read_shapes(files, expected, widen)
    comparison = compare_weights(expected, shapes)
    (comparison if never_read is None else comparison.tolerate(never_read)).check()
    pairs = lora or {}
    for name in comparison.missing:
        yield name, torch.zeros(expected[name], dtype=dtype or torch.float32, device=device)
    for file in files:
        if file not in owners.values():
            continue
        with file.open() as stored:
            for name, tensor in stored.items():
                if name in expected and owners[name] is file:
                    yield name, _materialize(tensor, expected[name], dtype, device, pairs.get(name))


def build_empty(build: Callable[[], nn.Module]) -> Any:
    """A model with its state dict on the meta device; non-persistent buffers (position tables) are real."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = build()
    stored = model.state_dict().keys()
    for name, buffer in list(model.named_buffers()):
        if name in stored:
            _assign(model, name, buffer.to("meta"))
    return model.requires_grad_(False).eval()


def _materialize(
    tensor: StoredTensor,
    shape: tuple[int, ...],
    dtype: torch.dtype | None,
    device: torch.device | str,
    pair: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Read a tensor into its final dtype, device and shape."""
    stored = torch.float32 if tensor.scale is not None else tensor.dtype
    wanted = dtype if dtype is not None and stored.is_floating_point else stored
    if pair is not None:
        a, b = (half.to(device, torch.float32) for half in pair)
        return (tensor.load().to(device, torch.float32) + b @ a).to(wanted)
    if tensor.shape != shape:
        out = torch.zeros(shape, dtype=wanted, device=device)
        for rows, chunk in tensor.chunks():
            out[rows, : tensor.shape[1]].copy_(chunk)
        return out
    out = torch.empty(shape, dtype=wanted, device=device)
    for rows, chunk in tensor.chunks():
        (out[rows] if shape else out).copy_(chunk.to(wanted))
    return out


def _is_narrower(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(stored) == len(wanted) > 1 and stored[1] < wanted[1] and stored == (wanted[0], stored[1], *wanted[2:])


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer by its full name."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor
