r"""What a stage needs, before anything is loaded: parameters, memory per device, tokens and arithmetic per step.

    python training/run_stage.py --plan --stage 3 --recipe cogvideox5b --devices 8 --sharding full \
        --gradient-checkpointing --memory 80

The model is built and one sample is run forwards and backwards with tensors that have a shape and no content, so it
takes no memory to speak of. Parameters and arithmetic are counted; memory is estimated:

- weights, gradients, optimiser state and averaged weights: counted, by the rules of `_resident`;
- activations: the bytes that autograd keeps for the backward pass of this stage, with the kernels of a processor (on a
  GPU they differ by a few percent); with gradient checkpointing the inputs of all blocks and the largest block;
- reserve: a tenth of the activations and 1.5 GB for what kernels, allocator and driver take.

Encoders and video codec are not counted: features come from the cache (docs/reference/shards.md).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.models import rope, router
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from training.data.dataset import Batch
from training.engine.lora import add_lora
from training.engine.objective import StageLoss
from training.engine.optim import idle_parts, select_trainable
from training.engine.stages import Recipe, Stage, load_recipe

Sharding = Literal["none", "zero2", "full"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
RESERVE = 1.5e9
FEATURES = 577
"""Tokens of a face's vision features: what the published encoder gives, a detail for memory and arithmetic."""


