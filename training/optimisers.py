"""What learns, by which rule and how fast."""

from __future__ import annotations

import math

import torch
from torch import nn

from bya_core.errors import InputError
from training.stages import Optimiser


def select_trainable(model: nn.Module, prefixes: tuple[str, ...]) -> list[str]:
    """Freeze all parameters but those whose name starts with one of `prefixes` ("*" = all); returns their names."""
    chosen = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("*" in prefixes or name.startswith(prefixes) or "lora_" in name)
        if parameter.requires_grad:
            chosen.append(name)
    if not chosen:
        raise InputError(f"trainable = {list(prefixes)}", "prefixes of parameter names", "check the recipe")
    return chosen


def build_optimisers(model: nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices inside blocks and AdamW for the rest."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    adam = {"lr": settings.lr, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        return [torch.optim.AdamW([p for _, p in named], **adam)]
    hidden = [p for name, p in named if p.ndim == 2 and _inside(name)]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, **adam)]
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
