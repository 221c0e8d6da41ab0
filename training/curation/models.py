"""Interfaces and registry of the models used by curation stages.

A model is loaded only when a stage needs it. Models marked `puppet_only` work on synthetic puppet footage only; a run
that uses one reports it in its log, report and shards.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Annotated, Any, Literal, Protocol, get_type_hints

import numpy as np
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from bya_core.errors import InputError
from bya_core.evaluation.sync_metrics import Sync
from bya_core.validation import validated

Task = Literal["detector", "identity", "extractor", "sync", "segmenter", "speech", "captioner"]


class FaceIdentity(Protocol):
    """Face embedding model.

    Attributes:
        threshold: similarity from which two faces may belong to the same person.
    """

    threshold: float

    def embed(self, face: np.ndarray) -> np.ndarray:
        """Embed a tightly cropped face, uint8 [h,w,3], as [D]."""
        ...

    def similarity(self, query: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        """Similarity of [D] to each of [K,D] as [K]; 1 = identical."""
        ...


@dataclass(frozen=True, eq=False)
class SpeechMixture:
    """Input of speech extraction.

    Args:
        waveform: float32 [S] at 16 kHz.
        faces: uint8 [N,F,224,224,3] at 25 fps, face crops of all characters (see `footage.face_crops`).
        source: path of the source file.
        start: start time within that file in seconds.
        points: face meshes [N,F,468,2] at 25 fps (see `footage.clip_points`), if the face detector fits them.
    """

    waveform: np.ndarray
    faces: np.ndarray
    source: str
    start: float
    points: np.ndarray | None = None


class SpeechExtractor(Protocol):
    """Audio-visual target speaker extraction."""

    def extract(self, mixture: SpeechMixture) -> np.ndarray:
        """Return float32 [N,S]; stream n is the speech of character n, silence if it does not speak."""
        ...


class SyncScorer(Protocol):
    """Audio-visual synchronization score.

    Attributes:
        min_confidence: default of the lowest accepted mean score.
        margin: default of the smallest gain for which another assignment of speeches to faces is believed.
    """

    min_confidence: float
    margin: float

    def scores(self, faces: np.ndarray, speeches: np.ndarray) -> list[list[Sync]]:
        """Score uint8 [N,F,224,224,3] at 25 fps against float32 [M,S] at 16 kHz; returns M rows of N scores."""
        ...


class Captioner(Protocol):
    """Video captioning."""

    def caption(self, frames: np.ndarray, boxes: np.ndarray, speaking: Sequence[bool]) -> str:
        """Describe frames uint8 [K,H,W,3] with face boxes [K,N,4] in pixels and the speaking characters."""
        ...


@validated
class ModelChoice:
    """A model and its options.

    Args:
        name: key of `MODELS`.
        options: keyword arguments of its factory, such as weights and device.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


ModelOption = Annotated[ModelChoice, BeforeValidator(_by_name)]
"""Type of a setting that selects a model: a name, or a mapping with `name` and `options`."""


@dataclass(frozen=True)
class ModelEntry:
    """A registered model.

    Args:
        factory: "module:function", called with the options.
        description: one line for documentation.
        puppet_only: whether the model works on synthetic puppet footage only.
    """

    factory: str
    description: str
    puppet_only: bool = False


_REAL = "training.curation.real_models:"
_NONE = ModelEntry(_REAL + "no_model", "skips the stage")
_MESH = "training.curation.mesh_models:"
_PUPPET = "training.curation.puppet_models:"

