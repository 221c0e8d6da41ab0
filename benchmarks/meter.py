"""Shares out what a step costs to its parts, in one pass.

Each moment belongs to one part, the innermost: parts add up to the whole, and none can be negative, however busy the
machine. Costs are whatever can be read off while a step runs: seconds, operations, bytes.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from bya_core.models import transformer as model_file

PARTS = ("blocks", "face", "router", "speech", "rest")


class Meter:
    """Costs of the parts of what runs inside it.

    Args:
        read: what has been used up so far; it never falls.
        peak: the most of something since it was last asked; None = not wanted.
    """

    def __init__(self, read: Callable[[], Any], peak: Callable[[], float] | None = None) -> None:
        self._read, self._peak = read, peak
        self._inside = ["rest"]
        self._marks: list[tuple[str, Any]] = []
        self.peaks: dict[str, float] = defaultdict(float)

    def __enter__(self) -> Meter:
        self._mark()
        return self

    def __exit__(self, *_: object) -> None:
        self._mark()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside belongs to this part."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        self._mark()
        self._inside.append(name)

    def end(self) -> None:
        self._mark()
        self._inside.pop()

    def costs(self, since: Callable[[Any, Any], float] = lambda before, now: now - before) -> dict[str, float]:
        """Of every part, and "total". `since` tells what lies between two readings."""
        found = dict.fromkeys(PARTS, 0.0)
        for (_, before), (name, now) in pairwise(self._marks):
            found[name] += since(before, now)
        return {**found, "total": sum(found.values())}

    def _mark(self) -> None:
        name = self._inside[-1]
        if self._peak is not None:
            self.peaks[name] = max(self.peaks[name], self._peak())
        self._marks.append((name, self._read()))


@contextmanager
def metered(model: Any, meter: Meter) -> Iterator[None]:
    """Calls of the transformer inside share out what they cost."""
    plain: Any = model_file.BlockConditioning

    class Measured(plain):  # type: ignore[misc]
        def _inject_face(self, *given: Any) -> Any:
            with meter.part("face"):
                return super()._inject_face(*given)

        def _route(self, *given: Any) -> Any:
            with meter.part("router"):
                return super()._route(*given)

        def _speech(self, *given: Any) -> Any:
            with meter.part("speech"):
                return super()._speech(*given)

    with ExitStack() as stack:
        for block in model.transformer_blocks:
            stack.callback(block.register_forward_pre_hook(lambda *_: meter.begin("blocks")).remove)
            stack.callback(block.register_forward_hook(lambda *_: meter.end(), always_call=True).remove)
        stack.callback(setattr, model_file, "BlockConditioning", plain)
        model_file.BlockConditioning = Measured  # type: ignore[misc]
        yield


@contextmanager
def covering(share: float, inflate: bool) -> Iterator[None]:
    """As if the masks were boxes side by side that together cover this share of each frame, whatever the router says.

    Where tensors hold no values, tokens are skipped by that share.

    Args:
        inflate: tokens of nobody hear every voice: then speech reaches all of them.
    """

    from bya_core.models import token_pruning as reach

    plain: Any = model_file.BlockConditioning
    fullest = reach.fullest

    class Covered(plain):  # type: ignore[misc]
        def _route(self, *given: Any) -> Tensor:
            masks = super()._route(*given)
            return masks if _empty(masks) else boxes(masks, share)

        def _reached(self, what: str, masks: Tensor, acting: Tensor) -> Any:
            everywhere = _empty(masks) and what == "speech" and inflate
            return None if everywhere else super()._reached(what, masks, acting)

    def most(reached: Tensor) -> int:
        return round(share * reached.shape[1]) if _empty(reached) else fullest(reached)

    reach.fullest, model_file.BlockConditioning = most, Covered  # type: ignore[misc]
    try:
        yield
    finally:
        reach.fullest, model_file.BlockConditioning = fullest, plain  # type: ignore[misc]


def boxes(like: Tensor, share: float) -> Tensor:
    """Masks of the shape [..., N, T, h, w]: each character has its part of the lower rows."""
    masks = torch.zeros_like(like)
    count, height, width = like.shape[-4], like.shape[-2], like.shape[-1]
    top = height - round(share * height)
    for n in range(count):
        masks[..., n, :, top:, n * width // count : (n + 1) * width // count] = 1.0
    return masks


def _empty(tensor: Tensor) -> bool:
    return tensor.device.type == "meta" or isinstance(tensor, FakeTensor)


MOVES_NOTHING = frozenset({"prim::device", "aten::_unsafe_view"})
"""Operations that look at tensors or give them another shape, beside those that torch calls views."""


@dataclass(frozen=True)
class Gpu:
    """What operations are held against where there is no GPU to measure: a large one of its time, not at its best.

    Args:
        rate: operations a second of matrix products in bfloat16.
        bandwidth: bytes a second to and from memory.
    """

    rate: float = 600e12
    bandwidth: float = 3.5e12


class Moved(TorchDispatchMode):
    """As a context: what operations do, each of them by itself; where several are one kernel, `as_one` says so.

    `bytes` read and written, and `seconds` that `gpu` needs at least: of each operation the longer of computing and
    moving. Small and odd shapes take longer than that.
    """

    def __init__(self, gpu: Gpu | None = None) -> None:
        super().__init__()
        self.gpu = gpu or Gpu()
        self.bytes, self.operations, self.seconds = 0, 0.0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if not func.is_view and func.name() not in MOVES_NOTHING:
            self._add(_size((args, kwargs, made)), _operations(func, args, kwargs, made))
        return made

    def _add(self, moved: int, operations: float) -> None:
        self.bytes += moved
        self.operations += operations
        self.seconds += max(moved / self.gpu.bandwidth, operations / self.gpu.rate)

    def as_one(self, run: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """`run` as one kernel: it reads what it is given and writes what it gives back, and nothing between."""
        bytes_, operations, seconds = self.bytes, self.operations, self.seconds
        made = run(*given)
        does = self.operations - operations
        self.bytes, self.operations, self.seconds = bytes_, operations, seconds
        self._add(_size((given, made)), does)
        return made


def _size(tree: Any) -> int:
    """Bytes of all tensors in it."""
    return sum(tensor.nbytes for tensor in tree_leaves(tree) if isinstance(tensor, Tensor))


@contextmanager
def attending_as_one(moved: Moved) -> Iterator[None]:
    """Attention to faces and speech counts as one kernel, as it is one on an NVIDIA GPU in half precision."""
    from bya_core.models import audio_attention as audio
    from bya_core.models import face_attention as face

    plain = face.masked_attention
    try:
        face.masked_attention = audio.masked_attention = functools.partial(moved.as_one, plain)
        yield
    finally:
        face.masked_attention = audio.masked_attention = plain


def _operations(func: Any, args: Any, kwargs: Any, made: Any) -> float:
    """As torch's flop counter counts them, which does not know the processor's fused attention."""
    if func.name() == "aten::_scaled_dot_product_flash_attention_for_cpu":
        return float(sdpa_flop_count(*(x.shape for x in args[:3])))
    count = flop_registry.get(func.overloadpacket)
    return 0.0 if count is None else float(count(*args, **kwargs, out_val=made))


def clock(device: torch.device) -> tuple[Callable[[], Any], Callable[[Any, Any], float]]:
    """How seconds are read, and what lies between two readings: on a processor, seconds that it worked for us."""
    if device.type != "cuda":
        return time.process_time, lambda before, now: now - before

    def event() -> Any:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    return event, lambda before, now: before.elapsed_time(now) / 1000


def most_allocated(device: torch.device) -> Callable[[], float] | None:
    """Most bytes on a GPU since it was last asked; None on a processor."""
    if device.type != "cuda":
        return None

    def peak() -> float:
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(most)

    return peak
