"""Weights from files into a model: strict, and never more of them in memory than a piece.

The model is built without memory (torch's "meta" device). Each file is mapped, not read; every tensor is made on the
device and in the number format it is wanted in, and filled piece by piece. So the host holds at most the pages of one
file and one piece, whatever the size of the model.
"""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)

PIECE = 64 * 2**20  # bytes that are converted and copied at once
SCALE = "_scale"
"""Ending of the entry that holds the scale of a tensor kept in 8 bits."""
LISTED = 10  # names of each kind that an error lists

BROKEN = (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, TypeError, AttributeError)
"""What the libraries raise for files that are cut short or of another kind."""

Rename = Callable[[str], str]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stored:
    """A tensor in an open file.

    Args:
        shape, dtype: of what lies in the file.
        rows: a slice of its first axis -> tensor; of a tensor without axes: itself, whatever the slice.
        scale: it is to be multiplied with; None = as it is.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Callable[[slice], Tensor]
    scale: float | None = None

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """One after the other, each at most `PIECE` bytes (or one row)."""
        if not self.shape:
            yield slice(None), self._scaled(self.rows(slice(None)))
            return
        size = self.dtype.itemsize
        for length in self.shape[1:]:
            size *= length
        step = max(1, PIECE // max(1, size))
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            yield rows, self._scaled(self.rows(rows))

    def whole(self) -> Tensor:
        """All of it."""
        return self._scaled(self.rows(slice(None)))

    def _scaled(self, tensor: Tensor) -> Tensor:
        return tensor if self.scale is None else tensor.float() * self.scale


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file, or a pickle of tensors, under our names.

    Args:
        path: of the file.
        unpack: what a pickle holds -> name and tensor; not used for safetensors.
        rename: name in the file -> ours.
        without: entries with this in their name are left out.
    """

    path: Path
    unpack: Callable[[Any], Iterable[tuple[str, Tensor]]] = field(default=lambda content: content.items())
    rename: Rename = field(default=lambda name: name)
    without: str | None = None

    @contextmanager
    def open(self) -> Iterator[dict[str, Stored]]:
        """Our name -> tensor that can be read while the file is open.

        Raises:
            InputError: no such file, or one that is broken or of another kind.
        """
        with ExitStack() as stack:
            try:
                stored = self._opened(stack)
            except BROKEN as error:
                came = f"{self.path} cannot be read ({type(error).__name__}: {error})"
                raise InputError(came, "a file of weights as it was published", "fetch it again") from error
            yield stored

    def _opened(self, stack: ExitStack) -> dict[str, Stored]:
        if not self.path.is_file():
            raise InputError(f"no file {self.path}", "all files of the model", "fetch it again")
        if self.path.suffix == ".safetensors":
            opened = stack.enter_context(safe_open(self.path, framework="pt"))
            names = list(opened.keys())
            return self._named((name, _in_safetensors(opened, name)) for name in names)
        return self._named((name, _in_memory(tensor)) for name, tensor in self.unpack(_unpickled(self.path)))

    def _named(self, stored: Iterable[tuple[str, Stored]]) -> dict[str, Stored]:
        ours = ((self.rename(name), tensor) for name, tensor in stored)
        return _scales_applied({n: tensor for n, tensor in ours if self.without is None or self.without not in n})


def _in_safetensors(opened: Any, name: str) -> Stored:
    part = opened.get_slice(name)
    shape = tuple(part.get_shape())
    dtype = _DTYPES.get(part.get_dtype())
    if dtype is None:
        dtype = opened.get_tensor(name).dtype
    if not shape:
        return Stored(shape, dtype, lambda _: opened.get_tensor(name))
    return Stored(shape, dtype, lambda rows: part[rows])


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
}


def _in_memory(tensor: Tensor) -> Stored:
    return Stored(tuple(tensor.shape), tensor.dtype, lambda rows: tensor[rows] if tensor.ndim else tensor)


def _scales_applied(stored: dict[str, Stored]) -> dict[str, Stored]:
    """Tensors in 8 bits get the scale that lies beside them."""
    out = {}
    for name, tensor in stored.items():
        if tensor.dtype == torch.float8_e4m3fn:
            if name + SCALE not in stored:
                came = f"the weight {name!r} in 8 bits without its scale"
                raise InputError(came, f"an entry {name + SCALE}", "convert the model again")
            scale = float(stored[name + SCALE].whole())
            tensor = Stored(tensor.shape, tensor.dtype, tensor.rows, scale)
        elif name.endswith(SCALE) and name.removesuffix(SCALE) in stored:
            continue
        out[name] = tensor
    return out


