"""Frechet distances against closed forms and scipy, face similarity by hand, outlines by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from bya_core.evaluation import frechet
from bya_core.evaluation import mask_metrics as masks
from bya_core.evaluation.facenet import FaceNet, InceptionResnetV1
from bya_core.evaluation.frechet import I3dFeatures, InceptionFeatures
from bya_core.evaluation.identity import identity_table
from bya_core.evaluation.metric_weights import FACENET, SYNCNET
from tests.unit.evaluation.test_sync_metrics import ruled


def cloud(seed: int, count: int = 200, width: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def test_frechet_in_closed_form():
    line = [frechet.Gaussian(np.array([m]), np.array([[s**2]]), 9) for m, s in ((0.0, 1.0), (3.0, 2.0))]
    assert frechet.frechet_distance(*line) == pytest.approx(3.0**2 + (1 - 2) ** 2)
    deviations = np.array([[1.0, 2, 3], [2.0, 2, 5]])
    plain = [frechet.Gaussian(np.zeros(3), np.diag(row**2), 9) for row in deviations]
    assert frechet.frechet_distance(*plain) == pytest.approx(1 + 0 + 4)
    assert frechet.frechet_distance(plain[0], plain[0]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("count", [200, 4])
def test_frechet_equals_scipy_and_torchmetrics(count):
    """Also where there are fewer samples than features and the covariances are singular."""
    from scipy.linalg import sqrtm

    one, other = cloud(0, count), cloud(1, count)
    a, b = frechet.gaussian(one), frechet.gaussian(other)
    root = sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Pixels(torch.nn.Module):
        num_features = 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, 0, 0].double()

    theirs = fid.FrechetInceptionDistance(feature=Pixels(), normalize=True, input_img_size=(6, 1, 1))
    theirs.set_dtype(torch.float64)
    theirs.update(torch.from_numpy(one)[..., None, None], real=True)
    theirs.update(torch.from_numpy(other)[..., None, None], real=False)
    assert frechet.frechet_distance(a, b) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_frechet_refuses_what_it_cannot_measure():
    with pytest.raises(InputError, match="two or more"):
        frechet.gaussian(np.zeros((1, 4)))
    with pytest.raises(InputError, match="not finite"):
        frechet.gaussian(np.full((3, 4), np.nan))


def test_fid_and_fvd_pool_all_parts():
    class Means:
        def pictures(self, pictures: np.ndarray) -> np.ndarray:
            return pictures.mean(axis=(1, 2))

        def videos(self, videos: np.ndarray) -> np.ndarray:
            return videos.mean(axis=(1, 2, 3))

    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 255, (5, 8, 8, 3)) for _ in range(4)]
    assert frechet.fid(Means(), parts[:2], parts[:2]) == pytest.approx(0.0, abs=1e-9)
    whole = frechet.fid(Means(), [np.concatenate(parts[:2])], [np.concatenate(parts[2:])])
    assert frechet.fid(Means(), parts[:2], parts[2:]) == pytest.approx(whole) and whole > 0
    assert frechet.fvd(Means(), [parts[0][:, None]], [parts[0][:, None] + 10]) == pytest.approx(300.0)


def test_i3d_is_called_as_its_script_wants(tmp_path):
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
        I3dFeatures(tmp_path / "nothing.pt")


@pytest.mark.slow
def test_inception_is_loaded_and_asked_through_torchmetrics(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics")
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    file = tmp_path / "weights.pth"
    torch.save({}, file)
    with monkeypatch.context() as patch:
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        raw = extractor("random", ["2048"], feature_extractor_weights_path=str(file))
    torch.save(raw.state_dict(), file)
    network = InceptionFeatures(file, batch=2)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    found = network.pictures(pictures)
    assert found.shape == (3, 2048)
    with torch.inference_mode():
        direct = raw.eval()(torch.from_numpy(pictures[2:]).permute(0, 3, 1, 2))[0]
    assert np.allclose(found[2:], direct.numpy(), atol=1e-4)
    with pytest.raises(InputError, match="torch-fidelity"):
        InceptionFeatures(tmp_path / "nothing.pth")


def test_facenet_gives_what_the_reference_gives(tmp_path):
    """Figures of facenet-pytorch 2.6.0 with the same weights, made once beside it (difference 0)."""
    network = ruled(InceptionResnetV1(), "face")
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 160, 160)).astype("float32")
    with torch.inference_mode():
        made = network(torch.from_numpy(pixels))
    expected = [[-0.0063793, 0.0002737, -0.0079181, -0.0849372], [-0.0038727, -0.0003282, -0.0102579, -0.0778517]]
    torch.testing.assert_close(made[:, :4], torch.tensor(expected), atol=2e-5, rtol=0)
    table = network.state_dict() | {"logits.weight": torch.zeros(3, 512), "logits.bias": torch.zeros(3)}
    torch.save(table, tmp_path / FACENET.file)
    loaded = FaceNet(tmp_path / FACENET.file, batch=1)
    pictures = np.random.default_rng(1).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    with torch.inference_mode():
        direct = network((torch.from_numpy(pictures).permute(0, 3, 1, 2).float() - 127.5) / 128)
    assert np.allclose(loaded.embed(pictures), direct.numpy(), atol=1e-5)


def test_weights_are_found_or_told_about(tmp_path, monkeypatch):
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path))
    assert SYNCNET.find() is None
    for part in ("Sync-C and Sync-D", "syncnet_v2.model", "55 MB", "robots.ox.ac.uk", str(tmp_path / "metrics")):
        assert part in SYNCNET.missing
    with pytest.raises(InputError, match="get it from"):
        SYNCNET.needed()
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / SYNCNET.file).touch()
    assert SYNCNET.needed() == tmp_path / "metrics" / SYNCNET.file


def test_identities_in_a_table():
    references = np.array([[1.0, 0, 0], [0, 2.0, 0]])
    faces = np.array([[[3.0, 0, 0], [1, 1, 0], [np.nan] * 3], [[0, 1.0, 0], [0, 5, 0], [0, 1, 0]]])
    table = identity_table(faces, references)
    assert table.mean == pytest.approx([(1 + 0.5**0.5) / 2, 1.0])
    assert table.worst == pytest.approx([0.5**0.5, 1.0])
    assert np.isnan(table.per_frame[0, 2]) and table.right.all()
    assert table.confusion[0, 1] == pytest.approx(0.5**0.5 / 2) and table.confusion[1, 0] == 0.0
    assert not identity_table(faces[::-1], references).right.any()
    nobody = identity_table(np.full((1, 3, 3), np.nan), references[:1])
    assert np.isnan(nobody.mean).all() and np.isnan(nobody.worst).all() and not nobody.right.any()


def test_change_of_soft_masks_by_hand():
    soft = np.zeros((2, 3, 2, 2))
    soft[0, 1] = 0.5
    soft[1, :, 0, 0] = [0.0, 0.4, 1.0]
    assert masks.change(soft) == pytest.approx([0.5, (0.4 + 0.6) / 2 / 4])
    assert (masks.change(soft[:, :1]) == 0).all()
