"""The three stages as data: what is trained, given, dropped, and how it is scored (paper sec. 3.4, 5.2).

A recipe file (`training/recipes/*.yaml`) names a model and changes single values of the stages; the code is the same
for every recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from bya_core.errors import InputError
from training.engine.losses import OfficialRouterWeights, PaperRouterWeights
from training.engine.teacher_forcing import TeacherConfig

Flavour = Literal["paper", "official"]

RECIPES = Path(__file__).parents[1] / "recipes"

TRANSFORMER = "*"
FACE = ("local_facial_extractor.", "perceiver_cross_attention.")
FACE_ATTENTION = ("perceiver_cross_attention.",)
SPEECH = ("audio_model.",)
SPEECH_ATTENTION = ("audio_model.layers.",)
ROUTER = ("router.",)
EVERYTHING = "reference+identity+first_frame+speech"


CONDITIONS: dict[str, tuple[str, ...]] = {
    "reference": ("canvas",),
    "first_frame": ("first_frame",),
    "speech": ("speech",),
    "text": ("text",),
    "identity": ("identity", "hidden"),
}
"""Conditions that can be left out, and the tensors of a batch that hold them."""


@dataclass(frozen=True)
class Drops:
    """Probability that a condition is left out of a sample (its tensors become zeros).

    Args:
        reference: canvas of portraits.
        first_frame: picture the video starts from.
        speech: all voices (zero features, what guidance compares with).
        text: prompt (zeros are what the toy text encoder makes of an empty prompt; a model that was taught the
            empty prompt beforehand needs none of this).
        identity: face features of everybody.
        together: probability of combinations beside that, one at most per sample, written "speech+first_frame".
    """

    reference: float = 0.05
    first_frame: float = 0.05
    speech: float = 0.05
    text: float = 0.0
    identity: float = 0.0
    together: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in CONDITIONS} | self.together
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"drops.{name} = {share}", "a probability from 0 to 1", "give one")
        for name in self.together:
            unknown = [part for part in name.split("+") if part not in CONDITIONS]
            if unknown:
                came = f"drops.together: {name!r}"
                raise InputError(came, f"names of {', '.join(CONDITIONS)} joined by +", "check the spelling")
        if sum(self.together.values()) > 1:
            total = sum(self.together.values())
            raise InputError(f"drops.together add up to {total:g}", "at most 1", "lower some of them")

    def combinations(self) -> dict[tuple[str, ...], float]:
        """What is dropped at once, with its probability."""
        return {tuple(names.split("+")): share for names, share in self.together.items()}


@dataclass(frozen=True)
class Optimiser:
    """How weights are changed.

    Args:
        name: "adamw", or "muon" (matrices of the blocks by Muon, everything else by AdamW).
        lr: peak learning rate.
        warmup: steps until the peak.
        decay: "cosine" to a fiftieth of the peak, or "constant".
        clip: largest gradient norm.
        ema: decay of the averaged weights, which are what is kept; 0 = none.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    warmup: int = 100
    decay: Literal["cosine", "constant"] = "cosine"
    clip: float = 1.0
    ema: float = 0.0


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on the transformer: rank, alpha, and the module names they go on."""

    rank: int = 128
    alpha: int = 128
    targets: tuple[str, ...] = ("attn1.to_q", "attn1.to_k")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        number: 1 identity, 2 speech, 3 router.
        trainable: prefixes of parameter names that learn; "*" = all that is in use.
        flavour: whose losses and teacher masks: "paper" = cross-entropy with background, L1 smoothness and layer
            variance on masks per frame (eqs. 2-5, appendix B); "official" = the six terms and the static, partly
            random teacher masks of the released code.
        lora: adapters trained beside them, or None.
        speech: voices are given.
        router: the router runs and learns.
        mask_loss: share of the samples whose loss counts only people (dynamic mask loss).
        mask_floor: weight of the background in those samples.
        emphasis: extra weight of the cells a data set marks as important (mouths).
        noise_lean: samples without first frame get the timestep T u^(1 / noise_lean), u even between 0 and 1: above 1
            they see more of the high noise, where alone it is open who stands where.
        own_masks: share of the samples in stage 3 that use the router's own masks instead of the teacher's; 0 is
            appendix B to the letter, 1 is no teacher forcing.
        own_masks_warmup: steps over which that share grows from zero, while the router knows nothing yet.
        copies: clips of one character are given as so many, one random slot active (paper sec. 3.4, stage 3);
            1 = as they are, which needs a model for any number of characters.
        static_masks: teacher and targets are the union over time, 2D masks in place of 3D ones.
        router_weights, official_weights: of the router's loss terms in either flavour.
        steps, batch: length of the stage and samples per step; a batch holds as many tokens whatever the clip length.
    """

    number: int
    trainable: tuple[str, ...]
    flavour: Flavour = "paper"
    lora: Lora | None = None
    speech: bool = True
    router: bool = False
    drops: Drops = field(default_factory=Drops)
    mask_loss: float = 0.5
    mask_floor: float = 0.0
    emphasis: float = 0.0
    noise_lean: float = 1.0
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    own_masks: float = 0.0
    own_masks_warmup: int = 0
    copies: int = 1
    static_masks: bool = False
    router_weights: PaperRouterWeights = field(default_factory=PaperRouterWeights)
    official_weights: OfficialRouterWeights = field(default_factory=OfficialRouterWeights)
    optimiser: Optimiser = field(default_factory=Optimiser)
    steps: int = 10_000
    batch: int = 16

    def __post_init__(self) -> None:
        if self.noise_lean <= 0:
            raise InputError(f"noise_lean = {self.noise_lean:g}", "a number above 0", "give one; 1 = no lean")


