"""Binding of a generated video as numbers for a display."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bya_core.evaluation.panel import POINTS, binding_panel, track
from bya_core.evaluation.report import BindingReport, binding_report
from bya_core.scene.types import Speech
from bya_core.toy.meter import PuppetMeter
from tests.fakes import RATE
from training.puppets import make_clip


@pytest.fixture(scope="module")
def measured() -> BindingReport:
    """Two drawn talkers, each with its own speech."""
    drawn = make_clip(2_000_100, n=2, num_frames=49, motion="still", talk="overlap")
    speeches = [Speech(torch.from_numpy(wave)[None], RATE) for wave in drawn.speeches]
    frames, masks = torch.from_numpy(drawn.frames), torch.from_numpy(drawn.masks).float()
    return binding_report(frames, masks, speeches, 25.0, ["Ada", "Bo"], meter=PuppetMeter())


def test_numbers_of_the_report(measured: BindingReport) -> None:
    panel = json.loads(json.dumps(binding_panel(measured, 25.0), allow_nan=False))
    assert panel["duration"] == 1.96 and panel["voices"] == ["Ada", "Bo"] and panel["passed"] is True
    for n, character in enumerate(panel["characters"]):
        row = measured.metrics["score"][n]
        assert character["score"] == row[n] and character["margin"] == pytest.approx(row[n] - row[1 - n], abs=1e-3)
        assert abs(character["lag"]) <= 2 and character["lag_seconds"] == pytest.approx(character["lag"] / 25)
        assert character["voice"] == character["name"] and character["verdict"] == "own"
        assert {len(values) for values in character["tracks"].values()} == {49}
        own, other = (np.mean(character["tracks"][name]) for name in ("score", "other"))
        assert own > other + 0.1
    first, second = (character["color"] for character in panel["characters"])
    assert first != second and first.startswith("#")


def test_listeners_have_no_score(measured: BindingReport) -> None:
    drawn = make_clip(2_000_100, n=2, num_frames=49, motion="still", talk="overlap")
    speeches = [Speech(torch.from_numpy(drawn.speeches[0])[None], RATE), None]
    frames, masks = torch.from_numpy(drawn.frames), torch.from_numpy(drawn.masks).float()
    report = binding_report(frames, masks, speeches, 25.0, ["Ada", "Bo"], meter=PuppetMeter())
    speaker, listener = binding_panel(report, 25.0)["characters"]
    assert speaker["margin"] is None and speaker["tracks"]["other"] is None  # no other voice
    assert listener["voice"] is None and listener["score"] is None and listener["lag"] is None
    assert listener["listening"] == [[0.0, 1.96]] and listener["tracks"]["score"] is None


def test_long_tracks_are_averaged() -> None:
    values = np.repeat([0.0, 1.0], 5000)
    short = track(values)
    assert short is not None and len(short) == POINTS and short == sorted(short) and set(short) == {0.0, 1.0}
    assert track(np.array([0.5])) == [0.5]
    assert track(np.array([np.nan, 1.0])) is None and track(None) is None
