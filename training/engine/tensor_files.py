"""Tensors of a distributed run in safetensors files, gathered and read tensor by tensor.

Files hold unsharded tensors. While one is written, the main process holds a single full tensor beside the shards; while
it is read, every process reads only its own rows. A run can therefore resume with any number of processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from bya_core.weights.single_file import write_single_file

READ_BYTES = 64 * 2**20


def full_tensor(tensor: Tensor, main: bool) -> Tensor | None:
    """The unsharded tensor on the CPU in the main process, None in the others; called by all processes.

    The main process receives the shards of the others one after the other.
    """
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return tensor.cpu().contiguous() if main else None
    mesh = tensor.device_mesh
    if mesh.ndim > 1 or not tensor.placements[0].is_shard(0):
        whole = tensor.full_tensor()
        return whole.cpu().contiguous() if main else None
    ranks, local = mesh.mesh.tolist(), tensor.to_local().contiguous()
    if not main:
        if local.numel():
            dist.send(local, ranks[0])
        return None
    out = torch.empty(tensor.shape, dtype=tensor.dtype)
    size = -(-len(out) // len(ranks))
    out[: len(local)].copy_(local)
    for number, rank in enumerate(ranks[1:], 1):
        rows = out[number * size : (number + 1) * size]
        if rows.numel():
            received = torch.empty(rows.shape, dtype=local.dtype, device=local.device)
            dist.recv(received, rank)
            rows.copy_(received)
    return out


@contextmanager
def shared_failure() -> Iterator[None]:
    """Raise an error inside the context in all processes; entered and left by all of them.

    Raises:
        OSError: another process failed.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    texts: list[str | None] = [None if error is None else str(error) or type(error).__name__]
    if dist.is_initialized():
        texts = gather_object(texts)
    if error is not None:
        raise error
    if failed := [f"process {number}: {text}" for number, text in enumerate(texts) if text is not None]:
        raise OSError(failed[0])


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], main: bool, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; called by all processes.

    Args:
        path: the file.
        tensors: tensors by name, sharded or not, in the same order in all processes.
        main: whether this is the main process, which writes.
        metadata: metadata of the file.

    Raises:
        OSError: the main process cannot write the file. Raised in all processes.
    """

    def gathered() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            full = full_tensor(tensor, main)
            if full is not None:
                yield name, full

    with shared_failure():
        remaining = gathered()
        try:
            if main:
                shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
                dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
                write_single_file(path, remaining, shapes, dtypes, metadata or {})
            deque(remaining, maxlen=0)
        except Exception:
            deque(remaining, maxlen=0)  # the others wait until their shards are received
            raise


class TensorFile:
    """An open safetensors file; to be closed by the `with` statement.

    Raises:
        SafetensorError, OSError: the file is damaged or missing.
    """

    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")

    def __enter__(self) -> TensorFile:
        self._stored = self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._stored.keys())

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the file."""
        return dict(self._stored.metadata() or {})

    def like(self, name: str, parameter: Tensor) -> Tensor:
        """A tensor: scalars on the CPU, others on the device of `parameter`, sharded like it if they have its shape."""
        view = self._stored.get_slice(name)
        shape = tuple(view.get_shape())
        if shape != tuple(parameter.shape) or not shape:
            tensor = self._stored.get_tensor(name)
            return tensor if not shape else tensor.to(parameter.device)
        out = torch.zeros_like(parameter, dtype=view[:0].dtype, requires_grad=False)
        self.copy_to(name, out)
        return out

    @torch.no_grad()
    def copy_to(self, name: str, target: Tensor) -> None:
        """Copy a tensor, or the rows that belong to this process, into `target`.

        Raises:
            ValueError: the shapes differ.
        """
        view = self._stored.get_slice(name)
        if tuple(view.get_shape()) != tuple(target.shape):
            raise ValueError(f"{name} has the shape {tuple(view.get_shape())} instead of {tuple(target.shape)}")
        if not target.shape:
            target.copy_(self._stored.get_tensor(name))
            return
        if not isinstance(target, DTensor):
            _copy_rows(view, target.detach(), 0)
            return
        shape, offset = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
        local = target.to_local()
        if tuple(shape[1:]) != tuple(target.shape[1:]):  # not sharded by rows
            index = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
            local.copy_(self._stored.get_tensor(name)[index])
        elif local.numel():
            _copy_rows(view, local, offset[0])


def _copy_rows(view: Any, target: Tensor, first: int) -> None:
    """Copy rows of a stored tensor from number `first` on, some at a time."""
    row_bytes = max(1, target.element_size() * target[:1].numel())
    step = max(1, READ_BYTES // row_bytes)
    for start in range(0, len(target), step):
        rows = target[start : start + step]
        rows.copy_(view[first + start : first + start + len(rows)])
