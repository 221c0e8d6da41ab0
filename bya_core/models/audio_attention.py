"""Speech path: features -> audio tokens per latent frame -> cross-attention (paper sec. 3.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.models.masked_attention import masked_attention


class AudioProjection(nn.Module):
    """Projects windows of speech features to A tokens per latent frame.

    The same convolution with stride 2 is applied `halvings` times along the time axis. The first frame of an odd length
    is passed through, as the first video frame has its own latent frame.

    Args:
        window: feature frames per video frame.
        blocks, channels: number of feature layers and their width.
        halvings: log2 of the video frames per latent frame.
    """

    def __init__(
        self,
        *,
        window: int,
        blocks: int,
        channels: int,
        hidden_dim: int,
        dim: int,
        context_tokens: int,
        halvings: int,
    ) -> None:
        super().__init__()
        self.context_tokens, self.halvings = context_tokens, halvings
        self.proj1 = nn.Linear(window * blocks * channels, hidden_dim)
        self.proj2 = nn.Linear(hidden_dim, hidden_dim)
        self.proj3 = nn.Linear(hidden_dim, context_tokens * dim)
        self.norm = nn.LayerNorm(dim)
        self.conv1 = nn.Conv1d(context_tokens * dim, context_tokens * dim, kernel_size=2, stride=2)

    def forward(self, windows: Tensor) -> Tensor:
        """[B, F, window, blocks, channels] -> [B, T, A, dim]."""
        x = F.relu(self.proj1(windows.flatten(2)))
        x = self.proj3(F.relu(self.proj2(x))).transpose(1, 2)  # [B, A*dim, F]
        for _ in range(self.halvings):
            first = x.shape[-1] % 2
            if x.shape[-1] > 1:
                x = torch.cat([x[..., :first], self.conv1(x[..., first:])], dim=-1)
        return self.norm(rearrange(x, "b (a d) t -> b t a d", a=self.context_tokens))


class _Attention(nn.Module):
    """Projections of one cross-attention, with the published parameter names."""

    def __init__(self, dim: int, kv_dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_q = nn.Linear(dim, heads * dim_head)
        self.to_k = nn.Linear(kv_dim, heads * dim_head)
        self.to_v = nn.Linear(kv_dim, heads * dim_head)
        self.to_out = nn.ModuleList([nn.Linear(heads * dim_head, dim)])


class AudioCrossAttention(nn.Module):
    """Cross-attention of the tokens of a latent frame to the audio tokens of that frame, masked per stream."""

    zero_initialized = ("attn.to_out.0",)

    def __init__(self, dim: int, audio_dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.norm_q = nn.LayerNorm(dim)
        self.attn = _Attention(dim, audio_dim, heads, dim_head)

    def keys_values(self, audio_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, M, T, A, Da] -> k (multiplied by the softmax scale) and v, each [B, T, heads, M, A, d]."""
        pair = self.attn.to_k(audio_tokens) * self.attn.scale, self.attn.to_v(audio_tokens)
        k, v = (rearrange(x, "b m t a (h d) -> b t h m a d", h=self.attn.heads).contiguous() for x in pair)
        return k, v

    def forward(
        self,
        hidden_states: Tensor,
        audio_tokens: Tensor,
        masks: Tensor,
        pair: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Paper eq. 8, for all tokens or for equally many selected ones per latent frame.

        Args:
            hidden_states: [B, S, D].
            audio_tokens: [B, M, T, A, Da].
            masks: [B, M, S].
            pair: `keys_values(audio_tokens)`, if already computed.

        Returns:
            [B, S, D].
        """
        attn, frames = self.attn, audio_tokens.shape[2]
        query = rearrange(attn.to_q(self.norm_q(hidden_states)), "b (t p) (h d) -> b t h p d", t=frames, h=attn.heads)
        key, value = self.keys_values(audio_tokens) if pair is None else pair
        mask = rearrange(masks, "b m (t p) -> b t 1 p m", t=frames)
        out = masked_attention(query, key, value, mask)
        out = rearrange(out, "b t h p d -> b (t p) (h d)")
        # The output bias is added once per stream and mask; the projection below adds it once, unmasked.
        bias = attn.to_out[0](out.new_zeros(1, 1, out.shape[-1]))
        return torch.addcmul(attn.to_out[0](out), masks.sum(dim=1).unsqueeze(-1) - 1, bias)


class AudioModel(nn.Module):
    """Audio projection shared by all layers, and one cross-attention per layer.

    Args:
        dim, audio_dim: widths of video tokens and audio tokens.
        temporal_ratio: video frames per latent frame.
        released: also create the two unused parameters of the published files.
        projection: window, blocks, channels, hidden_dim and context_tokens of `AudioProjection`.
    """

    def __init__(
        self,
        *,
        dim: int,
        audio_dim: int,
        heads: int,
        dim_head: int,
        num_layers: int,
        temporal_ratio: int,
        released: bool,
        **projection: int,
    ) -> None:
        super().__init__()
        self.temporal_ratio = temporal_ratio
        self.window, self.blocks, self.channels = (projection[name] for name in ("window", "blocks", "channels"))
        if released:
            self.learnable_scale = nn.Parameter(torch.zeros(1))
            self.mute_learnable_tokens = nn.Parameter(torch.zeros(1, projection["context_tokens"], audio_dim))
        self.audio_proj_model = AudioProjection(dim=audio_dim, halvings=temporal_ratio.bit_length() - 1, **projection)
        self.layers = nn.ModuleList([AudioCrossAttention(dim, audio_dim, heads, dim_head) for _ in range(num_layers)])

    def encode(self, features: Tensor) -> Tensor:
        """Encode speech features with their context frames to audio tokens.

        Args:
            features: [B, M, F + window - 1, blocks, channels].

        Returns:
            [B, M, T, A, Da].

        Raises:
            InputError: another number of layers or width, or frames that are not 1 + a multiple of the time factor.
        """
        context = self.window - 1
        frames = features.shape[2] - context if features.dim() == 5 else 0
        if features.dim() != 5 or features.shape[3:] != (self.blocks, self.channels):
            raise InputError(
                f"speech features of shape {list(features.shape)}",
                f"[batch, streams, frames + {context}, {self.blocks}, {self.channels}]",
                "use the speech encoder of this model",
            )
        if frames < 1 or (frames - 1) % self.temporal_ratio:
            raise InputError(
                f"speech features of {features.shape[2]} frames",
                f"1 + a multiple of {self.temporal_ratio} video frames, and {context} more of context",
                "encode the speech for the length of the video",
            )
        windows = features.unfold(2, self.window, 1)  # [B, M, F, blocks, channels, window]
        windows = rearrange(windows, "b m f k c w -> (b m) f w k c")
        return self.audio_proj_model(windows).unflatten(0, features.shape[:2])


def build_audio_model(config: Any, num_layers: int) -> AudioModel:
    """Speech path of a transformer with this configuration."""
    names = ("dim", "heads", "dim_head", "window", "blocks", "channels", "hidden_dim", "context_tokens")
    sizes = {name: config[f"audio_{name}"] for name in names}
    return AudioModel(
        dim=config.num_attention_heads * config.attention_head_dim,
        audio_dim=sizes.pop("dim"),
        num_layers=num_layers,
        temporal_ratio=config.temporal_compression_ratio,
        released=config.flavour == "official",
        **sizes,
    )
