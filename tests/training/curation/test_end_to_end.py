"""Curation of two minutes of synthetic footage, compared with ground truth, and training on its shards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bya_core.evaluation.mask_metrics import iou
from tests.clips import read_clip, taking_turns, write_clip
from tests.training.curation.conftest import RECIPES, draw_footage
from training.curate import CurateOptions, curate
from training.curation.output import read_index
from training.curation.record import FPS
from training.curation.samples import resize_masks
from training.data.shards.reader import read_shards
from training.puppets.footage import SAMPLE_RATE, demo_shots


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Videos of one to four characters with turn-taking, overlapping speech, music, dubbing and silence."""
    root = tmp_path_factory.mktemp("demo")
    videos = {f"video {n}": demo_shots(3_000_000 + 100 * n, 5.0) for n in range(2)}
    footage = draw_footage(root, videos, 160, 240)
    curate(CurateOptions(footage.folder, root / "out", footage.config, workers=0, report=root / "report.html"))
    return footage, root / "out"


@pytest.mark.slow
def test_clips_match_the_ground_truth(curated):
    footage, out = curated
    selected = {name: np.zeros(len(truth.keep), bool) for name, truth in footage.truth.items()}
    ious, correct, total = [], 0, 0
    for sample in read_shards(out):
        name = sample.measured["source"].removesuffix(".mp4")
        truth, start = footage.truth[name], round(sample.measured["start"] * FPS)
        span = slice(start, start + len(sample.frames))
        assert len(set(truth.shot[span])) == 1  # no clip spans a cut
        selected[name][span] = True
        true_masks = resize_masks(truth.masks[:, span], sample.masks.shape[2:])
        table = np.array([[np.nanmean(iou(mask, true)) for true in true_masks] for mask in sample.masks])
        matches = np.nan_to_num(table).argmax(axis=1)
        assert len(set(matches)) == len(matches)
        ious += table[range(len(matches)), matches].tolist()
        for n, character in enumerate(matches):
            (stream,) = np.flatnonzero(sample.matrix[:, n])
            total, correct = total + 1, correct + is_speech_of(sample.speeches[stream], truth, span, character)
    expected = np.concatenate([footage.truth[name].keep for name in selected])
    actual = np.concatenate(list(selected.values()))
    precision, recall = (actual & expected).sum() / actual.sum(), (actual & expected).sum() / expected.sum()
    print(f"precision {precision:.4f} recall {recall:.4f} mask IoU {np.mean(ious):.4f} matrix {correct}/{total}")
    assert precision >= 0.95 and recall >= 0.95
    assert np.mean(ious) >= 0.85 and min(ious) >= 0.7
    assert total >= 20 and correct == total


def is_speech_of(stream: np.ndarray, truth, span: slice, character: int) -> bool:
    """Whether a stream is the speech of a character, or silent for a silent character."""
    step = SAMPLE_RATE // FPS
    speeches = truth.speeches[:, span.start * step : span.stop * step]
    if not stream.any():
        return float(np.sqrt((speeches[character] ** 2).mean())) < 0.01
    scale = np.linalg.norm(speeches, axis=1) * np.linalg.norm(stream)
    correlation = speeches @ stream / np.maximum(scale, 1e-9)
    return int(correlation.argmax()) == character and correlation[character] > 0.9


@pytest.mark.slow
def test_rejections(curated):
    footage, out = curated
    rows = [row for row in read_index(out / "index.parquet") if row["name"] == "video 0.mp4"]
    reasons = {}
    for row in rows:
        if not row["kept"]:
            reasons.setdefault(int(footage.truth["video 0"].shot[round(row["start"] * FPS) + 5]), row["stage"])
    assert {n: reasons.get(n) for n in (1, 3, 4, 6, 8, 10)} == {
        1: "segments",  # one person
        3: "segments",  # three people
        4: "sync",  # dubbed
        6: "distance",  # too far apart
        8: "segments",  # four people
        10: "extract",  # silent
    }


@pytest.mark.slow
def test_training_on_the_shards(curated, tmp_path):
    from bya_core.models.transformer import BindYourAvatarTransformer3DModel
    from training.data.dataset import open_data
    from training.engine.loop import RunSettings, train
    from training.engine.recipe import load_recipe

    _, out = curated
    data = open_data(out, "toy", buckets=["17x64x96"], cache=tmp_path / "cache")
    recipe = load_recipe("toy")
    torch.manual_seed(0)
    model = BindYourAvatarTransformer3DModel(**recipe.model)
    before = {name: weight.clone() for name, weight in model.named_parameters() if "router" in name}
    stage = replace(recipe.stages[3], steps=3, batch_size=2)
    summary = train(model, data, stage, RunSettings(tmp_path / "run", logging_steps=1))
    assert summary["steps"] == 3 and np.isfinite(summary["loss"])
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters() if name in before)


@pytest.mark.slow
def test_real_people_without_downloads(tmp_path):
    """A film of two people who take turns, a close-up, black frames and a second pair: the recipe for own footage."""
    (tmp_path / "in").mkdir()
    turns, speeches = taking_turns(("bbaf2n", "lbbc2a"))
    close, voice = read_clip("lrwp9a")
    wide = np.full((50, 480, 720, 3), 40, np.uint8)
    wide[:, :, 180:540] = close[:50]
    black, silence = np.zeros((15, 480, 720, 3), np.uint8), np.zeros(15 * 640, np.float32)
    pair, voices = taking_turns(("brbk7n", "lrwp9a"), 50)
    frames = np.concatenate([turns, wide, black, pair])
    audio = np.concatenate([speeches.sum(axis=0), voice[: 50 * 640], silence, voices.sum(axis=0)])
    write_clip(tmp_path / "in" / "film.mp4", frames, audio)
    options = CurateOptions(tmp_path / "in", tmp_path / "out", RECIPES / "curation_local.yaml", workers=0)
    stats = curate(options)
    rows = read_index(tmp_path / "out" / "index.parquet")
    assert not any(row["failed"] for row in rows) and stats.rejected["faces"] <= 1  # the black shot, if long enough
    clips = [row for row in rows if row["level"] == "clip"]
    spans = [(round(row["start"] * FPS), round(row["end"] * FPS)) for row in clips]
    assert all(end <= 150 or start >= 215 for start, end in spans)  # only where two people are visible
    assert sum(start < 150 for start, _ in spans) == 3 and sum(start >= 215 for start, _ in spans) == 2
    samples = list(read_shards(tmp_path / "out"))
    assert len(samples) >= 3
    for sample in samples:
        start = round(sample.measured["start"] * FPS)
        first, second = ((0, 75), (75, 150)) if start < 150 else ((215, 265), (265, 315))
        left = sample.measured["left_to_right"][0]
        boxes = np.array(sample.measured["boxes"])
        assert boxes[left, :, 0].max() < 360 and sample.masks[left].any() and not sample.masks.all(axis=0).any()
        for character, (begin, end) in ((left, first), (1 - left, second)):
            (stream,) = np.flatnonzero(sample.matrix[:, character])
            inside = np.repeat((np.arange(start, start + 49) >= begin) & (np.arange(start, start + 49) < end), 640)
            energy = sample.speeches[stream] ** 2
            assert energy[~inside].sum() <= 0.05 * max(energy.sum(), 1e-9)  # nobody speaks in the turn of the other
