"""Transformer block with face and speech conditioning, its attention processor and the patch embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.embeddings import CogVideoXPatchEmbed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor

from bya_core.models.compat import dispatch_attention, register_block
from bya_core.models.rope import apply_rotary

Inject = Callable[[Tensor], Tensor]
"""Adds face and speech conditions to the output of a block [B, S, D]."""


class JointAttnProcessor:
    """Joint attention of text and video tokens with rotary embedding on the video tokens."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states [B, S, D], encoder_hidden_states [B, L, D] -> the same two."""
        text = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)  # [B, L+S, D]
        projections = (attn.to_q, attn.to_k, attn.to_v)
        query, key, value = (project(joint).unflatten(-1, (attn.heads, -1)) for project in projections)
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query = torch.cat([query[:, :text], apply_rotary(query[:, text:], image_rotary_emb)], dim=1)
            key = torch.cat([key[:, :text], apply_rotary(key[:, text:], image_rotary_emb)], dim=1)
        out = dispatch_attention(query, key, value, self._attention_backend, self._parallel_config).flatten(2)
        out = attn.to_out[1](attn.to_out[0](out))
        return out[:, text:], out[:, :text]


class BYABlock(CogVideoXBlock):
    """CogVideoX block that adds face and speech conditions to its output.

    Conditions are added inside the block call, so that step caches which skip or replay blocks treat them alike.
    """

    zero_initialized = "norm1.linear", "norm2.linear"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        processor: Any = JointAttnProcessor()
        self.attn1.set_processor(processor)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        inject: Inject | None = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden_states [B, S, D], encoder_hidden_states [B, L, D], temb [B, E] -> the first two."""
        hidden_states, encoder_hidden_states = self.base_forward(
            hidden_states, encoder_hidden_states, temb, image_rotary_emb, attention_kwargs
        )
        return hidden_states if inject is None else inject(hidden_states), encoder_hidden_states

    def base_forward(self, *args: Any) -> tuple[Tensor, Tensor]:
        """The CogVideoX block without face and speech conditions; this part can be compiled."""
        return super().forward(*args)


register_block(BYABlock)


class PatchEmbed(CogVideoXPatchEmbed):
    """Patch and text embedding for any grid.

    The learned position table is used for the trained grid, a sine-cosine table for any other grid (as in the released
    code for other lengths).
    """

    _rebuilt: tuple[tuple[int, int, int], Tensor] | None = None

    def positions(self, text: int, frames: int, height: int, width: int, device: torch.device) -> Tensor | None:
        """Table [1, text + S, D] for latents of frames x height x width, or None without absolute positions."""
        if not (self.use_positional_embeddings or self.use_learned_positional_embeddings):
            return None
        video_frames = (frames - 1) * self.temporal_compression_ratio + 1
        key = (height, width, video_frames)
        if key == (self.sample_height, self.sample_width, self.sample_frames):
            table: Any = self.pos_embedding
        else:
            if self._rebuilt is None or self._rebuilt[0] != key or self._rebuilt[1].device != device:
                with torch.inference_mode(False):
                    self._rebuilt = key, self._get_positional_embeddings(*key, device=device)
            table = self._rebuilt[1]
        if text == self.max_text_seq_length:
            return table
        return torch.cat([table[:, :text], table[:, self.max_text_seq_length :]], dim=1)

    def forward(self, text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
        """text_embeds [B, L, text_dim], image_embeds [B, T, C, H, W] -> [B, L + S, D]."""
        batch, frames, _, height, width = image_embeds.shape
        video = self.proj(image_embeds.flatten(0, 1)).flatten(2).transpose(1, 2)  # [B*T, h*w, D]
        joint = torch.cat([self.text_proj(text_embeds), video.reshape(batch, -1, video.shape[-1])], dim=1)
        table = self.positions(text_embeds.shape[1], frames, height, width, image_embeds.device)
        return joint if table is None else joint + table.to(joint)
