"""Face recognition: an ArcFace network in ONNX (glintr100 of antelopev2), by onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


class ArcFace:
    """Who a face is.

    Args:
        file: the ONNX model.

    Raises:
        InputError: no such file, no onnxruntime, or a model with other inputs and outputs.
    """

    def __init__(self, file: Path) -> None:
        raise NotImplementedError

    def features(self, crop: Tensor) -> Tensor:
        """[3, h, w] in 0..1 -> [512], as the network gives it (not normalised)."""
        raise NotImplementedError
