"""Quality/speed presets, and their application to a transformer for one run.

    exact       every step is computed in full
    balanced    skips work with hardly visible effect
    fast        skips as much as possible while every character still follows its own speech

First-Block Cache of diffusers skips the remaining blocks of a step if the output of the first block has hardly changed
since the previous step. Here a step may be skipped only after the masks have converged, and never at a step where given
masks start, change or stop, so that the cached residuals were computed with the same speech, masks and matrix.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bya_core.config import Preset, RouterSchedule
from bya_core.errors import InputError

log = logging.getLogger(__name__)

BlockForward = Callable[..., tuple[Tensor, Tensor]]
"""`BYABlock.base_forward` of one block."""

ATTENTION_TOLERANCE = 0.1
"""Largest error of an attention backend relative to torch's attention. 8-bit backends stay below 0.05."""


@dataclass(frozen=True)
class Acceleration:
    """Settings of a preset.

    Args:
        router: when the router predicts.
        mask_change: masks have converged if they change by less than this per tenth of the run, as a fraction of their
            total.
        cache_threshold: relative change of the first block's residual below which the other blocks are skipped once
            masks have converged; 0 = never.
        max_skipped: largest number of consecutive skipped steps.
        guidance_interval: fraction of the run (start, end) with guidance; outside, only the fully conditioned branch
            is computed.
        prune_tokens: run face and speech attention only on tokens inside a mask.
        compile: compile the blocks, on an NVIDIA GPU.
        attention: backend of diffusers' attention dispatcher, if it works on this machine; None = torch.
        fp8: run large linear layers of the blocks in FP8, on GPUs that support it.
    """

    router: RouterSchedule = RouterSchedule()
    mask_change: float = 0.1
    cache_threshold: float = 0.0
    max_skipped: int = 1
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    prune_tokens: bool = False
    compile: bool = False
    attention: str | None = None
    fp8: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the transformer that differ from its defaults."""
        interval = {"router_interval": self.router.every} if self.router.every != 1 else {}
        return {**interval, **({"prune_tokens": True} if self.prune_tokens else {})}


PRESETS: dict[Preset, Acceleration] = {
    "exact": Acceleration(),
    "balanced": Acceleration(
        router=RouterSchedule(every=6),
        cache_threshold=0.35,
        guidance_interval=(0.0, 0.75),
        prune_tokens=True,
        compile=True,
        attention="flash",
    ),
    "fast": Acceleration(
        router=RouterSchedule(every=6, freeze=True),
        cache_threshold=0.5,
        max_skipped=2,
        guidance_interval=(0.0, 0.75),
        prune_tokens=True,
        compile=True,
        attention="sage",
        fp8=True,
    ),
}


def get_preset(name: str) -> Acceleration:
    """Settings of a preset.

    Raises:
        InputError: unknown name.
    """
    if name not in PRESETS:
        known = ", ".join(f'"{known}"' for known in get_args(Preset))
        raise InputError(f"preset {name!r}", known, "choose one of them")
    return PRESETS[name]  # type: ignore[index]  # checked above


@dataclass
class BlockMonitor:
    """Records which calls of a transformer ran all blocks.

    Args:
        caching: whether blocks may be skipped.
        runs: for each call since it was last cleared, whether all blocks ran; empty if caching is off.
    """

    caching: bool = False
    runs: list[bool] = field(default_factory=list)


@contextmanager
def apply_preset(transformer: Any, acceleration: Acceleration) -> Iterator[BlockMonitor]:
    """Apply a preset to a transformer; everything is undone on exit.

    Compilation, attention backends and FP8 require an NVIDIA GPU and are ignored elsewhere.
    """
    monitor = BlockMonitor()
    with ExitStack() as stack:
        if acceleration.compile or acceleration.attention is not None or acceleration.fp8:
            parameter = next(transformer.parameters())
            if parameter.device.type == "cuda":
                for context in _gpu_contexts(transformer, acceleration, parameter.dtype):
                    stack.enter_context(context)
        if acceleration.cache_threshold > 0:
            stack.enter_context(_first_block_cache(transformer, acceleration.cache_threshold, monitor))
        yield monitor


def _gpu_contexts(
    transformer: Any, acceleration: Acceleration, dtype: torch.dtype
) -> Iterator[AbstractContextManager[Any]]:
    blocks, attention_backend = transformer.transformer_blocks, acceleration.attention
    hooked = any(_has_layer_hooks(block) for block in blocks)
    device = next(transformer.parameters()).device
    if attention_backend is not None and dtype in (torch.float16, torch.bfloat16):
        head_dim = int(transformer.config.attention_head_dim)
        if attention_works(attention_backend, head_dim, dtype, device):
            yield attention(transformer, attention_backend)
    if acceleration.fp8 and dtype is torch.bfloat16:
        from bya_core.sampling.fp8 import block_linears, fp8_matmul, has_room

        layers = block_linears(blocks)
        offloaded = hooked or any(layer.weight.device != device for layer in layers)
        if offloaded or not has_room(layers):
            reason = "the weights are offloaded" if offloaded else "too little GPU memory is free"
            log.warning("FP8 is not used: %s.", reason)
        else:
            yield fp8_matmul(layers)
    if acceleration.compile and not hooked and importlib.util.find_spec("triton") is not None:
        yield compiled(transformer)  # layer-wise offloading breaks the graph


@functools.lru_cache
def attention_works(backend: str, head_dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a backend of diffusers' attention dispatcher computes attention on this machine.

    One small call is compared with torch's attention, because packages may be missing, outdated, or built for another
    GPU. The reason is logged if it does not work.

    Args:
        backend: name of the backend.
        head_dim: features of each head.
        dtype: dtype of queries, keys and values.
        device: device of the tensors.
    """
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    generator = torch.Generator().manual_seed(0)
    shape = (1, 256, 2, head_dim)
    query, key, value = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    try:
        with torch.no_grad():
            heads_first = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            exact = nn.functional.scaled_dot_product_attention(*heads_first)
            computed = dispatch_attention_fn(query, key, value, backend=backend).transpose(1, 2)  # type: ignore[arg-type]
            error = float((computed.float() - exact.float()).norm() / exact.float().norm())
    except Exception as reason:  # each package fails in its own way
        log.warning("Attention backend %r is not used: %s.", backend, _first_line(reason))
        return False
    if not error < ATTENTION_TOLERANCE:
        log.warning("Attention backend %r is not used: its relative error is %.3g.", backend, error)
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _has_layer_hooks(block: nn.Module) -> bool:
    """Whether single layers of a block have diffusers hooks (offloading or layerwise casting)."""
    registries = (getattr(layer, "_diffusers_hook", None) for layer in block.modules() if layer is not block)
    return any(registry is not None and registry.hooks for registry in registries)


