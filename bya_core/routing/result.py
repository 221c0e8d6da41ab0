"""What every router hands over: masks, how sure they are, and a half-done run where there is one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bya_core.config import RouterMode
from bya_core.errors import InputError
from bya_core.masks import time_union
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
        masks = self.masks if masks is None else masks.float().cpu()
        self._check("masks", masks, tuple(self.masks.shape))
        fresh = Routing.of(self.origin, masks, self.matrix, forced=True)
        return replace(self, masks=masks, confidence=fresh.confidence, weight=fresh.weight, span=fresh.span)

    def override(self, masks: Tensor, blend: Tensor, span: Tensor) -> Routing:
        """Draw what acts towards given masks, character by character.

        What acted before has 1 - blend of the say: the intra router where nothing was forced, forced masks where
        they were, and both where they were blended already.

        Args:
            masks: given masks [N, T, h, w] in 0..1.
            blend: [N]; 0 = leave this character as it is ... 1 = only the given mask.
            span: [N, 2], share of the run (from, to) in which the given masks act; outside it the intra router
                decides. A run that is gone on with has its first steps behind it: see `from_noise`.

        Raises:
            InputError: another shape, or values outside 0..1.
        """
        masks, blend, span = (given.float().cpu() for given in (masks, blend, span))
        count = self.masks.shape[0]
        self._check("masks", masks, tuple(self.masks.shape))
        self._check("mask blends", blend, (count,))
        self._check("mask spans", span, (count, 2))
        if bool((span[:, 0] > span[:, 1]).any()):
            raise InputError("a mask span that ends before it starts", "from, to in 0..1", "swap them")
        # router (1 - w) + old w, drawn to the given by b: router (1 - w)(1 - b) + old w (1 - b) + given b
        old = self.weight * (1 - blend)
        weight = torch.where(blend == 1, 1.0, old + blend)
        share = torch.where(blend > 0, blend / weight.clamp(min=1e-9), 0.0)
        mixed = torch.lerp(self.masks, masks, share.clamp(max=1).view(-1, 1, 1, 1))
        return replace(
            self,
            masks=mixed,
            confidence=confidences(mixed),
            weight=weight,
            span=torch.where((blend > 0)[:, None], span, self.span),
        )

    def held_still(self) -> Routing:
        """The same with each mask's union over time in every frame (2D masks); all of them are forced then."""
        masks = time_union(self.masks)
        weight = torch.where(self.weight == 0, 1.0, self.weight)
        return replace(self, masks=masks, confidence=confidences(masks), weight=weight)

    def from_noise(self) -> Routing:
        """The same without its half-done run: its masks then act from the first step, and that run is made anew."""
        return replace(self, state=None)

    def _check(self, what: str, given: Tensor, shape: tuple[int, ...]) -> None:
        """Raise InputError unless `given` has this shape and values in 0..1."""
        if tuple(given.shape) != shape:
            came, rule = f"{what} of shape {tuple(given.shape)}", f"{shape}"
            raise InputError(came, rule, "give one for each character, masks at token resolution")
        if not bool(torch.isfinite(given).all()) or given.min() < 0 or given.max() > 1:
            raise InputError(f"{what} with values outside 0..1", "0..1 each", "correct them")

    def applied(self, conditions: Conditions) -> Conditions:
        """The conditions of a run in which these masks act."""
        conditions = replace(conditions, audio_character_matrix=self.matrix[None])
        if not bool((self.weight > 0).any()):
            return conditions
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
