"""The released model with its real encoders, from the folder that `download` fills."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX

from bya_core.config import SamplingConfig
from bya_core.encoders.vae import CogVideoXCodec
from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.sampling.schedulers import COGVIDEOX_SCHEDULE
from bya_core.weights.bundle import ModelBundle, NativeSize
from bya_core.weights.download import repair_nested
from bya_core.weights.download_record import missing_files
from bya_core.weights.known_files import OFFICIAL, OFFICIAL_SETTINGS, RELEASE, Part
from bya_core.weights.state_dict_adapter import load_released

FACES = Path("face_encoder")
DETECTOR = FACES / "detection_Resnet50_Final.pth"
PARSER = FACES / "parsing_bisenet.pth"
RECOGNISER = FACES / "models" / "antelopev2" / "glintr100.onnx"
VISION = FACES / "EVA02_CLIP_L_336_psz14_s6B.pt"
SPEECH = Path("wav2vec2-base-960h")


def load_official(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    transformer: BindYourAvatarTransformer3DModel | None = None,
    given: Mapping[str, Any] | None = None,
) -> ModelBundle:
    """The model with all it needs.

    Args:
        folder: laid out as the released one, with all needed parts of `parts.OFFICIAL`.
        dtype: of the transformer, the video codec and the text encoder; None = bfloat16.
        device: where to; None = the CPU.
        transformer: in place of the released one, whose files may then be missing.
        given: "text" or "codec" in place of its own (a host may have them already), whose files may then be missing.

    Raises:
        InputError: parts are missing (which, what for, where from, how large, under which licence), or files that do
            not fit.
    """
    from bya_core.encoders.domains import canvas_layout
    from bya_core.encoders.face.encoder import FaceModels, PhotoFaceEncoder
    from bya_core.encoders.face.released_matching import PhotoCharacterFinder
    from bya_core.encoders.text_t5 import T5TextEncoder
    from bya_core.encoders.wav2vec2 import Wav2Vec2SpeechEncoder

    given = given or {}
    spared = {*given, *(() if transformer is None else (RELEASE.name,))}
    complain_about_missing([part for part in OFFICIAL if part.name not in spared], folder)
    dtype = torch.bfloat16 if dtype is None else dtype
    place = "cpu" if device is None else device
    settings = read_settings(folder)
    if transformer is None:
        transformer = load_released(folder, dtype, place)
    face = PhotoFaceEncoder(FaceModels.load(folder / DETECTOR, folder / PARSER, folder / RECOGNISER, folder / VISION))
    bundle = ModelBundle(
        name="official",
        transformer=transformer,
        text=given.get("text") or T5TextEncoder(folder, dtype=torch.bfloat16 if dtype == torch.float16 else dtype),
        face=face,
        speech=Wav2Vec2SpeechEncoder(folder / SPEECH),
        codec=given.get("codec") or _codec(folder, dtype),
        scheduler_config=_schedule(folder),
        native=NativeSize(**settings["native"]),
        sampling=SamplingConfig(**settings["sampling"]),
        max_characters=settings["max_characters"],
        character_finder=PhotoCharacterFinder(face),
        canvas_layout=canvas_layout(transformer.config.flavour),
    )
    return bundle if device is None else bundle.to(device)


def _codec(folder: Path, dtype: torch.dtype) -> CogVideoXCodec:
    return CogVideoXCodec(
        AutoencoderKLCogVideoX.from_pretrained(folder / "vae", torch_dtype=dtype, local_files_only=True)
    )


def _schedule(folder: Path) -> dict[str, Any]:
    """The published schedule; where its file is not there, as a host gave the codec, the one of CogVideoX-5b."""
    path = folder / "scheduler/scheduler_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else dict(COGVIDEOX_SCHEDULE)


def read_settings(folder: Path) -> dict[str, Any]:
    """The folder's bundle.json, where a person put one there, else what the released model was made for."""
    path = folder / "bundle.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else OFFICIAL_SETTINGS


def complain_about_missing(parts: list[Part], folder: Path) -> None:
    """Raise InputError that tells of the first needed part that is not whole, and which more there are."""
    gone = [(part, files) for part in parts if part.needed and (files := missing_files(part, folder))]
    if not gone:
        repair_nested(folder)
        return
    part, files = gone[0]
    more = f" (and {len(gone) - 1} more parts: {', '.join(p.name for p, _ in gone[1:])})" if len(gone) > 1 else ""
    came = f"{folder} lacks {', '.join(files[:3])}{more}"
    expected = f"{part.purpose}: {part.size}, licence: {part.licence}, from {part.page}"
    names = " ".join(p.name for p, _ in gone)
    raise InputError(came, expected, f"run python -m bya_core download official --parts {names}")
