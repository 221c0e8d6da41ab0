"""Face recognition: an ArcFace network in ONNX (glintr100 of antelopev2), run by onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.encoders.checkpoints import open_onnx
from bya_core.errors import InputError

FILE = "glintr100.onnx of antelopev2 (261 MB; insightface, for research only)"


class ArcFace:
    """Face recognition embeddings.

    Args:
        file: Path of the ONNX model.

    Raises:
        InputError: If the file or onnxruntime is missing, or the model has other inputs and outputs.
    """

    def __init__(self, file: Path) -> None:
        self.session = open_onnx(file, FILE)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or list(inputs[0].shape)[1:] != [3, 112, 112]:
            signature = ", ".join(f"{each.name} {each.shape}" for each in (*inputs, *outputs))
            problem = f"a model with {signature} in {file}"
            raise InputError(problem, f"one input of 112x112 pixels: {FILE}", "use that file")
        self.name = inputs[0].name

    def features(self, crop: Tensor) -> Tensor:
        """Embedding [512] on the CPU, not normalized, of a face crop [3, h, w] in [0, 1].

        As in the released code, the whole crop is resized to 112 pixels, without the alignment that ArcFace was trained
        with.
        """
        pixels = crop.detach().float().cpu()[None].clamp(0, 1) * 255
        small = F.interpolate(pixels, size=(112, 112), mode="bilinear", align_corners=False).round()
        embedding = self.session.run(None, {self.name: ((small - 127.5) / 127.5).numpy()})[0]
        return torch.from_numpy(embedding.reshape(-1))