@contextmanager
def _first_block_cache(transformer: Any, threshold: float, monitor: BlockMonitor) -> Iterator[None]:
    """First-Block Cache of diffusers, with `monitor` recording whether it skipped blocks."""
    blocks = transformer.transformer_blocks
    try:
        from diffusers.hooks import FirstBlockCacheConfig
    except ImportError:  # diffusers < 0.35
        log.warning("This version of diffusers has no First-Block Cache; every step is computed in full.")
        yield
        return
    if transformer.is_cache_enabled or len(blocks) < 2:
        log.warning("First-Block Cache is not used: the transformer has another step cache or a single block.")
        yield
        return

    def first(forward: BlockForward, *args: Any) -> tuple[Tensor, Tensor]:
        monitor.runs.append(False)
        return forward(*args)

    def last(forward: BlockForward, *args: Any) -> tuple[Tensor, Tensor]:
        monitor.runs[-1] = True
        return forward(*args)

    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        with _wrapped(blocks[:1], first), _wrapped(blocks[-1:], last):
            monitor.caching = True
            yield
    finally:
        monitor.caching = False
        transformer.disable_cache()


@contextmanager
def compiled(transformer: Any, backend: str = "inductor") -> Iterator[None]:
    """Compile the blocks, sharing one graph; face and speech conditioning stay outside of it."""
    with _wrapped(transformer.transformer_blocks, _compiled(backend)):
        yield


@functools.lru_cache
def _compiled(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Compiled block, cached for the process because compilation takes minutes."""
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
    from torch._dynamo.exc import TorchDynamoException

    graph = torch.compile(CogVideoXBlock.forward, backend=backend)
    failed = False

    def run(forward: Any, *args: Any) -> tuple[Tensor, Tensor]:
        nonlocal failed
        if not failed:
            try:
                return graph(forward.__self__, *args)
            except TorchDynamoException as error:  # for example without a C compiler
                log.warning("Blocks are not compiled: %s.", _first_line(error))
                failed = True
        return forward(*args)

    return run


@contextmanager
def attention(transformer: Any, backend: str) -> Iterator[None]:
    """Use another backend of diffusers' attention dispatcher in the blocks."""
    processors = [block.attn1.processor for block in transformer.transformer_blocks]
    before = [processor._attention_backend for processor in processors]
    try:
        for processor in processors:
            processor._attention_backend = backend
        yield
    finally:
        for processor, previous in zip(processors, before, strict=True):
            processor._attention_backend = previous


@contextmanager
def _wrapped(blocks: Iterable[Any], wrapper: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Replace `base_forward` of some blocks by `wrapper(base_forward, ...)`."""
    with ExitStack() as stack:
        for block in blocks:
            previous = vars(block).get("base_forward")
            if previous is None:
                stack.callback(delattr, block, "base_forward")
            else:
                stack.callback(setattr, block, "base_forward", previous)
            block.base_forward = functools.partial(wrapper, block.base_forward)
        yield
