"""The loss of one stage on one batch: what is given, dropped, forced and scored.

Every sample has random choices of its own, drawn from (seed, step, number of the sample in the whole batch of that
step), and every part of the loss is a mean over samples. So a batch that is cut into equal slices, for several
processes or for accumulation, gives the same loss as in one piece: the mean of the slices is the whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Generator, Tensor

from bya_core.errors import InputError
from bya_core.sampling import build_scheduler
from training.data.dataset import Batch
from training.engine.losses import add_noise, mask_weights, router_loss_official, router_loss_paper, x0_loss
from training.engine.stages import CONDITIONS, Stage
from training.engine.teacher_forcing import TeacherMasks, paper_teacher, released_teacher

PER_CHARACTER = ("identity", "hidden", "speech")


class Chance:
    """Random numbers of the samples of a batch, each from a generator of its own.

    Args:
        seed: of the run.
        step: of the training.
        first: number of the first sample in the whole batch of that step.
        count: B, samples here.
    """

    def __init__(self, seed: int, step: int, first: int, count: int) -> None:
        self.generators = [_generator(seed, step, first + k) for k in range(count)]

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape] in 0..1."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators])

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape]."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def below(self, end: int) -> Tensor:
        """Whole numbers [B] from 0 to end - 1."""
        return torch.stack([torch.randint(end, (), generator=g) for g in self.generators])


def _generator(seed: int, step: int, sample: int) -> Generator:
    """A generator that shares nothing with that of another seed, step or sample."""
    state = np.random.SeedSequence([seed, step, sample]).generate_state(1, np.uint64)[0]
    return Generator().manual_seed(int(state >> np.uint64(1)))


class StageLoss:
    """The loss of one stage on one batch.

    Args:
        stage: what is given, dropped and scored.
        seed: of all random choices; sample i of step k always draws the same.
    """

    def __init__(self, stage: Stage, seed: int = 0) -> None:
        self.stage, self.seed = stage, seed
        self.alpha_bar = build_scheduler().alphas_cumprod.float()

    def __call__(
        self, model: Any, batch: Batch, step: int, offset: int = 0, count: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a slice of a batch.

        Args:
            model: `BindYourAvatarTransformer3DModel`, as it is or as accelerate wrapped it.
            batch: tensors from `as_float`: the whole batch of this step or a slice of it.
            step: of the training.
            offset: number of the slice's first sample in the whole batch.
            count: samples of the whole batch; None = this is the last slice of it.

        Returns:
            (total, parts), means over the samples of the slice. The names of the parts depend on the stage alone.

        Raises:
            InputError: a slice that is not inside its batch.
        """
        stage, clean = self.stage, batch["latents"]
        size, device = len(clean), clean.device
        if offset < 0 or (count is not None and offset + size > count):
            raise InputError(f"samples {offset}..{offset + size - 1} of {count}", "a slice of it", "check the offset")
        chance = Chance(self.seed, step, offset, size)
        timestep = chance.below(len(self.alpha_bar))
        noise = chance.normal(*clean.shape[1:]).to(device)
        batch = self._dropped(batch, chance)
        timestep = leaning(timestep, len(self.alpha_bar), ~given(batch["first_frame"]).cpu(), stage.noise_lean)
        alpha_bar = self.alpha_bar[timestep].to(device)
        clean = begun(batch["latents"], batch["first_frame"])
        noisy = add_noise(clean, noise, alpha_bar)
        coins = chance.uniform(2).to(device)
        if stage.copies > 1 and batch["masks"].shape[1] == 1:
            batch = replicated(batch, stage.copies, chance)
        masks = batch["masks"]
        if stage.static_masks:
            masks = masks.amax(dim=2, keepdim=True).expand_as(masks)

        inner = getattr(model, "module", model)
        images = torch.cat([batch["canvas"], batch["first_frame"]], 1)
        images = F.pad(images[:, None], (0, 0, 0, 0, 0, 0, 0, clean.shape[1] - 1))
        teacher = self._teacher(masks, inner.schedule.face_layers, chance)
        weight = None
        if stage.own_masks:
            share = stage.own_masks * min(1.0, (step + 1) / max(1, stage.own_masks_warmup))
            weight = (coins[:, 0] >= share).float().view(-1, 1, 1, 1, 1)
        out = model(
            torch.cat([noisy, images], dim=2),
            batch["text"],
            timestep.to(device),
            face_tokens=inner.encode_faces(batch["identity"], batch["hidden"]),
            audio_tokens=inner.encode_speech(batch["speech"]) if stage.speech else None,
            mask_override=teacher.used,
            mask_override_strength=weight,
            run_router=stage.router,
        )
        weights = self._weights(batch, coins[:, 1] < stage.mask_loss)
        parts = {"diffusion": x0_loss(out.sample, noisy, clean, alpha_bar, weights)}
        total = parts["diffusion"]
        if stage.router:
            router = self._router_loss(out, masks, teacher)
            parts |= {name: value for name, value in router.items() if name != "total"}
            parts["router_iou"] = hard_iou(out.masks, masks)
            total = total + router["total"]
        return total, parts

    def _dropped(self, batch: Batch, chance: Chance) -> Batch:
        """The batch with conditions zeroed by chance: each by itself, and one combination at most per sample."""
        drops = self.stage.drops
        alone, together = chance.uniform(len(CONDITIONS)), chance.uniform()
        start, result = 0.0, dict(batch)
        gone = {name: alone[:, k] < getattr(drops, name) for k, name in enumerate(CONDITIONS)}
        for names, probability in drops.combinations().items():
            here = (together >= start) & (together < start + probability)
            start += probability
            for name in names:
                gone[name] = gone[name] | here
        for name, keys in CONDITIONS.items():
            for key in keys:
                keep = (~gone[name]).view(-1, *[1] * (batch[key].ndim - 1)).to(batch[key])
                result[key] = batch[key] * keep
        return result

    def _teacher(self, masks: Tensor, layers: int, chance: Chance) -> TeacherMasks:
        """Teacher masks of the flavour, each sample's roughened by its own chance."""
        config, each = self.stage.teacher, []
        for mask, generator in zip(masks.split(1), chance.generators, strict=True):
            if self.stage.flavour == "paper":
                each.append(paper_teacher(mask, layers, config, generator))
            else:
                each.append(
                    released_teacher(
                        labels_of(mask),
                        mask.shape[1],
                        layers,
                        noise=config.noise,
                        corrupt=config.drop_tokens,
                        drop_masks=config.drop_masks,
                        generator=generator,
                    )
                )
        used, target = (torch.cat([getattr(t, name) for t in each], dim=1) for name in ("used", "target"))
        return TeacherMasks(used, target)

    def _router_loss(self, out: Any, masks: Tensor, teacher: TeacherMasks) -> dict[str, Tensor]:
        if self.stage.flavour == "paper":
            return router_loss_paper(out.router_logits, masks, self.stage.router_weights)
        return router_loss_official(out.masks, teacher.target[: len(out.masks)], self.stage.official_weights)

    def _weights(self, batch: Batch, people_only: Tensor) -> Tensor:
        """Weights of the latents [B,T,1,H,W]: people alone where the coin [B] says so, emphasised cells always."""
        stage, latents = self.stage, batch["latents"]
        patch = latents.shape[-1] // batch["masks"].shape[-1]
        people = mask_weights(batch["masks"], patch, stage.mask_floor)
        # Somebody hidden in the whole clip: nothing to weigh by.
        seen = people.flatten(1).amax(1) > 0
        weights = torch.where((people_only & seen).view(-1, 1, 1, 1, 1), people, torch.ones_like(people))
        return weights + stage.emphasis * rearrange(batch["emphasis"], "b t h w -> b t 1 h w")


