"""Fréchet distances against closed forms, scipy and torchmetrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from bya_core.evaluation.frechet import (
    Gaussian,
    I3dFeatures,
    InceptionFeatures,
    fid,
    frechet_distance,
    fvd,
    gaussian,
)


def features(seed: int, count: int, width: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def test_closed_form() -> None:
    one, other = Gaussian(np.array([0.0]), np.array([[1.0]])), Gaussian(np.array([3.0]), np.array([[4.0]]))
    assert frechet_distance(one, other) == pytest.approx(3.0**2 + (1 - 2) ** 2)
    one, other = (Gaussian(np.zeros(3), np.diag(np.square(row))) for row in ([1.0, 2, 3], [2.0, 2, 5]))
    assert frechet_distance(one, other) == pytest.approx(1 + 0 + 4)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("count", [200, 4])
def test_against_scipy_and_torchmetrics(count: int) -> None:
    """Also for fewer samples than features, where the covariances are singular."""
    from scipy.linalg import sqrtm

    one, other = features(0, count), features(1, count)
    a, b = gaussian(one), gaussian(other)
    root = sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    torchmetrics = pytest.importorskip("torchmetrics.image.fid")

    class Pixels(torch.nn.Module):
        num_features = 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, 0, 0].double()

    metric = torchmetrics.FrechetInceptionDistance(feature=Pixels(), normalize=True, input_img_size=(6, 1, 1))
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(one)[..., None, None], real=True)
    metric.update(torch.from_numpy(other)[..., None, None], real=False)
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-5)


@pytest.mark.parametrize("invalid", [np.zeros((1, 4)), np.full((3, 4), np.nan)])
def test_invalid_features_raise(invalid: np.ndarray) -> None:
    with pytest.raises(InputError):
        gaussian(invalid)


def test_fid_and_fvd_pool_all_batches() -> None:
    class Means:
        def images(self, images: np.ndarray) -> np.ndarray:
            return images.mean(axis=(1, 2))

        def videos(self, videos: np.ndarray) -> np.ndarray:
            return videos.mean(axis=(1, 2, 3))

    parts = [np.random.default_rng(k).integers(0, 255, (5, 8, 8, 3)) for k in range(4)]
    assert fid(Means(), parts[:2], parts[:2]) == pytest.approx(0.0, abs=1e-9)
    whole = fid(Means(), [np.concatenate(parts[:2])], [np.concatenate(parts[2:])])
    assert fid(Means(), parts[:2], parts[2:]) == pytest.approx(whole) and whole > 0
    assert fvd(Means(), [parts[0][:, None]], [parts[0][:, None] + 10]) == pytest.approx(300.0)


def test_i3d_features(tmp_path: Path) -> None:
    class Script(torch.nn.Module):
        def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
            assert rescale and resize and return_features
            return x.flatten(2).mean(dim=2)

    torch.jit.script(Script()).save(str(tmp_path / "i3d_torchscript.pt"))
    network = I3dFeatures(tmp_path / "i3d_torchscript.pt", batch=2)
    videos = np.random.default_rng(0).integers(0, 256, (3, 10, 4, 4, 3), dtype=np.uint8)
    assert np.allclose(network.videos(videos), videos.mean(axis=(1, 2, 3)), atol=1e-3)
    with pytest.raises(InputError, match="at least 10"):
        network.videos(videos[:, :5])
    with pytest.raises(InputError, match="FVD-I3D"):
        I3dFeatures(tmp_path / "missing.pt")


@pytest.mark.slow
def test_inception_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics")
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    file = tmp_path / "weights.pth"
    torch.save({}, file)
    with monkeypatch.context() as patch:
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        reference = extractor("random", ["2048"], feature_extractor_weights_path=str(file))
    torch.save(reference.state_dict(), file)
    network = InceptionFeatures(file, batch=2)
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    result = network.images(images)
    with torch.inference_mode():
        expected = reference.eval()(torch.from_numpy(images[2:]).permute(0, 3, 1, 2))[0]
    assert result.shape == (3, 2048) and np.allclose(result[2:], expected.numpy(), atol=1e-4)
    with pytest.raises(InputError, match="torch-fidelity"):
        InceptionFeatures(tmp_path / "missing.pth")
