"""EVA02-CLIP vision tower of the face path: pooled feature and hidden states of a face image.

The network is timm's; published EVA-CLIP checkpoints load by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bya_core.errors import InputError

HIDDEN_BLOCKS = (3, 7, 11, 15, 19)
"""Indices of the transformer blocks whose outputs the released model uses."""
_TRAINED_GRID = 16  # patches per side that the rotary table was trained with; it is interpolated to the input's


class EvaVision(nn.Module):
    """EVA02-CLIP-L/14 image tower that also returns hidden states.

    Args:
        overrides: Arguments of timm's `Eva` in place of those of the published model, for small test models.
    """

    def __init__(self, **overrides: Any) -> None:
        super().__init__()
        arguments = {"num_classes": 768, "ref_feat_shape": (_TRAINED_GRID, _TRAINED_GRID)} | overrides
        self.tower = _timm().create_model("eva02_large_patch14_clip_336", pretrained=False, **arguments)
        self.image_size = int(self.tower.patch_embed.img_size[0])

    def load_published(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load a published EVA-CLIP state dict, either complete ("visual." and "text." keys) or its visual part.

        The tensors are assigned with their data type; a tower on the meta device is materialized.

        Raises:
            InputError: If keys are missing or unexpected, or a shape differs.
        """
        from timm.models.eva import checkpoint_filter_fn

        try:
            converted = checkpoint_filter_fn(dict(state_dict), self.tower)
            self.tower.load_state_dict(converted, strict=True, assign=True)
        except RuntimeError as error:
            raise InputError(
                f"a vision checkpoint that does not fit ({error})",
                "EVA02_CLIP_L_336_psz14_s6B",
                "use the published file",
            ) from error

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode normalized images [B, 3, size, size].

        Returns:
            Pooled features [B, 768] and hidden states [B, K, P, width] of `HIDDEN_BLOCKS`, not normalized. P counts the
            class token (first) and the patches.
        """
        final, levels = self.tower.forward_intermediates(
            images, indices=list(HIDDEN_BLOCKS), return_prefix_tokens=True, output_fmt="NLC"
        )
        hidden = torch.stack([torch.cat([prefix, patches], dim=1) for patches, prefix in levels], dim=1)
        return self.tower.forward_head(final), hidden


def _timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError, OSError) as error:
        # timm imports torchvision, and a torchvision built for another torch raises RuntimeError
        raise InputError(
            f"timm cannot be imported ({error})",
            "timm, and a torchvision that matches the installed torch",
            "run `pip install timm` and install the torchvision that belongs to your torch",
        ) from error
    return timm
