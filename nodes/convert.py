"""ComfyUI's pictures and sounds to the core's, and back."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from comfy_api.latest import InputImpl, Types
from torch import Tensor

from bya_core.errors import InputError

if TYPE_CHECKING:
    import PIL.Image

    from bya_core.scene.types import Speech

SILENT_RATE = 44_100  # Hz, of the sound of a video in which nobody speaks


def images(frames: Tensor) -> Tensor:
    """uint8 [F, H, W, 3] -> IMAGE."""
    return frames.float() / 255


def bytes_of(pictures: Tensor) -> Tensor:
    """IMAGE -> uint8 [F, H, W, 3]."""
    return (pictures[..., :3].cpu().float() * 255).round().clamp(0, 255).to(torch.uint8)


def image(picture: Tensor) -> Tensor:
    """[3, H, W] in 0..1 -> IMAGE of one picture."""
    return picture.permute(1, 2, 0)[None].contiguous()


def picture(drawn: PIL.Image.Image) -> Tensor:
    """A PIL picture -> IMAGE."""
    return images(torch.from_numpy(np.array(drawn.convert("RGB")))[None])


def one_picture(pictures: Tensor, what: str) -> Tensor:
    """IMAGE of one picture -> [3, H, W] in 0..1. Raises InputError where there are none or several."""
    if pictures is None or pictures.shape[0] != 1:
        came = f"{what}: {'nothing' if pictures is None else f'a batch of {pictures.shape[0]} pictures'}"
        raise InputError(came, "exactly one picture", "pick one, for example with ImageFromBatch")
    return pictures[0, ..., :3].permute(2, 0, 1).cpu().float().clamp(0, 1).contiguous()


def one_speech(sound: dict[str, Any] | None, offset: float, gain: float) -> Speech:
    """AUDIO of one recording -> a speech. Raises InputError where there is none, or several, or none of it is heard."""
    from bya_core.scene.types import Speech

    if sound is None or sound["waveform"].shape[0] != 1:
        came = "no audio" if sound is None else f"a batch of {sound['waveform'].shape[0]} recordings"
        raise InputError(came, "exactly one recording", "connect one; leave speech open for a silent listener")
    if sound["waveform"].shape[-1] == 0:
        raise InputError("an empty recording", "at least one sample", "choose another file")
    speech = Speech(sound["waveform"][0].cpu().float(), int(sound["sample_rate"]), offset, gain)
    if speech.end <= 0:
        came = f"a speech that ends {-speech.end:.2f} s before the video starts"
        raise InputError(came, "an offset shorter than the recording", "correct the offset")
    return speech


def audio(sound: tuple[Tensor, int] | None, seconds: float) -> dict[str, Any]:
    """([C, S], rate) -> AUDIO; silence of `seconds` where there is none."""
    waveform, rate = sound or (torch.zeros(1, round(seconds * SILENT_RATE)), SILENT_RATE)
    return {"waveform": waveform[None], "sample_rate": rate}


def video(frames: Tensor, sound: dict[str, Any] | None, fps: float) -> Any:
    """IMAGE and AUDIO -> VIDEO."""
    rate = Fraction(fps).limit_denominator(1001)
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=rate, audio=sound))
