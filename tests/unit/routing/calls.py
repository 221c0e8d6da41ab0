"""Recording the calls of a transformer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Calls:
    """Latents [K, T, C, H, W], timestep and all keyword arguments of each call."""

    latents: list[Tensor] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)
    kwargs: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.timesteps)

    def clear(self) -> None:
        for values in (self.latents, self.timesteps, self.kwargs):
            values.clear()


@contextmanager
def record_calls(transformer: torch.nn.Module) -> Iterator[Calls]:
    """Record all calls inside the context."""
    calls = Calls()

    def record(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        calls.latents.append(kwargs["hidden_states"].clone())
        calls.timesteps.append(int(kwargs["timestep"][0]))
        calls.kwargs.append(kwargs)

    handle = transformer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