def _unpickled(path: Path) -> Any:
    """Content of a .pt file, mapped where its format allows it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        log.warning("%s is in torch's old format: it is read as a whole", path)
        return torch.load(path, map_location="cpu", weights_only=True)


def shapes_of(files: Sequence[WeightFile]) -> tuple[Shapes, dict[str, WeightFile]]:
    """Shape of every tensor in the files, and the file that it comes from: of several, the last one."""
    shapes: Shapes = {}
    owners: dict[str, WeightFile] = {}
    for file in files:
        with file.open() as stored:
            for name, tensor in stored.items():
                shapes[name], owners[name] = tensor.shape, file
    return shapes, owners


@torch.no_grad()
def fill(
    model: nn.Module,
    files: Sequence[WeightFile],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    lora: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    widen: str | None = None,
) -> None:
    """Give a model without memory (see `empty`) all its weights; arguments and errors as in `assembled`."""
    expected: Shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, tensor in assembled(expected, files, dtype=dtype, device=device, lora=lora, widen=widen):
        _place(model, name, tensor)
    for name, buffer in list(model.named_buffers()):
        if name not in expected:
            _place(model, name, buffer.to(device))


@torch.no_grad()
def assembled(
    expected: Shapes,
    files: Sequence[WeightFile],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    lora: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    widen: str | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """All weights of a model, one after the other, file by file.

    Args:
        expected: name and shape of each.
        files: with all of them; where two have one, the last one counts.
        dtype: of all floating point weights; None = as stored.
        device: where they go.
        lora: name of a weight -> (A [r, in], B [out, r]); B A is added in float32 before the weight is rounded.
        widen: name of a weight [D, C, ...] that may have fewer input channels C; the further ones become zero.

    Raises:
        InputError: entries are missing, left over or of another shape, with their names.
    """
    shapes, owners = shapes_of(files)
    if widen in shapes and widen in expected and _only_narrower(shapes[widen], expected[widen]):
        shapes[widen] = expected[widen]
    complain_about_differences(expected, shapes)
    pairs = lora or {}
    for file in files:
        if file not in owners.values():
            continue
        with file.open() as stored:
            for name, tensor in stored.items():
                if owners[name] is file:
                    yield name, _made(tensor, expected[name], dtype, device, pairs.get(name))


def empty(build: Callable[[], nn.Module]) -> Any:
    """A model whose stored weights have no memory; buffers that no file holds (tables of positions) are real."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = build()
    stored = model.state_dict().keys()
    for name, buffer in list(model.named_buffers()):
        if name in stored:
            _place(model, name, buffer.to("meta"))
    return model.requires_grad_(False).eval()


def _made(
    tensor: Stored,
    shape: tuple[int, ...],
    dtype: torch.dtype | None,
    device: torch.device | str,
    pair: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """The tensor as the model wants it."""
    plain = torch.float32 if tensor.scale is not None else tensor.dtype
    wanted = dtype if dtype is not None and plain.is_floating_point else plain
    if pair is not None:
        a, b = (half.to(device, torch.float32) for half in pair)
        return (tensor.whole().to(device, torch.float32) + b @ a).to(wanted)
    if tensor.shape != shape:
        made = torch.zeros(shape, dtype=wanted, device=device)
        for rows, piece in tensor.pieces():
            made[rows, : tensor.shape[1]].copy_(piece)
        return made
    made = torch.empty(shape, dtype=wanted, device=device)
    for rows, piece in tensor.pieces():
        (made[rows] if shape else made).copy_(piece.to(wanted))
    return made


def _only_narrower(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(given) == len(wanted) > 1 and given[1] < wanted[1] and given[:1] + given[2:] == wanted[:1] + wanted[2:]


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where the module of that name has its parameter or buffer."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def complain_about_differences(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InputError that lists them, if names or shapes differ."""
    shared = sorted(expected.keys() & given.keys())
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": [f"{n} {given[n]} in place of {expected[n]}" for n in shared if expected[n] != given[n]],
    }
    told = [
        f"{len(names)} {kind} ({', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''})"
        for kind, names in problems.items()
        if names
    ]
    if told:
        raise InputError(
            f"weights with entries {'; '.join(told)}",
            f"exactly the {len(expected)} entries of this model",
            "check that all files belong together",
        )
