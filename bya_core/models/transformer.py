"""CogVideoX transformer with face, speech and router paths (paper fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNorm
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.models.audio_attention import AudioModel, build_audio_model
from bya_core.models.blocks import BYABlock, PatchEmbed
from bya_core.models.compat import AttentionMixin
from bya_core.models.conditioning import BlockConditioning, LayerSchedule
from bya_core.models.face_attention import FaceCrossAttention, LocalFacialExtractor
from bya_core.models.input_checks import check_inputs, check_path, check_shape, latent_grid
from bya_core.models.kv_cache import KVCache
from bya_core.models.rope import rotary_embedding
from bya_core.models.router import OfficialRouter, PaperRouter, build_router


@dataclass
class BYATransformerOutput(BaseOutput):
    """Output of `BindYourAvatarTransformer3DModel`.

    Args:
        sample: [B, T, C_out, H, W].
        masks: router predictions [R, B, N, T, h, w] in [0, 1] without background; None if no router ran.
        router_logits: [R, B, N or N+1, T, h, w]; a background class is last.
        used_masks: masks applied in the last face layer [B, N, T, h, w], or None.
    """

    sample: Tensor
    masks: Tensor | None = None
    router_logits: Tensor | None = None
    used_masks: Tensor | None = None


class BindYourAvatarTransformer3DModel(  # type: ignore[misc]  # the mixins disagree on config_name
    ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin, CacheMixin
):
    """Video transformer with face and speech conditioning inside character masks, for any number of characters.

    Parameter names are those of the released checkpoint. Faces and speech are encoded once per clip with `encode_faces`
    and `encode_speech`.

    Args:
        flavour: "official" = architecture of the released weights, "paper" = as described in the paper.
        injection_start: first block with face or speech conditioning.
        cross_attn_interval, audio_attn_interval: a face or speech layer in every n-th block from there.
        num_router_layers: number of face layers with a router, counted from the first; the others use the most recent
            masks. None = all.
        inflate_audio_masks: see `masks.audio_masks`.
        router_detach: detach inputs and masks of the router, so that it is trained by its own loss only (paper
            appendix B).
        router_reads_tokens, router_temperature, router_activation: paper flavour, see `PaperRouter`.
        router_dim: width of the paper router; that of the official one is queries x heads.
        router_grid: (T, a, b) of the stored position table (official); None = from the sample size.
        cross_attn_kv_dim: width of face tokens; None = lfe_output_dim.
        sample_width, sample_height, sample_frames: size used in training, in latent columns and rows and video frames.
        Others: as in `CogVideoXTransformer3DModel`, or sizes of the submodules they are named after.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: Any = ["BYABlock", "PatchEmbed"]
    _repeated_blocks: Any = ["BYABlock"]
    _skip_layerwise_casting_patterns: Any = ["patch_embed", "norm"]

    zero_initialized = "norm_out.linear", "proj_out"
    use_kv_cache = True
    """Whether calls may use a `KVCache`; set it to False to save memory."""

    @register_to_config
    def __init__(
        self,
        flavour: Literal["official", "paper"] = "official",
        num_attention_heads: int = 48,
        attention_head_dim: int = 64,
        in_channels: int = 48,
        out_channels: int = 16,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        time_embed_dim: int = 512,
        text_embed_dim: int = 4096,
        num_layers: int = 42,
        dropout: float = 0.0,
        attention_bias: bool = True,
        sample_width: int = 90,
        sample_height: int = 60,
        sample_frames: int = 49,
        patch_size: int = 2,
        temporal_compression_ratio: int = 4,
        max_text_seq_length: int = 226,
        activation_fn: str = "gelu-approximate",
        timestep_activation_fn: str = "silu",
        norm_elementwise_affine: bool = True,
        norm_eps: float = 1e-5,
        spatial_interpolation_scale: float = 1.875,
        temporal_interpolation_scale: float = 1.0,
        use_rotary_positional_embeddings: bool = True,
        use_learned_positional_embeddings: bool = True,
        use_face: bool = True,
        use_audio: bool = True,
        injection_start: int = 0,
        cross_attn_interval: int = 2,
        audio_attn_interval: int = 1,
        local_face_scale: float = 1.0,
        cross_attn_dim_head: int = 128,
        cross_attn_num_heads: int = 16,
        cross_attn_kv_dim: int | None = None,
        lfe_dim: int = 1024,
        lfe_depth: int = 10,
        lfe_dim_head: int = 64,
        lfe_heads: int = 16,
        lfe_num_id_token: int = 5,
        lfe_num_queries: int = 32,
        lfe_output_dim: int = 2048,
        lfe_ff_mult: int = 4,
        lfe_vit_dim: int = 1024,
        lfe_id_dim: int = 1280,
        lfe_hidden_dim: int = 1024,
        lfe_num_scale: int = 5,
        num_router_layers: int | None = None,
        router_dim: int = 128,
        router_heads: int = 8,
        router_blocks: int = 4,
        router_grid: tuple[int, int, int] | None = None,
        router_detach: bool = True,
        router_reads_tokens: bool = False,
        router_temperature: float = 1.0,
        router_activation: Literal["softmax", "sigmoid"] = "softmax",
        inflate_audio_masks: bool = True,
        audio_dim: int = 768,
        audio_heads: int = 48,
        audio_dim_head: int = 64,
        audio_window: int = 5,
        audio_blocks: int = 12,
        audio_channels: int = 768,
        audio_hidden_dim: int = 512,
        audio_context_tokens: int = 32,
    ) -> None:
        super().__init__()
        if flavour not in ("official", "paper"):
            raise InputError(f"flavour {flavour!r}", '"official" or "paper"', "choose one of them")
        config: Any = self.config
        dim = num_attention_heads * attention_head_dim
        self.schedule = LayerSchedule(num_layers, injection_start, cross_attn_interval, audio_attn_interval)
        self.patch_embed = PatchEmbed(
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dim=dim,
            text_embed_dim=text_embed_dim,
            sample_width=sample_width,
            sample_height=sample_height,
            sample_frames=sample_frames,
            temporal_compression_ratio=temporal_compression_ratio,
            max_text_seq_length=max_text_seq_length,
            spatial_interpolation_scale=spatial_interpolation_scale,
            temporal_interpolation_scale=temporal_interpolation_scale,
            use_positional_embeddings=not use_rotary_positional_embeddings,
            use_learned_positional_embeddings=use_learned_positional_embeddings,
        )
        self.embedding_dropout = nn.Dropout(dropout)
        self.time_proj = Timesteps(dim, flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(dim, time_embed_dim, timestep_activation_fn)
        self.transformer_blocks = nn.ModuleList(
            [
                BYABlock(
                    dim=dim,
                    num_attention_heads=num_attention_heads,
                    attention_head_dim=attention_head_dim,
                    time_embed_dim=time_embed_dim,
                    dropout=dropout,
                    activation_fn=activation_fn,
                    attention_bias=attention_bias,
                    norm_elementwise_affine=norm_elementwise_affine,
                    norm_eps=norm_eps,
                )
                for _ in range(num_layers)
            ]
        )
        self.norm_final = nn.LayerNorm(dim, norm_eps, norm_elementwise_affine)
        self.norm_out = AdaLayerNorm(time_embed_dim, None, 2 * dim, norm_elementwise_affine, norm_eps, chunk_dim=1)
        self.proj_out = nn.Linear(dim, patch_size * patch_size * out_channels)

        face_layers = self.schedule.face_layers
        self.router_layers = face_layers if num_router_layers is None else min(num_router_layers, face_layers)
        self.local_facial_extractor: LocalFacialExtractor | None = None
        self.perceiver_cross_attention: nn.ModuleList | None = None
        self.router: OfficialRouter | PaperRouter | None = None
        self.audio_model: AudioModel | None = None
        if use_face:
            kv_dim = lfe_output_dim if cross_attn_kv_dim is None else cross_attn_kv_dim
            sizes = {key.removeprefix("lfe_"): value for key, value in config.items() if key.startswith("lfe_")}
            self.local_facial_extractor = LocalFacialExtractor(**sizes | {"output_dim": kv_dim})
            self.perceiver_cross_attention = nn.ModuleList(
                [FaceCrossAttention(dim, cross_attn_dim_head, cross_attn_num_heads, kv_dim) for _ in range(face_layers)]
            )
            self.router = build_router(config, self.router_layers) if self.router_layers else None
        if use_audio:
            self.audio_model = build_audio_model(config, self.schedule.audio_layers)
        self.gradient_checkpointing = False
        if flavour == "paper":
            self._init_weights()

    def _init_weights(self) -> None:
        """Initial weights for training from scratch: blocks, conditioning and output start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            for name in getattr(module, "zero_initialized", ()):
                for parameter in module.get_submodule(name).parameters():
                    nn.init.zeros_(parameter)

    def encode_faces(self, identity: Tensor, hidden: Tensor) -> Tensor:
        """Encode face features to face tokens.

        Args:
            identity: identity embeddings [B, N, id_dim].
            hidden: vision features [B, N, K, P, vit_dim], K feature maps of P tokens.

        Returns:
            [B, N, Q, kv].

        Raises:
            InputError: the model has no face path, or a shape does not match.
        """
        extractor = check_path(self.local_facial_extractor, "faces", "face")
        c: Any = self.config
        hint = "use the face encoder of this model"
        check_shape("identity", identity, (None, None, c.lfe_id_dim), hint)
        check_shape("face features", hidden, (*identity.shape[:2], c.lfe_num_scale, None, c.lfe_vit_dim), hint)
        return extractor(identity.flatten(0, 1), hidden.flatten(0, 1)).unflatten(0, identity.shape[:2])

    def encode_speech(self, features: Tensor) -> Tensor:
        """Encode speech features to audio tokens: [B, M, F + window - 1, blocks, channels] -> [B, M, T, A, Da].

        All-zero features give the unconditional input of guidance; their tokens are not zero.

        Raises:
            InputError: the model has no speech path, or a shape does not match.
        """
        return check_path(self.audio_model, "speech", "speech").encode(features)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        *,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        face_tokens: Tensor | None = None,
        audio_tokens: Tensor | None = None,
        audio_character_matrix: Tensor | None = None,
        mask_override: Tensor | None = None,
        mask_override_strength: Tensor | float | None = None,
        speech_strength: Tensor | None = None,
        inflate_audio_masks: bool | None = None,
        run_router: bool = False,
        router_interval: int = 1,
        prune_tokens: bool = False,
        kv_cache: KVCache | None = None,
        return_dict: bool = True,
    ) -> BYATransformerOutput | tuple[Tensor | None, ...]:
        """Predict the velocity of noisy latents.

        Args:
            hidden_states: [B, T, C, H, W]: noisy latents, canvas and first frame concatenated along the channels.
            encoder_hidden_states: text [B, L, text_embed_dim].
            timestep: [B].
            image_rotary_emb: (cos, sin), each [S, head_dim]; None = computed for this grid.
            face_tokens: [B, N, Q, kv]; None = no faces.
            audio_tokens: [B, M, T, A, Da]; None = no speech.
            audio_character_matrix: [B, M, N]; None = stream i drives character i.
            mask_override: [B, N, T, h, w], or one per face layer [R, B, N, T, h, w]; replaces the router's masks.
            mask_override_strength: broadcastable to [B, N, T, h, w]; 0 = the router's masks, 1 = `mask_override`;
                None = 1, and the router does not run.
            speech_strength: [B, N], scale of the speech output per character; None = 1.
            inflate_audio_masks: overrides the setting of the model, see `masks.audio_masks`.
            run_router: run the router even if its masks are not used (training).
            router_interval: run the router in every n-th face layer; the others use the most recent masks.
            prune_tokens: run face and speech attention only on tokens inside a mask, see `TokenPruning`.
            kv_cache: keys and values of this clip; None = computed in this call.
            return_dict: False = return a tuple in the order of `BYATransformerOutput`.

        Raises:
            InputError: inputs that do not match each other or the model.
        """
        config: Any = self.config
        grid = latent_grid(hidden_states, config)
        inputs = BlockConditioning(
            model=self,
            grid=grid,
            face_tokens=face_tokens,
            audio_tokens=audio_tokens,
            matrix=None if audio_character_matrix is None else audio_character_matrix.to(hidden_states),
            mask_override=None if mask_override is None else mask_override.to(hidden_states),
            mask_override_strength=mask_override_strength,
            speech_strength=None if speech_strength is None else speech_strength.to(hidden_states),
            inflate=config.inflate_audio_masks if inflate_audio_masks is None else inflate_audio_masks,
            run_router=run_router,
            router_interval=router_interval,
            prune_tokens=prune_tokens,
            kv_cache=kv_cache if self.use_kv_cache else None,
        )
        check_inputs(hidden_states, encoder_hidden_states, timestep, inputs)
        if image_rotary_emb is None and config.use_rotary_positional_embeddings:
            image_rotary_emb = self.rotary(grid, hidden_states.device)

        # `time_proj` returns float32.
        temb = self.time_embedding(self.time_proj(timestep).to(hidden_states.dtype))
        joint = self.embedding_dropout(self.patch_embed(encoder_hidden_states, hidden_states))
        text = encoder_hidden_states.shape[1]
        # contiguous as in all other blocks: torch.compile makes one graph per memory layout
        encoder_hidden_states, hidden_states = joint[:, :text].contiguous(), joint[:, text:].contiguous()

        for index, block in enumerate(self.transformer_blocks):
            arguments = hidden_states, encoder_hidden_states, temb, image_rotary_emb, None, inputs.for_block(index)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states, encoder_hidden_states = self._gradient_checkpointing_func(block, *arguments)
            else:
                hidden_states, encoder_hidden_states = block(*arguments)

        out = self.proj_out(self.norm_out(self.norm_final(hidden_states), temb=temb))
        p = config.patch_size
        sample = rearrange(grid.unflatten(out.mT), "b (c p q) t h w -> b t c (h p) (w q)", p=p, q=p)
        used = inputs.used[max(inputs.used)] if inputs.used else None
        outputs = sample, inputs.stacked(inputs.predicted), inputs.stacked(inputs.logits), used
        return BYATransformerOutput(*outputs) if return_dict else outputs

    def rotary(self, grid: TokenGrid, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """(cos, sin) [S, head_dim]; the official flavour fits the grid into the one used in training."""
        c: Any = self.config
        trained = c.sample_height // c.patch_size, c.sample_width // c.patch_size
        base = trained if c.flavour == "official" else None
        return rotary_embedding(grid, c.attention_head_dim, base, device)
