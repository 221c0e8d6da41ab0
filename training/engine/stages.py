"""Configuration of the three training stages (paper sec. 3.4, 5.2)."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Literal

from bya_core.errors import InputError
from bya_core.validation import Field, validated
from training.engine.losses import OfficialRouterWeights, PaperRouterWeights
from training.engine.teacher_forcing import TeacherConfig

Flavour = Literal["paper", "official"]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]

TRANSFORMER = "*"
FACE = ("local_facial_extractor.", "perceiver_cross_attention.")
FACE_ATTENTION = ("perceiver_cross_attention.",)
SPEECH = ("audio_model.",)
SPEECH_ATTENTION = ("audio_model.layers.",)
ROUTER = ("router.",)

CONDITIONS: dict[str, tuple[str, ...]] = {
    "reference": ("canvas",),
    "first_frame": ("first_frame",),
    "speech": ("speech",),
    "text": ("text",),
    "identity": ("identity", "hidden"),
}
"""Conditions that can be dropped, and the batch tensors that hold them."""


@validated
class ConditionDropout:
    """Probabilities that a condition is dropped from a sample (its tensors are set to zero).

    Args:
        reference: canvas of reference portraits.
        first_frame: first frame of the video.
        speech: features of all audio streams (zeros are the unconditional input of guidance).
        text: prompt embedding. The toy text encoder maps the empty prompt to zeros; a base model that was trained with
            empty prompts does not need it.
        identity: face features of all characters.
        joint: probabilities that several conditions are dropped together, independent of the above, at most one
            combination per sample. Keys are condition names joined by "+", such as "speech+first_frame".
    """

    reference: Probability = 0.05
    first_frame: Probability = 0.05
    speech: Probability = 0.05
    text: Probability = 0.0
    identity: Probability = 0.0
    joint: dict[str, Probability] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.joint:
            if any(part not in CONDITIONS for part in name.split("+")):
                names = ", ".join(CONDITIONS)
                raise InputError(f"condition_dropout.joint: {name!r}", f"names of {names}, joined by +", "correct it")
        if sum(self.joint.values()) > 1:
            total = sum(self.joint.values())
            raise InputError(f"condition_dropout.joint: probabilities add up to {total:g}", "at most 1", "lower them")

    def combinations(self) -> dict[tuple[str, ...], float]:
        """Condition names that are dropped together -> probability."""
        return {tuple(names.split("+")): probability for names, probability in self.joint.items()}


@validated
class OptimizerConfig:
    """Optimizer and learning rate schedule.

    Args:
        name: "adamw", or "muon" (Muon for the matrices of the blocks, AdamW for everything else).
        lr: peak learning rate.
        betas: AdamW coefficients.
        weight_decay: decoupled weight decay.
        warmup_steps: linear warm-up.
        lr_schedule: "cosine" decays to a fiftieth of the peak; "constant" keeps it.
        max_grad_norm: gradient clipping threshold.
        ema_decay: decay of the exponential moving average of the weights, which is what `final` stores; 0 = no average.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 1e-5
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: Weight = 1e-4
    warmup_steps: Steps = 100
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    max_grad_norm: Positive = 1.0
    ema_decay: Decay = 0.0


@validated
class Lora:
    """LoRA adapters on the transformer: rank, alpha, and the suffixes of the module names they are added to."""

    rank: Count = 128
    alpha: Count = 128
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("attn1.to_q", "attn1.to_k")


