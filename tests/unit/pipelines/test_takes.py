"""Several takes: all seeds are probed, the best by masks are finished, and those are ranked by what was measured."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bya_core.config import ProbeConfig, RouterConfig, WindowConfig
from bya_core.errors import Cancelled, InputError
from bya_core.pipelines import takes as module
from bya_core.pipelines.generate import generate
from bya_core.pipelines.takes import Selection, Take, generate_takes, sharpness, takes_cost
from bya_core.routing.layout import LayoutScore
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle
from tests.unit.pipelines.conftest import LongScene


@pytest.fixture
def scene(long_scene: LongScene, bundle: ModelBundle) -> Scene:
    """Two characters in one window, seed 5, four steps of which at most two are probed."""
    sampling = replace(bundle.sampling, seed=5, steps=4)
    router = RouterConfig(probe=ProbeConfig(steps=2, num_seeds=1))
    return long_scene(num_frames=9, windows=WindowConfig(), sampling=sampling, routing=router, first_frame=None)


def fake_report(bound: bool | None, margin: float = 0.5) -> Any:
    metrics = {"should_follow": [0, 1], "score": [[margin, 0.0], [0.0, margin]], "identity": {}}
    return SimpleNamespace(lanes=[SimpleNamespace(passed=bound)] * 2, metrics=metrics)


def test_videos_are_those_of_their_seeds(scene: Scene, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seed is listed once, and what is kept equals a single run with that seed."""
    monkeypatch.setattr(module, "measure_video", lambda *_, **__: fake_report(True))
    result = generate_takes(scene, bundle, Selection(3, 2))
    assert sorted(take.seed for take in result.rows) == [5, 6, 7] and len(result.videos) == 2
    assert [take.finished for take in result.rows] == [True, True, False]
    assert [take.calls for take in result.rows] == [4, 4, 2] and result.calls == takes_cost(scene, Selection(3, 2))[0]
    for take, video in zip(result.rows, result.videos, strict=False):
        alone = generate(replace(scene, sampling=replace(scene.sampling, seed=take.seed)), bundle)
        assert torch.equal(video.frames, alone.frames) and torch.equal(video.masks, alone.masks)
    lines = result.table().splitlines()
    assert len(lines) == 4 and [line.split()[1] for line in lines[1:]] == [str(take.seed) for take in result.rows]


def test_progress_names_the_seeds(scene: Scene, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_video", lambda *_, **__: fake_report(True))
    stages: list[str] = []
    result = generate_takes(scene, bundle, Selection(2, 1), lambda progress: stages.append(progress.stage))
    assert {"Seed 5: Predicting masks", "Seed 6: Predicting masks", "Encoding prompt"} <= set(stages)
    assert {stage for stage in stages if "Denoising" in stage} == {f"Seed {result.rows[0].seed}: Denoising"}
    assert {"Predicting masks", "Denoising"} <= set(result.videos[0].seconds), "durations are those of the stages"
    with pytest.raises(Cancelled, match="Seed 5"):
        generate_takes(scene, bundle, Selection(2, 1), lambda progress: "Seed 5" not in progress.stage)


def test_masks_choose_what_is_finished(scene: Scene, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([LayoutScore((1,), 0.9, 0.0), LayoutScore((), 0.7, 0.1), LayoutScore((), 0.9, 0.1)])
    monkeypatch.setattr("bya_core.routing.intra.layout_score", lambda _: next(scores))
    monkeypatch.setattr(module, "measure_video", lambda *_, **__: fake_report(True))
    result = generate_takes(scene, bundle, Selection(3, 1))
    assert [take.seed for take in result.rows] == [7, 6, 5] and result.rows[2].missing == ("Bo",)


def test_binding_chooses_the_best(scene: Scene, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second take by masks wins because its voices are bound."""
    scores = iter([LayoutScore((), 0.9, 0.0), LayoutScore((), 0.8, 0.0)])
    reports = iter([fake_report(False), fake_report(True)])
    monkeypatch.setattr("bya_core.routing.intra.layout_score", lambda _: next(scores))
    monkeypatch.setattr(module, "measure_video", lambda *_, **__: next(reports))
    result = generate_takes(scene, bundle, Selection(2, 2))
    assert [take.seed for take in result.rows] == [6, 5]
    assert (result.rows[0].bound, result.rows[1].failed) == (1.0, 1.0)


def test_measured_without_stubs(scene: Scene, bundle: ModelBundle) -> None:
    """Nobody is recognized in the noise of random weights: binding is inconclusive, and the take is still there."""
    best = generate_takes(scene, bundle, Selection(2, 1)).rows[0]
    assert best.finished and best.bound == best.failed == 0 and best.identity is None and best.sharpness is not None


def test_rank() -> None:
    base = Take(1, (), 0.9, 0.0, 4, True, 0.5, 0.0, 0.5, 0.9, 0.8, 5.0)
    worst_to_best = [
        replace(base, bound=0.0, failed=0.5, margin=9.0),
        replace(base, bound=0.5, margin=0.2, identity=1.0),
        replace(base, identity=0.8, sharpness=9.0),
        replace(base, faces=0.6, sharpness=9.0),
        base,
        replace(base, margin=0.51, sharpness=6.0),  # a margin within the noise does not decide
        replace(base, bound=1.0, margin=0.1, identity=0.2, sharpness=0.0),
    ]
    ranks = [take.rank for take in worst_to_best]
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)


def test_cost(scene: Scene) -> None:
    assert takes_cost(scene, Selection(4, 1)) == (4 * 2 + 2, 4)
    automatic = replace(scene, routing=RouterConfig(), sampling=replace(scene.sampling, steps=50))
    assert takes_cost(automatic, Selection(4, 2)) == (4 * 20 + 2 * 30, 50)


def test_refused(scene: Scene, long_scene: LongScene, bundle: ModelBundle) -> None:
    with pytest.raises(InputError, match="keep 3 of 2 takes"):
        Selection(2, 3)
    with pytest.raises(InputError, match="several takes of a video of 4 windows"):
        generate_takes(long_scene(), bundle, Selection(2))
    with pytest.raises(InputError, match='several takes with router "pre"'):
        generate_takes(replace(scene, routing=RouterConfig("pre")), bundle, Selection(2))


def test_sharpness() -> None:
    sharp = torch.randint(0, 255, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    soft = (sharp.float() * 0.1 + 100).to(torch.uint8)
    assert sharpness(sharp) > 5 * sharpness(soft) > 0


def test_router_uses_the_best_masks(scene: Scene, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """`num_takes` of a scene or of BYA Embedding Router: all seeds are tried, also with a first frame."""
    scores = iter([LayoutScore((), 0.7, 0.0), LayoutScore((), 0.9, 0.0), LayoutScore((0,), 0.9, 0.0)])
    monkeypatch.setattr("bya_core.routing.intra.layout_score", lambda _: next(scores))
    routing = replace(scene.routing, probe=replace(scene.routing.probe, num_takes=3))
    video = generate(replace(scene, routing=routing, first_frame=torch.rand(3, 64, 96)), bundle)
    (notice,) = [text for text in video.notices if "best of 3 by masks" in text]
    assert notice.startswith("Seed 6 was used") and "seed 7: no region for Ada" in notice
