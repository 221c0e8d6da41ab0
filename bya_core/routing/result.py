"""What every router hands over: masks, how sure they are, and a half-done run where there is one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bya_core.config import RouterMode
from bya_core.errors import InputError
from bya_core.sampling import Conditions, DenoiseState


@dataclass(frozen=True)
class Routing:
    """Masks of one clip, and how they are to act.

    Args:
        origin: the router they come from.
        masks: [N, T, h, w] in 0..1.
        confidence: [N] in 0..1, mean of each mask over the tokens it claims (above one half).
        matrix: audio-character matrix [M, N].
        weight: [N]; 0 = the intra router goes on deciding (an untouched probe) ... 1 = forced.
        span: [N, 2], share of the run (from, to; 0..1) in which the masks are forced.
        state: half-done run to go on from; None = from noise.
        calls: transformer calls made so far.
        notices: what a person should know, one sentence each.
    """

    origin: RouterMode
    masks: Tensor
    confidence: Tensor
    matrix: Tensor
    weight: Tensor
    span: Tensor
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
        forced: bool,
        state: DenoiseState | None = None,
        calls: int = 0,
        notices: tuple[str, ...] = (),
    ) -> Routing:
        """Masks [N, T, h, w] that all act alike over the whole run: forced, or left to the intra router."""
        masks = masks.float().cpu()
        count = masks.shape[0]
        weight = torch.full((count,), 1.0 if forced else 0.0)
        span = torch.tensor([[0.0, 1.0]]).expand(count, 2).clone()
        return cls(origin, masks, confidences(masks), matrix, weight, span, state, calls, notices)

    def forced(self, masks: Tensor | None = None) -> Routing:
        """The same with all masks (or other ones [N, T, h, w]) forced over the whole run."""
        masks = self.masks if masks is None else masks.float()
        if masks.shape != self.masks.shape:
            came, rule = f"masks of shape {tuple(masks.shape)}", f"{tuple(self.masks.shape)}"
            raise InputError(came, rule, "give one mask for each character, at token resolution")
        fresh = Routing.of(self.origin, masks, self.matrix, forced=True)
        return replace(self, masks=masks, confidence=fresh.confidence, weight=fresh.weight, span=fresh.span)

    def override(self, masks: Tensor, blend: Tensor, span: Tensor) -> Routing:
        """Draw masks towards given ones, character by character.

        Args:
            masks: given masks [N, T, h, w] in 0..1.
            blend: [N]; 0 = leave this character as it is ... 1 = only the given mask.
            span: [N, 2], share of the run in which the given masks act; outside it the intra router decides.
        """
        blend = blend.float()
        own = self.weight > 0  # forced already: mixed here; else the transformer mixes with what it predicts
        mixed = torch.lerp(self.masks, masks.float(), blend.view(-1, 1, 1, 1))
        shown = torch.where(own.view(-1, 1, 1, 1), mixed, torch.where(blend.view(-1, 1, 1, 1) > 0, masks, self.masks))
        touched = (blend > 0)[:, None]
        return replace(
            self,
            masks=shown,
            confidence=confidences(shown),
            weight=torch.where(own, self.weight, blend),
            span=torch.where(touched, span.float(), self.span),
        )

    def applied(self, conditions: Conditions) -> Conditions:
        """The conditions of a run in which these masks act."""
        conditions = replace(conditions, audio_character_matrix=self.matrix[None])
        if not bool((self.weight > 0).any()):
            return replace(conditions, forced_masks=None, forced_weight=None, forced_range=None)
        always = bool((self.weight == 1).all())
        whole = bool((self.span == torch.tensor([0.0, 1.0])).all())
        return replace(
            conditions,
            forced_masks=self.masks[None],
            forced_weight=None if always else self.weight.view(1, -1, 1, 1, 1),
            forced_range=None if whole else self.span,
        )


def confidences(masks: Tensor) -> Tensor:
    """[N, T, h, w] -> [N]: mean of each mask over the tokens it claims; 0 where it claims none."""
    own = masks > 0.5
    return (masks * own).sum((-3, -2, -1)) / own.sum((-3, -2, -1)).clamp(min=1)
