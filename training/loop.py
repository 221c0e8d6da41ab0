"""The training loop of all stages: one step of `Stage` on a batch, and everything around it that must not get lost."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from einops import rearrange
from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.sampling import build_scheduler
from training.dataset import Batch, ClipFolder, as_float
from training.losses import add_noise, mask_weights, router_loss_paper, x0_loss
from training.stages import Optimiser, Stage
from training.teacher_forcing import paper_teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """One run of one stage.

    Args:
        output: folder of checkpoints, log and the final weights.
        seed: of data order, noise and drops.
        minutes: stop after this time (the learning rate decays over it); None = after `stage.steps`.
        save_every: minutes between checkpoints.
        log_every: steps between log lines.
        precision: "no" (float32), "bf16" or "fp16" of the forward pass.
    """

    output: Path
    seed: int = 0
    minutes: float | None = None
    save_every: float = 5.0
    log_every: int = 25
    precision: Literal["no", "bf16", "fp16"] = "no"


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


def train(
    model: BindYourAvatarTransformer3DModel,
    data: ClipFolder,
    stage: Stage,
    settings: RunSettings,
    accelerator: Accelerator | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Train one stage; resumes from `settings.output/checkpoint` if there is one.

    The final (averaged) weights are written to `settings.output/final` in diffusers' layout.

    Returns:
        What was measured at the end: steps, minutes and the last means of all losses.

    Raises:
        InputError: a stage with LoRA, or several processes; neither is built yet.
    """
    accelerator = accelerator or Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=settings.precision
    )
    if stage.lora is not None:
        came = f"stage {stage.number} with LoRA of rank {stage.lora.rank}"
        raise InputError(came, "none: this loop does not train adapters yet", "set lora: null in the recipe")
    if accelerator.num_processes > 1:
        came = f"{accelerator.num_processes} processes"
        raise InputError(came, "one: this loop does not share the data out yet", "start it without accelerate launch")
    settings.output.mkdir(parents=True, exist_ok=True)
    select_trainable(model, stage.trainable)
    model.to(accelerator.device).train()
    optimisers = build_optimisers(model, stage.optimiser)
    learned = [p for p in model.parameters() if p.requires_grad]
    ema = EMAModel(learned, decay=stage.optimiser.ema, use_ema_warmup=False) if stage.optimiser.ema else None
    prepared, *optimisers = accelerator.prepare(model, *optimisers)
    loss_of = StageLoss(stage, settings.seed)
    state = _resume(settings.output, accelerator.unwrap_model(prepared), optimisers, ema)
    step, spent = int(state["step"]), float(state["minutes"])
    means: dict[str, float] = dict(state["means"])
    batches = data.batches(stage.batch, settings.seed, start=step)
    started = saved = time.monotonic()
    log.info(
        "stage %d from step %d: %d clips, %.2f M weights learn",
        stage.number,
        step,
        data.clips,
        sum(p.numel() for p in learned) / 1e6,
    )

    def minutes() -> float:
        return spent + (time.monotonic() - started) / 60

    def passed() -> float:
        return minutes() / settings.minutes if settings.minutes is not None else step / stage.steps

    with (settings.output / "log.jsonl").open("a") as record:
        while passed() < 1.0:
            now = rate(stage.optimiser, step, passed())
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = now
                optimiser.zero_grad()
            with accelerator.autocast():
                total, parts = loss_of(prepared, as_float(next(batches), accelerator.device), step)
            if not torch.isfinite(total):
                raise FloatingPointError(
                    f"the loss of step {step} is {float(total)}; the last checkpoint is kept"
                )
            accelerator.backward(total)
            accelerator.clip_grad_norm_(learned, stage.optimiser.clip)
            for optimiser in optimisers:
                optimiser.step()
            step += 1
            if ema is not None:
                ema.decay = min(stage.optimiser.ema, (1 + step) / (10 + step))
                ema.step(learned)
            for name, value in {"loss": total, **parts}.items():
                means[name] = 0.98 * means.get(name, float(value.detach())) + 0.02 * float(value.detach())
            if step % settings.log_every == 0:
                line = {
                    "step": step,
                    "minutes": round(minutes(), 2),
                    "lr": now,
                    **{k: round(v, 4) for k, v in means.items()},
                }
                record.write(json.dumps(line) + "\n")
                record.flush()
                log.info("%s", "  ".join(f"{k} {v:.4g}" for k, v in line.items()))
                if watch is not None:
                    watch(step, means)
            if time.monotonic() - saved > 60 * settings.save_every and accelerator.is_main_process:
                saved = time.monotonic()
                _save(
                    settings.output,
                    accelerator.unwrap_model(prepared),
                    optimisers,
                    ema,
                    step,
                    minutes(),
                    means,
                )
    model = accelerator.unwrap_model(prepared)
    if accelerator.is_main_process:
        _save(settings.output, model, optimisers, ema, step, minutes(), means)
        if ema is not None:
            ema.copy_to(learned)
        model.save_pretrained(settings.output / "final")
    summary = {"steps": step, "minutes": minutes(), **means}
    (settings.output / "summary.json").write_text(
        json.dumps({"stage": asdict(stage), "measured": summary}, indent=1, default=str)
    )
    return summary


def _save(
    output: Path,
    model: nn.Module,
    optimisers: list,
    ema: EMAModel | None,
    step: int,
    minutes: float,
    means: dict[str, float],
) -> None:
    """Written beside the old checkpoint, then renamed over it: a killed run always leaves one whole checkpoint."""
    target, fresh, old = output / "checkpoint", output / "checkpoint.new", output / "checkpoint.old"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    torch.save(
        {
            "model": model.state_dict(),
            "optimisers": [o.state_dict() for o in optimisers],
            "ema": ema.state_dict() if ema is not None else None,
        },
        fresh / "state.pt",
    )
    (fresh / "progress.json").write_text(json.dumps({"step": step, "minutes": minutes, "means": means}))
    if target.exists():
        os.replace(target, old)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def _resume(output: Path, model: nn.Module, optimisers: list, ema: EMAModel | None) -> dict:
    """Load the last whole checkpoint into model, optimisers and average; returns its progress."""
    folder = next(
        (f for f in (output / "checkpoint", output / "checkpoint.old") if (f / "progress.json").is_file()),
        None,
    )
    if folder is None:
        return {"step": 0, "minutes": 0.0, "means": {}}
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    if ema is not None and state["ema"] is not None:
        ema.load_state_dict(state["ema"])
    return json.loads((folder / "progress.json").read_text())
