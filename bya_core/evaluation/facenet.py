"""FaceNet (InceptionResnetV1): embeddings of faces.

Parameter names are those of the published weights of facenet-pytorch (vggface2), without the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bya_core.encoders.checkpoints import load_strictly, read_weights
from bya_core.evaluation.metric_weights import FACENET

SIZE = 160  # pixels
Kernel = int | tuple[int, int]
Steps = Sequence[tuple[int, Kernel]]


class _Conv(nn.Module):
    """Convolution, batch normalization, ReLU."""

    def __init__(self, in_channels: int, out: int, kernel: Kernel, stride: int = 1, same: bool = False) -> None:
        super().__init__()
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (high // 2, wide // 2) if same else 0
        self.conv = nn.Conv2d(in_channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _chain(in_channels: int, steps: Steps, last_stride: int = 1) -> nn.Module:
    """Sequence of convolutions (width, kernel); a single one is not wrapped. A strided one has no padding."""
    layers: list[_Conv] = []
    for k, (width, kernel) in enumerate(steps):
        stride = last_stride if k == len(steps) - 1 else 1
        layers.append(_Conv(in_channels, width, kernel, stride, same=stride == 1))
        in_channels = width
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


class _Residual(nn.Module):
    """Residual block of parallel branches."""

    def __init__(self, width: int, branches: Sequence[Steps], scale: float, relu: bool = True) -> None:
        super().__init__()
        self.branches = len(branches)
        for k, steps in enumerate(branches):
            self.add_module(f"branch{k}", _chain(width, steps))
        self.conv2d = nn.Conv2d(sum(steps[-1][0] for steps in branches), width, 1)
        self.scale, self.relu = scale, relu

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.get_submodule(f"branch{k}")(x) for k in range(self.branches)], dim=1)
        x = x + self.scale * self.conv2d(joined)
        return F.relu(x) if self.relu else x


class _Reduction(nn.Module):
    """Reduction block: parallel branches with stride 2, and max pooling."""

    def __init__(self, width: int, branches: Sequence[Steps]) -> None:
        super().__init__()
        self.branches = len(branches)
        for k, steps in enumerate(branches):
            self.add_module(f"branch{k}", _chain(width, steps, last_stride=2))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.get_submodule(f"branch{k}")(x) for k in range(self.branches)]
        return torch.cat([*outputs, F.max_pool2d(x, 3, 2)], dim=1)


class InceptionResnetV1(nn.Module):
    """Maps images [B, 3, 160, 160], (pixels - 127.5) / 128, to normalized embeddings [B, 512]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = _Conv(3, 32, 3, 2)
        self.conv2d_2a = _Conv(32, 32, 3)
        self.conv2d_2b = _Conv(32, 64, 3, same=True)
        self.conv2d_3b = _Conv(64, 80, 1)
        self.conv2d_4a = _Conv(80, 192, 3)
        self.conv2d_4b = _Conv(192, 256, 3, 2)
        fine: tuple[Steps, ...] = ([(32, 1)], [(32, 1), (32, 3)], [(32, 1), (32, 3), (32, 3)])
        self.repeat_1 = nn.Sequential(*[_Residual(256, fine, 0.17) for _ in range(5)])
        self.mixed_6a = _Reduction(256, ([(384, 3)], [(192, 1), (192, 3), (256, 3)]))
        middle: tuple[Steps, ...] = ([(128, 1)], [(128, 1), (128, (1, 7)), (128, (7, 1))])
        self.repeat_2 = nn.Sequential(*[_Residual(896, middle, 0.10) for _ in range(10)])
        self.mixed_7a = _Reduction(896, ([(256, 1), (384, 3)], [(256, 1), (256, 3)], [(256, 1), (256, 3), (256, 3)]))
        coarse: tuple[Steps, ...] = ([(192, 1)], [(192, 1), (192, (1, 3)), (192, (3, 1))])
        self.repeat_3 = nn.Sequential(*[_Residual(1792, coarse, 0.20) for _ in range(5)])
        self.block8 = _Residual(1792, coarse, 1.0, relu=False)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = F.max_pool2d(x, 3, 2)
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(x)))
        x = self.mixed_6a(self.repeat_1(x))
        x = self.mixed_7a(self.repeat_2(x))
        x = self.block8(self.repeat_3(x))
        return F.normalize(self.last_bn(self.last_linear(x.mean(dim=(2, 3)))), dim=1)


class FaceNet:
    """Embeds face images.

    Args:
        file: 20180402-114759-vggface2.pt, or other weights of the same network.
        device: of the network.
        batch: number of images per forward pass.

    Raises:
        InputError: the file is missing or does not fit.
    """

    name, size = "FaceNet", SIZE

    def __init__(self, file: Path, device: torch.device | str = "cpu", batch: int = 64) -> None:
        network = InceptionResnetV1()
        weights = read_weights(file, FACENET.description)
        weights = {name: value for name, value in weights.items() if not name.startswith("logits.")}
        load_strictly(network, weights, FACENET.description)
        self.network, self.device, self.batch = network.to(device), torch.device(device), batch

    @torch.inference_mode()
    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embed images uint8 [K, 160, 160, 3], see `face_tracks.face_crops`: normalized, float32 [K, 512]."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        batches = ((part.to(self.device, torch.float32) - 127.5) / 128.0 for part in pixels.split(self.batch))
        return torch.cat([self.network(batch).cpu() for batch in batches]).numpy()
