"""Speech features as the released model hears them: wav2vec2-base, 12 hidden states at 25 a second.

transformers' `Wav2Vec2Model` does the work. Between its convolutions (50 values a second) and its transformer the
features are interpolated to ceil(seconds * 25) values, so that value k belongs to second k / 25 and video frame k.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class VocalIsolation(Protocol):
    """Takes music and noise out of a recording (a separation model of the user's choice)."""

    def isolate(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """[S] mono -> [S], only the voice."""
        ...


class Wav2VecSpeech:
    """`SpeechEncoder` of the released weights.

    Args:
        model_folder: holds config.json and the weights of facebook/wav2vec2-base-960h (or one of the same kind).
        dtype: of the weights and of the result; None = float32.
        even_loudness: bring soft passages to the level of loud ones before anything is heard.
        isolation: takes music and noise out first; None = the recording as it is.
        piece: frames (25 a second) that go through the transformer at once; longer recordings are cut.
        overlap: frames that two pieces share; there one fades into the other.

    Raises:
        InputError: no model in `model_folder`.
    """

    sample_rate = 16_000
    fps = 25
    context = 2

    def __init__(
        self,
        model_folder: Path,
        *,
        dtype: torch.dtype | None = None,
        even_loudness: bool = False,
        isolation: VocalIsolation | None = None,
        piece: int = 1000,
        overlap: int = 200,
    ) -> None:
        raise NotImplementedError

    def encode(self, waveform: Tensor, num_frames: int) -> Tensor:
        """[S] mono at 16 kHz, sample 0 at video time 0 -> [num_frames + 4, 12, 768], two context frames on each side.

        Frames outside the recording hold encoded silence.
        """
        raise NotImplementedError

    def features(self, waveform: Tensor) -> Tensor:
        """[S] mono at 16 kHz -> [ceil(S / 16000 * 25), 12, 768], value k at second k / 25."""
        raise NotImplementedError

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Wav2VecSpeech:
        """Move the weights; returns itself."""
        raise NotImplementedError

    def release(self) -> None:
        """Forget the weights; the next use reads them again from the folder."""
        raise NotImplementedError
