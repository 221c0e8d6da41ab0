"""All components of one model in a single object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bya_core.config import SamplingConfig
from bya_core.encoders.domains import CanvasLayout, Domain, PixelMeter, load_meter
from bya_core.encoders.face.matching import CharacterFinder
from bya_core.encoders.protocols import FaceEncoder, SpeechEncoder, TextEncoder, VideoCodec
from bya_core.encoders.voice_face import VoiceFace
from bya_core.grid import TokenGrid
from bya_core.scene.types import SceneDefaults


@dataclass(frozen=True)
class NativeSize:
    """Resolution a model was trained at, in pixels and video frames."""

    height: int
    width: int
    num_frames: int


@dataclass(frozen=True)
class ModelBundle:
    """A transformer together with its encoders, video codec and default settings.

    Args:
        name: Name in the registry, or the name of the file or folder it was loaded from.
        transformer: `BindYourAvatarTransformer3DModel`.
        text: Text encoder.
        face: Face encoder.
        speech: Speech encoder.
        codec: Video codec (VAE).
        scheduler_config: Arguments of the CogVideoX schedulers of diffusers (DPM or DDIM).
        native: Resolution and maximum length the model was trained at.
        sampling: Default sampling settings.
        max_characters: Maximum number of characters seen in training, or `None` if unknown. More characters work, with
            a warning.
        character_finder: Finds the characters in an image; `None` selects a face detector and the face
            encoder, see `encoders.face.matching.FaceFinder`.
        voice_face: Matches speech streams to faces; `None` means that the assignment has to be given.
        domain: What the model was trained on: drawn `"puppets"` or `"photos"` of people.
        canvas_layout: How reference images are arranged on the conditioning canvas: `"row"` places all characters in
            one row, `"released"` follows the released code.
        weights: Hash of the weights of the transformer (`comparison.weights_fingerprint`); empty if it is unknown.
    """

    name: str
    transformer: Any
    text: TextEncoder
    face: FaceEncoder
    speech: SpeechEncoder
    codec: VideoCodec
    scheduler_config: Mapping[str, Any]
    native: NativeSize
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_characters: int | None = None
    character_finder: CharacterFinder | None = None
    voice_face: VoiceFace | None = None
    domain: Domain = "photos"
    canvas_layout: CanvasLayout = "released"
    weights: str = ""

    @property
    def patch(self) -> int:
        """Spatial patch size: latent cells per token and side."""
        return int(self.transformer.config.patch_size)

    @property
    def meter(self) -> PixelMeter | None:
        """Pixel meter of the domain; `None` if its characters are measured with neural networks."""
        return load_meter(self.domain)

    @property
    def device(self) -> torch.device:
        """Device of the transformer."""
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the transformer."""
        return next(self.transformer.parameters()).dtype

    @property
    def defaults(self) -> SceneDefaults:
        """Values used for fields that a scene file omits."""
        return SceneDefaults(
            height=self.native.height,
            width=self.native.width,
            max_frames=self.native.num_frames,
            size_unit=self.patch * self.codec.space_factor,
            time_factor=self.codec.time_factor,
            sampling=self.sampling,
        )

    def grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """Token grid of a video. Raises `InputError` if the size does not fit."""
        return TokenGrid.from_pixels(
            num_frames,
            height,
            width,
            patch=self.patch,
            space_factor=self.codec.space_factor,
            time_factor=self.codec.time_factor,
        )

    def to(self, device: torch.device | str) -> ModelBundle:
        """Move all components that support it to `device`, in place."""
        for component in (self.transformer, self.text, self.face, self.speech, self.codec):
            if hasattr(component, "to"):
                component.to(device)
        return self
