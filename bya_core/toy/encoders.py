"""Encoders of the toy model: text without weights, a face network and a speech network.

They replace T5, CLIP + ArcFace and wav2vec2 of the published model behind the same Protocols and return the same kinds
of tensors in smaller sizes. The face and speech networks are pretrained on puppets (`training/toy/backbones.py`) and
frozen, like their large counterparts.
"""

from __future__ import annotations

import math
import re
import zlib
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bya_core.encoders.mel import mel_bands
from bya_core.encoders.protocols import FaceFeatures
from bya_core.errors import InputError

STOP_WORDS = frozenset(["a", "an", "and", "before", "in", "of", "on", "the", "with"])


class ToyTextEncoder:
    """`TextEncoder` without weights: one token per word, computed from its bytes.

    Each pair of byte and position in the word has a fixed random vector; a token is the sum of these vectors, a vector
    of the whole word, a vector of the phrase (delimited by colons, semicolons and periods) and one of the position in
    the phrase. Similar words have similar tokens; their meaning is learned by the text projection of the transformer.

    Args:
        dim: Width of a token.
        max_words: Maximum number of tokens, without stop words. Longer prompts are truncated.
        pad_to_multiple_of: Prompts are zero-padded to the longest one, rounded up to a multiple of this; None = to
            `max_words`.
    """

    def __init__(self, dim: int = 64, max_words: int = 48, pad_to_multiple_of: int | None = None) -> None:
        self.dim, self.max_words, self.pad_to_multiple_of = dim, max_words, pad_to_multiple_of

    def encode(self, prompts: list[str]) -> Tensor:
        """Text tokens [B, L, dim] float32 of B prompts."""
        prompt_words = [_words(prompt)[: self.max_words] for prompt in prompts]
        length = self.max_words
        if self.pad_to_multiple_of is not None:
            longest = max([1, *map(len, prompt_words)])
            length = math.ceil(longest / self.pad_to_multiple_of) * self.pad_to_multiple_of
        tokens = np.zeros((len(prompts), length, self.dim), np.float32)
        for row, words in enumerate(prompt_words):
            for token, (phrase, place, word) in enumerate(words):
                position = self._vector(f"phrase {phrase}") + self._vector(f"place {place}")
                tokens[row, token] = self._word(word) + 0.5 * position
        return torch.from_numpy(tokens)

    def truncation(self, prompt: str) -> str | None:
        """How a prompt is cut; None if it is read completely."""
        words = [word for _, _, word in _words(prompt)]
        if len(words) <= self.max_words:
            return None
        last = words[self.max_words - 1]
        return f'has {len(words)} words, of which the model reads the first {self.max_words}, up to "{last[:40]}"'

    def _word(self, word: str) -> np.ndarray:
        letters = [self._vector(f"{place}:{byte}") for place, byte in enumerate(word.encode())]
        return 0.5 * sum(letters) / math.sqrt(len(letters)) + self._vector(f"word {word}")

    def _vector(self, name: str) -> np.ndarray:
        return _fixed_vector(name, self.dim)


@lru_cache(maxsize=65536)
def _fixed_vector(name: str, dim: int) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(dim).astype(np.float32) / math.sqrt(2.0)


def _words(prompt: str) -> list[tuple[int, int, str]]:
    """(phrase index, position in the phrase, word) of all words except stop words."""
    phrases = [re.findall(r"\w+", phrase) for phrase in re.split(r"[:;.]", prompt.lower())]
    return [
        (number, place, word)
        for number, phrase in enumerate(phrases)
        for place, word in enumerate(word for word in phrase if word not in STOP_WORDS)
    ]


