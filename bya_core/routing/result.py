"""The result of every router: character masks, their confidence and, for the intra router, the partial run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bya_core.config import RouterMode
from bya_core.masks import MaskControl, time_union
from bya_core.sampling import Conditions, DenoiseState


@dataclass(frozen=True)
class Routing:
    """Masks of one clip and how they act.

    Args:
        origin: the router that predicted them.
        control: the masks [N, T, h, w] with their strength; strength 0 = the intra router keeps predicting.
        confidence: [N] in 0..1, mean of each mask over the tokens where it exceeds 0.5.
        matrix: audio-character matrix [M, N].
        state: partially denoised latents to resume from; None = start from noise.
        calls: transformer calls made so far.
        notices: messages for the user, one sentence each.
    """

    origin: RouterMode
    control: MaskControl
    confidence: Tensor
    matrix: Tensor
    state: DenoiseState | None = None
    calls: int = 0
    notices: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        origin: RouterMode,
        masks: Tensor,
        matrix: Tensor,
        *,
        strength: float,
        state: DenoiseState | None = None,
        calls: int = 0,
        notices: tuple[str, ...] = (),
    ) -> Routing:
        """Routing with masks [N, T, h, w] that act alike over the whole run."""
        control = MaskControl(masks.float().cpu(), torch.tensor(strength))
        return cls(origin, control, confidences(control.masks), matrix, state, calls, notices)

    @property
    def masks(self) -> Tensor:
        """[N, T, h, w] in 0..1."""
        return self.control.masks

    def with_control(self, control: MaskControl) -> Routing:
        """Replace masks, strength and range; `confidence` follows the masks."""
        return replace(self, control=control, confidence=confidences(control.masks))

    def with_masks(self, masks: Tensor) -> Routing:
        """Replace the masks [N, T, h, w]; they act with full strength over the whole run."""
        return self.with_control(MaskControl(masks.float().cpu()))

    def override(self, control: MaskControl) -> Routing:
        """Apply further masks on top, see `MaskControl.override`."""
        return self.with_control(self.control.override(control))

    def static(self) -> Routing:
        """Replace each mask by its union over time (the paper's 2D masks); all of them act."""
        strength = torch.where(self.control.strength == 0, 1.0, self.control.strength)
        return self.with_control(replace(self.control, masks=time_union(self.masks), strength=strength))

    def from_noise(self) -> Routing:
        """Drop the partially denoised latents: sampling starts from noise and the masks act from the first step."""
        return replace(self, state=None)

    def apply_to(self, conditions: Conditions) -> Conditions:
        """Conditions of a run in which these masks and this matrix act."""
        conditions = replace(conditions, audio_character_matrix=self.matrix[None])
        return replace(conditions, mask_control=self.control) if self.control.is_active else conditions


def confidences(masks: Tensor) -> Tensor:
    """[N, T, h, w] -> [N]: mean of each mask over the tokens where it exceeds 0.5; 0 if there are none."""
    own = masks > 0.5
    return (masks * own).sum((-3, -2, -1)) / own.sum((-3, -2, -1)).clamp(min=1)
