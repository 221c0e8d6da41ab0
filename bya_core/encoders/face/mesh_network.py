"""Face mesh network (https://arxiv.org/abs/1907.06724): 468 points of a face crop and the presence of a face.

The weights are those of `face_landmark.tflite` of mediapipe 0.10.21 (Apache-2.0, see `encoders/weights/NOTICE`),
converted by `tools/convert_mediapipe.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bya_core.encoders.face.blazeface import BlazeBlock

SIZE = 192
"""Side of the square network input in pixels."""
POINTS = 468


class FaceMeshNetwork(nn.Module):
    """Trunk of separable residual blocks with one head for the points and one for the presence of a face."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_activation = nn.Conv2d(3, 16, 3, 2), nn.PReLU(16)
        widths = (16, 16, 16, 32, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128)
        strides = (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1)
        self.trunk = nn.Sequential(*(_block(*pair) for pair in zip(widths, widths[1:], strides, strict=False)))
        self.points = nn.Sequential(_block(128, 128, 2), _block(128, 128), _block(128, 128), *_head(3 * POINTS))
        self.presence = nn.Sequential(_block(128, 128, 2), *_head(1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the network.

        Args:
            images: [B, 3, 192, 192] in [0, 1], faces upright.

        Returns:
            points [B, 468, 3] in pixels of the input (z: depth on the same scale), and the logit of the presence of a
            face [B].
        """
        x = self.trunk(self.stem_activation(self.stem(F.pad(images, (0, 1, 0, 1)))))
        return self.points(x).reshape(-1, POINTS, 3), self.presence(x).reshape(-1)


def _block(inputs: int, outputs: int, stride: int = 1) -> BlazeBlock:
    return BlazeBlock(inputs, outputs, stride, prelu=True)


def _head(outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(128, 32, 1), nn.PReLU(32), _block(32, 32), nn.Conv2d(32, outputs, 3)]
