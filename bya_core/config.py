"""Settings that flow through the house; each checks itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bya_core.errors import InputError


def _at_least(owner: str, name: str, value: float, least: float) -> None:
    if value < least:
        raise InputError(f"{owner}.{name} = {value}", f"at least {least}", "give a larger value")


@dataclass(frozen=True)
class SamplingConfig:
    """How the video is denoised.

    Args:
        steps: denoising steps.
        guidance_text: guidance scale on the prompt; 1 = off.
        guidance_speech: guidance scale on speech; equal to `guidance_text` = one joint scale (as released).
        scheduler: "dpm" or "ddim" (CogVideoX schedulers of diffusers).
        seed: of all random numbers of one video.
        drop_identity: also drop faces and canvas in the unconditional half (`zero2cond` of the released code).
    """

    steps: int = 50
    guidance_text: float = 7.0
    guidance_speech: float = 7.0
    scheduler: Literal["dpm", "ddim"] = "dpm"
    seed: int = 0
    drop_identity: bool = False

    def __post_init__(self) -> None:
        _at_least("sampling", "steps", self.steps, 1)
        _at_least("sampling", "guidance_text", self.guidance_text, 0.0)
        _at_least("sampling", "guidance_speech", self.guidance_speech, 0.0)
        _at_least("sampling", "seed", self.seed, 0)
        if self.scheduler not in ("dpm", "ddim"):
            raise InputError(
                f"sampling.scheduler = {self.scheduler!r}", '"dpm" or "ddim"', "choose one of them"
            )


@dataclass(frozen=True)
class RoutingConfig:
    """Where the masks come from, and how they reach the speech.

    Args:
        mode: "intra" = predicted while denoising (paper sec. 3.3.1); "manual" = given as `forced_masks`.
        blend: 0 = the router decides, 1 = given masks are forced; only with given masks.
    """

    mode: Literal["intra", "manual"] = "intra"
    blend: float = field(default=1.0)

    def __post_init__(self) -> None:
        if self.mode not in ("intra", "manual"):
            raise InputError(f"router.mode = {self.mode!r}", '"intra" or "manual"', "choose one of them")
        if not 0.0 <= self.blend <= 1.0:
            raise InputError(f"router.blend = {self.blend}", "a number from 0 to 1", "give one in that range")