PUBLISHED: dict[int, Stage] = {
    1: Stage(
        number=1,
        trainable=(TRANSFORMER,),
        speech=False,
        drops=Drops(first_frame=0.5, speech=0.0),
        teacher=TeacherConfig(noise=0.0, drop_tokens=0.0),
        steps=10_000,
    ),
    2: Stage(
        number=2,
        trainable=FACE + SPEECH,
        lora=Lora(),
        drops=Drops(together={"reference+first_frame": 0.05, "first_frame+speech": 0.05, EVERYTHING: 0.05}),
        mask_loss=0.0,
        steps=40_000,
    ),
    3: Stage(
        number=3,
        trainable=ROUTER + FACE_ATTENTION + SPEECH_ATTENTION,
        lora=Lora(),
        router=True,
        mask_loss=0.0,
        copies=2,
        steps=10_000,
    ),
}
"""The paper's stages (sec. 3.4, 5.2): full transformer; then speech, face and LoRA; then router, attentions and LoRA.

The paper names the dynamic mask loss for stage 1 only, and no probabilities for the combinations of stage 2.
"""

RELEASED: dict[int, Stage] = {
    1: replace(PUBLISHED[1], flavour="official"),
    2: replace(PUBLISHED[2], flavour="official"),
    3: replace(
        PUBLISHED[3],
        flavour="official",
        trainable=(*PUBLISHED[3].trainable, "audio_model.mute_learnable_tokens"),
        drops=Drops(reference=0.0, first_frame=0.5, speech=0.0, together={"reference+first_frame": 0.05}),
        mask_loss=0.2,
        teacher=TeacherConfig(noise=0.1, drop_tokens=0.1, drop_masks=0.2),
    ),
}
"""Stage 3 as the released code trains it. Its stages 1 and 2 were never released: they are the paper's."""

FLAVOURS: dict[Flavour, dict[int, Stage]] = {"paper": PUBLISHED, "official": RELEASED}


@dataclass(frozen=True)
class Recipe:
    """A model and its three stages.

    Args:
        name: of the recipe.
        model: arguments of `BindYourAvatarTransformer3DModel`.
        stages: by number.
    """

    name: str
    model: dict[str, Any]
    stages: dict[int, Stage]


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by name (`training/recipes/NAME.yaml`) or path; `extends: NAME` takes over what it does not say itself.

    Its stages begin as those of its `flavour` (`FLAVOURS`) and change what `all_stages` and `stages` name.

    Raises:
        InputError: no such recipe, or a key that no stage has.
    """
    path, content = _read(name)
    common = content.get("all_stages", {})
    flavour = content.get("flavour", "paper")
    if flavour not in FLAVOURS:
        raise InputError(f"{path.name}: flavour {flavour!r}", " or ".join(FLAVOURS), "choose one")
    stages = {}
    for number, published in FLAVOURS[flavour].items():
        stage = overridden(published, common, f"{path.name}: all_stages")
        stages[number] = overridden(stage, content.get("stages", {}).get(number, {}), f"{path.name}: stage {number}")
    return Recipe(path.stem, content["model"], stages)


def _read(name: str | Path) -> tuple[Path, dict[str, Any]]:
    """Path and content of a recipe file, upon the content of the one it extends."""
    path = Path(name) if str(name).endswith(".yaml") else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise InputError(f"recipe {str(name)!r}", f"one of {known}, or a .yaml file", "check the name")
    content = yaml.safe_load(path.read_text())
    base = content.pop("extends", None)
    return path, content if base is None else _merged(_read(base)[1], content)


def _merged(below: dict[Any, Any], above: dict[Any, Any]) -> dict[Any, Any]:
    """Nested mappings, the upper one's values winning."""
    both = {
        k: _merged(below[k], v) if isinstance(v, dict) and isinstance(below.get(k), dict) else v
        for k, v in above.items()
    }
    return {**below, **both}


MADE_OF: dict[str, type] = {"lora": Lora}
"""What a key that may be null becomes when a recipe says more than null."""


def overridden(settings: Any, changes: dict[str, Any], where: str) -> Any:
    """A dataclass with the values of a (nested) mapping put in, as recipe files write them.

    Raises:
        InputError: a key that it does not have; the error says `where`.
    """
    known = {f.name for f in fields(settings)}
    values = {}
    for key, value in changes.items():
        if key not in known:
            raise InputError(f"{where}: key {key!r}", f"one of {', '.join(sorted(known))}", "check the spelling")
        current = getattr(settings, key)
        if key in MADE_OF and current is None and isinstance(value, dict):
            current = MADE_OF[key]()
        if is_dataclass(current) and isinstance(value, dict):
            value = overridden(current, value, f"{where}.{key}")
        elif isinstance(value, list):
            value = tuple(value)
        values[key] = value
    return replace(settings, **values)
