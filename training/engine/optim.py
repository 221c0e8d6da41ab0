"""Trainable parameters, optimizers and learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from bya_core.errors import InputError
from bya_core.weights.state_dict_adapter import NEVER_READ
from training.engine.stages import OptimizerConfig, Stage


def unused_prefixes(stage: Stage) -> tuple[str, ...]:
    """Prefixes of the parameters that take no part in a stage and would never get a gradient."""
    unused: tuple[str, ...] = NEVER_READ
    if not stage.speech:
        unused += ("audio_model.",)
    if not stage.router:
        unused += ("router.",)
    return unused


def select_trainable(model: nn.Module, prefixes: tuple[str, ...], unused: tuple[str, ...] = ()) -> list[str]:
    """Freeze all parameters except adapters and those whose name starts with one of `prefixes`.

    Args:
        model: the transformer.
        prefixes: prefixes of parameter names; "*" = all.
        unused: prefixes that stay frozen in any case.

    Returns:
        Names of the trainable parameters.
    """
    trainable = []
    for name, parameter in model.named_parameters():
        selected = "*" in prefixes or name.startswith(prefixes) or ".lora_" in name
        parameter.requires_grad_(selected and not (unused and name.startswith(unused)))
        if parameter.requires_grad:
            trainable.append(name)
    if not trainable:
        raise InputError(f"trainable = {list(prefixes)}", "prefixes of parameter names", "check the recipe")
    return trainable


def set_precision(model: nn.Module, frozen: torch.dtype | None) -> None:
    """Cast trainable parameters to float32, and frozen matrices to `frozen` unless it is None."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif frozen is not None and parameter.ndim >= 2:
            parameter.data = parameter.data.to(frozen)


def build_optimizers(
    model: nn.Module, config: OptimizerConfig, use_8bit_adam: bool = False
) -> list[torch.optim.Optimizer]:
    """AdamW for all trainable parameters, or Muon for the matrices inside blocks and AdamW for the others.

    Args:
        model: the transformer.
        config: optimizer settings.
        use_8bit_adam: keep the moments of AdamW in 8 bits (bitsandbytes).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    kwargs = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    adamw: Any = _adamw_8bit() if use_8bit_adam else torch.optim.AdamW
    if config.name == "adamw":
        return [adamw([p for _, p in named], **kwargs)]
    hidden = [p for name, p in named if p.ndim == 2 and _is_hidden(name)]
    hidden_ids = {id(p) for p in hidden}
    others = [p for _, p in named if id(p) not in hidden_ids]
    optimizers: list[torch.optim.Optimizer] = [adamw(others, **kwargs)] if others else []
    if hidden:
        muon = torch.optim.Muon(
            hidden, lr=config.lr, weight_decay=config.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    return optimizers


def _adamw_8bit() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        problem = "--use-8bit-adam without the package bitsandbytes"
        raise InputError(problem, "it installed", "run: pip install bitsandbytes") from error
    return AdamW8bit


def _is_hidden(name: str) -> bool:
    """Whether a matrix maps hidden features to hidden features, which Muon is made for."""
    outer = ("patch_embed", "proj_out", "time_embedding", "norm", "latents", "final_proj", "background")
    return not any(part in name for part in outer)


def learning_rate(config: OptimizerConfig, step: int, fraction_done: float) -> float:
    """Learning rate at a step of a run of which `fraction_done` is completed."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.lr_schedule == "constant":
        return config.lr * warmup
    return config.lr * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction_done))))
