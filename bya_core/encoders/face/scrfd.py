"""SCRFD (https://arxiv.org/abs/2105.04714): insightface's face detector, run without insightface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bya_core.encoders.face.detection import Face, non_max_suppression, pixels, scrfd_file
from bya_core.encoders.face.onnx_model import open_onnx
from bya_core.errors import InputError

FILE = "scrfd_10g_bnkps.onnx of antelopev2 or det_10g.onnx of buffalo_l (17 MB; insightface, for research only)"
_LEVELS = {6: (8, 16, 32), 9: (8, 16, 32), 10: (8, 16, 32, 64, 128), 15: (8, 16, 32, 64, 128)}  # strides, by outputs


class ScrfdDetector:
    """`FaceDetector` with five points per face where the model has them, on the CPU.

    Args:
        model: the ONNX file; or a folder that holds it, itself or up to three folders deeper: insightface wants
            models/antelopev2, and that archive unpacks one level too deep.
        least: score from which a face is told of.
        sure: score from which insightface takes a face for one.
        side: of the square picture the network sees, in pixels.

    Raises:
        InputError: no detection model there, no onnxruntime, or a model with other outputs.
    """

    name = "SCRFD"

    def __init__(self, model: Path, least: float = 0.5, sure: float = 0.5, side: int = 640) -> None:
        file = scrfd_file(model) if model.is_dir() else model
        if file is None:
            raise InputError(f"no face detection model in {model}", FILE, "unpack antelopev2 or buffalo_l there")
        self.least, self.sure, self.side = least, sure, side
        self.session = open_onnx(file, FILE)
        outputs = len(self.session.get_outputs())
        if outputs not in _LEVELS:
            raise InputError(f"a face detector with {outputs} outputs ({file})", FILE, "give one of these")
        self.strides = _LEVELS[outputs]
        self.has_points = outputs == 3 * len(self.strides)

    def detect(self, image: Tensor) -> list[Face]:
        """[3, H, W] in 0..1 -> faces, the surest first."""
        given, scale = self._given(image)
        made = self.session.run(None, {self.session.get_inputs()[0].name: given})
        made = [np.asarray(values).reshape(-1, np.asarray(values).shape[-1]) for values in made]
        levels = len(self.strides)
        boxes, scores, points = [], [], []
        for index, stride in enumerate(self.strides):
            score = made[index][:, 0]
            likely = score >= self.least
            centre = self._centres(stride, len(score))[likely]
            near, far = np.split(made[index + levels][likely] * stride, 2, axis=1)
            boxes.append(np.concatenate([centre - near, centre + far], axis=1) / scale)
            scores.append(score[likely])
            if self.has_points:
                moved = made[index + 2 * levels][likely].reshape(-1, 5, 2) * stride
                points.append((centre[:, None] + moved) / scale)
        every = np.concatenate(boxes), np.concatenate(scores)
        marks = np.concatenate(points) if points else None
        faces = []
        for k in non_max_suppression(*every, overlap=0.4):
            x0, y0, x1, y1 = every[0][k].tolist()
            known = None if marks is None else tuple((float(x), float(y)) for x, y in marks[k])
            faces.append(Face((x0, y0, x1, y1), float(every[1][k]), known))
        return faces

    def _given(self, image: Tensor) -> tuple[np.ndarray, float]:
        """What the network sees [1, 3, side, side], the picture in the upper left corner, and its scale."""
        whole = torch.from_numpy(pixels(image)).float()
        height, width = whole.shape[:2]
        if height > width:
            rows, columns = self.side, int(self.side * width / height)
        else:
            rows, columns = int(self.side * height / width), self.side
        whole = rearrange(whole, "h w c -> 1 c h w")
        small = F.interpolate(whole, size=(max(1, rows), max(1, columns)), mode="bilinear", align_corners=False).round()
        square = torch.zeros(1, 3, self.side, self.side)
        square[:, :, : small.shape[2], : small.shape[3]] = small
        return ((square - 127.5) / 128).numpy(), rows / height

    def _centres(self, stride: int, count: int) -> np.ndarray:
        """x, y of each place that a level looks at, [count, 2]; one or two answers for each place."""
        across = self.side // stride
        y, x = np.mgrid[:across, :across]
        places = np.stack([x, y], axis=-1).reshape(-1, 2) * stride
        return np.repeat(places, count // len(places), axis=0).astype(np.float32)