def leaning(timestep: Tensor, end: int, where: Tensor, lean: float) -> Tensor:
    """Timesteps [B] from 0 to end - 1, those `where` [B] is true moved towards the end: end u^(1 / lean)."""
    moved = end * ((timestep.double() + 0.5) / end) ** (1.0 / lean)
    return torch.where(where, moved.long(), timestep)


def given(first_frame: Tensor) -> Tensor:
    """Which samples [B] of [B, C, H, W] have a first frame: the others are zeros."""
    return first_frame.flatten(1).any(1)


def begun(latents: Tensor, first_frame: Tensor) -> Tensor:
    """Latents [B,T,C,H,W] that begin with the picture [B,C,H,W] they were given; zeros = none given.

    The data may hold another picture than the clip's own: with mouths that do not fit the speech, as in a photo. What
    is made has to begin with it all the same, and to follow the voice after it.
    """
    start = torch.where(given(first_frame).view(-1, 1, 1, 1), first_frame, latents[:, 0])
    return torch.cat([start[:, None], latents[:, 1:]], dim=1)


def replicated(batch: Batch, copies: int, chance: Chance) -> Batch:
    """Clips of one character as clips of `copies` (paper sec. 3.4, stage 3).

    Face and voice are repeated; the mask goes to one random slot and the other slots have none, so that the model
    sees clips of one character in the shape of several, and no slot means a place.
    """
    active = F.one_hot(chance.below(copies), copies).to(batch["masks"])  # [B, copies]
    many = {key: repeat(batch[key], "b 1 ... -> b n ...", n=copies) for key in PER_CHARACTER}
    return {**batch, **many, "masks": batch["masks"] * active.view(*active.shape, 1, 1, 1)}


def labels_of(masks: Tensor) -> Tensor:
    """Masks [B,N,T,h,w] in 0..1 -> labels [B,T,h,w]: -1 nobody, else the last character above one half."""
    numbers = torch.arange(1, masks.shape[1] + 1, device=masks.device).view(1, -1, 1, 1, 1)
    return ((masks > 0.5) * numbers).amax(dim=1) - 1


@torch.no_grad()
def hard_iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean IoU of masks [R,B,N,T,h,w] with the truth [B,N,T,h,w], both cut at one half.

    Characters that neither has do not count; a sample without any others counts as right.
    """
    a, b = predicted > 0.5, (truth > 0.5).expand_as(predicted)
    union, both = (a | b).sum((3, 4, 5)), (a & b).sum((3, 4, 5))
    seen = (union > 0).sum(-1)
    found = (both / union.clamp_min(1)).sum(-1) / seen.clamp_min(1)
    return torch.where(seen > 0, found, 1.0).mean()
