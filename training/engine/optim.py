"""What learns, by which rule and how fast."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from bya_core.errors import InputError
from training.engine.stages import Optimiser, Stage

NEVER_USED = ("router.layer_merge.", "audio_model.learnable_scale", "audio_model.mute_learnable_tokens")
"""Parameters of the released files that no computation reads."""


def idle_parts(stage: Stage) -> tuple[str, ...]:
    """Prefixes of parameters that take no part in a stage, and would wait for a gradient in vain."""
    idle: tuple[str, ...] = NEVER_USED
    if not stage.speech:
        idle += ("audio_model.",)
    if not stage.router:
        idle += ("router.",)
    return idle


def select_trainable(model: nn.Module, prefixes: tuple[str, ...], idle: tuple[str, ...] = ()) -> list[str]:
    """Freeze all parameters but adapters and those whose name starts with one of `prefixes`; returns their names.

    Args:
        prefixes: "*" = all.
        idle: prefixes that stay frozen all the same.
    """
    chosen = []
    for name, parameter in model.named_parameters():
        learns = "*" in prefixes or name.startswith(prefixes) or ".lora_" in name
        parameter.requires_grad_(learns and not (idle and name.startswith(idle)))
        if parameter.requires_grad:
            chosen.append(name)
    if not chosen:
        raise InputError(f"trainable = {list(prefixes)}", "prefixes of parameter names", "check the recipe")
    return chosen


def set_precision(model: nn.Module, frozen: torch.dtype | None) -> None:
    """What learns is kept in float32; frozen matrices in `frozen` (None = as they are)."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif frozen is not None and parameter.ndim >= 2:
            parameter.data = parameter.data.to(frozen)


def build_optimisers(model: nn.Module, settings: Optimiser, eight_bit: bool = False) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices inside blocks and AdamW for the rest.

    Args:
        eight_bit: AdamW keeps its two moments in 8 bits (package bitsandbytes).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    adam = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    rule: Any = _eight_bit_adamw() if eight_bit else torch.optim.AdamW
    if settings.name == "adamw":
        return [rule([p for _, p in named], **adam)]
    hidden = [p for name, p in named if p.ndim == 2 and _inside(name)]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    optimisers: list[torch.optim.Optimizer] = [rule(rest, **adam)] if rest else []
    if hidden:
        muon = torch.optim.Muon(
            hidden,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
        optimisers.append(muon)
    return optimisers


def _eight_bit_adamw() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        came = "an 8-bit optimiser without the package bitsandbytes"
        raise InputError(came, "it installed", "run: pip install bitsandbytes") from error
    return AdamW8bit


def _inside(name: str) -> bool:
    """Matrices that map hidden features to hidden features, as Muon wants them."""
    outer = ("patch_embed", "proj_out", "time_embedding", "norm", "latents", "final_proj", "background")
    return not any(part in name for part in outer)


def rate(settings: Optimiser, step: int, passed: float) -> float:
    """Learning rate at a step, `passed` = share of the run that is over."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.decay == "constant":
        return settings.lr * warm
    return settings.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, passed))))