@dataclass(frozen=True)
class Machine:
    """On what and how a stage is run.

    Args:
        devices: GPUs.
        sharding: "none" = each has everything (DDP); "zero2" = gradients and optimiser state are shared out
            (DeepSpeed ZeRO-2); "full" = weights as well (FSDP2).
        precision: of the forward pass.
        half_frozen: frozen matrices are kept in that precision.
        gradient_checkpointing: blocks are computed again in the backward pass.
        eight_bit: optimiser state in 8 bits.
        accumulation: slices a device works through per step; 0 = one sample at a time.
        memory: GB of one device, for the verdict; 0 = no verdict.
        characters: N in a clip.
        frames: video frames; 0 = as the model was made for. Height and width are the model's.
    """

    devices: int = 1
    sharding: Sharding = "none"
    precision: Literal["no", "bf16", "fp16"] = "bf16"
    half_frozen: bool = False
    gradient_checkpointing: bool = False
    eight_bit: bool = False
    accumulation: int = 0
    memory: float = 0.0
    characters: int = 2
    frames: int = 0

    def __post_init__(self) -> None:
        if self.devices < 1 or self.accumulation < 0 or self.characters < 1:
            raise InputError(f"{self}", "at least one device and one character", "change the numbers")
        if self.sharding != "none" and self.devices == 1:
            raise InputError(
                f'sharding "{self.sharding}" on one device', 'devices to share with, or "none"', "say which"
            )

    def at_once(self, batch: int) -> int:
        """Samples that a device works on at the same time."""
        slices = self.accumulation or max(1, batch // self.devices)
        if slices * self.devices > batch:
            came = f"{self.devices} devices x {slices} slices for a batch of {batch}"
            raise InputError(came, "at least one sample each", "use fewer")
        return -(-batch // (self.devices * slices))


@dataclass(frozen=True)
class Traced:
    """What one sample does.

    Args:
        parameters: by part of the model: (trained, frozen).
        matrices: trained parameters that are matrices.
        root: parameters that FSDP2 gathers for the whole step (all but blocks, face extractor and speech).
        gathered: parameters of the largest thing that it gathers for itself: two blocks, or speech projection.
        forward, backward, again: operations (2 per multiplication and addition); `again` are those of the blocks that
            gradient checkpointing computes twice.
        kept: bytes for the backward pass outside of blocks, and in each block.
        inputs: bytes of the inputs of all blocks.
        tokens: video and text tokens.
    """

    parameters: dict[str, tuple[int, int]]
    matrices: int
    root: int
    gathered: int
    forward: int
    backward: int
    again: int
    kept: tuple[int, tuple[int, ...]]
    inputs: int
    tokens: int

    @property
    def trained(self) -> int:
        return sum(pair[0] for pair in self.parameters.values())

    @property
    def frozen(self) -> int:
        return sum(pair[1] for pair in self.parameters.values())


@dataclass(frozen=True)
class Plan:
    """Everything that `--plan` prints.

    Args:
        memory: bytes per device by what they are for.
        flops: of one step on all devices together.
        tokens: of one step.
    """

    name: str
    stage: Stage
    machine: Machine
    traced: Traced
    memory: dict[str, float]
    flops: float
    tokens: int

    @property
    def total(self) -> float:
        """Bytes per device."""
        return sum(self.memory.values())

    def text(self) -> str:
        """For people."""
        stage, machine, traced = self.stage, self.machine, self.traced
        lines = [f"{self.name}, stage {stage.number} ({stage.flavour} flavour)", ""]
        lines.append(f"{'parameters':<28}{'trained':>14}{'frozen':>14}")
        for part, (trained, frozen) in traced.parameters.items():
            lines.append(f"  {part:<26}{_millions(trained):>14}{_millions(frozen):>14}")
        lines.append(f"  {'all':<26}{_millions(traced.trained):>14}{_millions(traced.frozen):>14}")
        many = f"{machine.devices} device{'s' if machine.devices > 1 else ''}"
        held = {"none": "each with everything", "zero2": "ZeRO-2", "full": "FSDP2, full sharding"}[machine.sharding]
        lines += ["", f"memory per device ({many}, {held}, {machine.precision})"]
        lines += [f"  {what:<40}{_amount(value, 'B'):>14}" for what, value in self.memory.items()]
        lines.append(f"  {'all, estimated':<40}{_amount(self.total, 'B'):>14}")
        if machine.memory:
            fits = "fits in" if self.total <= machine.memory * 1e9 else "does NOT fit in"
            lines.append(f"  {fits} {machine.memory:g} GB")
        once, slices = machine.at_once(stage.batch), machine.accumulation or max(1, stage.batch // machine.devices)
        lines += ["", f"{stage.steps:,} steps of {stage.batch} samples: {machine.devices} x {slices} x {once}"]
        work = {"per sample: forward": traced.forward, "backward": traced.backward}
        if machine.gradient_checkpointing:
            work["blocks once more (checkpointing)"] = traced.again
        work |= {"per step": self.flops, "whole stage": self.flops * stage.steps}
        lines.append(f"  {'tokens per step':<40}{self.tokens:>14,}")
        lines += [f"  {what:<40}{_amount(value, 'FLOP'):>14}" for what, value in work.items()]
        return "\n".join(lines)


def plan(recipe: Recipe, number: int, machine: Machine) -> Plan:
    """The plan of one stage.

    Raises:
        InputError: a machine that does not go with the stage.
    """
    stage = recipe.stages[number]
    once = machine.at_once(stage.batch)
    traced = trace(recipe.model, stage, machine)
    outside, blocks = traced.kept
    activations = outside + sum(blocks)
    if machine.gradient_checkpointing:
        activations = outside + traced.inputs + max(blocks)
    activations *= once
    memory = _resident(traced, stage, machine) | {
        "activations": float(activations),
        "reserve": 0.1 * activations + RESERVE,
    }
    per_sample = traced.forward + traced.backward + (traced.again if machine.gradient_checkpointing else 0)
    return Plan(recipe.name, stage, machine, traced, memory, per_sample * stage.batch, traced.tokens * stage.batch)


def _resident(traced: Traced, stage: Stage, machine: Machine) -> dict[str, float]:
    """Bytes per device that stay from step to step.

    What learns is float32; ZeRO-2 keeps it in half precision and a float32 copy inside its shared optimiser. FSDP2
    shares everything and gathers, in half precision, what is at work: two blocks or the speech projection, and for the
    whole step what is in none of the parts that it is told to wrap (recipes/accelerate/fsdp2.yaml).
    """
    half = 4 if machine.precision == "no" else 2
    share = machine.devices if machine.sharding != "none" else 1
    spread = machine.devices if machine.sharding == "full" else 1
    zero = machine.sharding == "zero2" and half == 2
    trained, frozen = traced.trained, traced.frozen
    kept_frozen = half if machine.half_frozen or zero else 4
    # DDP sends gradients from buckets that are as large as the gradients themselves
    buckets = 2 if machine.sharding == "none" and machine.devices > 1 else 1
    memory = {
        "weights that learn": trained * (2 if zero else 4) / spread + (trained * 4 / share if zero else 0),
        "frozen weights": frozen * kept_frozen / spread,
        "gradients": trained * (2 if zero else 4) / share * buckets,
    }
    moments = 2 if machine.eight_bit else 8
    if stage.optimiser.name == "muon":
        state = traced.matrices * 4 + (trained - traced.matrices) * moments
    else:
        state = trained * moments
    memory["optimiser state"] = state / share
    if stage.optimiser.ema:
        memory["averaged weights"] = trained * 4 / spread
    if machine.sharding == "full":
        memory["gathered weights"] = float((traced.root + traced.gathered) * half)
    return memory


def trace(arguments: dict[str, Any], stage: Stage, machine: Machine) -> Traced:
    """Run one sample of a stage forwards and backwards without content."""
    half = HALF.get(machine.precision)
    kept, alive, inside, where = Counter[int](), set[int](), Counter[int](), [-1]
    seen: dict[int, Any] = {}
    with torch.device("meta"):
        model = BindYourAvatarTransformer3DModel(**arguments)
        if stage.lora is not None:
            add_lora(model, stage.lora)
    select_trainable(model, stage.trainable, idle_parts(stage))
    with FakeTensorMode(), _tables_apart():
        _as_it_runs(model, half, machine)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights and storage._cdata not in seen:
                seen[storage._cdata] = storage  # held, or its number could be given away again
                kept[where[0]] += storage.nbytes()
            return tensor

        inputs = Counter[int]()
        for index, block in enumerate(model.transformer_blocks):
            block.register_forward_pre_hook(_enter(index, where, inputs), with_kwargs=True)
            block.register_forward_hook(_leave(index, where, alive))
        loss, batch = StageLoss(stage), _sample(model, machine)
        with FlopCounterMode(display=False, custom_mapping=_attention()) as counter:
            on = torch.autocast("cpu", half, enabled=half is not None)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), on:
                total, _ = loss(model, batch, 0)
            forward = counter.get_total_flops()
            for name, counts in counter.get_flop_counts().items():
                before, _, index = name.rpartition(".")
                if before.endswith("transformer_blocks") and index.isdigit():
                    inside[int(index)] += sum(counts.values())
            total.backward()
        backward = counter.get_total_flops() - forward
        return _traced(model, batch, kept, alive, inside, inputs, forward, backward)


@contextmanager
def _tables_apart() -> Iterator[None]:
    """Position tables are kept from call to call: none with content comes in here, none without goes out."""
    kept = (rope._tables, router._rebuilt_table)
    for table in kept:
        table.cache_clear()
    try:
        yield
    finally:
        for table in kept:
            table.cache_clear()


def _traced(
    model: BindYourAvatarTransformer3DModel,
    batch: Batch,
    kept: Counter[int],
    alive: set[int],
    inside: Counter[int],
    inputs: Counter[int],
    forward: int,
    backward: int,
) -> Traced:
    parts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        part = "LoRA" if ".lora_" in name else name.split(".")[0]
        trained, frozen = parts.get(part, (0, 0))
        more = parameter.numel()
        parts[part] = (trained + more, frozen) if parameter.requires_grad else (trained, frozen + more)
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.transformer_blocks]
    extractor, speech = model.local_facial_extractor, model.audio_model
    apart = [0 if m is None else sum(p.numel() for p in m.parameters()) for m in (extractor, speech)]
    projection = 0 if speech is None else sum(p.numel() for p in speech.audio_proj_model.parameters())
    grid = batch["masks"].shape[-3:]
    return Traced(
        parameters=dict(sorted(parts.items(), key=lambda item: -sum(item[1]))),
        matrices=sum(p.numel() for p in model.parameters() if p.requires_grad and p.ndim == 2),
        root=sum(p.numel() for p in model.parameters()) - sum(sizes) - sum(apart),
        gathered=max(2 * max(sizes), projection, apart[0]),
        forward=forward,
        backward=backward,
        again=sum(inside[index] for index in alive),
        kept=(kept[-1], tuple(kept[index] for index in range(len(sizes)))),
        inputs=sum(inputs[index] for index in alive),
        tokens=grid.numel() + batch["text"].shape[1],
    )


def _as_it_runs(model: BindYourAvatarTransformer3DModel, half: torch.dtype | None, machine: Machine) -> None:
    """Weights without content, as the forward pass meets them: FSDP2 and DeepSpeed hand them over in half precision.

    On the meta device itself attention would be counted as if its matrix were written out; so the tensors are those of
    a processor, inside a mode that gives them no memory.
    """
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is None:
                continue
            frozen = machine.half_frozen and not weight.requires_grad and weight.ndim >= 2
            kind = half if half is not None and (machine.sharding != "none" or frozen) else weight.dtype
            empty = torch.empty(weight.shape, dtype=kind)
            module._parameters[name] = torch.nn.Parameter(empty, requires_grad=weight.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _sample(model: BindYourAvatarTransformer3DModel, machine: Machine) -> Batch:
    """One clip of the model's size, without content."""
    c: Any = model.config
    frames = machine.frames or c.sample_frames
    grid = TokenGrid(
        (frames - 1) // c.temporal_compression_ratio + 1,
        c.sample_height // c.patch_size,
        c.sample_width // c.patch_size,
        patch=c.patch_size,
        time_factor=c.temporal_compression_ratio,
    )
    n, latent = machine.characters, (c.out_channels, c.sample_height, c.sample_width)
    return {
        "latents": torch.empty(1, grid.frames, *latent),
        "canvas": torch.empty(1, *latent),
        "first_frame": torch.empty(1, *latent),
        "text": torch.empty(1, c.max_text_seq_length, c.text_embed_dim),
        "masks": torch.empty(1, n, *grid.shape),
        "emphasis": torch.empty(1, grid.frames, *latent[1:]),
        "identity": torch.empty(1, n, c.lfe_id_dim),
        "hidden": torch.empty(1, n, c.lfe_num_scale, FEATURES, c.lfe_vit_dim),
        "speech": torch.empty(1, n, frames + c.audio_window - 1, c.audio_blocks, c.audio_channels),
    }


def _enter(index: int, where: list[int], inputs: Counter[int]) -> Callable[..., None]:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        where[0] = index
        streams = [*args, kwargs.get("hidden_states"), kwargs.get("encoder_hidden_states")]
        inputs[index] += sum(x.numel() * x.element_size() for x in streams if isinstance(x, Tensor))

    return hook


def _leave(index: int, where: list[int], alive: set[int]) -> Callable[..., None]:
    def hook(_: Any, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        where[0] = -1
        if any(tensor.requires_grad for tensor in output):
            alive.add(index)

    return hook


def _attention() -> dict[Any, Any]:
    """Attention of a processor, which torch's counter does not know: forwards two products, backwards five."""
    aten = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


def _amount(value: float, unit: str) -> str:
    """In thousands of thousands, three digits or more: 1.63 GB, 829 TFLOP."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if value < 1000 or prefix == "E":
            break
        value /= 1000
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {prefix}{unit}"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M" if count else "-"


@dataclass(frozen=True)
class Arguments:
    """What a stage needs, before anything is loaded.

    Args:
        stage: 1 identity, 2 speech, 3 router.
        recipe: name in training/recipes, or a .yaml file.
        batch: samples per step, in place of the recipe's.
        machine: on what and how it is run.
    """

    stage: Literal[1, 2, 3]
    recipe: str = "cogvideox5b"
    batch: int | None = None
    machine: tyro.conf.OmitArgPrefixes[Machine] = field(default_factory=Machine)


def main(args: list[str]) -> None:
    """Print the plan; arguments of a run that a plan does not need are left aside."""
    arguments, unused = tyro.cli(Arguments, args=[a for a in args if a != "--plan"], return_unknown_args=True)
    recipe = load_recipe(arguments.recipe)
    if arguments.batch is not None:
        stage = replace(recipe.stages[arguments.stage], batch=arguments.batch)
        recipe = replace(recipe, stages={**recipe.stages, arguments.stage: stage})
    print(plan(recipe, arguments.stage, arguments.machine).text())
    if unused:
        print(f"\nnot needed for a plan: {' '.join(unused)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
