"""Moving weights between host and device; used by `bya_core.memory.planner`.

Inference does not change weights, so offloading drops the device copies and never copies back to the host.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Offloadable(Protocol):
    """Something that can be moved to the device temporarily."""

    def onload(self) -> None: ...

    def offload(self) -> None: ...


class DeviceSlot:
    """Room on the device for one offloadable at a time: acquiring it offloads the previous one."""

    def __init__(self) -> None:
        self.active: Offloadable | None = None

    def acquire(self, offloadable: Offloadable | None) -> None:
        """Make `offloadable` the only one on the device; `None` offloads the active one."""
        if self.active is offloadable:
            return
        if self.active is not None:
            self.active.offload()
        self.active = offloadable
        if offloadable is not None:
            offloadable.onload()


class ComponentOffload:
    """An encoder or codec, moved by its `to` method, or by `release` if it can reload its weights.

    Args:
        component: Encoder or codec.
        device: Device it computes on. On the CPU it is not moved, but still vacates the slot for others.
    """

    def __init__(self, component: Any, device: torch.device) -> None:
        self.component, self.device = component, device

    def onload(self) -> None:
        self.component.to(self.device)

    def offload(self) -> None:
        if hasattr(self.component, "release"):
            self.component.release()
        else:
            self.component.to("cpu")


class PinnedPool:
    """Allocator of pinned host memory, from which copies to the device overlap with its computation.

    Memory is allocated in buffers of a power of two. torch rounds every pinned allocation up to a power of two; pinning
    single tensors would take nearly twice their size.

    Args:
        pinned: Whether to pin memory. If the machine refuses, pageable memory is used and copies are slower.
    """

    buffer_bytes = 2**28

    def __init__(self, pinned: bool = True) -> None:
        self.pinned, self.allocated = pinned, 0
        self._buffer: Tensor | None = None
        self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """Copy of `tensor` in the pool."""
        start = -(-self._used // 256) * 256
        if self._buffer is None or start + tensor.nbytes > len(self._buffer):
            self._buffer, start = self._allocate(max(self.buffer_bytes, tensor.nbytes)), 0
        self._used = start + tensor.nbytes
        return self._buffer[start : self._used].view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def _allocate(self, size: int) -> Tensor:
        self.allocated += size
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned)
        except RuntimeError as error:
            log.warning("No more memory can be pinned, block offload will be slower: %s.", error)
            self.pinned = False
            return torch.empty(size, dtype=torch.uint8)


class HostWeights:
    """Parameters and buffers of modules, kept on the host and copied to the device on demand.

    Args:
        modules: Modules that share no weights with others.
        pool: Pinned memory to keep them in; `None` leaves them where they are.
    """

    def __init__(self, modules: Iterable[nn.Module], pool: PinnedPool | None = None) -> None:
        found = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        self._tensors = list({id(t): t for t in found}.values())
        # inference tensors accept only data created in inference mode, other tensors only data created outside of it
        self._inference = any(t.is_inference() for t in self._tensors)
        with torch.inference_mode(self._inference):
            self._host = [t.data if pool is None else pool.copy(t.data) for t in self._tensors]
        self.use(self._host)

    @property
    def bytes(self) -> int:
        """Total size."""
        return sum(t.nbytes for t in self._host)

    def copy_to(self, device: torch.device) -> list[Tensor]:
        """Start copies to the device on the current stream."""
        with torch.inference_mode(self._inference):
            return [t.to(device, non_blocking=True, copy=True) for t in self._host]

    def use(self, values: Sequence[Tensor]) -> None:
        """Let the modules use these copies."""
        with torch.inference_mode(self._inference):
            for tensor, value in zip(self._tensors, values, strict=True):
                tensor.data = value

    def offload(self) -> None:
        """Let the modules use the host tensors, which frees the device copies."""
        self.use(self._host)


class ModuleOffload:
    """Modules that are moved as a whole."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        self.weights, self.device = HostWeights(modules), device

    def onload(self) -> None:
        self.weights.use(self.weights.copy_to(self.device))

    def offload(self) -> None:
        self.weights.offload()


