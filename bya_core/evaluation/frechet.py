"""Fréchet distance of two sets of features: FID with InceptionV3, FVD with I3D."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bya_core.errors import InputError
from bya_core.evaluation.metric_weights import I3D, INCEPTION


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of features, float64, and how many there were."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def gaussian(features: np.ndarray) -> Gaussian:
    """Of features [K, D]. Raises InputError for fewer than two, or for values that are not finite."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"features of shape {features.shape}", "two or more rows of features", "measure more")
    if not np.isfinite(features).all():
        raise InputError("features that are not finite", "numbers", "look for broken pictures")
    return Gaussian(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)), len(features))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982), never below 0.

    The trace of the root is that of the root of C1^(1/2) C2 C1^(1/2), which is symmetric: no complex numbers, and no
    trouble with the singular covariances that fewer samples than features give.
    """
    shift = one.mean - other.mean
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ other.covariance @ root)
    cross = np.sqrt(np.maximum(inner, 0.0)).sum()
    return max(0.0, float(shift @ shift + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross))


class PictureFeatures(Protocol):
    """Makes features of pictures."""

    def pictures(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [K, H, W, 3] -> [K, D]."""
        ...


class VideoFeatures(Protocol):
    """Makes features of videos."""

    def videos(self, videos: np.ndarray) -> np.ndarray:
        """uint8 [K, F, H, W, 3] -> [K, D]."""
        ...


def fid(network: PictureFeatures, made: Iterable[np.ndarray], real: Iterable[np.ndarray]) -> float:
    """Frechet distance of pictures (paper sec. 5.2.2: of face regions); each part uint8 [K, H, W, 3]."""
    one, other = (gaussian(np.concatenate([network.pictures(part) for part in parts])) for parts in (made, real))
    return frechet_distance(one, other)


def fvd(network: VideoFeatures, made: Iterable[np.ndarray], real: Iterable[np.ndarray]) -> float:
    """Frechet distance of videos; each part uint8 [K, F, H, W, 3]."""
    one, other = (gaussian(np.concatenate([network.videos(part) for part in parts])) for parts in (made, real))
    return frechet_distance(one, other)


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
