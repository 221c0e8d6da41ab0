"""The loss of one stage on one batch: what is given, dropped, forced and scored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.sampling import build_scheduler
from training.dataset import Batch
from training.losses import add_noise, mask_weights, router_loss_paper, x0_loss
from training.stages import Stage
from training.teacher_forcing import paper_teacher


class StageLoss:
    """The loss of one stage on one batch.

    Args:
        stage: what is given, dropped and scored.
        seed: of all random choices; step k always draws the same.
    """

    def __init__(self, stage: Stage, seed: int = 0) -> None:
        self.stage, self.seed = stage, seed
        self.alpha_bar = build_scheduler().alphas_cumprod.float()

    def __call__(
        self, model: BindYourAvatarTransformer3DModel, batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, parts) of a batch from `as_float`."""
        stage, rng = self.stage, torch.Generator().manual_seed(self.seed * 7_919_003 + step)
        clean, masks = batch["latents"], batch["masks"]
        count, device = len(clean), clean.device

        def chance(probability: float) -> Tensor:
            return (torch.rand(count, generator=rng) < probability).to(device)

        def kept(tensor: Tensor, probability: float) -> Tensor:
            keep = ~chance(probability)
            return tensor * keep.view(-1, *[1] * (tensor.ndim - 1)).to(tensor)

        timestep = torch.randint(len(self.alpha_bar), (count,), generator=rng)
        alpha_bar = self.alpha_bar[timestep].to(device)
        noise = torch.randn(clean.shape, generator=rng).to(device)
        noisy = add_noise(clean, noise, alpha_bar)
        frames = clean.shape[1]
        images = torch.cat(
            [
                kept(batch["canvas"], stage.drops.reference),
                kept(batch["first_frame"], stage.drops.first_frame),
            ],
            1,
        )
        images = F.pad(images[:, None], (0, 0, 0, 0, 0, 0, 0, frames - 1))

        teacher = paper_teacher(masks, model.schedule.face_layers, stage.teacher, rng)
        weight = None
        if stage.own_masks:
            share = stage.own_masks * min(1.0, (step + 1) / max(1, stage.own_masks_warmup))
            weight = (~chance(share)).float().view(-1, 1, 1, 1, 1)
        out = model(
            torch.cat([noisy, images], dim=2),
            kept(batch["text"], stage.drops.text),
            timestep.to(device),
            face_tokens=model.encode_faces(batch["identity"], batch["hidden"]),
            audio_tokens=model.encode_speech(kept(batch["speech"], stage.drops.speech))
            if stage.speech
            else None,
            forced_masks=teacher.used.to(device),
            forced_weight=weight,
            run_router=stage.router,
        )
        parts = {"diffusion": x0_loss(out.sample, noisy, clean, alpha_bar, self._weights(batch, rng))}
        total = parts["diffusion"]
        if stage.router:
            router = router_loss_paper(out.router_logits, masks, stage.router_weights)
            parts |= {name: value for name, value in router.items() if name != "total"}
            parts["router_iou"] = hard_iou(out.masks[0], masks)
            total = total + router["total"]
        return total, parts

    def _weights(self, batch: Batch, rng: torch.Generator) -> Tensor | None:
        """Weights of the latents [B,T,1,H,W]: people by chance, emphasised cells always."""
        stage, latents = self.stage, batch["latents"]
        weights = torch.ones_like(latents[:, :, :1])
        if float(torch.rand(1, generator=rng)) < stage.mask_loss:
            patch = latents.shape[-1] // batch["masks"].shape[-1]
            weights = mask_weights(batch["masks"], patch, stage.mask_floor)
        return weights + stage.emphasis * rearrange(batch["emphasis"], "b t h w -> b t 1 h w")


@torch.no_grad()
def hard_iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean IoU of masks [B,N,T,h,w] cut at one half."""
    a, b = predicted > 0.5, truth > 0.5
    union = (a | b).sum((2, 3, 4))
    return ((a & b).sum((2, 3, 4)) / union.clamp_min(1))[union > 0].mean()
