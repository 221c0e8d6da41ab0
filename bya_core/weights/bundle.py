"""Everything one model needs to turn a scene into a video, in one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bya_core.config import SamplingConfig
from bya_core.encoders.face.matching import CharacterFinder
from bya_core.encoders.protocols import FaceEncoder, SpeechEncoder, TextEncoder, VideoCodec
from bya_core.encoders.voice_face import VoiceFace
from bya_core.grid import TokenGrid
from bya_core.scene.types import SceneDefaults


@dataclass(frozen=True)
class NativeSize:
    """The size a model was trained at, in pixels and video frames."""

    height: int
    width: int
    num_frames: int


@dataclass(frozen=True)
class ModelBundle:
    """A transformer with its encoders, its video codec and the settings that suit it.

    Args:
        name: as in the registry.
        transformer: `BindYourAvatarTransformer3DModel`.
        text, face, speech, codec: see `bya_core.encoders.protocols`.
        scheduler_config: arguments of diffusers' CogVideoX schedulers (DPM or DDIM, as the scene asks).
        native: size and longest length it was trained at.
        sampling: settings used where a scene names none.
        max_characters: most characters it was trained with; None = not known. More work, with a warning.
        faces: finds its characters in a picture; None = a detector of real faces, see `encoders.detector`.
        voice_face: says which voice goes with which face; None = who hears whom must be given.
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
    faces: CharacterFinder | None = None
    voice_face: VoiceFace | None = None

    @property
    def patch(self) -> int:
        """Latent cells per token and side."""
        return int(self.transformer.config.patch_size)

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.transformer.parameters()).dtype

    @property
    def defaults(self) -> SceneDefaults:
        """What a scene file may leave out."""
        return SceneDefaults(
            height=self.native.height,
            width=self.native.width,
            max_frames=self.native.num_frames,
            size_unit=self.patch * self.codec.space_factor,
            time_factor=self.codec.time_factor,
            sampling=self.sampling,
        )

    def grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """Token grid of a video of that size. Raises InputError where the size does not fit."""
        return TokenGrid.from_pixels(
            num_frames,
            height,
            width,
            patch=self.patch,
            space_factor=self.codec.space_factor,
            time_factor=self.codec.time_factor,
        )

    def to(self, device: torch.device | str) -> ModelBundle:
        """Move every part that can move to `device`; returns itself."""
        for part in (self.transformer, self.text, self.face, self.speech, self.codec):
            if hasattr(part, "to"):
                part.to(device)
        return self
