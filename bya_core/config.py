"""Settings that flow through the house; each checks itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from bya_core.errors import InputError

RouterMode = Literal["intra", "pre", "post", "manual"]
Region = Literal["box", "head"]
SegmenterName = Literal["self", "sam2"]
Bystanders = Literal["model", "hear", "silent"]
SpeedName = Literal["exact", "balanced", "fast"]


def _within(owner: str, name: str, value: float, least: float, most: float | None = None) -> None:
    if value < least or (most is not None and value > most):
        rule = f"at least {least}" if most is None else f"a number from {least:g} to {most:g}"
        raise InputError(f"{owner}.{name} = {value}", rule, "give one in that range")


def _one_of(owner: str, name: str, value: str, kinds: Any) -> None:
    if value not in get_args(kinds):
        known = " or ".join(f'"{kind}"' for kind in get_args(kinds))
        raise InputError(f"{owner}.{name} = {value!r}", known, "choose one of them")


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
        speed: how much work may be left out: "exact" = none, "balanced" or "fast" (`sampling.acceleration`).
    """

    steps: int = 50
    guidance_text: float = 7.0
    guidance_speech: float = 7.0
    scheduler: Literal["dpm", "ddim"] = "dpm"
    seed: int = 0
    drop_identity: bool = False
    speed: SpeedName = "exact"

    def __post_init__(self) -> None:
        _within("sampling", "steps", self.steps, 1)
        _within("sampling", "guidance_text", self.guidance_text, 0.0)
        _within("sampling", "guidance_speech", self.guidance_speech, 0.0)
        _within("sampling", "seed", self.seed, 0)
        _one_of("sampling", "scheduler", self.scheduler, Literal["dpm", "ddim"])
        _one_of("sampling", "speed", self.speed, SpeedName)


@dataclass(frozen=True)
class RouterSchedule:
    """When the router predicts. Where it does not, the masks of the nearest earlier layer or step that did act.

    Args:
        every: in every so many-th of its layers, counted from the first.
        freeze: not any more, once the masks have settled.
    """

    every: int = 1
    freeze: bool = False

    def __post_init__(self) -> None:
        _within("router schedule", "every", self.every, 1)


@dataclass(frozen=True)
class ProbeConfig:
    """How long the intra router is watched before its masks are shown.

    Args:
        settled: mean change of the masks from one step to the next (0..1) under which they count as settled.
        most: largest share of all steps that a probe may take.
        steps: exactly so many steps instead; None = until settled.
        tries: while a character finds no place in the picture, watch again from the noise of the next seed, so many
            times in all. Where a first frame or masks are given, places are theirs to say: there is one try.
    """

    settled: float = 0.02
    most: float = 0.4
    steps: int | None = None
    tries: int = 3

    def __post_init__(self) -> None:
        _within("probe", "settled", self.settled, 0.0, 1.0)
        _within("probe", "most", self.most, 0.0, 1.0)
        if self.steps is not None:
            _within("probe", "steps", self.steps, 1)
        _within("probe", "tries", self.tries, 1)


@dataclass(frozen=True)
class RefineConfig:
    """How masks are cleaned (paper sec. 3.3.3). Each step can be left out.

    Args:
        drop_below: tokens whose best claim is weaker lose their label first (0..1); 0 = none.
        propagate: labels spread from the sure tokens to those without one, over time and space.
        regions: connected regions kept per character and frame, the largest first; 0 = all.
        fill_holes: fill what a character encloses in a frame.
        smooth: deviation of the smoothing over time, in latent frames; 0 = none.
        exclusive: each token has one owner; the background can be it.
        grow: tokens by which masks grow in height and width; negative = shrink.
    """

    drop_below: float = 0.5
    propagate: bool = True
    regions: int = 1
    fill_holes: bool = True
    smooth: float = 0.7
    exclusive: bool = True
    grow: int = 0

    def __post_init__(self) -> None:
        _within("refine", "drop_below", self.drop_below, 0.0, 1.0)
        _within("refine", "regions", self.regions, 0)
        _within("refine", "smooth", self.smooth, 0.0)


@dataclass(frozen=True)
class RoutingConfig:
    """Where the masks come from, and how they reach the speech.

    Args:
        mode: "intra" = predicted while denoising; "pre" = static, from the first frame; "post" = from a first, silent
            pass (paper sec. 3.3.1); "manual" = given masks alone.
        probe: of the intra router.
        region: what the pre router draws around a face.
        segmenter: what finds the characters in the silent pass of the post router: "self" = the model's own router,
            "sam2" = SAM 2.
        segmenter_weights: of SAM 2: a folder, or a name in the Hugging Face cache of this machine.
        static: use the union over time in every frame (the paper's 2D masks).
        refine: how masks are cleaned before they act; None = they act as they are.
        bystanders: what tokens of nobody hear: "hear" = every voice (paper sec. 3.3.3), "silent" = none, "model" = as
            the weights were trained.
    """

    mode: RouterMode = "intra"
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    region: Region = "head"
    segmenter: SegmenterName = "self"
    segmenter_weights: str = "facebook/sam2.1-hiera-tiny"
    static: bool = False
    refine: RefineConfig | None = None
    bystanders: Bystanders = "model"

    def __post_init__(self) -> None:
        _one_of("router", "mode", self.mode, RouterMode)
        _one_of("router", "region", self.region, Region)
        _one_of("router", "segmenter", self.segmenter, SegmenterName)
        _one_of("router", "bystanders", self.bystanders, Bystanders)


@dataclass(frozen=True)
class WindowConfig:
    """How a video longer than one window is made, see `bya_core.pipelines.long_video`.

    Args:
        frames: video frames of a window, 1 + a multiple of the time factor of the video VAE; None = as many as the
            model was trained for.
        overlap: video frames that a window shares with the one before it, likewise 1 + a multiple; None = 9, or less
            in short windows. They are what the next window goes on from: more join motion better, and cost more.
        hold_colours: give each window the colours of the first, so that they cannot drift.
    """

    frames: int | None = None
    overlap: int | None = None
    hold_colours: bool = True

    def __post_init__(self) -> None:
        for name, value in (("frames", self.frames), ("overlap", self.overlap)):
            if value is not None:
                _within("windows", name, value, 1)
        if self.frames is not None and self.overlap is not None and self.frames <= self.overlap:
            came = f"windows of {self.frames} frames with {self.overlap} in common"
            raise InputError(came, "windows longer than their overlap", "lengthen them, or lessen the overlap")
