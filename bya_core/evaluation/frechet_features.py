"""Features that Frechet distances are mostly taken of: InceptionV3 for pictures (FID), I3D for videos (FVD)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bya_core.errors import InputError
from bya_core.evaluation.metric_weights import I3D, INCEPTION


class InceptionFeatures:
    """InceptionV3 as FID was defined with it: 2048 features before the classifier, through torchmetrics.

    Args:
        file: weights-inception-2015-12-05-6726825d.pth (torch-fidelity).
        device: where it runs.
        batch: pictures at once.

    Raises:
        InputError: no such file, other weights, or no torchmetrics.
    """

    def __init__(self, file: Path, device: torch.device | str = "cpu", batch: int = 32) -> None:
        if not file.is_file():
            raise InputError(f"no file {file}", INCEPTION.what, f"get it from {INCEPTION.source}")
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
        except (ImportError, ModuleNotFoundError) as error:
            do = 'pip install "torchmetrics[image]"'
            raise InputError("no torchmetrics with torch-fidelity", "both, for FID", do) from error
        except (RuntimeError, KeyError, OSError) as error:
            raise InputError(f"{file} cannot be used ({error})", INCEPTION.what, "download it again") from error
        self.network, self.device, self.batch = network.to(device), torch.device(device), batch

    @torch.inference_mode()
    def pictures(self, pictures: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
        made = [self.network(part.to(self.device)).reshape(len(part), -1).cpu() for part in pixels.split(self.batch)]
        return torch.cat(made).numpy()


class I3dFeatures:
    """I3D on Kinetics-400 as a TorchScript file that rescales and resizes by itself: 400 features of a video.

    Args:
        file: i3d_torchscript.pt.
        device: where it runs.
        batch: videos at once.

    Raises:
        InputError: no such file, or one that is no such script.
    """

    LEAST = 10  # frames

    def __init__(self, file: Path, device: torch.device | str = "cpu", batch: int = 4) -> None:
        if not file.is_file():
            raise InputError(f"no file {file}", I3D.what, f"get it from {I3D.source}")
        try:
            self.network: Any = torch.jit.load(str(file), map_location=device).eval()
        except RuntimeError as error:
            raise InputError(f"{file} cannot be read", I3D.what, "download it again") from error
        self.device, self.batch = torch.device(device), batch

    @torch.inference_mode()
    def videos(self, videos: np.ndarray) -> np.ndarray:
        if videos.shape[1] < self.LEAST:
            raise InputError(f"{videos.shape[1]} frames", f"at least {self.LEAST} for I3D", "take longer videos")
        made = []
        for start in range(0, len(videos), self.batch):
            part = torch.from_numpy(np.ascontiguousarray(videos[start : start + self.batch]))
            seen = part.permute(0, 4, 1, 2, 3).to(self.device, torch.float32)
            made.append(self.network(seen, rescale=True, resize=True, return_features=True).cpu())
        return torch.cat(made).numpy()
