"""Presets that trade a little of the video for time: what each leaves out, and putting it into effect for one run.

    exact       nothing is left out: the numbers of the plain path
    balanced    what can hardly be told from it
    fast        as fast as people still speak with their own voice

Skipping work must never change who speaks. So a preset may skip blocks (First-Block Cache of diffusers: where the
first block changes little from one step to the next, what the others added is added again) only while masks stand
still: never before they have settled, never in the step in which given masks begin, change or end. What a skipped step
adds was computed with the same voices, masks and matrix.

A model is shared by runs with other presets: `apply_preset` takes off whatever it put on.
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

Plain = Callable[..., tuple[Tensor, Tensor]]
"""`BYABlock.plain` of one block."""

ATTENTION_PACKAGES = {"sage": "sageattention", "flash": "flash_attn", "_flash_3": "flash_attn_interface"}
"""Backends of diffusers' attention dispatcher that need a package, and which."""


@dataclass(frozen=True)
class Acceleration:
    """What a preset leaves out.

    Args:
        router: when the router predicts.
        settled: change of the masks in a tenth of the run, as a share of what they cover, under which they stand still.
        cache_threshold: relative change of the first block's residual under which the other blocks are skipped, while
            masks stand still; 0 = never.
        max_skipped: steps in a row that may be skipped.
        guidance_interval: share of the run (from, to) with guidance; outside it only the fullest version is computed.
        prune_tokens: faces and speech act on tokens only that some mask reaches.
        compile: blocks are compiled, on an NVIDIA GPU.
        attention: backend of diffusers' attention dispatcher, used where its package is installed; None = torch's own.
        fp8: large products of the blocks in 8 bits, on GPUs that compute in them.
    """

    router: RouterSchedule = RouterSchedule()
    settled: float = 0.1
    cache_threshold: float = 0.0
    max_skipped: int = 1
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    prune_tokens: bool = False
    compile: bool = False
    attention: str | None = None
    fp8: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the transformer; none where it shall do as it always does."""
        every = {"router_interval": self.router.every} if self.router.every != 1 else {}
        return {**every, **({"prune_tokens": True} if self.prune_tokens else {})}


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
    """The preset of that name.

    Raises:
        InputError: no such preset.
    """
    if name not in PRESETS:
        known = ", ".join(f'"{known}"' for known in get_args(Preset))
        raise InputError(f"speed {name!r}", known, "choose one of them")
    return PRESETS[name]  # type: ignore[index]  # looked up just now


@dataclass
class BlockMonitor:
    """What is seen of a transformer to which a preset is apply_preset.

    Args:
        caching: blocks may be skipped.
        runs: since `begin`, for each call of the transformer whether all of its blocks ran; empty where none is ever
            skipped.
    """

    caching: bool = False
    runs: list[bool] = field(default_factory=list)

    def begin(self) -> None:
        """Before the calls of one step."""
        self.runs.clear()


@contextmanager
def apply_preset(transformer: Any, speed: Acceleration) -> Iterator[BlockMonitor]:
    """Put a preset on a transformer; afterwards it is as it was.

    What this machine does not offer is left out: without an NVIDIA GPU nothing is compiled, no attention exchanged and
    nothing computed in 8 bits.
    """
    watched = BlockMonitor()
    with ExitStack() as stack:
        if speed.compile or speed.attention is not None or speed.fp8:
            parameter = next(transformer.parameters())
            if parameter.device.type == "cuda":
                for aid in _gpu_aids(transformer, speed, parameter.dtype):
                    stack.enter_context(aid)
        if speed.cache_threshold > 0:
            stack.enter_context(_caching(transformer, speed.cache_threshold, watched))
        yield watched


def _gpu_aids(transformer: Any, speed: Acceleration, dtype: torch.dtype) -> Iterator[AbstractContextManager[None]]:
    half = dtype in (torch.float16, torch.bfloat16)
    hooked = any(_hooked(block) for block in transformer.transformer_blocks)
    if speed.attention is not None and half and _installed(ATTENTION_PACKAGES.get(speed.attention)):
        yield attention(transformer, speed.attention)
    if speed.fp8 and dtype is torch.bfloat16 and not hooked:
        from bya_core.sampling.fp8 import block_linears, fp8_matmul, has_room

        layers = block_linears(transformer.transformer_blocks)
        if has_room(layers):
            yield fp8_matmul(layers)
    if speed.compile and not hooked and _installed("triton"):  # layers that come one by one break the graph
        yield compiled(transformer)


def _hooked(block: nn.Module) -> bool:
    """Whether diffusers does something to single layers: brings them one by one, or keeps them in 8 bits."""
    registries = (getattr(layer, "_diffusers_hook", None) for layer in block.modules() if layer is not block)
    return any(registry is not None and registry.hooks for registry in registries)


def _installed(package: str | None) -> bool:
    return package is None or importlib.util.find_spec(package) is not None


@contextmanager
def _caching(transformer: Any, threshold: float, watched: BlockMonitor) -> Iterator[None]:
    """First-Block Cache, and a look at whether it skipped."""
    blocks = transformer.transformer_blocks
    try:
        from diffusers.hooks import FirstBlockCacheConfig
    except ImportError:  # diffusers < 0.35
        log.warning("this diffusers has no First-Block Cache: every step is computed; a newer one makes it faster")
        yield
        return
    if transformer.is_cache_enabled or len(blocks) < 2:
        log.warning("no blocks are skipped: the transformer has a step cache of its own, or a single block")
        yield
        return

    def first(plain: Plain) -> Plain:
        def run(*given: Any) -> tuple[Tensor, Tensor]:
            watched.runs.append(False)
            return plain(*given)

        return run

    def last(plain: Plain) -> Plain:
        def run(*given: Any) -> tuple[Tensor, Tensor]:
            watched.runs[-1] = True
            return plain(*given)

        return run

    transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        with _exchanged(blocks[:1], first), _exchanged(blocks[-1:], last):
            watched.caching = True
            yield
    finally:
        watched.caching = False
        transformer.disable_cache()


@contextmanager
def compiled(transformer: Any, backend: str = "inductor") -> Iterator[None]:
    """The blocks compiled, all of them by one graph; what is injected into them stays outside of it."""
    run = _compiled(backend)
    with _exchanged(transformer.transformer_blocks, lambda plain: functools.partial(run, plain)):
        yield


@functools.lru_cache
def _compiled(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Kept for the life of the process: compiling takes minutes."""
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    graph = torch.compile(CogVideoXBlock.forward, backend=backend)

    def run(plain: Any, *given: Any) -> tuple[Tensor, Tensor]:
        return graph(plain.__self__, *given)

    return run


@contextmanager
def attention(transformer: Any, backend: str) -> Iterator[None]:
    """Attention of the blocks by another backend of diffusers' dispatcher."""
    processors = [block.attn1.processor for block in transformer.transformer_blocks]
    before = [processor._attention_backend for processor in processors]
    try:
        for processor in processors:
            processor._attention_backend = backend
        yield
    finally:
        for processor, was in zip(processors, before, strict=True):
            processor._attention_backend = was


@contextmanager
def _exchanged(blocks: Iterable[Any], change: Callable[[Plain], Plain]) -> Iterator[None]:
    """Another way to compute some blocks, made from the one before."""
    changed = [(block, vars(block).get("plain")) for block in blocks]
    try:
        for block, _ in changed:
            block.plain = change(block.plain)
        yield
    finally:
        for block, before in changed:
            if before is None:
                vars(block).pop("plain", None)
            else:
                block.plain = before
