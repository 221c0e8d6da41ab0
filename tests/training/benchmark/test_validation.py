"""Validation during training."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.weights.loader import load_bundle
from training.benchmark import validation as validating
from training.benchmark.contact_sheet import contact_sheet
from training.benchmark.validation import (
    VALIDATION_SEEDS,
    Validation,
    ValidationConfig,
    mask_metrics,
    validation_metrics,
)


class FakeTracker:
    """Stores metrics and images."""

    active = True

    def __init__(self, output):
        self.output, self.metrics, self.images = output, {}, {}

    def log(self, values, step, group):
        self.metrics[step] = dict(values)

    def log_image(self, name, image, step):
        self.images[step, name] = image


class OracleTarget:
    """Predicts the drawn masks with a first frame, and those of the other character without."""

    def __init__(self, bundle, held):
        self.grid = bundle.grid(held.num_frames, bundle.native.height, bundle.native.width)
        self.points = [type("Point", (), {"share": share}) for share in held.noise_levels]

    def predict_masks(self, scene, point, first_frame):
        drawn = self.grid.pixels_to_tokens(torch.from_numpy(scene.clip.masks)).numpy()
        return np.stack([drawn if first_frame else drawn[::-1]] * 2)


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("toy")


SMALL_CONFIG = ValidationConfig(masks=3, videos=1, num_frames=5, steps=2, noise_levels=(0.9, 0.3))


def test_benchmark_seeds_raise():
    assert VALIDATION_SEEDS == 2_000_000
    with pytest.raises(InputError, match="benchmark"):
        ValidationConfig(seed=1_000_000)
    with pytest.raises(InputError, match="no more videos"):
        ValidationConfig(masks=2, videos=3)


def test_scenes_are_held_out_and_deterministic(bundle):
    first, second = SMALL_CONFIG.scenes(bundle), SMALL_CONFIG.scenes(bundle)
    assert [scene.clip.seed for scene in first] == [2_000_000, 2_000_001, 2_000_002]
    assert all(np.array_equal(a.clip.frames, b.clip.frames) for a, b in zip(first, second, strict=True))
    assert first[2].clip.motion == "still" and {scene.first_frame for scene in first} == {True, False}


def test_mask_metrics_against_the_drawn_masks(bundle):
    metrics, predicted = mask_metrics(OracleTarget(bundle, SMALL_CONFIG), SMALL_CONFIG.scenes(bundle))
    assert metrics["iou_0.9_first_frame"] == metrics["iou_0.3_first_frame"] == 1.0
    assert metrics["iou_0.3_alone"] < 0.5
    assert metrics["iou"] == pytest.approx((1.0 + metrics["iou_0.3_alone"]) / 2)
    assert metrics["flicker"] == pytest.approx(metrics["flicker_drawn"])
    assert len(predicted) == 3 and predicted[0].shape[0] == 2


def test_validation_logs_metrics_images_and_videos_and_keeps_the_model(bundle, tmp_path):
    model, tracker = bundle.transformer.train(), FakeTracker(tmp_path)
    validation = Validation(10, tracker=tracker, config=SMALL_CONFIG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    metrics = validation(10, {}, model)
    assert torch.equal(torch.rand(3), expected) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert tracker.metrics[10] == metrics
    assert {"iou", "iou_0.9_alone", "flicker", "binding", "own_voice", "iou_generated"} <= set(metrics)
    assert {name for _, name in tracker.images} == {f"puppets_{seed}" for seed in (2_000_000, 2_000_001, 2_000_002)}
    generated, predicted = tracker.images[10, "puppets_2000000"], tracker.images[10, "puppets_2000001"]
    assert generated.width == predicted.width and generated.height > predicted.height  # one more row: the video
    (video,) = tmp_path.rglob("*.mp4")
    assert video.name == "puppets_2000000.mp4" and video.stat().st_size > 1000
    bundle.transformer.eval()
    again = validation_metrics(model, SMALL_CONFIG, bundle)
    assert {name: metrics[name] for name in again} == pytest.approx(again)


def test_metrics_distinguish_a_trained_from_a_new_router(bundle):
    settings = replace(SMALL_CONFIG, videos=0, num_frames=17, noise_levels=(0.3,))
    torch.manual_seed(0)
    untrained = type(bundle.transformer)(**bundle.transformer.config)
    untrained.load_state_dict(
        {k: v for k, v in bundle.transformer.state_dict().items() if "router." not in k}, strict=False
    )
    trained = validation_metrics(bundle.transformer, settings, bundle)["iou"]
    assert trained > 0.5 > validation_metrics(untrained, settings, bundle)["iou"]


def test_scene_files_are_generated_without_metrics(bundle, tmp_path):
    Image.fromarray(SMALL_CONFIG.scenes(bundle)[0].clip.portraits[0]).save(tmp_path / "face.png")
    scene = '{"prompt": "a puppet", "characters": [{"name": "A", "image": "face.png"}]'
    (tmp_path / "alone.json").write_text(scene + ', "length": 5, "steps": 2}')
    tracker = FakeTracker(tmp_path)
    metrics = Validation(1, scenes=[tmp_path / "alone.json"], tracker=tracker)(1, {}, bundle.transformer)
    assert set(metrics) == {"validation_seconds"} and list(tracker.images) == [(1, "alone")]
    assert (tmp_path / "images" / "step-00000001" / "alone.mp4").is_file()


def test_lip_sync_of_real_faces_is_a_metric(bundle, tmp_path, monkeypatch):
    scores = np.array([[0.1, 0.7], [0.5, 0.3]])  # [mouths, voices]
    seen = []

    def measure(frames, speeches, fps, portraits, tools, *, matrix, masks):
        seen.append((masks.shape[:2], masks.dtype, len(frames)))
        return SimpleNamespace(lips=SimpleNamespace(scores=scores))

    monkeypatch.setattr(validating, "measure_faces", measure)
    grid, masks = TokenGrid(2, 2, 2, 2, 4, 4), torch.zeros(2, 2, 2, 2)
    frames, voice = torch.zeros(5, 16, 16, 3, dtype=torch.uint8), object()
    for matrix, own, other in (([[1, 0], [0, 1]], 0.2, 0.6), ([[0, 1], [1, 0]], 0.6, 0.2)):
        video = SimpleNamespace(frames=frames, masks=masks, grid=grid, matrix=torch.tensor(matrix), fps=25.0)
        found = validating.lip_sync_metrics(video, SimpleNamespace(speeches=[voice, voice]))
        assert found == {"lip_sync_own": pytest.approx(own), "lip_sync_other": pytest.approx(other)}
    assert validating.lip_sync_metrics(video, SimpleNamespace(speeches=[voice, None])).keys() == {"lip_sync_own"}
    assert validating.lip_sync_metrics(video, SimpleNamespace(speeches=[None, None])) == {}
    assert seen[0] == ((2, 5), bool, 5)
    scene = SimpleNamespace(fps=25.0)
    monkeypatch.setattr(validating, "load_scene", lambda *_: scene)
    monkeypatch.setattr(validating, "generate", lambda *_: video)
    monkeypatch.setattr(validating, "lip_sync_metrics", lambda *_: {"lip_sync_own": 0.5})
    validation = Validation(1, scenes=[tmp_path / "a.json"])
    for domain, metrics in (("photos", {"lip_sync_own": 0.5}), ("puppets", {})):
        assert validation._generate_files(replace(bundle, domain=domain), 1) == metrics


def test_contact_sheet_tints_frames_with_their_masks():
    grid = TokenGrid(2, 2, 2, 2, 4, 4)
    frames, masks = np.zeros((5, 16, 16, 3), np.uint8), torch.zeros(1, 2, 2, 2)
    masks[0, 1, :, 0] = 1.0
    pixels = np.asarray(contact_sheet([("row", frames, masks)], grid, "title"))[60:]
    wide = pixels.shape[1] // 5
    assert pixels[:150, 10 : wide // 3].max() == 0  # the first frame has its own latent frame
    assert pixels[:150, 4 * wide + 10 : 4 * wide + wide // 3].max() > 100
    assert pixels[:150, -wide // 3 : -10].max() < 40  # bilinear masks fade out


def test_missing_scene_is_a_warning(bundle, tmp_path, caplog):
    tracker = FakeTracker(tmp_path)
    validation = Validation(1, scenes=[tmp_path / "missing.json"], tracker=tracker)
    assert validation(1, {}, bundle.transformer) == {} and not tracker.metrics
    assert "validation at step 1 skipped" in caplog.text and "missing.json" in caplog.text
