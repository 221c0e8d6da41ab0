"""Speech encoder of the released model: wav2vec2-base, 12 hidden states at 25 frames per second.

Wraps transformers' `Wav2Vec2Model`. Between its convolutions (50 values per second) and its transformer, the features
are interpolated to ceil(seconds * 25) values, so that value k corresponds to time k / 25 and to video frame k. The
convolutions process a long recording in chunks with the same result as at once; the transformer, which was trained on
short recordings, processes overlapping chunks. Peak memory of the network is therefore independent of the length of the
recording.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bya_core.errors import InputError

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_CONV_CHUNK = 500  # outputs of the convolutions (50 per second) computed at once
_STATISTICS_CHUNK = 32_000


class Wav2Vec2SpeechEncoder:
    """`SpeechEncoder` of the released weights.

    Weights are loaded on first use; `release` frees the memory.

    Args:
        model_folder: Folder with config.json and weights of facebook/wav2vec2-base-960h, or a model of the same kind.
        dtype: Data type of the weights; `None` selects float32. Features are always float32.
        chunk: Number of frames (25 per second) that the transformer processes at once.
        overlap: Number of frames shared by two chunks, which are cross-faded.

    Raises:
        InputError: If `model_folder` holds no model.
    """

    sample_rate = 16_000
    fps = 25
    context = 2

    def __init__(
        self,
        model_folder: Path,
        *,
        dtype: torch.dtype | None = None,
        chunk: int = 1000,
        overlap: int = 200,
    ) -> None:
        self.folder = Path(model_folder)
        if not (self.folder / "config.json").is_file() or not any((self.folder / name).is_file() for name in WEIGHTS):
            raise InputError(
                f"no speech model in {self.folder}",
                "config.json and model.safetensors of facebook/wav2vec2-base-960h (378 MB, Apache-2.0)",
                "run bya download official",
            )
        if not 0 <= 2 * overlap <= chunk or chunk < 1:
            problem = f"chunks of {chunk} frames with an overlap of {overlap}"
            raise InputError(problem, "an overlap of at most half a chunk", "use longer chunks")
        self.dtype = dtype or torch.float32
        self.device = torch.device("cpu")
        self.chunk, self.overlap = chunk, overlap
        self._model: Any = None
        self._silence: Tensor | None = None

    @property
    def model(self) -> Any:
        """The `Wav2Vec2Model`, loaded on first use."""
        if self._model is None:
            from transformers import Wav2Vec2Model

            model: Any = Wav2Vec2Model.from_pretrained(self.folder, local_files_only=True)
            self._model = model.to(self.device, self.dtype).requires_grad_(False).eval()
        return self._model

    @torch.no_grad()
    def encode(self, waveform: Tensor, num_frames: int, lead: int = 0) -> Tensor:
        """Speech features with two context frames on each side.

        Frames outside the recording hold encoded silence.

        Args:
            waveform: Mono samples [S] at 16 kHz.
            num_frames: Number of video frames F, at 25 frames per second.
            lead: Number of video frames (0 to 2) by which the waveform starts before the video.

        Returns:
            [F + 4, 12, 768] float32 on the CPU.
        """
        output = self.silence().expand(num_frames + 2 * self.context, -1, -1).clone()
        if bool(waveform.any()):
            start = self.context - lead
            features = self.features(waveform)[: len(output) - start]
            output[start : start + len(features)] = features
        return output

    @torch.no_grad()
    def features(self, waveform: Tensor) -> Tensor:
        """Features of a whole recording, frame k at time k / 25.

        The frame count follows the released code, including its floating-point rounding.

        Args:
            waveform: Mono samples [S] at 16 kHz.

        Returns:
            [ceil(S / 16000 * 25), 12, 768] float32 on the CPU.
        """
        if waveform.ndim != 1 or not len(waveform):
            problem = f"a waveform of shape {tuple(waveform.shape)}"
            raise InputError(problem, "one channel with at least one sample", "mix the channels")
        frames = math.ceil(len(waveform) / self.sample_rate * self.fps)
        samples = waveform.to("cpu", torch.float32)
        samples = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        # at least one receptive field (25 ms)
        samples = F.pad(samples, (0, max(0, self._receptive_field - len(samples))))
        values = rearrange(self._convolved(samples.to(self.device, self.dtype)), "n c -> 1 c n")
        values = F.interpolate(values.float(), size=frames, mode="linear", align_corners=True)
        return self._transformed(rearrange(values, "1 c f -> f c"))

    def silence(self) -> Tensor:
        """Features [12, 768] of silence: the middle frame of two seconds of zeros."""
        if self._silence is None:
            seconds = self.features(torch.zeros(2 * self.sample_rate))
            self._silence = seconds[len(seconds) // 2]
        return self._silence

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Wav2Vec2SpeechEncoder:
        """Set device and data type, and move the weights if they are loaded; returns `self`."""
        self.device, self.dtype = torch.device(device), dtype or self.dtype
        self._silence = None
        if self._model is not None:
            self._model.to(self.device, self.dtype)
        return self

    def release(self) -> None:
        """Free the weights; they are loaded again on next use."""
        self._model = None

    @property
    def _hop(self) -> int:
        """Stride of the convolutions in samples."""
        return math.prod(self.model.config.conv_stride)

    @property
    def _receptive_field(self) -> int:
        """Receptive field of the convolutions in samples."""
        field, step = 1, 1
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            field, step = field + (kernel - 1) * step, step * stride
        return field

    def _convolved(self, samples: Tensor) -> Tensor:
        """Outputs [values, channels] of the convolutions for samples [S], computed in chunks."""
        first, *others = self.model.feature_extractor.conv_layers
        over_time = isinstance(getattr(first, "layer_norm", None), nn.GroupNorm)
        affine = _group_norm_affine(first, samples) if over_time else None
        count = (len(samples) - self._receptive_field) // self._hop + 1
        output = torch.empty(count, others[-1].out_conv_dim, dtype=self.dtype, device=samples.device)
        for start in range(0, count, _CONV_CHUNK):
            stop = min(count, start + _CONV_CHUNK)
            x = samples[None, None, start * self._hop : (stop - 1) * self._hop + self._receptive_field]
            if affine is None:
                x = first(x)
            else:
                scale, shift = affine
                x = first.activation((first.conv(x) * scale + shift).to(self.dtype))
            for layer in others:
                x = layer(x)
            output[start:stop] = rearrange(x, "1 c n -> n c")
        return output

    def _transformed(self, values: Tensor) -> Tensor:
        """Outputs [F, blocks, width] of all blocks for interpolated values [F, channels], computed in chunks."""
        total, step = len(values), max(1, self.chunk - self.overlap)
        starts = [0] if total <= self.chunk else [*range(0, total - self.chunk, step), total - self.chunk]
        output, weights = None, torch.zeros(total, 1, 1)
        for start in starts:
            part = self._blocks(values[start : start + self.chunk])
            if output is None:
                output = torch.zeros(total, *part.shape[1:])
            fade = torch.ones(len(part))
            ramp = torch.arange(1, self.overlap + 1) / (self.overlap + 1)
            if start > 0:
                fade[: self.overlap] = ramp
            if start + len(part) < total:
                fade[len(part) - self.overlap :] = ramp.flip(0)
            output[start : start + len(part)] += part.mul_(fade[:, None, None])
            weights[start : start + len(part)] += fade[:, None, None]
        assert output is not None
        return output.div_(weights)

    def _blocks(self, values: Tensor) -> Tensor:
        """Outputs [F, blocks, width] on the CPU of all transformer blocks for values [F, channels]."""
        outputs: list[Tensor] = []

        def record(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append((output if isinstance(output, Tensor) else output[0])[0].float().cpu())

        hooks = [layer.register_forward_hook(record) for layer in self.model.encoder.layers]
        try:
            hidden, _ = self.model.feature_projection(values[None].to(self.device, self.dtype))
            self.model.encoder(hidden)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(outputs, dim=1)


def _group_norm_affine(first: Any, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift [C, 1] of the group norm after the first convolution, from statistics of the whole recording.

    Each channel is one group, so the norm is an affine map given the mean and variance over time.
    """
    kernel, stride = first.conv.kernel_size[0], first.conv.stride[0]
    count = (len(samples) - kernel) // stride + 1
    total = torch.zeros(2, first.conv.out_channels, dtype=torch.float64)
    for start in range(0, count, _STATISTICS_CHUNK):
        stop = min(count, start + _STATISTICS_CHUNK)
        x = first.conv(samples[None, None, start * stride : (stop - 1) * stride + kernel])[0].float()
        total += torch.stack([x.sum(dim=1), x.square().sum(dim=1)]).cpu()
    mean = total[0] / count
    variance = (total[1] / count - mean.square()).clamp_min(0)
    norm = first.layer_norm
    scale = norm.weight.cpu().double() / (variance + norm.eps).sqrt()
    shift = norm.bias.cpu().double() - mean * scale
    return scale.float().to(samples.device)[:, None], shift.float().to(samples.device)[:, None]
