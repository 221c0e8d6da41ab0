"""From conditions and noise to latents: guidance, schedulers and the denoising loop."""

from bya_core.sampling.conditions import Conditions, Prepared
from bya_core.sampling.denoise import DenoiseResult, DenoiseState, StepInfo, denoise
from bya_core.sampling.schedulers import build_scheduler

__all__ = ["Conditions", "DenoiseResult", "DenoiseState", "Prepared", "StepInfo", "build_scheduler", "denoise"]
