"""Loading a model and placing it in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bya_core.weights.bundle import ModelBundle
    from bya_core.weights.lora import LoraSpec


def load_model(
    name_or_path: str | Path = "toy",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    vram: str | None = "auto",
    components: Mapping[str, Any] | None = None,
    lora: Sequence[LoraSpec] = (),
) -> ModelBundle:
    """Load a model and place it in memory, ready for `generate`.

    Args:
        name_or_path: Registry name, file written by `bya convert`, bundle folder, released folder or folder of a
            training run (`final` or a checkpoint).
        device: Device to compute on; `None` selects the first GPU, or the CPU if there is none.
        dtype: Dtype of the weights; `None` uses the default of the model.
        vram: VRAM budget in GB ("8" to "80"), "auto" for the free memory of the GPU, or `None` to keep the complete
            model on `device`.
        components: "text" or "codec", used instead of the model's own.
        lora: LoRA files to merge: "file.safetensors", "file.safetensors:0.8" or (path, strength).

    Raises:
        InputError: Unknown model, or missing weights (with instructions to get them), or a LoRA that does not fit.
    """
    import torch

    from bya_core.memory.planner import place_model
    from bya_core.weights.loader import load_bundle

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if vram is None:
        return load_bundle(name_or_path, dtype=dtype, device=device, components=components, lora=lora)
    bundle = load_bundle(name_or_path, dtype=dtype, components=components, lora=lora)
    place_model(bundle, vram, device)
    return bundle
