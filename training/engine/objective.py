"""The loss of one training stage on one batch.

All random choices of a sample are drawn from (seed, step, index of the sample in the global batch), and every term is a
mean over samples. A batch that is split into equal micro-batches, over processes or for gradient accumulation, has the
same loss as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Generator, Tensor

from bya_core.errors import InputError
from bya_core.sampling import build_scheduler
from training.data.batches import Batch
from training.engine.losses import add_noise, mask_weights, router_loss_official, router_loss_paper, x0_loss
from training.engine.stages import CONDITIONS, Stage
from training.engine.teacher_forcing import TeacherMasks, paper_teacher_masks, released_teacher_masks

PER_CHARACTER = ("identity", "hidden", "speech")


class SampleRandom:
    """Random numbers for the samples of a batch, with one generator per sample.

    Args:
        seed: seed of the run.
        step: training step.
        first: index of the first sample in the global batch of that step.
        count: B, number of samples.
    """

    def __init__(self, seed: int, step: int, first: int, count: int) -> None:
        self.generators = [_generator(seed, step, first + k) for k in range(count)]

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in 0..1, [B, *shape]."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators])

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, [B, *shape]."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def integers(self, end: int) -> Tensor:
        """Integers from 0 to end - 1, [B]."""
        return torch.stack([torch.randint(end, (), generator=g) for g in self.generators])


class BatchRandom(SampleRandom):
    """The same with a single generator on the device, for all samples together."""

    def __init__(self, seed: int, step: int, first: int, count: int, device: torch.device) -> None:
        self.generators = [_generator(seed, step, first, device)]
        self.count, self.device = count, device

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand((self.count, *shape), generator=self.generators[0], device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn((self.count, *shape), generator=self.generators[0], device=self.device)

    def integers(self, end: int) -> Tensor:
        return torch.randint(end, (self.count,), generator=self.generators[0], device=self.device)


def _generator(seed: int, step: int, sample: int, device: torch.device | str = "cpu") -> Generator:
    """A generator that is independent of that of any other seed, step or sample."""
    state = np.random.SeedSequence([seed, step, sample]).generate_state(1, np.uint64)[0]
    return Generator(device).manual_seed(int(state >> np.uint64(1)))


class StageLoss:
    """The loss of one stage on one batch.

    Args:
        stage: configuration of the stage.
        seed: random seed; sample i of step k always gets the same random numbers.
        scheduler: entries of the noise schedule that differ from `COGVIDEOX_SCHEDULE`.
        batched_random: draw the random numbers of a micro-batch together, see `RunSettings`.
    """

    def __init__(
        self,
        stage: Stage,
        seed: int = 0,
        scheduler: Mapping[str, Any] | None = None,
        batched_random: bool = False,
    ) -> None:
        self.stage, self.seed, self.batched_random = stage, seed, batched_random
        self.alpha_bar = build_scheduler(config=scheduler).alphas_cumprod.float()

    def __call__(
        self, model: Any, batch: Batch, step: int, offset: int = 0, count: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch or micro-batch.

        Args:
            model: `BindYourAvatarTransformer3DModel`, possibly wrapped by accelerate.
            batch: tensors from `as_float`.
            step: training step.
            offset: index of the first sample in the global batch.
            count: size of the global batch; None = this is its last micro-batch.

        Returns:
            (total loss, loss terms), means over the samples. The names of the terms depend on the stage alone.

        Raises:
            InputError: the micro-batch exceeds its global batch.
        """
        stage, clean = self.stage, batch["latents"]
        size, device = len(clean), clean.device
        if offset < 0 or (count is not None and offset + size > count):
            raise InputError(
                f"samples {offset}..{offset + size - 1} of {count}", "a part of the batch", "check the offset"
            )
        key = self.seed, step, offset, size
        random = BatchRandom(*key, device) if self.batched_random else SampleRandom(*key)
        timestep = random.integers(len(self.alpha_bar))
        noise = random.normal(*clean.shape[1:]).to(device)
        batch = self._drop_conditions(batch, random)
        without_first_frame = ~has_first_frame(batch["first_frame"]).to(timestep.device)
        timestep = bias_timesteps(timestep, len(self.alpha_bar), without_first_frame, stage.timestep_bias)
        alpha_bar = self.alpha_bar.to(timestep.device)[timestep].to(device)
        clean = with_first_frame(batch["latents"], batch["first_frame"])
        noisy = add_noise(clean, noise, alpha_bar)
        choices = random.uniform(2).to(device)
        if stage.copies > 1 and batch["masks"].shape[1] == 1:
            batch = replicate_character(batch, stage.copies, random)
        masks = batch["masks"]
        if stage.static_masks:
            masks = masks.amax(dim=2, keepdim=True).expand_as(masks)

        inner = getattr(model, "module", model)
        dtype = next(inner.parameters()).dtype  # bfloat16 only with `mixed_precision: bf16-weights`
        images = torch.cat([batch["canvas"], batch["first_frame"]], 1)
        images = F.pad(images[:, None], (0, 0, 0, 0, 0, 0, 0, clean.shape[1] - 1))
        teacher = self._teacher_masks(masks, inner.schedule.face_layers, random)
        weight = None
        if stage.scheduled_sampling:
            fraction = stage.scheduled_sampling * min(1.0, (step + 1) / max(1, stage.scheduled_sampling_warmup))
            weight = (choices[:, 0] >= fraction).float().view(-1, 1, 1, 1, 1)
        out = model(
            torch.cat([noisy, images], dim=2).to(dtype),
            batch["text"].to(dtype),
            timestep.to(device),
            face_tokens=inner.encode_faces(batch["identity"].to(dtype), batch["hidden"].to(dtype)),
            audio_tokens=inner.encode_speech(batch["speech"].to(dtype)) if stage.speech else None,
            mask_override=teacher.forced,
            mask_override_strength=weight,
            run_router=stage.router,
        )
        weights = self._loss_weights(batch, choices[:, 1] < stage.mask_loss_probability)
        terms = {"diffusion": x0_loss(out.sample, noisy, clean, alpha_bar, weights)}
        total = terms["diffusion"]
        if stage.router:
            router = self._router_loss(out, masks, teacher)
            terms |= {name: value for name, value in router.items() if name != "total"}
            terms["router_iou"] = mask_iou(out.masks, masks)
            total = total + router["total"]
        return total, terms

    def _drop_conditions(self, batch: Batch, random: SampleRandom) -> Batch:
        """Zero out conditions at random: each one independently, and at most one combination per sample."""
        dropout = self.stage.condition_dropout
        single, joint = random.uniform(len(CONDITIONS)), random.uniform()
        start, result = 0.0, dict(batch)
        dropped = {name: single[:, k] < getattr(dropout, name) for k, name in enumerate(CONDITIONS)}
        for names, probability in dropout.combinations().items():
            chosen = (joint >= start) & (joint < start + probability)
            start += probability
            for name in names:
                dropped[name] = dropped[name] | chosen
        for name, keys in CONDITIONS.items():
            for key in keys:
                keep = (~dropped[name]).view(-1, *[1] * (batch[key].ndim - 1)).to(batch[key])
                result[key] = batch[key] * keep
        return result

    def _teacher_masks(self, masks: Tensor, layers: int, random: SampleRandom) -> TeacherMasks:
        """Teacher masks of the flavour, augmented with the generator of each sample, or that of the batch."""
        config, samples = self.stage.teacher, []
        per_generator = len(masks) // len(random.generators)
        for mask, generator in zip(masks.split(per_generator), random.generators, strict=True):
            if self.stage.flavour == "paper":
                samples.append(paper_teacher_masks(mask, layers, config, generator))
            else:
                samples.append(
                    released_teacher_masks(
                        masks_to_labels(mask),
                        mask.shape[1],
                        layers,
                        noise_std=config.noise_std,
                        corruption=config.token_dropout,
                        layer_dropout=config.layer_dropout,
                        generator=generator,
                    )
                )
        return TeacherMasks(*(torch.cat(parts, dim=1) for parts in zip(*samples, strict=True)))

    def _router_loss(self, out: Any, masks: Tensor, teacher: TeacherMasks) -> dict[str, Tensor]:
        if self.stage.flavour == "paper":
            return router_loss_paper(out.router_logits, masks, self.stage.router_weights)
        return router_loss_official(out.masks, teacher.target[: len(out.masks)], self.stage.official_weights)

    def _loss_weights(self, batch: Batch, mask_loss: Tensor) -> Tensor:
        """Weights of the latents [B,T,1,H,W]: characters only where `mask_loss` [B], plus the emphasized cells."""
        stage, latents = self.stage, batch["latents"]
        patch = latents.shape[-1] // batch["masks"].shape[-1]
        characters = mask_weights(batch["masks"], patch, stage.background_weight)
        visible = characters.flatten(1).amax(1) > 0  # a clip without visible characters has no mask loss
        weights = torch.where((mask_loss & visible).view(-1, 1, 1, 1, 1), characters, torch.ones_like(characters))
        return weights + stage.emphasis_weight * rearrange(batch["emphasis"], "b t h w -> b t 1 h w")


