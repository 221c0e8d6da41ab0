"""The released model with its original encoders, loaded from the folder created by `download_model`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX

from bya_core.config import SamplingConfig
from bya_core.encoders.vae import CogVideoXCodec
from bya_core.errors import InputError
from bya_core.io.files import read_json_object
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.sampling.schedulers import COGVIDEOX_SCHEDULE
from bya_core.weights.bundle import ModelBundle, NativeSize
from bya_core.weights.cache import find_file, missing_files, repair_nested_folder
from bya_core.weights.components import OFFICIAL, OFFICIAL_SETTINGS, RELEASE, RELEASE_CONFIG, Component
from bya_core.weights.state_dict_adapter import load_released

log = logging.getLogger(__name__)

FACES = Path("face_encoder")
DETECTOR = FACES / "detection_Resnet50_Final.pth"
PARSER = FACES / "parsing_bisenet.pth"
RECOGNIZER = FACES / "models" / "antelopev2" / "glintr100.onnx"
VISION = FACES / "EVA02_CLIP_L_336_psz14_s6B.pt"
SPEECH = Path("wav2vec2-base-960h")
SCHEDULER = "scheduler/scheduler_config.json"


def load_official(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    transformer: BindYourAvatarTransformer3DModel | None = None,
    components: Mapping[str, Any] | None = None,
    encoders_only: bool = False,
) -> ModelBundle:
    """Load the released model with all its encoders.

    Args:
        folder: Folder with the released layout and all required components of `components.OFFICIAL`.
        dtype: Dtype of transformer, video codec and text encoder; `None` selects bfloat16.
        device: Target device; `None` selects the CPU.
        transformer: Used instead of the released one, whose files may then be missing.
        components: "text" or "codec", used instead of the model's own (for example from a host application), whose
            files may then be missing.
        encoders_only: Load no transformer, which is large; the bundle then has none.

    Raises:
        InputError: Components are missing (the message states purpose, source, size and license), or files do not
            match.
    """
    from bya_core.encoders.domains import canvas_layout
    from bya_core.encoders.face.encoder import FaceModels, PhotoFaceEncoder
    from bya_core.encoders.face.matching import PhotoCharacterFinder
    from bya_core.encoders.text_t5 import T5TextEncoder
    from bya_core.encoders.wav2vec2 import Wav2Vec2SpeechEncoder

    given = components or {}
    provided = {*given, *((RELEASE.name,) if encoders_only or transformer is not None else ())}
    check_components([component for component in OFFICIAL if component.name not in provided], folder)
    dtype = torch.bfloat16 if dtype is None else dtype
    settings = read_settings(folder)
    if transformer is None and not encoders_only:
        transformer = load_released(folder, dtype, "cpu" if device is None else device)
    models = FaceModels.load(*(_find(folder, path) for path in (DETECTOR, PARSER, RECOGNIZER, VISION)))
    face = PhotoFaceEncoder(models)
    bundle = ModelBundle(
        name="official",
        transformer=transformer,
        text=given.get("text") or T5TextEncoder(folder, dtype=torch.bfloat16 if dtype == torch.float16 else dtype),
        face=face,
        speech=Wav2Vec2SpeechEncoder(folder / SPEECH),
        codec=given.get("codec") or _load_codec(folder, dtype),
        scheduler_config=_read_scheduler_config(folder),
        native=NativeSize(**settings["native"]),
        sampling=SamplingConfig(**settings["sampling"]),
        max_characters=settings["max_characters"],
        character_finder=PhotoCharacterFinder(face),
        domain="photos",
        canvas_layout=canvas_layout("official" if transformer is None else transformer.config["flavour"]),
    )
    return bundle if device is None else bundle.to(device)


def _find(folder: Path, path: Path) -> Path:
    """A file in the model folder, or the same file of another application."""
    files = ((component, file.path) for component in OFFICIAL for file in component.known)
    found = (find_file(component, name, folder) for component, name in files if Path(component.folder) / name == path)
    return next(found, folder / path)


def _load_codec(folder: Path, dtype: torch.dtype) -> CogVideoXCodec:
    changes = _release_config(folder, "vae/config.json")
    vae = AutoencoderKLCogVideoX.from_pretrained(folder / "vae", torch_dtype=dtype, local_files_only=True, **changes)
    return CogVideoXCodec(vae)


def _read_scheduler_config(folder: Path) -> dict[str, Any]:
    """The scheduler configuration of the release, else of its base model, else of CogVideoX-5b."""
    return _base_config(folder, SCHEDULER) | _release_config(folder, SCHEDULER)


def _base_config(folder: Path, name: str) -> dict[str, Any]:
    """A configuration of the base model; the published noise schedule if its file is missing."""
    defaults = dict(COGVIDEOX_SCHEDULE) if name == SCHEDULER else {}
    path = folder / name
    return defaults | read_json_object(path, "the configuration") if path.is_file() else defaults


def _release_config(folder: Path, name: str) -> dict[str, Any]:
    """Entries of a configuration in the release that differ from the base model's; logged as a warning."""
    path = folder / RELEASE_CONFIG.folder / name
    if not path.is_file():
        return {}
    base, release = _base_config(folder, name), read_json_object(path, "the configuration")
    changes = {k: v for k, v in release.items() if not k.startswith("_") and base.get(k) != v}
    if changes:
        listed = ", ".join(f"{key} {value} (base model: {base.get(key)})" for key, value in changes.items())
        log.warning("%s of the release differs from the base model and is used: %s", name, listed)
    return changes


def read_settings(folder: Path) -> dict[str, Any]:
    """The folder's bundle.json if there is one, else the settings of the released model."""
    path = folder / "bundle.json"
    return read_json_object(path, "the configuration") if path.is_file() else OFFICIAL_SETTINGS


def check_components(components: list[Component], folder: Path) -> None:
    """Raise an `InputError` that describes the first incomplete required component and names the others."""
    required = [component for component in components if component.required]
    incomplete = [(component, files) for component in required if (files := missing_files(component, folder))]
    if not incomplete:
        repair_nested_folder(folder)
        return
    component, files = incomplete[0]
    others = [other.name for other, _ in incomplete[1:]]
    more = f" (and {len(others)} more components: {', '.join(others)})" if others else ""
    expected = f"{component.purpose}: {component.size}, license: {component.license}, from {component.url}"
    hint = f"run: bya download official --components {' '.join([component.name, *others])}"
    raise InputError(f"{folder} lacks {', '.join(files[:3])}{more}", expected, hint)