MODELS: dict[Task, dict[str, ModelEntry]] = {
    "detector": {
        "blazeface": ModelEntry("bya_core.encoders.face.mesh:FaceMesh", "BlazeFace and face mesh, in the package"),
        "scrfd": ModelEntry(_REAL + "scrfd", "SCRFD of insightface"),
        "puppet": ModelEntry(_PUPPET + "PuppetFaces", "pairs of drawn eyes", puppet_only=True),
    },
    "identity": {
        "color": ModelEntry(_REAL + "ColorIdentity", "color histogram of the face; valid within one shot"),
        "arcface": ModelEntry(_REAL + "ArcFaceIdentity", "ArcFace (glintr100)"),
    },
    "extractor": {
        "none": ModelEntry(_REAL + "no_model", "the recorded audio is the speech; for one character"),
        "lips": ModelEntry(_MESH + "LipSpeakers", "the recorded audio in the turns of each person; no separation"),
        "clearvoice": ModelEntry("training.curation.clearvoice:ClearVoiceExtractor", "AV_MossFormer2_TSE_16K"),
        "puppet": ModelEntry(_PUPPET + "PuppetVoices", "ground-truth speech by mouth motion", puppet_only=True),
    },
    "sync": {
        "none": _NONE,
        "lips": ModelEntry(_MESH + "LipSyncScorer", "mouth shapes expected from the voice, in the package"),
        "syncnet": ModelEntry(_REAL + "syncnet", "SyncNet"),
        "puppet": ModelEntry(_PUPPET + "PuppetSync", "mouth opening against loudness", puppet_only=True),
    },
    "segmenter": {
        "none": ModelEntry(_REAL + "no_model", "no masks; shards cannot be written"),
        "mesh": ModelEntry(_MESH + "MeshSegmenter", "face mesh and selfie segmentation"),
        "sam2": ModelEntry(_REAL + "sam2", "SAM 2.1 video of transformers"),
        "puppet": ModelEntry(_PUPPET + "PuppetSegmenter", "puppets by color and outline", puppet_only=True),
    },
    "speech": {
        "none": ModelEntry(_REAL + "no_model", "no features; computed by training"),
        "wav2vec": ModelEntry(_REAL + "wav2vec", "wav2vec2-base-960h"),
        "toy": ModelEntry(_REAL + "model_speech", "speech encoder of the toy model, or of another one"),
    },
    "captioner": {
        "none": ModelEntry(_REAL + "no_model", "empty captions"),
        "template": ModelEntry(_REAL + "TemplateCaptions", "number of people, and who speaks"),
        "qwen2vl": ModelEntry(_REAL + "qwen_captioner", "Qwen2-VL family of transformers"),
        "puppet": ModelEntry(_PUPPET + "PuppetCaptions", "colors and positions of puppets", puppet_only=True),
    },
}


def load_curation_model(task: Task, choice: ModelChoice) -> Any:
    """Load a model; cached per process.

    Raises:
        InputError: unknown name or options, or missing weights or packages.
    """
    return _load(task, choice.name, json.dumps(dict(choice.options), sort_keys=True))


_loaded: list[Any] = []


@lru_cache(maxsize=8)
def _load(task: Task, name: str, options: str) -> Any:
    if name not in MODELS[task]:
        raise InputError(f"unknown {task} {name!r}", " or ".join(MODELS[task]), "change the curation config")
    module, _, attribute = MODELS[task][name].factory.partition(":")
    factory = getattr(import_module(module), attribute)
    model = factory(**_checked_options(f"{task} {name}", factory, json.loads(options)))
    _loaded.append(model)
    return model


def release_models() -> None:
    """Free all loaded models and end their processes."""
    for model in _loaded:
        if hasattr(model, "close"):
            model.close()
    _loaded.clear()
    _load.cache_clear()


def _checked_options(model: str, factory: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Compare options with the signature of a factory.

    Raises:
        InputError: a required option is missing, an option is unknown, or has another type.
    """
    parameters = inspect.signature(factory).parameters
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    hint = "change the curation config, see docs/how-to/curate.md"
    missing = [name for name, each in parameters.items() if each.default is each.empty and name not in options]
    if missing:
        example = ", ".join(f"{name}: ..." for name in missing)
        named = f"the option{'s' if len(missing) > 1 else ''} {' and '.join(missing)}"
        raise InputError(f"the {model} lacks {named}", f"options: {{{example}}}", hint)
    if unknown := sorted(set(options) - set(parameters)):
        problem = f"the {model} has no option{'s' if len(unknown) > 1 else ''} {' and '.join(unknown)}"
        raise InputError(problem, f"options among {', '.join(parameters) or 'none'}", hint)
    checked = {}
    for name, value in options.items():
        try:
            checked[name] = TypeAdapter(hints.get(name, Any)).validate_python(value)
        except ValidationError as error:
            problem = f"option {name} of the {model} is {value!r}"
            raise InputError(problem, f"a valid value ({error.errors()[0]['msg']})", hint) from None
    return checked
