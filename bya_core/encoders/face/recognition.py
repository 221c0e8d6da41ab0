"""Face recognition: an ArcFace network in ONNX (glintr100 of antelopev2), by onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.encoders.face.onnx_model import open_onnx
from bya_core.errors import InputError

FILE = "glintr100.onnx of antelopev2 (261 MB; insightface, for research only)"


class ArcFace:
    """Who a face is.

    Args:
        file: the ONNX model.

    Raises:
        InputError: no such file, no onnxruntime, or a model with other inputs and outputs.
    """

    def __init__(self, file: Path) -> None:
        self.session = open_onnx(file, FILE)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or list(inputs[0].shape)[1:] != [3, 112, 112]:
            told = ", ".join(f"{each.name} {each.shape}" for each in (*inputs, *outputs))
            raise InputError(f"a model with {told} in {file}", f"pictures of 112 pixels: {FILE}", "give that file")
        self.name = inputs[0].name

    def features(self, crop: Tensor) -> Tensor:
        """[3, h, w] in 0..1 -> [512] on the CPU, as the network gives it (not normalised).

        As released, the whole crop is shrunk to 112 pixels, without turning the face as ArcFace was trained.
        """
        whole = crop.detach().float().cpu()[None].clamp(0, 1) * 255
        small = F.interpolate(whole, size=(112, 112), mode="bilinear", align_corners=False).round()
        made = self.session.run(None, {self.name: ((small - 127.5) / 127.5).numpy()})[0]
        return torch.from_numpy(made.reshape(-1))
