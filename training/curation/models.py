"""The models that stages ask: what each kind must do, and under which names they can be chosen.

A real model is built only where it is used. Stand-ins for drawn puppets carry `stand_in`: a run that uses one says so
in its log, its report and its shards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from bya_core.errors import InputError
from bya_core.evaluation.sync_metrics import Sync

Part = Literal["detector", "identity", "extractor", "sync", "segmenter", "speech", "captioner"]


@runtime_checkable
class FaceIdentity(Protocol):
    """Tells faces apart.

    Attributes:
        same: likeness from which two faces may be one person's.
    """

    same: float

    def describe(self, face: np.ndarray) -> np.ndarray:
        """uint8 [h,w,3], a face with little around it -> [D]."""
        ...

    def likeness(self, one: np.ndarray, many: np.ndarray) -> np.ndarray:
        """[D] against [K,D] -> [K], 1 = the same."""
        ...


@dataclass(frozen=True, eq=False)
class Talk:
    """A stretch of footage whose voices are to be told apart.

    Args:
        mix: float32 [S] at 16 kHz.
        faces: uint8 [N,F,224,224,3] at 25 a second, the faces of all characters (`crops.face_crops`).
        source: file it was cut from.
        start: second of that file at which it begins.
    """

    mix: np.ndarray
    faces: np.ndarray
    source: str
    start: float


@runtime_checkable
class SpeechExtractor(Protocol):
    """Takes each character's voice out of the mix, by sound and lips."""

    def extract(self, talk: Talk) -> np.ndarray:
        """-> float32 [N,S]; stream k is what character k says, silence where it says nothing."""
        ...


@runtime_checkable
class SyncScorer(Protocol):
    """Judges whether lips and voices belong together."""

    def scores(self, faces: np.ndarray, voices: np.ndarray) -> list[list[Sync]]:
        """uint8 [N,F,224,224,3] at 25 a second, float32 [M,S] at 16 kHz -> M rows of N."""
        ...


@runtime_checkable
class Captioner(Protocol):
    """Describes a clip."""

    def caption(self, frames: np.ndarray, boxes: np.ndarray, speaks: Sequence[bool]) -> str:
        """Some frames uint8 [K,H,W,3], faces [K,N,4] in pixels, and who of the N speaks -> text."""
        ...


@dataclass(frozen=True)
class ModelChoice:
    """A model by name.

    Args:
        name: as registered in `MODELS`.
        options: what it is built with: folders of weights, devices.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One model that can be chosen.

    Args:
        maker: "module:function", called with the options.
        about: what it is.
        stand_in: it knows drawn puppets only.
    """

    maker: str
    about: str
    stand_in: bool = False


_REAL = "training.curation.real_models:"
_PUPPET = "training.curation.puppet_models:"

MODELS: dict[Part, dict[str, Entry]] = {
    "detector": {
        "auto": Entry(_REAL + "any_detector", "the best face detector on this machine"),
        "scrfd": Entry(_REAL + "scrfd", "SCRFD of insightface"),
        "puppet": Entry(_PUPPET + "PuppetFaces", "pairs of drawn eyes", stand_in=True),
    },
    "identity": {
        "colour": Entry(_REAL + "ColourIdentity", "colours of the face; within one shot only"),
        "arcface": Entry(_REAL + "ArcFaceIdentity", "ArcFace (glintr100)"),
    },
    "extractor": {
        "clearvoice": Entry("training.curation.extractor:ClearVoiceExtractor", "AV_MossFormer2_TSE_16K of clearvoice"),
        "puppet": Entry(_PUPPET + "PuppetVoices", "recorded voices picked by drawn mouths", stand_in=True),
    },
    "sync": {
        "syncnet": Entry(_REAL + "syncnet", "SyncNet"),
        "puppet": Entry(_PUPPET + "PuppetSync", "drawn mouths against loudness", stand_in=True),
    },
    "segmenter": {
        "sam2": Entry(_REAL + "sam2", "SAM 2.1 video of transformers"),
        "puppet": Entry(_PUPPET + "PuppetSegmenter", "colours and outlines of drawn puppets", stand_in=True),
    },
    "speech": {
        "none": Entry(_REAL + "no_speech_encoder", "no features; training makes them"),
        "wav2vec": Entry(_REAL + "wav2vec", "wav2vec2-base-960h"),
        "toy": Entry(_REAL + "toy_speech", "the speech network of the shipped toy model"),
    },
    "captioner": {
        "qwen2vl": Entry("training.curation.qwen:QwenCaptioner", "the Qwen2-VL family of transformers"),
        "puppet": Entry(_PUPPET + "PuppetCaptions", "colours of drawn puppets in words", stand_in=True),
    },
}


def entry_of(part: Part, choice: ModelChoice) -> Entry:
    """Raises InputError where no model has that name."""
    known = MODELS[part]
    if choice.name not in known:
        raise InputError(f"a {part} called {choice.name!r}", " or ".join(known), "change the recipe")
    return known[choice.name]


def model_of(part: Part, choice: ModelChoice) -> Any:
    """The model of that name; built once in a process.

    Raises:
        InputError: unknown name or options, or what it needs is not on this machine.
    """
    return _built(part, choice.name, json.dumps(dict(choice.options), sort_keys=True))


@lru_cache(maxsize=8)
def _built(part: Part, name: str, options: str) -> Any:
    entry = entry_of(part, ModelChoice(name))
    module, _, maker = entry.maker.partition(":")
    try:
        return getattr(import_module(module), maker)(**json.loads(options))
    except TypeError as error:
        if "argument" not in str(error):
            raise
        came = f"options {options} for the {part} {name!r} ({error})"
        raise InputError(came, "those it knows", "see docs/how-to/curate.md") from error
