"""From a scene to what the denoiser is told: prompt, faces, voices and pictures, each encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bya_core.encoders.canvas import check_fit, first_frame, reference_canvas
from bya_core.encoders.protocols import FaceFeatures
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.media import fit_image, place, resample_mono
from bya_core.progress import ProgressTracker
from bya_core.routing.audio_assignment import bound
from bya_core.sampling import Conditions, Prepared
from bya_core.scene.types import Character, Scene, Speech, prompt_at
from bya_core.weights.bundle import ModelBundle

CONTEXT = 2  # video frames on each side that speech features of a clip have beyond it
INFLATE = {"model": None, "all": True, "none": False}


@torch.no_grad()
def prepare(
    scene: Scene, bundle: ModelBundle, tracker: ProgressTracker | None = None, features: Tensor | None = None
) -> Prepared:
    """Encode everything a scene holds.

    Args:
        features: of the speech [M, F + 4, blocks, channels], where that is encoded already (as part of a longer one).

    Raises:
        InputError: the scene does not fit the model, or holds an image without a face.
    """
    tracker = tracker or ProgressTracker()
    check_fit(scene.first_frame_fit, bundle.canvas_layout)
    scene = bound(scene, bundle, tracker)
    grid = bundle.grid(scene.num_frames, scene.height, scene.width)
    with tracker.stage("Encoding prompt"):
        text = bundle.text.encode([prompt_at(scene, 0.0, scene.seconds)])
        negative = bundle.text.encode([scene.negative_prompt])
    with tracker.stage("Encoding faces"):
        faces = [_face(character, bundle) for character in scene.characters]
        identity = torch.stack([face.identity for face in faces])[None].to(bundle.device, bundle.dtype)
        hidden = torch.stack([face.hidden for face in faces])[None].to(bundle.device, bundle.dtype)
        scene = _with_notices(scene, faces)
        portraits = [face.portrait for face in faces]
        canvas = reference_canvas(portraits, scene.height, scene.width, bundle.canvas_layout)
    with tracker.stage("Encoding audio"):
        if features is None:
            features = torch.stack([speech_features(speech, scene, bundle) for speech in scene.speeches])
        features = features[None].to(bundle.device, bundle.dtype)
    with tracker.stage("Encoding conditions"):
        conditions = Conditions(
            text=text,
            negative_text=negative,
            latent_shape=grid.latent_shape(bundle.codec.latent_channels),
            face_tokens=bundle.transformer.encode_faces(identity, hidden),
            dropped_face_tokens=bundle.transformer.encode_faces(identity * 0, hidden * 0),
            audio_tokens=bundle.transformer.encode_speech(features),
            silent_audio_tokens=bundle.transformer.encode_speech(features * 0),
            audio_character_matrix=scene.matrix[None],
            canvas_latents=still_latents(canvas, grid, bundle),
            first_frame_latents=still_latents(first_frame(scene), grid, bundle),
            speech_strength=None if scene.speech_strength is None else scene.speech_strength[None],
            inflate_audio_masks=INFLATE[scene.routing.background_audio],
        )
    return Prepared(scene, grid, conditions)


def _face(character: Character, bundle: ModelBundle) -> FaceFeatures:
    """Features of a character's face; an error says whose picture it is about."""
    try:
        return bundle.face.encode(character.image.to(bundle.device))
    except InputError as error:
        raise InputError(f"the picture of {character.name}: {error.problem}", error.expected, error.hint) from error


def _with_notices(scene: Scene, faces: Sequence[FaceFeatures]) -> Scene:
    """The scene, and what is odd about its pictures."""
    told = [f"{c.name}: {each}" for c, face in zip(scene.characters, faces, strict=True) for each in face.notices]
    return replace(scene, notices=(*scene.notices, *told))


def speech_features(speech: Speech | None, scene: Scene, bundle: ModelBundle) -> Tensor:
    """[F + 4, blocks, channels] of one voice; a silent listener hears encoded silence."""
    rate, lead = bundle.speech.sample_rate, 0
    if speech is None:
        heard = torch.zeros(round(scene.seconds * rate))
    else:
        mono = resample_mono(speech.waveform, speech.sample_rate, rate)
        lead = min(CONTEXT, int(max(0.0, -speech.offset) * scene.fps))  # the end of what its start loses is context
        heard = place(mono[None], rate, speech.offset + lead / scene.fps, speech.gain)[0]
    before = {"lead": lead} if lead else {}
    features = bundle.speech.encode(heard.to(bundle.device), scene.num_frames, **before)
    return features.to(bundle.device, bundle.dtype)


def still_latents(image: Tensor | None, grid: TokenGrid, bundle: ModelBundle) -> Tensor | None:
    """An image [3, H, W] in 0..1 as latents [1, T, C, H, W]: in the first latent frame, zeros after it."""
    if image is None:
        return None
    still = fit_image(image, *grid.pixels).to(bundle.device, bundle.dtype) * 2 - 1
    latents = bundle.codec.encode(rearrange(still, "c h w -> 1 c 1 h w"))
    return F.pad(latents, (0, 0, 0, 0, 0, 0, 0, grid.frames - latents.shape[1]))
