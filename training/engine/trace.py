"""Parameters, activation memory and FLOPs of one training sample, traced with fake tensors.

The model is built without memory, and one sample is run forward and backward. Parameters and FLOPs are exact;
activations are the tensors that autograd saves with CPU kernels, which differ from those of a GPU by a few percent.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from bya_core.grid import TokenGrid
from bya_core.models import rope, router
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from training.data.batches import Batch
from training.engine.lora import add_lora
from training.engine.objective import StageLoss
from training.engine.optim import select_trainable, unused_prefixes
from training.engine.stages import Stage

FACE_FEATURE_TOKENS = 577
"""Vision tokens per face of the published encoder."""


@dataclass(frozen=True)
class Trace:
    """Costs of one sample.

    Args:
        parameters: (trained, frozen) parameters by model component.
        matrices: trained parameters that are matrices.
        root: parameters that FSDP2 gathers for the whole step (all except blocks, face extractor and audio model).
        gathered: parameters of the largest unit that FSDP2 gathers: two blocks, or the speech projection.
        unreduced: trained parameters whose gradients are whole at the same time before FSDP2 reduces them: those of the
            root and of the largest unit.
        forward, backward, recomputed: FLOPs (2 per multiply-add); `recomputed` are those of the blocks that gradient
            checkpointing runs twice.
        saved: bytes saved for the backward pass outside of blocks, and in each block.
        inputs: bytes of the inputs of all blocks.
        tokens: video and text tokens.
    """

    parameters: dict[str, tuple[int, int]]
    matrices: int
    root: int
    gathered: int
    unreduced: int
    forward: int
    backward: int
    recomputed: int
    saved: tuple[int, tuple[int, ...]]
    inputs: int
    tokens: int

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(pair[0] for pair in self.parameters.values())

    @property
    def frozen(self) -> int:
        """Number of frozen parameters."""
        return sum(pair[1] for pair in self.parameters.values())


def trace_sample(model_args: dict[str, Any], stage: Stage, **options: Any) -> Trace:
    """Trace one sample of a stage as `trace_layers` does, faster for deep models.

    Layers repeat with the intervals of face and speech attention. Two models with few of them are traced, one with a
    repetition more, and the others are added: all costs are linear in the number of repetitions.
    """
    defaults = {name: p.default for name, p in inspect.signature(BindYourAvatarTransformer3DModel).parameters.items()}
    values = defaults | model_args
    layers: int = values["num_layers"]
    period = math.lcm(values["cross_attn_interval"], values["audio_attn_interval"])
    special = max(values.get("num_router_layers") or 0, values.get("injection_start") or 0) * period
    few = max(2 * period, special + period)
    few += (layers - few) % period
    times = (layers - few) // period - 1
    if times < 1:
        return trace_layers(model_args, stage, **options)
    small, large = (
        trace_layers({**model_args, "num_layers": count}, stage, **options) for count in (few, few + period)
    )

    def add(less: Any, more: Any) -> Any:
        if isinstance(more, tuple):
            return tuple(add(*pair) for pair in zip(less, more, strict=True))
        return more + times * (more - less)

    blocks = large.saved[1]
    first = add(small.saved[1][:-period], blocks[: few - period])  # the first one saves tensors of all layers
    repeated = blocks[-2 * period : -period] * (times + 1)
    return Trace(
        parameters={name: add(small.parameters[name], counts) for name, counts in large.parameters.items()},
        saved=(add(small.saved[0], large.saved[0]), (*first, *repeated, *blocks[-period:])),
        gathered=large.gathered,
        tokens=large.tokens,
        **{
            name: add(getattr(small, name), getattr(large, name))
            for name in ("matrices", "root", "unreduced", "forward", "backward", "recomputed", "inputs")
        },
    )


def trace_layers(
    model_args: dict[str, Any],
    stage: Stage,
    *,
    dtype: torch.dtype | None = torch.bfloat16,
    sharded: bool = False,
    cast_frozen_weights: bool = False,
    characters: int = 2,
    frames: int = 0,
    callback: Callable[[int, int], object] | None = None,
) -> Trace:
    """Trace one sample of a stage with all layers.

    Args:
        model_args: arguments of the transformer.
        stage: configuration of the stage.
        dtype: half precision of the forward pass, or None for float32.
        sharded: weights are handed to the forward pass in half precision, as FSDP2 and DeepSpeed do.
        cast_frozen_weights: frozen matrices are stored in half precision.
        characters: N.
        frames: video frames; 0 = native length of the model.
        callback: called with the number of traced blocks and of all blocks.
    """
    saved, block_flops, inputs = Counter[int](), Counter[int](), Counter[int]()
    needs_grad, current, storages = set[int](), [-1], dict[int, Any]()
    with torch.device("meta"):
        model = BindYourAvatarTransformer3DModel(**model_args)
        if stage.lora is not None:
            add_lora(model, stage.lora)
    select_trainable(model, stage.trainable, unused_prefixes(stage))
    with FakeTensorMode(), _without_cached_tables():
        _materialize(model, dtype, sharded, cast_frozen_weights)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def save(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights and storage._cdata not in storages:
                storages[storage._cdata] = storage  # kept alive, as ids of freed storages are reused
                saved[current[0]] += storage.nbytes()
            return tensor

        def enter(index: int, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            current[0] = index
            if callback is not None:
                callback(index + 1, len(model.transformer_blocks))
            streams = [*args, kwargs.get("hidden_states"), kwargs.get("encoder_hidden_states")]
            inputs[index] += sum(x.nbytes for x in streams if isinstance(x, Tensor))

        def leave(index: int, _: Any, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            current[0] = -1
            if any(tensor.requires_grad for tensor in output):
                needs_grad.add(index)

        for index, block in enumerate(model.transformer_blocks):
            block.register_forward_pre_hook(partial(enter, index), with_kwargs=True)
            block.register_forward_hook(partial(leave, index))
        loss, batch = StageLoss(stage), _fake_batch(model, characters, frames)
        with FlopCounterMode(display=False, custom_mapping=_cpu_attention_flops()) as counter:
            autocast = torch.autocast("cpu", dtype, enabled=dtype is not None)
            with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), autocast:
                total, _ = loss(model, batch, 0)
            forward = counter.get_total_flops()
            for name, counts in counter.get_flop_counts().items():
                parent, _, index = name.rpartition(".")
                if parent.endswith("transformer_blocks") and index.isdigit():
                    block_flops[int(index)] += sum(counts.values())
            total.backward()
        backward = counter.get_total_flops() - forward
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.transformer_blocks]
    extractor, audio = model.local_facial_extractor, model.audio_model
    separate = [0 if m is None else sum(p.numel() for p in m.parameters()) for m in (extractor, audio)]
    projection = 0 if audio is None else sum(p.numel() for p in audio.audio_proj_model.parameters())
    trained = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in model.transformer_blocks]
    units = [0 if m is None else sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (extractor, audio)]
    wide = audio.audio_proj_model.parameters() if audio is not None else ()
    largest = max(*trained, units[0], sum(p.numel() for p in wide if p.requires_grad))
    all_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Trace(
        parameters=_count_parameters(model),
        matrices=sum(p.numel() for p in model.parameters() if p.requires_grad and p.ndim == 2),
        root=sum(p.numel() for p in model.parameters()) - sum(sizes) - sum(separate),
        gathered=max(2 * max(sizes), projection, separate[0]),
        unreduced=all_trained - sum(trained) - sum(units) + largest,
        forward=forward,
        backward=backward,
        recomputed=sum(block_flops[index] for index in needs_grad),
        saved=(saved[-1], tuple(saved[index] for index in range(len(sizes)))),
        inputs=sum(inputs[index] for index in needs_grad),
        tokens=batch["masks"].shape[-3:].numel() + batch["text"].shape[1],
    )


def _count_parameters(model: BindYourAvatarTransformer3DModel) -> dict[str, tuple[int, int]]:
    """(trained, frozen) parameters by component, largest first."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        component = "LoRA" if ".lora_" in name else name.split(".")[0]
        trained, frozen = counts.get(component, (0, 0))
        size = parameter.numel()
        counts[component] = (trained + size, frozen) if parameter.requires_grad else (trained, frozen + size)
    return dict(sorted(counts.items(), key=lambda item: -sum(item[1])))


