"""The small backbones of the toy model: text without weights, a face network, a speech network.

They stand where T5, CLIP + ArcFace and wav2vec2 stand in the published model, behind the same Protocols, and give
the same kinds of tensors in smaller sizes. Face and speech are trained beforehand on puppets
(`training/toy/backbones.py`) and frozen afterwards, like their large counterparts.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
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
    """A frozen byte-level text encoder without weights: one token per word, made from its bytes.

    Every (byte, place in the word) has a fixed random vector; a word is the sum of its bytes' vectors plus one for the
    whole word, so that equal words are equal and similar words are near. To it come one vector for the phrase (what
    stands between colons, semicolons and full stops) and one for the word's place in it, so that who stands where can
    be read off. What words mean is learned by the transformer's text projection.

    Args:
        dim: width of a token.
        max_words: L; stop words do not count. Longer prompts are cut, shorter ones padded with zeros.
    """

    def __init__(self, dim: int = 64, max_words: int = 48) -> None:
        self.dim, self.max_words = dim, max_words

    def encode(self, prompts: list[str]) -> Tensor:
        """B prompts -> [B, L, dim] float32."""
        tokens = np.zeros((len(prompts), self.max_words, self.dim), np.float32)
        for row, prompt in enumerate(prompts):
            for token, (phrase, place, word) in enumerate(_words(prompt)[: self.max_words]):
                where = self._vector(f"phrase {phrase}") + self._vector(f"place {place}")
                tokens[row, token] = self._word(word) + 0.5 * where
        return torch.from_numpy(tokens)

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
    """(number of the phrase, place in it, word) of every word that is no stop word."""
    phrases = [re.findall(r"\w+", phrase) for phrase in re.split(r"[:;.]", prompt.lower())]
    return [
        (number, place, word)
        for number, phrase in enumerate(phrases)
        for place, word in enumerate(word for word in phrase if word not in STOP_WORDS)
    ]


class FaceNetwork(nn.Module):
    """Portrait -> identity vector and five layers of patch features.

    Args:
        width: channels of the patch features (vit_dim of the transformer).
        id_dim: length of the identity vector, which has length 1.
        size: side in pixels to which portraits are resized.
    """

    def __init__(self, width: int = 32, id_dim: int = 64, size: int = 48) -> None:
        super().__init__()
        self.width, self.id_dim, self.size = width, id_dim, size
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
        """[B,3,H,W] in 0..1 -> identity [B,id_dim], hidden [B,5,16,width]."""
        x = F.interpolate(images * 2.0 - 1.0, size=(self.size, self.size), mode="bilinear", antialias=True)
        x = self.stem(x)
        hidden = []
        for layer in self.layers:
            x = x + layer(x)
            hidden.append(rearrange(F.adaptive_avg_pool2d(x, 4), "b c h w -> b (h w) c"))
        identity = F.normalize(self.identity(hidden[-1].flatten(1)), dim=-1)
        return identity, torch.stack(hidden, dim=1)


class ToyFaceEncoder:
    """`FaceEncoder` of the toy model: it takes a portrait as it is, on a white (or transparent) ground."""

    def __init__(self, network: FaceNetwork) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def encode(self, image: Tensor) -> FaceFeatures:
        """[3, H, W] in 0..1 -> features.

        Raises:
            InputError: an image of one single colour, which cannot hold a face.
        """
        if image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"an image of shape {tuple(image.shape)}", "[3, height, width]", "pass an RGB image")
        if float(image.std(dim=(1, 2)).max()) < 0.01:
            raise InputError(
                "a reference image of one single colour",
                "a portrait",
                "give a picture that shows the character",
            )
        weight = next(self.network.parameters())
        identity, hidden = self.network(image[None].to(weight))
        return FaceFeatures(identity[0].cpu(), hidden[0].cpu(), image.clamp(0.0, 1.0))


class SpeechNetwork(nn.Module):
    """Log-mel frames at 50 per second -> two layers of features at 25 per second, and the mouth they imply.

    Args:
        channels: width of the features.
        mels: mel bands.
    """

    hop = 320  # samples at 16 kHz: two columns per video frame

    def __init__(self, channels: int = 32, mels: int = 32) -> None:
        super().__init__()
        self.channels, self.mels = channels, mels
        self.down = nn.Conv1d(mels, 64, 5, stride=2, padding=2)
        self.mix = nn.Conv1d(64, channels, 3, padding=1)
        self.last = nn.Conv1d(channels, channels, 1)
        self.mouth = nn.Linear(channels, 2)
        self.register_buffer("bands", mel_bands(mels), persistent=False)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """[B,S] at 16 kHz -> [B,mels,2*frames], level-normalised by the loudest second of the recording."""
        level = F.avg_pool1d(waveform[:, None] ** 2, 1600, 800, ceil_mode=True).amax((1, 2)).sqrt()
        waveform = waveform / level.clamp_min(1e-3)[:, None]
        window = torch.hann_window(640, device=waveform.device)
        spectrum = torch.stft(
            waveform, 1024, self.hop, 640, window, center=True, pad_mode="constant", return_complex=True
        )
        mel = torch.einsum("mf,bft->bmt", self.bands, spectrum.abs() ** 2)
        return torch.log10(mel.clamp_min(1e-4) / 1e-4) / 3.0 - 0.5

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """[B,S] -> features [B,frames,2,channels] and (opening, shape) logits [B,frames,2]."""
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
        """[S] mono at 16 kHz -> [num_frames + 4, 2, channels]; `lead` frames of it lie before video time 0."""
        step = self.sample_rate // self.fps
        wanted = (num_frames + 2 * self.context) * step
        padded = F.pad(waveform.float(), ((self.context - lead) * step, 0))[:wanted]
        padded = F.pad(padded, (0, wanted - padded.shape[0]))
        weight = next(self.network.parameters())
        features, _ = self.network(padded[None].to(weight))
        return features[0, : num_frames + 2 * self.context].cpu()


def network_config(network: FaceNetwork | SpeechNetwork) -> Mapping[str, int]:
    """What `FaceNetwork(**config)` or `SpeechNetwork(**config)` needs to be built again."""
    if isinstance(network, FaceNetwork):
        return {
            "width": network.width,
            "id_dim": network.id_dim,
            "size": network.size,
        }
    return {"channels": network.channels, "mels": network.mels}