class FaceNetwork(nn.Module):
    """Computes an identity vector and five layers of patch features of a portrait.

    Args:
        width: Channels of the patch features (`lfe_vit_dim` of the transformer).
        id_dim: Size of the identity vector, which is normalized.
        size: Side of the network input in pixels.
    """

    def __init__(self, width: int = 32, id_dim: int = 64, size: int = 48) -> None:
        super().__init__()
        self.config = {"width": width, "id_dim": id_dim, "size": size}
        self.size = size
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(4, width),
                nn.Conv2d(width, width * 2, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(width * 2, width, 3, padding=1),
            )
            for _ in range(5)
        )
        self.identity = nn.Sequential(nn.Linear(width * 16, 128), nn.GELU(), nn.Linear(128, id_dim))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Identity [B, id_dim] and hidden states [B, 5, 16, width] of portraits [B, 3, H, W] in [0, 1]."""
        x = F.interpolate(images * 2.0 - 1.0, size=(self.size, self.size), mode="bilinear", antialias=True)
        x = self.stem(x)
        hidden = []
        for layer in self.layers:
            x = x + layer(x)
            hidden.append(rearrange(F.adaptive_avg_pool2d(x, 4), "b c h w -> b (h w) c"))
        identity = F.normalize(self.identity(hidden[-1].flatten(1)), dim=-1)
        return identity, torch.stack(hidden, dim=1)


class ToyFaceEncoder:
    """`FaceEncoder` of the toy model, for portraits on a white background; there is no face detection."""

    def __init__(self, network: FaceNetwork) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def encode(self, image: Tensor) -> FaceFeatures:
        """Features of an image [3, H, W] in [0, 1].

        Raises:
            InputError: If the image has a single color.
        """
        if image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"an image of shape {tuple(image.shape)}", "[3, height, width]", "pass an RGB image")
        if float(image.std(dim=(1, 2)).max()) < 0.01:
            raise InputError(
                "a reference image of a single color",
                "a portrait",
                "use an image that shows the character",
            )
        weight = next(self.network.parameters())
        identity, hidden = self.network(image[None].to(weight))
        return FaceFeatures(identity[0].cpu(), hidden[0].cpu(), image.clamp(0.0, 1.0))


class SpeechNetwork(nn.Module):
    """Computes two layers of features at 25 frames per second, and the mouth shape, from a log-mel spectrogram.

    Args:
        channels: Width of the features.
        mels: Number of mel bands.
    """

    hop = 320  # samples at 16 kHz: two columns per video frame

    def __init__(self, channels: int = 32, mels: int = 32) -> None:
        super().__init__()
        self.config = {"channels": channels, "mels": mels}
        self.down = nn.Conv1d(mels, 64, 5, stride=2, padding=2)
        self.mix = nn.Conv1d(64, channels, 3, padding=1)
        self.last = nn.Conv1d(channels, channels, 1)
        self.mouth = nn.Linear(channels, 2)
        self.register_buffer("bands", mel_bands(mels), persistent=False)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Log-mel spectrogram [B, mels, 2 * frames] of waveforms [B, S] at 16 kHz, normalized by their peak level."""
        level = F.avg_pool1d(waveform[:, None] ** 2, 1600, 800, ceil_mode=True).amax((1, 2)).sqrt()
        waveform = waveform / level.clamp_min(1e-3)[:, None]
        window = torch.hann_window(640, device=waveform.device)
        spectrum = torch.stft(
            waveform, 1024, self.hop, 640, window, center=True, pad_mode="constant", return_complex=True
        )
        mel = torch.einsum("mf,bft->bmt", self.bands, spectrum.abs() ** 2)
        return torch.log10(mel.clamp_min(1e-4) / 1e-4) / 3.0 - 0.5

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, frames, 2, channels] and mouth (opening, shape) logits [B, frames, 2] of waveforms [B, S]."""
        first = F.gelu(self.mix(F.gelu(self.down(self.log_mel(waveform)))))
        second = F.gelu(self.last(first))
        features = rearrange([first, second], "k b c f -> b f k c")
        return features, self.mouth(rearrange(second, "b c f -> b f c"))


class ToySpeechEncoder:
    """`SpeechEncoder` of the toy model."""

    sample_rate = 16_000
    fps = 25
    context = 2

    def __init__(self, network: SpeechNetwork) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def encode(self, waveform: Tensor, num_frames: int, lead: int = 0) -> Tensor:
        """Speech features with two context frames on each side.

        Args:
            waveform: Mono samples [S] at 16 kHz.
            num_frames: Number of video frames F, at 25 frames per second.
            lead: Number of video frames (0 to 2) by which the waveform starts before the video.

        Returns:
            [F + 4, 2, channels].
        """
        step = self.sample_rate // self.fps
        length = (num_frames + 2 * self.context) * step
        padded = F.pad(waveform.float(), ((self.context - lead) * step, 0))[:length]
        padded = F.pad(padded, (0, length - padded.shape[0]))
        weight = next(self.network.parameters())
        features, _ = self.network(padded[None].to(weight))
        return features[0, : num_frames + 2 * self.context].cpu()
