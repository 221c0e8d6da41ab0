"""Two minutes of drawn footage with everything known, curated and compared with the truth; then trained on."""

from __future__ import annotations

import numpy as np
import pytest

from bya_core.evaluation.mask_metrics import iou
from tests.training.curation.conftest import films_in
from training.curate import Arguments, curate
from training.curation.index import read_index
from training.curation.puppet_footage import demo_film
from training.curation.record import FPS
from training.data.shards.reader import read_shards

_RATE = 16_000


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Films of one to four characters, voices in turn and over each other, music, dubbing and silence; their clips."""
    place = tmp_path_factory.mktemp("films")
    plans = {f"film {n}": demo_film(3_000_000 + 100 * n, 5.0) for n in range(2)}
    films = films_in(place, plans, 160, 240)
    curate(Arguments(films.folder, place / "out", films.config, workers=0, report=place / "report.html"))
    return films, place / "out"


@pytest.mark.slow
def test_segments_masks_and_voices_are_those_of_the_truth(curated):
    films, out = curated
    chosen = {name: np.zeros(len(truth.wanted), bool) for name, truth in films.truth.items()}
    fits, right, total = [], 0, 0
    for sample in read_shards(out):
        name = sample.measured["source"].removesuffix(".mp4")
        truth, start = films.truth[name], round(sample.measured["start"] * FPS)
        span = slice(start, start + len(sample.frames))
        assert len(set(truth.shot[span])) == 1  # no clip reaches over a cut
        chosen[name][span] = True
        x0, y0, x1, y1 = window_of(truth.masks.shape[2:], sample.frames.shape[1:3])
        fits_with = np.array([
            [np.nanmean(iou(mask, small(them[span], (y0, y1, x0, x1), mask.shape[1:]))) for them in truth.masks]
            for mask in sample.masks
        ])  # fmt: skip
        who = np.nan_to_num(fits_with).argmax(axis=1)
        assert len(set(who)) == len(who)
        fits += fits_with[range(len(who)), who].tolist()
        for n, character in enumerate(who):
            (stream,) = np.flatnonzero(sample.matrix[:, n])
            total, right = total + 1, right + heard(sample.speeches[stream], truth, span, character)
    wanted = np.concatenate([films.truth[name].wanted for name in chosen])
    selected = np.concatenate(list(chosen.values()))
    precision, recall = (selected & wanted).sum() / selected.sum(), (selected & wanted).sum() / wanted.sum()
    print(f"precision {precision:.4f} recall {recall:.4f} mask IoU {np.mean(fits):.4f} matrix {right}/{total}")
    assert precision >= 0.95 and recall >= 0.95
    assert np.mean(fits) >= 0.85 and min(fits) >= 0.7
    assert total >= 20 and right == total


def window_of(size: tuple[int, int], form: tuple[int, int]) -> tuple[int, int, int, int]:
    """Films and clips have the same form here: the whole picture."""
    assert size[0] * form[1] == size[1] * form[0]
    return 0, 0, size[1], size[0]


def small(mask: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """bool [F,H,W] at another size."""
    import torch

    values = torch.from_numpy(mask[:, box[0] : box[1], box[2] : box[3]]).float()[:, None]
    return torch.nn.functional.interpolate(values, size=size, mode="bilinear", antialias=True)[:, 0].numpy() >= 0.5


def heard(stream: np.ndarray, truth, span: slice, character: int) -> bool:
    """Whether a stream is what this character says: its voice, or silence where its mouth stays shut."""
    step = _RATE // FPS
    voices = truth.voices[:, span.start * step : span.stop * step]
    if not stream.any():
        return float(np.sqrt((voices[character] ** 2).mean())) < 0.01
    scale = np.linalg.norm(voices, axis=1) * np.linalg.norm(stream)
    fits = voices @ stream / np.maximum(scale, 1e-9)
    return int(fits.argmax()) == character and fits[character] > 0.9


@pytest.mark.slow
def test_every_kind_of_trouble_is_dropped_by_its_stage(curated):
    films, out = curated
    rows = [row for row in read_index(out / "index.parquet") if row["name"] == "film 0.mp4"]
    reasons = {}
    for row in rows:
        if not row["kept"]:
            reasons.setdefault(int(films.truth["film 0"].shot[round(row["start"] * FPS) + 5]), row["stage"])
    assert {n: reasons.get(n) for n in (1, 3, 4, 6, 8, 10)} == {
        1: "segments",  # one person
        3: "segments",  # three
        4: "sync",  # dubbed
        6: "distance",  # too far apart
        8: "segments",  # four
        10: "extract",  # silent
    }


@pytest.mark.slow
def test_the_shards_train_stage_3(curated, tmp_path):
    from bya_core.models.transformer import BindYourAvatarTransformer3DModel
    from training.data.dataset import open_data
    from training.engine.loop import RunSettings, train
    from training.engine.stages import load_recipe

    _, out = curated
    data = open_data(out, "toy", buckets=["17x64x96"], cache=tmp_path / "cache")
    recipe = load_recipe("toy")
    import dataclasses

    import torch

    torch.manual_seed(0)
    model = BindYourAvatarTransformer3DModel(**recipe.model)
    before = {name: weight.clone() for name, weight in model.named_parameters() if "router" in name}
    stage = dataclasses.replace(recipe.stages[3], steps=3, batch=2)
    told = train(model, data, stage, RunSettings(tmp_path / "run", log_every=1))
    assert told["steps"] == 3 and np.isfinite(told["loss"])
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters() if name in before)
