"""EVA02-CLIP vision tower: what the face path sees of a reference face (global feature and fine detail).

The network is timm's; published EVA-CLIP files load by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bya_core.errors import InputError

HIDDEN_BLOCKS = (3, 7, 11, 15, 19)
"""Blocks after which the released face path reads the tokens (counted from 0)."""


def _timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError, OSError) as problem:
        # timm imports torchvision, and a torchvision built for another torch fails with a RuntimeError.
        raise InputError(
            f"timm that cannot be imported ({problem})",
            "a timm and a torchvision that fit the installed torch",
            "run `pip install timm` and install the torchvision that belongs to your torch",
        ) from problem
    return timm


class EvaVision(nn.Module):
    """EVA02-CLIP image tower that also returns hidden states.

    Args:
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        width, depth, heads, mlp_ratio: of the transformer.
        output_dim: width of the pooled feature.
        trained_grid: patches per side the rotary table was made for; it is stretched to the input's.
        hidden_blocks: blocks whose output is returned.
    """

    def __init__(
        self,
        *,
        image_size: int = 336,
        patch_size: int = 14,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        mlp_ratio: float = 8 / 3,
        output_dim: int = 768,
        trained_grid: int = 16,
        hidden_blocks: Sequence[int] = HIDDEN_BLOCKS,
    ) -> None:
        super().__init__()
        self.hidden_blocks = list(hidden_blocks)
        self.image_size = image_size
        self.tower = _timm().create_model(
            "eva02_large_patch14_clip_336",
            pretrained=False,
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            num_classes=output_dim,
            ref_feat_shape=(trained_grid, trained_grid),
        )

    def load_published(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads a published EVA-CLIP state dict, whole ("visual." and "text." entries) or its visual part.

        The tensors become the weights, in their own dtype; a tower on the meta device becomes a real one.

        Raises:
            InputError: entries are missing, left over or of another shape.
        """
        from timm.models.eva import checkpoint_filter_fn

        try:
            taken = checkpoint_filter_fn(dict(state_dict), self.tower)
            self.tower.load_state_dict(taken, strict=True, assign=True)
        except RuntimeError as problem:
            raise InputError(
                f"a vision checkpoint that does not fit ({problem})",
                "EVA02_CLIP_L_336_psz14_s6B or one of the same sizes",
                "give the published file",
            ) from problem

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, side, side] -> pooled [B, output_dim], hidden [B, K, P, width].

        P counts the class token (first) and the patches; hidden states are not normalised.
        """
        final, levels = self.tower.forward_intermediates(
            images, indices=self.hidden_blocks, return_prefix_tokens=True, output_fmt="NLC"
        )
        hidden = torch.stack([torch.cat([prefix, patches], dim=1) for patches, prefix in levels], dim=1)
        return self.tower.forward_head(final), hidden