@contextmanager
def _without_cached_tables() -> Iterator[None]:
    """Clear cached position tables, so that real and fake ones do not mix."""
    caches = (rope._tables, router._cached_table)
    for cache in caches:
        cache.cache_clear()
    try:
        yield
    finally:
        for cache in caches:
            cache.cache_clear()


def _materialize(
    model: BindYourAvatarTransformer3DModel, dtype: torch.dtype | None, sharded: bool, cast_frozen_weights: bool
) -> None:
    """Replace meta tensors by fake CPU tensors with the dtypes that the forward pass gets.

    On the meta device attention would be counted as if its matrix were materialized.
    """
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is None:
                continue
            cast = cast_frozen_weights and not weight.requires_grad and weight.ndim >= 2
            kind = dtype if dtype is not None and (sharded or cast) else weight.dtype
            fake = torch.empty(weight.shape, dtype=kind)
            module._parameters[name] = torch.nn.Parameter(fake, requires_grad=weight.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _fake_batch(model: BindYourAvatarTransformer3DModel, characters: int, frames: int) -> Batch:
    """One clip of the native size of the model."""
    c: Any = model.config
    n, frames = characters, frames or c.sample_frames
    latent = (c.out_channels, c.sample_height, c.sample_width)
    grid = TokenGrid(
        (frames - 1) // c.temporal_compression_ratio + 1,
        c.sample_height // c.patch_size,
        c.sample_width // c.patch_size,
        patch=c.patch_size,
        time_factor=c.temporal_compression_ratio,
    )
    return {
        "latents": torch.empty(1, grid.frames, *latent),
        "canvas": torch.empty(1, *latent),
        "first_frame": torch.empty(1, *latent),
        "text": torch.empty(1, c.max_text_seq_length, c.text_embed_dim),
        "masks": torch.empty(1, n, *grid.shape),
        "emphasis": torch.empty(1, grid.frames, *latent[1:]),
        "identity": torch.empty(1, n, c.lfe_id_dim),
        "hidden": torch.empty(1, n, c.lfe_num_scale, FACE_FEATURE_TOKENS, c.lfe_vit_dim),
        "speech": torch.empty(1, n, frames + c.audio_window - 1, c.audio_blocks, c.audio_channels),
    }


def _cpu_attention_flops() -> dict[Any, Any]:
    """FLOP formulas of CPU attention, which torch's counter lacks."""
    aten = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
