"""Person segmentation: pixels that belong to any person, as in mediapipe's selfie segmentation.

    segmenter = PersonSegmenter()                       # weights are inside the package, 0.2 MB
    masks = segmenter(frames)                           # frames uint8 [F, H, W, 3] -> probabilities float32 [F, H, W]
    masks = segmenter(frames, boxes=[(x0, y0, x1, y1), ...])   # one box a frame: sharper masks of small persons

The network has no notion of identity: separate people by the hull of their face mesh or by their boxes. It was made for
one or two people close to the camera; a box three times as wide and four times as tall as the face, see
`encoders.face.matching.body_boxes`, gives the best masks. The weights are those of `selfie_segmentation.tflite` of
mediapipe 0.10.21 (Apache-2.0, see `encoders/weights/NOTICE`), converted by `tools/convert_mediapipe.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bya_core.encoders.weights import load_weights

SIZE = 256
"""Side of the square network input in pixels."""
_BATCH = 8


class SqueezeExcite(nn.Module):
    """Channel attention from the mean over all positions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class MobileBlock(nn.Module):
    """Inverted residual block of MobileNetV3, with channel attention if `squeeze`."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, squeeze: int, hard_swish: bool
    ) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, hidden, 1)
        padding = (kernel - 1) // 2 if stride == 1 else 0
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, padding, groups=hidden)
        self.squeeze = SqueezeExcite(hidden, squeeze) if squeeze else None
        self.project = nn.Conv2d(hidden, outputs, 1)
        self.activation: nn.Module = nn.Hardswish() if hard_swish else nn.ReLU()
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.expand(x))
        if self.depthwise.stride == (2, 2):
            before = (self.depthwise.kernel_size[0] - 2) // 2
            after = self.depthwise.kernel_size[0] - 2 - before
            y = F.pad(y, (before, after, before, after))
        y = self.activation(self.depthwise(y))
        if self.squeeze is not None:
            y = y * self.squeeze(y)
        y = self.project(y)
        return x + y if self.residual else y


class DecoderBlock(nn.Module):
    """Upsample, project and merge with the features of the encoder."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, outputs, 1)
        self.attention = SqueezeExcite(outputs, outputs)
        self.merge = nn.Conv2d(outputs, outputs, 1)
        self.depthwise = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        x = self.project(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        x = F.relu(self.merge(features * self.attention(features + x) + x))
        return x + F.relu(self.depthwise(x))


class SelfieSegmentation(nn.Module):
    """The network: a small MobileNetV3 and a decoder with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2)
        self.blocks = nn.ModuleList(
            [
                MobileBlock(16, 16, 16, 3, 2, 8, False),
                MobileBlock(16, 72, 24, 3, 2, 0, False),
                MobileBlock(24, 88, 24, 3, 1, 0, False),
                MobileBlock(24, 96, 32, 5, 2, 24, True),
                MobileBlock(32, 128, 32, 5, 1, 32, True),
                MobileBlock(32, 128, 32, 5, 1, 32, True),
                MobileBlock(32, 96, 32, 5, 1, 24, True),
                MobileBlock(32, 96, 32, 5, 1, 24, True),
            ]
        )
        self.pooled, self.pooled_attention = nn.Conv2d(32, 128, 1), nn.Conv2d(32, 128, 1)
        self.decoder = nn.ModuleList([DecoderBlock(128, 24), DecoderBlock(24, 16), DecoderBlock(16, 16)])
        self.head = nn.ConvTranspose2d(16, 1, 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Probability of a person per pixel [B, 256, 256] for images [B, 3, 256, 256] in [0, 1]."""
        half = F.hardswish(self.stem(F.pad(images, (0, 1, 0, 1))))
        quarter = self.blocks[0](half)
        eighth = self.blocks[2](self.blocks[1](quarter))
        x = eighth
        for block in self.blocks[3:]:
            x = block(x)
        attention = self.pooled_attention(x.mean((2, 3), keepdim=True)).sigmoid()
        x = F.relu(self.pooled(x)) * attention
        for stage, features in zip(self.decoder, (eighth, quarter, half), strict=True):
            x = stage(x, features)
        return self.head(x).sigmoid()[:, 0]


class PersonSegmenter:
    """Person masks of video frames.

    Args:
        device: Device of the network.
    """

    name = "selfie segmentation"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.network = load_weights(SelfieSegmentation(), "selfie_segmentation")
        self.network.to(self.device)

    @torch.inference_mode()
    def __call__(
        self, frames: np.ndarray, boxes: Sequence[tuple[float, float, float, float]] | np.ndarray | None = None
    ) -> np.ndarray:
        """Probability that a pixel shows a person.

        Args:
            frames: uint8 [F, H, W, 3].
            boxes: (x0, y0, x1, y1) of the region of each frame in pixels, [F, 4]; outside, the probability is 0. NaN
                leaves out a frame. `None` selects the whole image.

        Returns:
            float32 [F, H, W].
        """
        length, height, width = frames.shape[:3]
        masks = np.zeros((length, height, width), np.float32)
        whole = np.tile(np.array([0.0, 0.0, width, height]), (length, 1))
        given = whole if boxes is None else np.asarray(boxes, dtype=np.float64).reshape(length, 4)
        chosen = np.flatnonzero(np.isfinite(given).all(axis=1))
        limits = np.array([width, height, width, height])
        regions = np.clip(np.round(np.nan_to_num(given)), 0, limits).astype(int)
        chosen = chosen[(regions[chosen, 2:] > regions[chosen, :2]).all(axis=1)]
        for start in range(0, len(chosen), _BATCH):
            part = chosen[start : start + _BATCH]
            crops = torch.cat([self._crop(frames[f], regions[f]) for f in part])
            for f, mask in zip(part, self.network(crops.contiguous(memory_format=torch.channels_last)), strict=True):
                x0, y0, x1, y1 = regions[f]
                mask = F.interpolate(mask[None, None], (y1 - y0, x1 - x0), mode="bilinear", align_corners=False)
                masks[f, y0:y1, x0:x1] = mask[0, 0].cpu().numpy()
        return masks

    def _crop(self, frame: np.ndarray, box: np.ndarray) -> Tensor:
        x0, y0, x1, y1 = box
        part = torch.from_numpy(np.array(frame[y0:y1, x0:x1])).to(self.device)
        image = part.permute(2, 0, 1)[None].float() / 255.0
        return F.interpolate(image, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)


class PersonParser:
    """Stands in for `face.parsing.FaceParser` where its weights are missing: head, hair and shoulders of a crop."""

    def __init__(self) -> None:
        self.segmenter = PersonSegmenter()

    def face(self, crop: Tensor) -> Tensor:
        """Boolean mask [H, W] of the person in a crop [3, H, W] in [0, 1]."""
        frame = (crop.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return torch.from_numpy(self.segmenter(frame[None])[0] > 0.5)
