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
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def gaussian(features: np.ndarray) -> Gaussian:
    """Mean and covariance of features [K, D]. Raises InputError for fewer than two, or if values are not finite."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"features of shape {features.shape}", "two or more rows of features", "measure more")
    if not np.isfinite(features).all():
        raise InputError("features that are not finite", "finite features", "check the images")
    return Gaussian(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982).

    The trace of the root equals that of the root of C1^(1/2) C2 C1^(1/2), which is symmetric: it is real also for the
    singular covariances of fewer samples than features.
    """
    shift = one.mean - other.mean
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ other.covariance @ root)
    cross = np.sqrt(np.maximum(inner, 0.0)).sum()
    return max(0.0, float(shift @ shift + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross))


class ImageFeatures(Protocol):
    """Extracts features of images."""

    def images(self, images: np.ndarray) -> np.ndarray:
        """Features [K, D] of images uint8 [K, H, W, 3]."""
        ...


class VideoFeatures(Protocol):
    """Extracts features of videos."""

    def videos(self, videos: np.ndarray) -> np.ndarray:
        """Features [K, D] of videos uint8 [K, F, H, W, 3]."""
        ...


def fid(network: ImageFeatures, generated: Iterable[np.ndarray], real: Iterable[np.ndarray]) -> float:
    """Fréchet distance of images, uint8 [K, H, W, 3] each (in paper sec. 5.2.2, of face regions)."""
    one, other = (gaussian(np.concatenate([network.images(part) for part in parts])) for parts in (generated, real))
    return frechet_distance(one, other)


def fvd(network: VideoFeatures, generated: Iterable[np.ndarray], real: Iterable[np.ndarray]) -> float:
    """Fréchet distance of videos, uint8 [K, F, H, W, 3] each."""
    one, other = (gaussian(np.concatenate([network.videos(part) for part in parts])) for parts in (generated, real))
    return frechet_distance(one, other)


class InceptionFeatures:
    """InceptionV3 of the FID definition, by torchmetrics: 2048 features before the classifier.

    Args:
        file: weights-inception-2015-12-05-6726825d.pth (torch-fidelity).
        device: of the network.
        batch: number of images per forward pass.

    Raises:
        InputError: the file is missing or does not fit, or torchmetrics is missing.
    """

    def __init__(self, file: Path, device: torch.device | str = "cpu", batch: int = 32) -> None:
        if not file.is_file():
            raise InputError(f"no file {file}", INCEPTION.description, f"get it from {INCEPTION.source}")
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
        except ImportError as error:
            hint = 'pip install "torchmetrics[image]"'
            raise InputError("torchmetrics or torch-fidelity is missing", "both, for FID", hint) from error
        except (RuntimeError, KeyError, OSError) as error:
            raise InputError(f"{file} cannot be used ({error})", INCEPTION.description, "download it again") from error
        self.network, self.device, self.batch = network.to(device), torch.device(device), batch

    @torch.inference_mode()
    def images(self, images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        batches = pixels.split(self.batch)
        return torch.cat([self.network(part.to(self.device)).reshape(len(part), -1).cpu() for part in batches]).numpy()


class I3dFeatures:
    """I3D trained on Kinetics-400, as a TorchScript file that rescales and resizes: 400 features per video.

    Args:
        file: i3d_torchscript.pt.
        device: of the network.
        batch: number of videos per forward pass.

    Raises:
        InputError: the file is missing or not a TorchScript file.
    """

    MIN_FRAMES = 10

    def __init__(self, file: Path, device: torch.device | str = "cpu", batch: int = 4) -> None:
        if not file.is_file():
            raise InputError(f"no file {file}", I3D.description, f"get it from {I3D.source}")
        try:
            self.network: Any = torch.jit.load(str(file), map_location=device).eval()
        except RuntimeError as error:
            raise InputError(f"{file} cannot be read", I3D.description, "download it again") from error
        self.device, self.batch = torch.device(device), batch

    @torch.inference_mode()
    def videos(self, videos: np.ndarray) -> np.ndarray:
        if videos.shape[1] < self.MIN_FRAMES:
            raise InputError(f"{videos.shape[1]} frames", f"at least {self.MIN_FRAMES} for I3D", "use longer videos")
        clips = torch.from_numpy(np.ascontiguousarray(videos)).permute(0, 4, 1, 2, 3).split(self.batch)
        batches = (clip.to(self.device, torch.float32) for clip in clips)
        features = [self.network(batch, rescale=True, resize=True, return_features=True).cpu() for batch in batches]
        return torch.cat(features).numpy()