class BlockOffload:
    """Streams groups of modules through the device, two at a time.

    While one group computes, the next one is copied on a separate stream. The first module of a group controls it: its
    call onloads the group and its end offloads it, so every module it calls, child or not, has to be in its group. A
    group that is skipped or called out of order is copied when it is called, which is slower but correct.

    The group offloading of diffusers is not used here: the layers called by a block are in three module lists and are
    called through closures and by methods other than `forward`, and its prefetching records the order of the first
    call.

    Args:
        groups: Modules that are on the device together, in order of use.
        device: Device they compute on.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Module]], device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.device = device
        pool = PinnedPool() if cuda else None
        self.groups = [HostWeights(modules, pool) for modules in groups]
        self._copies: dict[int, list[Tensor]] = {}
        self._ready: dict[int, Any] = {}
        self._computed: Any = None
        self._stream: Any = torch.cuda.Stream(device) if cuda else None
        for index, modules in enumerate(groups):
            modules[0].register_forward_pre_hook(functools.partial(self._enter, index))
            # also after an error or a cancellation
            modules[0].register_forward_hook(functools.partial(self._exit, index), always_call=True)

    @property
    def on_device(self) -> tuple[int, ...]:
        """Indices of the groups that are on the device or being copied."""
        return tuple(sorted(self._copies))

    def onload(self) -> None:
        """Nothing: groups are onloaded one by one."""

    def offload(self) -> None:
        """Offload all groups."""
        self._wait_for_compute()
        if self._stream is not None:
            self._stream.synchronize()
        for group in self.groups:
            group.offload()
        self._copies.clear()
        self._ready.clear()

    def _enter(self, index: int, *_: Any) -> None:
        self._wait_for_compute()
        self._start_copy(index)
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_event(self._ready[index])
        self.groups[index].use(self._copies[index])
        following = (index + 1) % len(self.groups)
        for other in [i for i in self._copies if i not in (index, following)]:
            if other in self._ready:
                self._ready.pop(other).synchronize()  # an unfinished copy still needs its memory
            self._copies.pop(other)
        self._start_copy(following)

    def _exit(self, index: int, *_: Any) -> None:
        self.groups[index].offload()
        if self._stream is not None:
            self._computed = torch.cuda.Event()
            self._computed.record(torch.cuda.current_stream(self.device))

    def _start_copy(self, index: int) -> None:
        if index in self._copies:
            return
        if self._stream is None:
            self._copies[index] = self.groups[index].copy_to(self.device)
            return
        with torch.cuda.stream(self._stream):
            self._copies[index] = self.groups[index].copy_to(self.device)
            self._ready[index] = torch.cuda.Event()
            self._ready[index].record(self._stream)

    def _wait_for_compute(self) -> None:
        """Wait until the previous group was computed, before its copies are freed.

        They belong to the copy stream, which does not wait by itself. It also keeps the host from running ahead of the
        device, which would accumulate groups.
        """
        if self._computed is not None:
            self._computed.synchronize()
            self._computed = None


def onload_before(slot: DeviceSlot, offloadable: Offloadable | None, component: Any, methods: Sequence[str]) -> None:
    """Acquire the slot for `offloadable` whenever one of these methods of `component` is called."""

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            slot.acquire(offloadable)
            return method(*args, **kwargs)

        return call

    for name in methods:
        if hasattr(component, name):
            setattr(component, name, wrap(getattr(component, name)))


def onload_before_forward(slot: DeviceSlot, offloadable: Offloadable | None, module: nn.Module) -> None:
    """Acquire the slot for `offloadable` whenever a module is called."""
    module.register_forward_pre_hook(lambda *_: slot.acquire(offloadable))