def bias_timesteps(timestep: Tensor, end: int, where: Tensor, bias: float) -> Tensor:
    """Move the timesteps [B] in 0..end - 1 for which `where` [B] is true towards the end: end u^(1 / bias)."""
    biased = end * ((timestep.double() + 0.5) / end) ** (1.0 / bias)
    return torch.where(where, biased.long(), timestep)


def has_first_frame(first_frame: Tensor) -> Tensor:
    """Which samples [B] of [B, C, H, W] have a first frame; the others are zeros."""
    return first_frame.flatten(1).any(1)


def with_first_frame(latents: Tensor, first_frame: Tensor) -> Tensor:
    """Replace the first latent frame of [B,T,C,H,W] by the first-frame condition [B,C,H,W] where there is one.

    The condition may differ from the clip: its mouths need not match the speech, as in a photo. The video has to start
    with it nevertheless and follow the speech afterwards.
    """
    start = torch.where(has_first_frame(first_frame).view(-1, 1, 1, 1), first_frame, latents[:, 0])
    return torch.cat([start[:, None], latents[:, 1:]], dim=1)


def replicate_character(batch: Batch, copies: int, random: SampleRandom) -> Batch:
    """Turn clips of one character into clips of `copies` characters (paper sec. 3.4, stage 3).

    Face and speech are repeated. A random slot keeps the mask and the others get empty ones, so that slots are not tied
    to positions.
    """
    active = F.one_hot(random.integers(copies), copies).to(batch["masks"])  # [B, copies]
    repeated = {key: repeat(batch[key], "b 1 ... -> b n ...", n=copies) for key in PER_CHARACTER}
    return {**batch, **repeated, "masks": batch["masks"] * active.view(*active.shape, 1, 1, 1)}


def masks_to_labels(masks: Tensor) -> Tensor:
    """Masks [B,N,T,h,w] in 0..1 -> labels [B,T,h,w]: the last character above 0.5, -1 = background."""
    numbers = torch.arange(1, masks.shape[1] + 1, device=masks.device).view(1, -1, 1, 1, 1)
    return ((masks > 0.5) * numbers).amax(dim=1) - 1


@torch.no_grad()
def mask_iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean IoU of masks [R,B,N,T,h,w] with the ground truth [B,N,T,h,w], thresholded at 0.5.

    Characters that are absent from both are ignored; a sample with no others counts as 1.
    """
    a, b = predicted > 0.5, (truth > 0.5).expand_as(predicted)
    union, intersection = (a | b).sum((3, 4, 5)), (a & b).sum((3, 4, 5))
    present = (union > 0).sum(-1)
    iou = (intersection / union.clamp_min(1)).sum(-1) / present.clamp_min(1)
    return torch.where(present > 0, iou, 1.0).mean()
