"""How weights come to the device and leave it again: the machinery below `bya_core.memory.planner`.

Weights that are away lie in the host's memory ("at home") and are never copied back: inference does not change them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Guest(Protocol):
    """Something that can be on the device for a while."""

    def come(self) -> None: ...

    def leave(self) -> None: ...


class Seat:
    """Room for one guest at a time: who takes it sends the one before away."""

    def __init__(self) -> None:
        self.sitting: Guest | None = None

    def take(self, guest: Guest | None) -> None:
        """`guest` is on the device now and the others are not; None = nobody is."""
        if self.sitting is guest:
            return
        if self.sitting is not None:
            self.sitting.leave()
        self.sitting = guest
        if guest is not None:
            guest.come()


class PartGuest:
    """An encoder or the codec, moved by its own `to`; one that can `release` its weights forgets them.

    Args:
        device: where it works. The processor: then it stays where it is and only makes room for itself.
    """

    def __init__(self, part: Any, device: torch.device) -> None:
        self.part, self.device = part, device

    def come(self) -> None:
        self.part.to(self.device)

    def leave(self) -> None:
        if hasattr(self.part, "release"):
            self.part.release()
        else:
            self.part.to("cpu")


class Slabs:
    """Page-locked memory of the host, from where copies to the device run beside its computation.

    It is taken in slabs of a power of two: torch rounds every piece of such memory up to one, which by single tensors
    would take nearly twice what they need.

    Args:
        locked: whether it is page-locked; where the machine refuses, it is ordinary memory, and copies are slower.
    """

    size = 2**28  # bytes

    def __init__(self, locked: bool = True) -> None:
        self.locked, self.taken = locked, 0
        self._slab: Tensor | None = None
        self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor` in a slab."""
        start = -(-self._used // 256) * 256
        if self._slab is None or start + tensor.nbytes > len(self._slab):
            self._slab, start = self._take(max(self.size, tensor.nbytes)), 0
        self._used = start + tensor.nbytes
        place = self._slab[start : self._used].view(tensor.dtype).view(tensor.shape)
        return place.copy_(tensor)

    def _take(self, size: int) -> Tensor:
        self.taken += size
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=self.locked)
        except RuntimeError as error:
            log.warning("no more memory could be page-locked, streaming will be slower: %s", error)
            self.locked = False
            return torch.empty(size, dtype=torch.uint8)


class Weights:
    """Parameters and buffers of some modules: at home, or as copies on the device.

    Args:
        slabs: where they are kept; None = where they are.
    """

    def __init__(self, modules: Iterable[nn.Module], slabs: Slabs | None = None) -> None:
        found = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        self._tensors = list({id(t): t for t in found}.values())
        # a tensor made in inference mode takes only values made there, and any other one only values made outside
        self._inference = any(t.is_inference() for t in self._tensors)
        with torch.inference_mode(self._inference):
            self._home = [t.data if slabs is None else slabs.copy(t.data) for t in self._tensors]
        self._place(self._home)

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in self._home)

    def copies(self, device: torch.device) -> list[Tensor]:
        """Copies on the device, begun on the current stream; nothing uses them yet."""
        with torch.inference_mode(self._inference):
            return [t.to(device, non_blocking=True, copy=True) for t in self._home]

    def use(self, copies: Sequence[Tensor]) -> None:
        """Compute with these from now on."""
        self._place(copies)

    def go_home(self) -> None:
        """Compute with nothing on the device."""
        self._place(self._home)

    def _place(self, values: Sequence[Tensor]) -> None:
        with torch.inference_mode(self._inference):
            for tensor, value in zip(self._tensors, values, strict=True):
                tensor.data = value