@validated
class Stage:
    """One training stage.

    Args:
        number: 1 identity, 2 speech, 3 router.
        trainable: prefixes of the parameter names to train; "*" = all that take part in the stage.
        flavour: losses and teacher masks. "paper": cross-entropy with background, L1 smoothness and layer variance on
            per-frame masks (eqs. 2-5, appendix B); "official": the six terms and the static, partly random teacher
            masks of the released code.
        lora: adapters trained in addition, or None.
        speech: condition on speech.
        router: run and train the router.
        condition_dropout: dropout probabilities of the conditions.
        mask_loss_probability: fraction of the samples with the dynamic mask loss (characters only).
        background_weight: weight of the background in those samples.
        emphasis_weight: additional weight of the cells that the data marks as important (mouths).
        timestep_bias: samples without a first frame use the timestep T u^(1 / timestep_bias) with u uniform in [0, 1].
            Values above 1 favor high noise levels, where the layout of the scene is decided.
        teacher: augmentation of the teacher masks.
        scheduled_sampling: fraction of the samples of stage 3 that use the router's own masks instead of the teacher
            masks. 0 is appendix B, 1 disables teacher forcing.
        scheduled_sampling_warmup: steps over which that fraction grows from zero.
        copies: clips of one character are repeated to this number of characters, with one random slot active (paper
            sec. 3.4, stage 3); 1 = unchanged, for models that take any number of characters.
        static_masks: use the union of the masks over time as teacher and target (2D instead of 3D masks).
        router_weights, official_weights: weights of the router loss terms of each flavour.
        optimizer: optimizer and learning rate schedule.
        steps: length of the stage.
        batch_size: samples per step of the smallest clip size; larger clips come in smaller batches with about as many
            tokens.
    """

    number: Literal[1, 2, 3]
    trainable: tuple[str, ...]
    flavour: Flavour = "paper"
    lora: Lora | None = None
    speech: bool = True
    router: bool = False
    condition_dropout: ConditionDropout = field(default_factory=ConditionDropout)
    mask_loss_probability: Probability = 0.5
    background_weight: Weight = 0.0
    emphasis_weight: Weight = 0.0
    timestep_bias: Positive = 1.0
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    scheduled_sampling: Probability = 0.0
    scheduled_sampling_warmup: Steps = 0
    copies: Count = 1
    static_masks: bool = False
    router_weights: PaperRouterWeights = field(default_factory=PaperRouterWeights)
    official_weights: OfficialRouterWeights = field(default_factory=OfficialRouterWeights)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: Count = 10_000
    batch_size: Count = 16


PUBLISHED: dict[int, Stage] = {
    1: Stage(
        number=1,
        trainable=(TRANSFORMER,),
        speech=False,
        condition_dropout=ConditionDropout(first_frame=0.5, speech=0.0),
        teacher=TeacherConfig(noise_std=0.0, token_dropout=0.0),
        steps=10_000,
    ),
    2: Stage(
        number=2,
        trainable=FACE + SPEECH,
        lora=Lora(),
        condition_dropout=ConditionDropout(
            joint={
                "reference+first_frame": 0.05,
                "first_frame+speech": 0.05,
                "reference+identity+first_frame+speech": 0.05,
            }
        ),
        mask_loss_probability=0.0,
        steps=40_000,
    ),
    3: Stage(
        number=3,
        trainable=ROUTER + FACE_ATTENTION + SPEECH_ATTENTION,
        lora=Lora(),
        router=True,
        mask_loss_probability=0.0,
        copies=2,
        steps=10_000,
    ),
}
"""The stages of the paper (sec. 3.4, 5.2): full transformer; speech, face and LoRA; router, attentions and LoRA.

The paper names the dynamic mask loss for stage 1 only, and no probabilities for the combinations of stage 2.
"""

RELEASED: dict[int, Stage] = {
    1: replace(PUBLISHED[1], flavour="official"),
    2: replace(PUBLISHED[2], flavour="official"),
    3: replace(
        PUBLISHED[3],
        flavour="official",
        trainable=(*PUBLISHED[3].trainable, "audio_model.mute_learnable_tokens"),
        condition_dropout=ConditionDropout(
            reference=0.0, first_frame=0.5, speech=0.0, joint={"reference+first_frame": 0.05}
        ),
        mask_loss_probability=0.2,
        teacher=TeacherConfig(noise_std=0.1, token_dropout=0.1, layer_dropout=0.2),
    ),
}
"""Stage 3 as the released code trains it. Its stages 1 and 2 were not released and are those of the paper."""

FLAVOURS: dict[Flavour, dict[int, Stage]] = {"paper": PUBLISHED, "official": RELEASED}
