"""Costs of one training sample, and those of the published recipes, traced once and stored.

`python training/run_stage.py --plan` reads them, so that it need not import the model.
`python -m training.engine.trace` traces them again; to be run when the model or a loss changes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bya_core.validation import from_mapping, validated

if TYPE_CHECKING:
    from training.engine.recipe import Recipe

COSTS = Path(__file__).parents[1] / "recipes" / "costs.json"
NO_COSTS = ("steps", "batch_size", "optimizer")
"""Values of a stage on which the costs of a sample do not depend."""


@validated
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


def stored_costs(recipe: Recipe, number: int, options: dict[str, Any]) -> Trace | None:
    """Costs of one sample of a stage of a published recipe; None for everything else.

    Args:
        recipe: the recipe.
        number: number of the stage.
        options: see `costs_key`.
    """
    if recipe.scheduler or recipe.text_encoder:
        return None
    stored = json.loads(COSTS.read_text(encoding="utf-8")).get(costs_key(recipe, number, options))
    return None if stored is None else from_mapping(Trace, stored, COSTS.name)


def costs_key(recipe: Recipe, number: int, options: dict[str, Any]) -> str:
    """Hash of everything that the costs of a sample depend on.

    Args:
        recipe: the recipe.
        number: number of the stage.
        options: `half_precision` of the forward pass, and `sharded`, `cast_frozen_weights`, `characters` and `frames`
            of `training.engine.trace.trace_layers`, where they differ from its defaults.
    """
    stage = {name: value for name, value in asdict(recipe.stages[number]).items() if name not in NO_COSTS}
    full = {"half_precision": True, "sharded": False, "cast_frozen_weights": False, "characters": 2, "frames": 0}
    full |= options
    full["cast_frozen_weights"] = full["cast_frozen_weights"] and not full["sharded"]  # sharded ones are always cast
    text = json.dumps([recipe.model, stage, full], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
