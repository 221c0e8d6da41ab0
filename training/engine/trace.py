"""Parameters, activation memory and FLOPs of one training sample, traced with fake tensors.

The model is built without memory, and one sample is run forward and backward. Parameters and FLOPs are exact;
activations are the tensors that autograd saves with CPU kernels, which differ from those of a GPU by a few percent.

    python -m training.engine.trace          # traces the published recipes again, for `training.engine.costs`
"""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
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
from training.engine.costs import COSTS, Trace, costs_key
from training.engine.lora import add_lora
from training.engine.objective import StageLoss
from training.engine.optim import select_trainable, unused_prefixes
from training.engine.recipe import load_recipe
from training.engine.stages import Stage

PUBLISHED_RECIPES = ("cogvideox5b", "cogvideox5b_official", "cogvideox5b_one_gpu", "paper")
WEIGHT_OPTIONS: tuple[dict[str, bool], ...] = ({}, {"cast_frozen_weights": True}, {"sharded": True})
"""How the weights reach the forward pass in half precision: as float32, frozen ones cast, or all cast."""
FACE_FEATURE_TOKENS = 577
"""Vision tokens per face of the published encoder."""


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
    half_precision: bool = True,
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
        half_precision: run the forward pass in bfloat16 (float16 costs the same), or else in float32.
        sharded: weights are handed to the forward pass in half precision, as FSDP2 and DeepSpeed do.
        cast_frozen_weights: frozen matrices are stored in half precision.
        characters: N.
        frames: video frames; 0 = native length of the model.
        callback: called with the number of traced blocks and of all blocks.
    """
    dtype = torch.bfloat16 if half_precision else None
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


def main() -> None:
    """Trace the published recipes and write their costs to `training.engine.costs.COSTS`."""
    entries: dict[str, str] = {}
    for name in PUBLISHED_RECIPES:
        recipe = load_recipe(name)
        for number, stage in recipe.stages.items():
            for options in WEIGHT_OPTIONS:
                if (key := costs_key(recipe, number, options)) not in entries:
                    entries[key] = json.dumps(asdict(trace_sample(recipe.model, stage, **options)))
                    print(name, number, options, flush=True)
    COSTS.write_text("{\n" + ",\n".join(f'"{key}": {entries[key]}' for key in sorted(entries)) + "\n}\n")


if __name__ == "__main__":
    main()
