"""Speech features as the released model hears them: wav2vec2-base, 12 hidden states at 25 a second.

transformers' `Wav2Vec2Model` does the work. Between its convolutions (50 values a second) and its transformer the
features are interpolated to ceil(seconds * 25) values, so that value k belongs to second k / 25 and video frame k.
Convolutions run over a long recording piece by piece with the same result as at once; the transformer, which was
trained on short recordings, gets overlapping pieces. So the network needs no more memory for a long recording than for
a short one; what grows is the recording itself and the result.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bya_core.encoders.levelling import even_loudness as evened
from bya_core.errors import InputError

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_CONV_PIECE = 500  # convolved values (50 a second) made at once


@runtime_checkable
class VocalIsolation(Protocol):
    """Takes music and noise out of a recording (a separation model of the user's choice)."""

    def isolate(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """[S] mono -> [S], only the voice."""
        ...


class Wav2Vec2SpeechEncoder:
    """`SpeechEncoder` of the released weights.

    Nothing is read before the first recording; `release` gives the memory back.

    Args:
        model_folder: holds config.json and the weights of facebook/wav2vec2-base-960h (or one of the same kind).
        dtype: of the weights; None = float32. The result is always float32.
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
        self.folder = Path(model_folder)
        if not (self.folder / "config.json").is_file() or not any((self.folder / name).is_file() for name in WEIGHTS):
            raise InputError(
                f"no speech model in {self.folder}",
                "config.json and model.safetensors of facebook/wav2vec2-base-960h (378 MB, Apache-2.0)",
                "python -m bya_core download official fetches it",
            )
        if not 0 <= 2 * overlap <= piece or piece < 1:
            came = f"pieces of {piece} frames that share {overlap}"
            raise InputError(came, "an overlap of at most half a piece", "make the pieces longer")
        self.dtype = dtype or torch.float32
        self.device = torch.device("cpu")
        self.even_loudness, self.isolation = even_loudness, isolation
        self.piece, self.overlap = piece, overlap
        self._model: Any = None
        self._silence: Tensor | None = None

    @property
    def model(self) -> Any:
        """transformers' Wav2Vec2Model, read on first use."""
        if self._model is None:
            from transformers import Wav2Vec2Model

            model: Any = Wav2Vec2Model.from_pretrained(self.folder, local_files_only=True)
            self._model = model.to(self.device, self.dtype).requires_grad_(False).eval()
        return self._model

    @torch.no_grad()
    def encode(self, waveform: Tensor, num_frames: int, lead: int = 0) -> Tensor:
        """[S] mono at 16 kHz -> [num_frames + 4, 12, 768], two context frames on each side.

        Context is the recording's own where it has begun before the video (by `lead` frames: 0, 1 or 2) or goes on
        after it; frames outside the recording hold encoded silence.
        """
        silence = self.silence()
        made = silence.expand(num_frames + 2 * self.context, -1, -1).clone()
        if bool(waveform.any()):
            first = self.context - lead
            heard = self.features(waveform)[: len(made) - first]
            made[first : first + len(heard)] = heard
        return made

    @torch.no_grad()
    def features(self, waveform: Tensor) -> Tensor:
        """[S] mono at 16 kHz -> [ceil(S / 16000 * 25), 12, 768] float32 on the CPU, value k at second k / 25.

        The released features count like this, also where rounding makes 56.00000000000001 of 56.
        """
        if waveform.ndim != 1 or not len(waveform):
            came = f"a waveform of shape {tuple(waveform.shape)}"
            raise InputError(came, "one channel with at least one sample", "mix the channels")
        frames = math.ceil(len(waveform) / self.sample_rate * self.fps)
        samples = waveform.to("cpu", torch.float32)
        if self.isolation is not None:
            samples = self.isolation.isolate(samples, self.sample_rate).to(samples)
        if self.even_loudness:
            samples = evened(samples, self.sample_rate)
        samples = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        # the convolutions need some 25 ms to say anything
        samples = F.pad(samples, (0, max(0, self._field - len(samples))))
        values = rearrange(self._convolved(samples.to(self.device, self.dtype)), "n c -> 1 c n")
        values = F.interpolate(values.float(), size=frames, mode="linear", align_corners=True)
        return self._transformed(rearrange(values, "1 c f -> f c"))

    def silence(self) -> Tensor:
        """What nobody's voice sounds like: the middle of two seconds of zeros, [12, 768]."""
        if self._silence is None:
            seconds = self.features(torch.zeros(2 * self.sample_rate))
            self._silence = seconds[len(seconds) // 2]
        return self._silence

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Wav2Vec2SpeechEncoder:
        """Move the weights, now or when they are read; returns itself."""
        self.device, self.dtype = torch.device(device), dtype or self.dtype
        self._silence = None
        if self._model is not None:
            self._model.to(self.device, self.dtype)
        return self

    def release(self) -> None:
        """Forget the weights; the next use reads them again from the folder."""
        self._model = None

    @property
    def _hop(self) -> int:
        """Samples from one convolved value to the next."""
        return math.prod(self.model.config.conv_stride)

    @property
    def _field(self) -> int:
        """Samples that one convolved value sees."""
        field, step = 1, 1
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            field, step = field + (kernel - 1) * step, step * stride
        return field

    def _convolved(self, samples: Tensor) -> Tensor:
        """[S] -> [values, channels], piece by piece."""
        first, *others = self.model.feature_extractor.conv_layers
        over_time = isinstance(getattr(first, "layer_norm", None), nn.GroupNorm)
        affine = _norm_over_all(first, samples) if over_time else None
        count = (len(samples) - self._field) // self._hop + 1
        made = torch.empty(count, others[-1].out_conv_dim, dtype=self.dtype, device=samples.device)
        for start in range(0, count, _CONV_PIECE):
            stop = min(count, start + _CONV_PIECE)
            x = samples[None, None, start * self._hop : (stop - 1) * self._hop + self._field]
            if affine is None:
                x = first(x)
            else:
                scale, shift = affine
                x = first.activation((first.conv(x) * scale + shift).to(self.dtype))
            for layer in others:
                x = layer(x)
            made[start:stop] = rearrange(x, "1 c n -> n c")
        return made

    def _transformed(self, values: Tensor) -> Tensor:
        """Interpolated values [F, channels] -> outputs of all blocks [F, blocks, width], piece by piece."""
        total, step = len(values), max(1, self.piece - self.overlap)
        starts = [0] if total <= self.piece else [*range(0, total - self.piece, step), total - self.piece]
        made, weights = None, torch.zeros(total, 1, 1)
        for start in starts:
            part = self._blocks(values[start : start + self.piece])
            if made is None:
                made = torch.zeros(total, *part.shape[1:])
            fade = torch.ones(len(part))
            ramp = torch.arange(1, self.overlap + 1) / (self.overlap + 1)
            if start > 0:
                fade[: self.overlap] = ramp
            if start + len(part) < total:
                fade[len(part) - self.overlap :] = ramp.flip(0)
            made[start : start + len(part)] += part.mul_(fade[:, None, None])
            weights[start : start + len(part)] += fade[:, None, None]
        assert made is not None
        return made.div_(weights)

    def _blocks(self, values: Tensor) -> Tensor:
        """[F, channels] -> [F, blocks, width] on the CPU: what each transformer block puts out."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, given: Any, put_out: Any) -> None:
            seen.append((put_out if isinstance(put_out, Tensor) else put_out[0])[0].float().cpu())

        hooks = [layer.register_forward_hook(keep) for layer in self.model.encoder.layers]
        try:
            hidden, _ = self.model.feature_projection(values[None].to(self.device, self.dtype))
            self.model.encoder(hidden)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(seen, dim=1)


def _norm_over_all(first: Any, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift [C, 1] of the group norm behind the first convolution, from its statistics over all samples.

    One channel is one group, so the norm is an affine map once mean and variance of the whole recording are known.
    """
    kernel, stride = first.conv.kernel_size[0], first.conv.stride[0]
    count = (len(samples) - kernel) // stride + 1
    size = 32_000
    total = torch.zeros(2, first.conv.out_channels, dtype=torch.float64)
    for start in range(0, count, size):
        stop = min(count, start + size)
        x = first.conv(samples[None, None, start * stride : (stop - 1) * stride + kernel])[0].float()
        total += torch.stack([x.sum(dim=1), x.square().sum(dim=1)]).cpu()
    mean = total[0] / count
    variance = (total[1] / count - mean.square()).clamp_min(0)
    norm = first.layer_norm
    scale = norm.weight.cpu().double() / (variance + norm.eps).sqrt()
    shift = norm.bias.cpu().double() - mean * scale
    return scale.float().to(samples.device)[:, None], shift.float().to(samples.device)[:, None]
