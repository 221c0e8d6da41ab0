"""Conversion between the image, audio and video types of ComfyUI and of the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from comfy_api.latest import InputImpl, Types
from torch import Tensor

from bya_core.errors import InputError

if TYPE_CHECKING:
    import PIL.Image

    from bya_core.io.video import Video
    from bya_core.scene.types import Speech

SILENT_RATE = 44_100  # Hz, sample rate of the audio of a video without speech


def images(frames: Tensor) -> Tensor:
    """uint8 [F, H, W, 3] -> IMAGE."""
    return frames.float() / 255


def to_uint8(batch: Tensor) -> Tensor:
    """IMAGE -> uint8 [F, H, W, 3]."""
    result = torch.empty((*batch.shape[:3], 3), dtype=torch.uint8)
    for pixels, frame in zip(result, batch[..., :3], strict=True):  # no second video in float32
        pixels.copy_((frame.cpu().float() * 255).round().clamp(0, 255))
    return result


def image(tensor: Tensor) -> Tensor:
    """[3, H, W] in 0..1 -> IMAGE with one image."""
    return tensor.permute(1, 2, 0)[None].contiguous()


def from_pil(picture: PIL.Image.Image) -> Tensor:
    """PIL image -> IMAGE."""
    return images(torch.from_numpy(np.array(picture.convert("RGB")))[None])


def one_image(batch: Tensor, what: str) -> Tensor:
    """IMAGE with one image -> [3, H, W] in 0..1. Raises InputError for none or several."""
    if batch is None or batch.shape[0] != 1:
        problem = f"{what} is {'missing' if batch is None else f'a batch of {batch.shape[0]} images'}"
        raise InputError(problem, "exactly one image", "select one, for example with ImageFromBatch")
    pixels = batch[0, ..., :3].permute(2, 0, 1).cpu().float()
    if not bool(torch.isfinite(pixels).all()):
        raise InputError(f"{what} contains NaN or infinity", "pixels in 0..1", "check the node that makes it")
    return pixels.expand(3, -1, -1).clamp(0, 1).contiguous()


def one_speech(recording: dict[str, Any] | None, offset: float, gain: float) -> Speech:
    """AUDIO with one recording -> speech.

    Raises:
        InputError: None or several recordings, an empty one, or one that ends before the video starts.
    """
    from bya_core.io.media import check_sample_rate, check_samples
    from bya_core.scene.types import Speech

    if recording is None or recording["waveform"].shape[0] != 1:
        problem = "no audio" if recording is None else f"a batch of {recording['waveform'].shape[0]} recordings"
        raise InputError(
            problem, "exactly one recording", "connect one; leave speech unconnected for a silent listener"
        )
    if recording["waveform"].shape[-1] == 0:
        raise InputError("an empty recording", "at least one sample", "choose another file")
    waveform = recording["waveform"][0].cpu().float()
    check_samples(waveform, "the recording")
    rate = check_sample_rate(int(recording["sample_rate"]), "the recording")
    speech = Speech(waveform, rate, offset, gain)
    if speech.end <= 0:
        problem = f"the speech ends {-speech.end:.2f} s before the video starts"
        raise InputError(problem, "an offset shorter than the recording", "correct the offset")
    return speech


def by_character(inputs: Mapping[str, Any], prefix: str, names: Sequence[str]) -> dict[str, Any]:
    """The connected ones of PREFIX_1, PREFIX_2 and so on, by the names of their characters.

    Raises:
        InputError: An input of a character that does not exist.
    """
    connected = {int(key.removeprefix(f"{prefix}_")): value for key, value in inputs.items() if value is not None}
    if connected and (last := max(connected)) > len(names):
        count = f"{len(names)} character{'' if len(names) == 1 else 's'}"
        raise InputError(f"{prefix}_{last} of {count}", f"1 to {len(names)}", "disconnect it, or add the character")
    return {names[number - 1]: value for number, value in sorted(connected.items())}


def audio(sound: tuple[Tensor, int] | None, seconds: float) -> dict[str, Any]:
    """([C, S], sample rate) -> AUDIO; None -> silence of that duration."""
    waveform, rate = sound or (torch.zeros(1, round(seconds * SILENT_RATE)), SILENT_RATE)
    return {"waveform": waveform[None], "sample_rate": rate}


def footage(value: Any) -> Video:
    """VIDEO -> frames at a constant rate, without the sound."""
    from bya_core.io.video import Video

    parts = value.get_components()
    frames = to_uint8(parts.images)
    return Video(frames, float(parts.frame_rate), torch.arange(len(frames)), len(frames))


def video(frames: Tensor, sound: dict[str, Any] | None, fps: float) -> Any:
    """IMAGE and AUDIO -> VIDEO."""
    frame_rate = Fraction(fps).limit_denominator(1001)
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=frame_rate, audio=sound))
