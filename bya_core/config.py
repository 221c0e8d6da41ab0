"""Every user option once: type, default, range, choices and description.

The scene file and its schema, the command line, the widgets of the nodes and the tables of the documentation are
derived from these classes with `bya_core.validation.option`. Ranges and types are checked when an instance is created;
a violation raises `InputError`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from bya_core.errors import InputError
from bya_core.validation import Field, validated

Scheduler = Literal["dpm", "ddim"]
Preset = Literal["exact", "balanced", "fast"]
RouterMode = Literal["intra", "pre", "post", "manual"]
Region = Literal["box", "head"]
DubRegion = Literal["mouth", "head", "given"]
Segmenter = Literal["self", "sam2"]
BackgroundAudio = Literal["model", "all", "none"]
SAM2_WEIGHTS = "facebook/sam2.1-hiera-large"
"""SAM 2 weights that `bya download official` fetches."""

MAX_SECONDS = 36_000  # of a recording or a timeline
MAX_NAME, MAX_TEXT = 100, 20_000  # letters of a name and of a prompt
MAX_CHARACTERS = 100  # of a scene

Steps = Annotated[int, Field(ge=1, le=1000, description="Number of denoising steps.")]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1, description="Random seed.")]
Fraction = Annotated[float, Field(ge=0, le=1)]
GuidanceScale = Annotated[float, Field(ge=0, le=100, description="Guidance scale for the prompt. 1 disables guidance.")]
AudioGuidanceScale = Annotated[
    float,
    Field(
        ge=0,
        le=100,
        description="Guidance scale for the speech. If it differs from guidance_scale, every step needs one more "
        "forward pass.",
    ),
]
SchedulerOption = Annotated[Scheduler, Field(description="Scheduler, one of the CogVideoX schedulers of diffusers.")]
PresetOption = Annotated[
    Preset,
    Field(
        description="Quality/speed preset. exact computes every step in full, balanced skips work with hardly visible "
        "effect, fast skips more."
    ),
]
MaskStrength = Annotated[
    float,
    Field(ge=0, le=1, description="Strength of the mask. 0 uses the router's mask, 1 only the given mask."),
]
MaskStart = Annotated[float, Field(ge=0, le=1, description="Fraction of the steps at which the mask starts to apply.")]
MaskEnd = Annotated[float, Field(ge=0, le=1, description="Fraction of the steps at which the mask stops applying.")]
SpeechStrength = Annotated[
    float,
    Field(
        ge=0,
        le=2,
        description="Strength of the speech conditioning. 1 is the strength used in training, 0 disables it.",
    ),
]


@validated
class SamplingConfig:
    """How the video is denoised. `drop_identity` is `zero2cond` in the released code."""

    steps: Steps = 50
    guidance_scale: GuidanceScale = 7.0
    audio_guidance_scale: AudioGuidanceScale = 7.0
    scheduler: SchedulerOption = "dpm"
    seed: Seed = 0
    drop_identity: Annotated[
        bool, Field(description="Whether to drop faces and first frame from the unconditional branch as well.")
    ] = False
    preset: PresetOption = "exact"
    spatial: Annotated[
        bool, Field(description="Whether each voice is heard from where its character is in the picture (stereo).")
    ] = False


@validated
class LoraConfig:
    """How a LoRA is added to the weights of a model."""

    strength: Annotated[
        float,
        Field(ge=-100, le=100, description="Strength of the LoRA. 1 is the strength it was trained at, 0 disables it."),
    ] = 1.0


@validated
class RouterSchedule:
    """When the router predicts masks. The most recent masks are reused in between."""

    every: Annotated[int, Field(ge=1, le=1000, description="Predict masks in every n-th router layer.")] = 1
    freeze: Annotated[bool, Field(description="Whether to stop predicting once the masks have converged.")] = False


@validated
class ProbeConfig:
    """When the masks of the intra router have converged."""

    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Mask change per step (mean over all tokens, 0 to 1) below which the masks have converged.",
        ),
    ] = 0.02
    max_fraction: Annotated[float, Field(ge=0, le=1, description="Largest fraction of all steps to run.")] = 0.4
    steps: Annotated[
        int | None, Field(ge=1, le=1000, description="Exact number of steps to run. null runs until convergence.")
    ] = None
    num_seeds: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="Number of seeds to try while a character has no region. With a first frame or given masks, "
            "only one seed is tried.",
        ),
    ] = 3
    num_takes: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="Number of seeds that are all tried; the one with the best masks is used. Each costs the steps "
            "of the probe.",
        ),
    ] = 1


@validated
class RefineConfig:
    """How masks are refined (paper sec. 3.3.3). Each step can be disabled."""

    threshold: Annotated[
        float,
        Field(ge=0, le=1, description="Tokens with a lower maximum mask value lose their label. 0 disables the step."),
    ] = 0.5
    propagate: Annotated[
        bool, Field(description="Whether to propagate labels over space and time to tokens without one.")
    ] = True
    max_regions: Annotated[
        int,
        Field(ge=0, le=1000, description="Number of connected regions to keep per character and frame. 0 keeps all."),
    ] = 1
    fill_holes: Annotated[bool, Field(description="Whether to fill holes inside a region.")] = True
    smoothing: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="Standard deviation of the temporal smoothing, in latent frames. 0 disables the step.",
        ),
    ] = 0.7
    exclusive: Annotated[
        bool, Field(description="Whether to assign each token to one character or the background.")
    ] = True
    grow: Annotated[
        int,
        Field(ge=-100, le=100, description="Number of tokens to grow the masks by. Negative values shrink them."),
    ] = 0


@validated
class RouterConfig:
    """Where the character masks come from and how they route the speech (paper sec. 3.3.1)."""

    mode: Annotated[
        RouterMode,
        Field(
            description="Where the masks come from. intra predicts them while denoising, pre uses the first frame, "
            "post a first pass without speech, manual only the given masks."
        ),
    ] = "intra"
    probe: Annotated[ProbeConfig, Field(description="Convergence of the intra router.")] = ProbeConfig()
    region: Annotated[Region, Field(description="Region that the pre router draws around a face.")] = "head"
    segmenter: Annotated[
        Segmenter,
        Field(
            description="What segments the first pass of the post router. self is the router of the model, sam2 is "
            "SAM 2."
        ),
    ] = "self"
    segmenter_weights: Annotated[
        str, Field(description="SAM 2 weights, a folder or a repository name in the Hugging Face cache.")
    ] = SAM2_WEIGHTS
    static: Annotated[
        bool, Field(description="Whether to use the union over all frames in every frame (2D masks of the paper).")
    ] = False
    refine: Annotated[
        RefineConfig | None, Field(description="How the masks are refined before they are applied. null disables it.")
    ] = None
    background_audio: Annotated[
        BackgroundAudio,
        Field(
            description="Which speech background tokens attend to. all is every speech (paper sec. 3.3.3), none is no "
            "speech, model is what the model was trained with."
        ),
    ] = "model"


@validated
class DubConfig:
    """Which part of existing footage is generated again for a new voice, see `bya_core.pipelines.dub`."""

    region: Annotated[
        DubRegion,
        Field(
            description="What is generated again of each character with a new voice: mouth and jaw, the whole head, or "
            "the given masks."
        ),
    ] = "mouth"
    feather: Annotated[
        int,
        Field(
            ge=0,
            le=500,
            description="Width of the soft border around the region, in pixels of the film. Outside of it every pixel "
            "stays as it is.",
        ),
    ] = 4
    strength: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Fraction of the denoising steps that are run. 1 starts from noise, lower values keep more of "
            "what the film shows in the region.",
        ),
    ] = 0.75


@validated
class WindowConfig:
    """How a video is generated that is longer than one window, see `bya_core.pipelines.long_video`."""

    frames: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description="Number of video frames per window (rounded to a multiple of 4, plus 1). null uses the length "
            "the model was trained with.",
        ),
    ] = None
    overlap: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description="Number of video frames that a window shares with the previous one (rounded to a multiple of "
            "4, plus 1). null uses 9, or fewer in short windows.",
        ),
    ] = None
    match_colors: Annotated[bool, Field(description="Whether to match the colors of each window to the first one.")] = (
        True
    )

    def __post_init__(self) -> None:
        if self.frames is not None and self.overlap is not None and self.frames <= self.overlap:
            raise InputError(
                f"windows of {self.frames} frames with an overlap of {self.overlap} frames",
                "an overlap shorter than the window",
                "increase the window length or reduce the overlap",
            )
