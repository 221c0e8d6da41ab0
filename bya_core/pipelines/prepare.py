"""Encode the inputs of a scene: prompt, faces, speech and images, each once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bya_core.encoders.canvas import check_fit, first_frame, reference_canvas
from bya_core.encoders.protocols import FaceFeatures
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.media import fit_image, speech_signal
from bya_core.memory.planner import run_codec
from bya_core.pipelines.assignment import with_audio_assignment
from bya_core.progress import ProgressTracker
from bya_core.sampling import Conditions, Prepared
from bya_core.scene.types import Character, Footage, Scene, Speech, prompt_at
from bya_core.weights.bundle import ModelBundle

MARGIN = 1.0  # seconds of speech after the end of the video that are encoded with it
CONTEXT = 2  # video frames of speech features before and after a clip
BACKGROUND_AUDIO = {"model": None, "all": True, "none": False}


@torch.no_grad()
def prepare(
    scene: Scene, model: ModelBundle, tracker: ProgressTracker | None = None, features: Tensor | None = None
) -> Prepared:
    """Encode the inputs of a scene.

    Args:
        scene: the scene.
        model: the model.
        tracker: reports and measures the stages.
        features: speech features [M, F + 4, blocks, channels], if they are already encoded; None = encode the speech.

    Raises:
        InputError: the scene does not fit the model, or no face was found in an image.
    """
    tracker = tracker or ProgressTracker()
    check_fit(scene.first_frame_fit, model.canvas_layout)
    scene = with_audio_assignment(scene, model, tracker)
    grid = model.grid(scene.num_frames, scene.height, scene.width)
    if features is None:  # a window of a long video does not repeat those of the whole
        scene = replace(scene, notices=(*scene.notices, *input_notices(scene, model)))
    with tracker.stage("Encoding prompt"):
        prompt = prompt_at(scene, 0.0, scene.seconds)
        text = model.text.encode([prompt])
        negative = model.text.encode([scene.negative_prompt])
        cut = (prompt_notice("prompt", prompt, model), prompt_notice("negative prompt", scene.negative_prompt, model))
        scene = replace(scene, notices=(*scene.notices, *filter(None, cut)))
    with tracker.stage("Encoding faces"):
        faces = [_face(character, model) for character in scene.characters]
        identity = torch.stack([face.identity for face in faces])[None].to(model.device, model.dtype)
        hidden = torch.stack([face.hidden for face in faces])[None].to(model.device, model.dtype)
        scene = _with_notices(scene, faces)
        portraits = [face.portrait for face in faces]
        canvas = reference_canvas(portraits, scene.height, scene.width, model.canvas_layout)
    with tracker.stage("Encoding audio"):
        if features is None:
            features = torch.stack([speech_features(speech, scene, model) for speech in scene.speeches])
        features = features[None].to(model.device, model.dtype)
    with tracker.stage("Encoding conditions"):
        conditions = Conditions(
            text=text,
            negative_text=negative,
            latent_shape=grid.latent_shape(model.codec.latent_channels),
            face_tokens=model.transformer.encode_faces(identity, hidden),
            dropped_face_tokens=model.transformer.encode_faces(identity * 0, hidden * 0),
            audio_tokens=model.transformer.encode_speech(features),
            silent_audio_tokens=model.transformer.encode_speech(features * 0),
            audio_character_matrix=scene.matrix[None],
            canvas_latents=still_latents(canvas, grid, model),
            first_frame_latents=still_latents(first_frame(scene), grid, model),
            speech_strength=None if scene.speech_strength is None else scene.speech_strength[None],
            inflate_audio_masks=BACKGROUND_AUDIO[scene.routing.background_audio],
        )
        if scene.footage is not None:
            conditions = with_footage(conditions, scene.footage, grid, model)
    return Prepared(scene, grid, conditions)


def with_footage(conditions: Conditions, footage: Footage, grid: TokenGrid, model: ModelBundle) -> Conditions:
    """Conditions of a run that generates only a region of existing frames: the latents of all other cells are known."""
    video = rearrange(footage.frames, "f h w c -> 1 c f h w").to(model.device, model.dtype) / 127.5 - 1
    latents = run_codec(model.codec, lambda: model.codec.encode(video), "Encoding the film")
    cells = TokenGrid(grid.frames, latents.shape[3], latents.shape[4], 1, grid.space_factor, grid.time_factor)
    generated = cells.pixels_to_tokens(footage.region.float()) > 0
    return replace(conditions, known_latents=latents, known_mask=~generated, start=1 - footage.strength)


def input_notices(scene: Scene, model: ModelBundle) -> Iterator[str]:
    """Notices on images that the model does not know, and on characters that the first frame does not show.

    Raises:
        InputError: images that the model does not know, without `scene.force`.
    """
    if model.meter is None:  # photos: the face encoder tells
        return
    unknown = [c.name for c in scene.characters if not model.meter.is_portrait(c.image)]
    if unknown:
        image = "the reference images" if len(unknown) > 1 else "the reference image"
        problem = f"{image} of {', '.join(unknown)}: not drawn puppets, such as photographs"
        if not scene.force:
            expected = f"drawn puppets on white, which is all that {model.name} was trained on"
            raise InputError(problem, expected, 'use the released weights, or set "force" (--force)')
        yield f"{problem}. {model.name} was trained on drawn puppets on white only: expect no usable video."
    elif (frame := first_frame(scene)) is not None:
        missing = _missing_characters(frame, scene, model)
        if missing:
            yield f"The first frame does not show {', '.join(missing)}: face and speech may have no effect."


def _missing_characters(frame: Tensor, scene: Scene, model: ModelBundle) -> list[str]:
    """Names of the characters that the finder of the model does not find in an image [3, H, W]."""
    if (finder := model.character_finder) is None:
        return []
    found = finder.find(frame.to(model.device), [character.image.to(model.device) for character in scene.characters])
    return [
        name
        for n, name in enumerate(scene.names)
        if not len(found.likeness) or float(found.likeness[:, n].max()) < finder.threshold
    ]


def prompt_notice(what: str, prompt: str, model: ModelBundle) -> str | None:
    """A notice if the text encoder cuts the prompt."""
    truncation = getattr(model.text, "truncation", None)  # not every encoder has a limit
    found = None if truncation is None else truncation(prompt)
    return f'The {what} "{prompt[:30].strip()}..." {found}: the rest has no effect.' if found else None


def _face(character: Character, model: ModelBundle) -> FaceFeatures:
    """Features of the face of a character; errors name the character."""
    try:
        return model.face.encode(character.image.to(model.device))
    except InputError as error:
        raise InputError(f"image of {character.name}: {error.problem}", error.expected, error.hint) from error


def _with_notices(scene: Scene, faces: Sequence[FaceFeatures]) -> Scene:
    """The scene with the notices of the face encoder."""
    notices = [f"{c.name}: {each}" for c, face in zip(scene.characters, faces, strict=True) for each in face.notices]
    return replace(scene, notices=(*scene.notices, *notices))


def speech_features(speech: Speech | None, scene: Scene, model: ModelBundle) -> Tensor:
    """Features [F + 4, blocks, channels] of one speech; a listener has encoded silence."""
    rate, lead = model.speech.sample_rate, 0
    if speech is None:
        waveform = torch.zeros(round(scene.seconds * rate))
    else:
        lead = min(CONTEXT, int(max(0.0, -speech.offset) * scene.fps))  # context from the part that is cut off
        waveform = speech_signal(speech, rate, scene.seconds + MARGIN, lead / scene.fps)
    before = {"lead": lead} if lead else {}
    features = model.speech.encode(waveform.to(model.device), scene.num_frames, **before)
    return features.to(model.device, model.dtype)


def still_latents(image: Tensor | None, grid: TokenGrid, model: ModelBundle) -> Tensor | None:
    """Encode an image [3, H, W] in 0..1 into the first frame of latents [1, T, C, H, W]; the others are zero."""
    if image is None:
        return None
    still = fit_image(image, *grid.pixels).to(model.device, model.dtype) * 2 - 1
    latents = model.codec.encode(rearrange(still, "c h w -> 1 c 1 h w"))
    return F.pad(latents, (0, 0, 0, 0, 0, 0, 0, grid.frames - latents.shape[1]))