class WeightsGuest:
    """Modules that come as a whole."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self.weights, self.device = Weights(modules), device

    def come(self) -> None:
        self.weights.use(self.weights.copies(self.device))

    def leave(self) -> None:
        self.weights.go_home()


class BlockStream:
    """Groups of modules that are used one after the other: two of them are on the device, the rest at home.

    While one group computes, the next one is copied on a stream of its own. The first module of a group decides: its
    call brings the group, its end sends it away, so everything that it calls inside (also modules that are no children
    of it) has to be in its group. A group that is skipped or called out of turn is copied when it is called: slower,
    never wrong.

    diffusers' group offloading does the same for what lies in one ModuleList. It is not used here because what our
    blocks call lies in three lists, is called through closures and by other methods than `forward`, and because its
    prefetching takes the order of the first call for the order of all of them.

    Args:
        groups: modules that are on the device together, in the order of use.
        device: where they compute.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Module]], device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.device = device
        slabs = Slabs() if cuda else None
        self.groups = [Weights(modules, slabs) for modules in groups]
        self._copies: dict[int, list[Tensor]] = {}
        self._ready: dict[int, Any] = {}
        self._ending: Any = None
        self._stream: Any = torch.cuda.Stream(device) if cuda else None
        for index, modules in enumerate(groups):
            modules[0].register_forward_pre_hook(functools.partial(self._enter, index))
            # after an error (or a click on cancel) too
            modules[0].register_forward_hook(functools.partial(self._exit, index), always_call=True)

    @property
    def here(self) -> tuple[int, ...]:
        """Which groups are on the device, or on their way."""
        return tuple(sorted(self._copies))

    def come(self) -> None:
        """Nothing: groups come one by one."""

    def leave(self) -> None:
        """All of them leave."""
        self._finish()
        if self._stream is not None:
            self._stream.synchronize()
        for group in self.groups:
            group.go_home()
        self._copies.clear()
        self._ready.clear()

    def _enter(self, index: int, *_: Any) -> None:
        self._finish()
        self._fetch(index)
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_event(self._ready[index])
        self.groups[index].use(self._copies[index])
        following = (index + 1) % len(self.groups)
        for other in [i for i in self._copies if i not in (index, following)]:
            self._drop(other)
        self._fetch(following)

    def _exit(self, index: int, *_: Any) -> None:
        self.groups[index].go_home()
        if self._stream is not None:
            self._ending = torch.cuda.Event()
            self._ending.record(torch.cuda.current_stream(self.device))

    def _fetch(self, index: int) -> None:
        """Begin to copy a group, unless it is there already."""
        if index in self._copies:
            return
        if self._stream is None:
            self._copies[index] = self.groups[index].copies(self.device)
            return
        with torch.cuda.stream(self._stream):
            self._copies[index] = self.groups[index].copies(self.device)
            self._ready[index] = torch.cuda.Event()
            self._ready[index].record(self._stream)

    def _finish(self) -> None:
        """Wait until the group that was called last has been computed, so that its copies may go.

        Their memory belongs to the copying stream, which would not wait by itself. And the processor must not run
        ahead of the device, or more and more groups would pile up.
        """
        if self._ending is not None:
            self._ending.synchronize()
            self._ending = None

    def _drop(self, index: int) -> None:
        if index in self._ready:
            self._ready.pop(index).synchronize()  # a copy that is still under way keeps its memory until it is done
        self._copies.pop(index, None)


def take_before(seat: Seat, guest: Guest | None, part: Any, methods: Sequence[str]) -> None:
    """Calling one of these methods of `part` takes the seat for `guest` first."""
    for name in methods:
        if hasattr(part, name):
            setattr(part, name, _seated(seat, guest, getattr(part, name)))


def take_before_forward(seat: Seat, guest: Guest | None, module: nn.Module) -> None:
    """The same for a call of a module."""
    module.register_forward_pre_hook(lambda *_: seat.take(guest))


def _seated(seat: Seat, guest: Guest | None, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*given: Any, **named: Any) -> Any:
        seat.take(guest)
        return method(*given, **named)

    return call
