r"""Print the parameters, memory per device, tokens and FLOPs of a stage without loading weights.

    python training/run_stage.py --plan --stage 3 --recipe cogvideox5b --devices 8 --sharding full \
        --gradient-checkpointing --memory 80

Parameters and FLOPs are exact (`training.engine.trace`, or `training.engine.costs` for published recipes); memory is
an estimate:

- weights, gradients, optimizer state and EMA: exact sizes under the sharding, see `_persistent_memory`;
- activations: the tensors saved for the backward pass; with gradient checkpointing the inputs of all blocks and the
  largest block;
- encoders: text, face and speech encoder and VAE of the published size, which stay on the device while clips are
  encoded (docs/reference/shards.md); `--no-encoders` for encoded clips;
- reserve: 10 % of the activations plus 1.5 GB for kernels, allocator and driver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm

from bya_core.cli.parsing import parse
from bya_core.errors import InputError
from training.engine.costs import Trace, stored_costs
from training.engine.settings import RecipeOptions

if TYPE_CHECKING:  # import PyTorch
    from training.engine.recipe import Recipe
    from training.engine.stages import Stage

RESERVE = 1.5e9
VAE_BYTES = 431_000_000
"""VAE of CogVideoX in bfloat16."""
PUBLISHED_TEXT = 4096
"""Width of the text features of the published size, whose encoders are large; those of toy models are not counted."""


@dataclass(frozen=True)
class Hardware:
    """Devices and memory options of a run.

    Args:
        devices: number of GPUs.
        sharding: "none" = everything replicated (DDP); "zero2" = gradients and optimizer state sharded (DeepSpeed
            ZeRO 2); "full" = weights as well (FSDP2).
        mixed_precision: precision of the forward pass.
        cast_frozen_weights: store frozen matrices in that precision.
        gradient_checkpointing: recompute blocks in the backward pass.
        use_8bit_adam: optimizer state in 8 bits.
        gradient_accumulation_steps: micro-batches per device and step; 0 = one sample each.
        memory: GB per device to compare with; 0 = no comparison.
        encoders: encode clips while training, as for shards; False for encoded clips.
        characters: characters per clip.
        frames: video frames; 0 = native length of the model. Height and width are native.
    """

    devices: int = 1
    sharding: Literal["none", "zero2", "full"] = "none"
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    cast_frozen_weights: bool = False
    gradient_checkpointing: bool = False
    use_8bit_adam: bool = False
    gradient_accumulation_steps: int = 0
    memory: float = 0.0
    encoders: bool = True
    characters: int = 2
    frames: int = 0

    def __post_init__(self) -> None:
        if self.devices < 1 or self.gradient_accumulation_steps < 0 or self.characters < 1:
            raise InputError(f"{self}", "at least one device and one character", "change the numbers")
        if self.sharding != "none" and self.devices == 1:
            problem = f'sharding "{self.sharding}" on one device'
            raise InputError(problem, 'several devices, or "none"', "change --devices or --sharding")

    def micro_batches(self, batch_size: int) -> int:
        """Micro-batches per device and step.

        Raises:
            InputError: there are more micro-batches than samples.
        """
        count = self.gradient_accumulation_steps or max(1, batch_size // self.devices)
        if count * self.devices > batch_size:
            problem = f"{self.devices} devices x {count} micro-batches for a batch of {batch_size}"
            raise InputError(problem, "at least one sample each", "use fewer")
        return count

    def micro_batch_size(self, batch_size: int) -> int:
        """Samples that a device processes at a time."""
        return -(-batch_size // (self.devices * self.micro_batches(batch_size)))


@dataclass(frozen=True)
class Plan:
    """Result of `plan`.

    Args:
        name: name of the recipe.
        stage: configuration of the stage.
        hardware: devices and memory options.
        trace: costs of one sample.
        memory: bytes per device by purpose.
    """

    name: str
    stage: Stage
    hardware: Hardware
    trace: Trace
    memory: dict[str, float]

    @property
    def total_memory(self) -> float:
        """Bytes per device."""
        return sum(self.memory.values())

    @property
    def flops(self) -> float:
        """FLOPs of one step on all devices."""
        recomputed = self.trace.recomputed if self.hardware.gradient_checkpointing else 0
        return (self.trace.forward + self.trace.backward + recomputed) * self.stage.batch_size

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.trace.tokens * self.stage.batch_size

    def table(self) -> str:
        """A text table."""
        stage, hardware, trace = self.stage, self.hardware, self.trace
        lines = [f"{self.name}, stage {stage.number} ({stage.flavour} flavour)", ""]
        lines.append(f"{'parameters':<28}{'trained':>14}{'frozen':>14}")
        for component, (trained, frozen) in (trace.parameters | {"total": (trace.trained, trace.frozen)}).items():
            lines.append(f"  {component:<26}{_millions(trained):>14}{_millions(frozen):>14}")
        devices = f"{hardware.devices} device{'s' if hardware.devices > 1 else ''}"
        sharding = {"none": "replicated", "zero2": "ZeRO 2", "full": "FSDP2"}[hardware.sharding]
        lines += ["", f"memory per device ({devices}, {sharding}, {hardware.mixed_precision})"]
        lines += [f"  {what:<40}{_quantity(value, 'B'):>14}" for what, value in self.memory.items()]
        lines.append(f"  {'total (estimate)':<40}{_quantity(self.total_memory, 'B'):>14}")
        if hardware.memory:
            fits = "fits in" if self.total_memory <= hardware.memory * 1e9 else "does NOT fit in"
            lines.append(f"  {fits} {hardware.memory:g} GB")
        count, size = hardware.micro_batches(stage.batch_size), hardware.micro_batch_size(stage.batch_size)
        lines += ["", f"{stage.steps:,} steps of {stage.batch_size} samples: {hardware.devices} x {count} x {size}"]
        lines.append(f"  {'tokens per step':<40}{self.tokens:>14,}")
        flops = {"forward, per sample": float(trace.forward), "backward": float(trace.backward)}
        if hardware.gradient_checkpointing:
            flops["recomputation (gradient checkpointing)"] = float(trace.recomputed)
        flops |= {"step": self.flops, "whole stage": self.flops * stage.steps}
        lines += [f"  {what:<40}{_quantity(value, 'FLOP'):>14}" for what, value in flops.items()]
        return "\n".join(lines)


def plan(recipe: Recipe, number: int, hardware: Hardware, callback: Callable[[int, int], object] | None = None) -> Plan:
    """Estimate the costs of a stage.

    Args:
        recipe: the recipe.
        number: number of the stage.
        hardware: devices and memory options.
        callback: called with the number of traced blocks and of all blocks.

    Raises:
        InputError: the hardware options do not match the stage.
    """
    from bya_core.memory.sizes import ENCODER_BYTES

    stage = recipe.stages[number]
    size = hardware.micro_batch_size(stage.batch_size)
    options = {
        "half_precision": hardware.mixed_precision != "no",
        "sharded": hardware.sharding != "none",
        "cast_frozen_weights": hardware.cast_frozen_weights,
        "characters": hardware.characters,
        "frames": hardware.frames,
    }
    trace = stored_costs(recipe, number, options)
    if trace is None:
        from training.engine.recipe import check_sections
        from training.engine.trace import trace_sample

        check_sections(recipe)
        trace = trace_sample(recipe.model, stage, callback=callback, **options)
    outside, blocks = trace.saved
    activations = size * (outside + (trace.inputs + max(blocks) if hardware.gradient_checkpointing else sum(blocks)))
    memory = _persistent_memory(trace, stage, hardware)
    if hardware.encoders and recipe.model.get("text_embed_dim", PUBLISHED_TEXT) == PUBLISHED_TEXT:
        memory["encoders"] = float(sum(ENCODER_BYTES.values()) + VAE_BYTES)
    memory |= {"activations": float(activations), "reserve": 0.1 * activations + RESERVE}
    return Plan(recipe.name, stage, hardware, trace, memory)


def _persistent_memory(trace: Trace, stage: Stage, hardware: Hardware) -> dict[str, float]:
    """Bytes per device that are allocated during the whole run.

    Trained weights are float32. ZeRO 2 keeps them in half precision, with a float32 copy in its sharded optimizer.
    FSDP2 shards everything and gathers, in half precision, two blocks or the speech projection at a time, and for the
    whole step what is outside of the modules it wraps (recipes/accelerate/fsdp2.yaml).
    """
    half = 4 if hardware.mixed_precision == "no" else 2
    optimizer_shards = hardware.devices if hardware.sharding != "none" else 1
    weight_shards = hardware.devices if hardware.sharding == "full" else 1
    zero2 = hardware.sharding == "zero2" and half == 2
    trained, frozen = trace.trained, trace.frozen
    frozen_bytes = half if hardware.cast_frozen_weights or zero2 else 4
    # the communication buckets of DDP are as large as the gradients
    buckets = 2 if hardware.sharding == "none" and hardware.devices > 1 else 1
    moments = 2 if hardware.use_8bit_adam else 8
    muon = trace.matrices if stage.optimizer.name == "muon" else 0
    memory = {
        "trained weights": trained * (2 if zero2 else 4) / weight_shards
        + (trained * 4 / optimizer_shards if zero2 else 0),
        "frozen weights": frozen * frozen_bytes / weight_shards,
        "gradients": trained * (2 if zero2 else 4) / optimizer_shards * buckets,
        "optimizer state": (muon * 4 + (trained - muon) * moments) / optimizer_shards,
    }
    if stage.optimizer.ema_decay:
        memory["EMA"] = trained * 4 / weight_shards
    if hardware.sharding == "full":
        memory["gathered weights"] = float((trace.root + trace.gathered) * half)
        # in the precision of the backward pass, and a float32 copy for the reduction
        memory["gradients before reduction"] = float(trace.unreduced * (half + 4))
    return memory


def _quantity(value: float, unit: str) -> str:
    """With SI prefix and three significant digits: 1.63 GB, 829 TFLOP."""
    exponent = min(6, int(math.log10(max(value, 1.0)) / 3 + 1e-9))
    value, prefix = value / 1000**exponent, ("", "k", "M", "G", "T", "P", "E")[exponent]
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {prefix}{unit}"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M" if count else "-"


@dataclass(frozen=True)
class Arguments:
    """Print the parameters, memory, tokens and FLOPs of a stage.

    Args:
        recipe: stage and recipe.
        hardware: devices and memory options.
    """

    recipe: Annotated[RecipeOptions, tyro.conf.arg(name="")]
    hardware: tyro.conf.OmitArgPrefixes[Hardware] = field(default_factory=Hardware)


def main(words: list[str], check_ignored: Callable[[list[str]], Any] | None = None) -> None:
    """Print the plan for the options of a training run.

    Args:
        words: options of the plan, and others that do not affect it.
        check_ignored: gets the words of the other options, and raises InputError for those of no run.
    """
    ignored: list[str] = []
    arguments: Arguments = parse(Arguments, [word for word in words if word != "--plan"], unknown=ignored)
    if check_ignored is not None:
        check_ignored(ignored)
    recipe = arguments.recipe.load_recipe(check=False)
    with tqdm(desc="Tracing blocks", leave=False, delay=0.1) as bar:  # shown only if something is traced

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        print(plan(recipe, arguments.recipe.stage, arguments.hardware, show).table())
    if ignored:
        print(f"\nignored options: {' '.join(ignored)}")
