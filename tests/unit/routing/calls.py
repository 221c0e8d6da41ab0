"""Counting what a transformer is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Calls:
    """Args: latents: noisy latents [K, T, C, H, W] of each call; timesteps: of each call; given: its other inputs."""

    latents: list[Tensor] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)
    given: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.timesteps)

    def clear(self) -> None:
        for record in (self.latents, self.timesteps, self.given):
            record.clear()


@contextmanager
def counted(transformer: torch.nn.Module) -> Iterator[Calls]:
    """Every call of the transformer inside the block."""
    calls = Calls()

    def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        calls.latents.append(kwargs["hidden_states"].clone())
        calls.timesteps.append(int(kwargs["timestep"][0]))
        calls.given.append(kwargs)

    handle = transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
