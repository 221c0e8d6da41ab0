"""Loading of the toy model: transformer, VAE, face and speech networks in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import AutoencoderKLCogVideoX
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from bya_core.config import SamplingConfig
from bya_core.encoders.domains import canvas_layout
from bya_core.encoders.vae import CogVideoXCodec
from bya_core.encoders.voice_face import VoiceFaceMatcher
from bya_core.io.files import read_json_object
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.sampling.schedulers import COGVIDEOX_SCHEDULE
from bya_core.toy.encoders import (
    FaceNetwork,
    SpeechNetwork,
    ToyFaceEncoder,
    ToySpeechEncoder,
    ToyTextEncoder,
)
from bya_core.toy.finder import PuppetFinder
from bya_core.weights.bundle import ModelBundle, NativeSize


class ToyEncoders(NamedTuple):
    """Encoders of the toy model."""

    text: ToyTextEncoder
    face: ToyFaceEncoder
    speech: ToySpeechEncoder
    codec: CogVideoXCodec


def load_toy_encoders(folder: Path, text_encoder: Mapping[str, Any] | None = None) -> ToyEncoders:
    """Load `face.safetensors`, `speech.safetensors` and `vae/` from `folder`; `text_encoder` are its arguments."""
    return ToyEncoders(
        ToyTextEncoder(**text_encoder or {}),
        ToyFaceEncoder(_load(FaceNetwork, folder / "face.safetensors")),
        ToySpeechEncoder(_load(SpeechNetwork, folder / "speech.safetensors")),
        CogVideoXCodec(AutoencoderKLCogVideoX.from_pretrained(folder / "vae")),
    )


def load_toy(
    folder: Path,
    transformer: BindYourAvatarTransformer3DModel | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ModelBundle:
    """Load the model in float32 on the CPU.

    Args:
        folder: Folder with the encoders, `transformer/` and `bundle.json` (native size, sampling settings, and entries
            of the text encoder and the noise schedule that differ from the defaults). `voice_face.safetensors` is
            optional; without it, voices cannot be matched to faces.
        transformer: Transformer to use instead of the one in `folder`.
        settings: Entries that replace those of `bundle.json`.
    """
    settings = {**read_json_object(folder / "bundle.json", "the model"), **(settings or {})}
    encoders = load_toy_encoders(folder, settings.get("text_encoder"))
    if transformer is None:
        transformer = BindYourAvatarTransformer3DModel.from_pretrained(folder / "transformer").eval()
    voice_face = folder / "voice_face.safetensors"
    return ModelBundle(
        name="toy",
        transformer=transformer,
        text=encoders.text,
        face=encoders.face,
        speech=encoders.speech,
        codec=encoders.codec,
        scheduler_config={**COGVIDEOX_SCHEDULE, **settings.get("scheduler", {})},
        native=NativeSize(**settings["native"]),
        sampling=SamplingConfig(**settings["sampling"]),
        max_characters=settings["max_characters"],
        character_finder=PuppetFinder(encoders.face.network),
        voice_face=VoiceFaceMatcher.load(voice_face) if voice_face.is_file() else None,
        domain="puppets",
        canvas_layout=canvas_layout(transformer.config["flavour"]),
    )


def _load(kind: type[nn.Module], path: Path) -> Any:
    """Build a network from the arguments in the metadata of a file, and load its weights."""
    with safe_open(path, framework="pt") as file:
        network = kind(**json.loads(file.metadata()["config"]))
    network.load_state_dict(load_file(path))
    return network
