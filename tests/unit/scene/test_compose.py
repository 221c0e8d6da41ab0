"""Scenes from casts and text inputs, as the nodes compose them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bya_core.config import SamplingConfig
from bya_core.errors import InputError
from bya_core.scene.compose import (
    CastMember,
    SceneOptions,
    combine_casts,
    compose,
    override_sampling,
    parse_matrix,
    parse_prompts,
    video_frames,
)
from bya_core.scene.types import SceneDefaults, Speech, rotate_speeches
from tests.fakes import RATE

DEFAULTS = SceneDefaults(height=64, width=96, max_frames=49, size_unit=8, time_factor=4)


def noise(seconds: float = 1.0, seed: int = 0) -> Speech:
    waveform = torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    return Speech(waveform * 0.1, RATE)


def member(name: str, speech: Speech | None = None, strength: float = 1.0) -> CastMember:
    image = torch.ones(3, 40, 40)
    image[:, 10:30, 12:28] = 0.4
    return CastMember(name, image, speech, strength)


def test_compose():
    cast = combine_casts((member("Ada", noise()),), (member("Bo", None, 0.5),))
    scene = compose(cast, SceneOptions("a talk", width=48, timed_prompts="0 - 1: Ada laughs"), DEFAULTS)
    assert (scene.width, scene.height, scene.num_frames) == (48, 64, 25)
    assert scene.speeches[1] is None and scene.speech_strength is not None
    assert scene.speech_strength.tolist() == [1.0, 0.5]
    assert [span.prompt for span in scene.prompts] == ["Ada laughs"]
    assert compose(cast, SceneOptions("a talk", frames=9), DEFAULTS).notices, "truncated speech"
    same = (member("Ada", noise(seed=1)), member("Bo", noise(seed=1)))
    assert any("same recording" in notice for notice in compose(same, SceneOptions(""), DEFAULTS).notices)


def test_invalid_casts_raise():
    with pytest.raises(InputError, match='two characters named "Ada"'):
        combine_casts((member("Ada"),), (member("Ada"),))
    with pytest.raises(InputError, match="no speech"):
        compose((member("Ada"),), SceneOptions(""), DEFAULTS)
    with pytest.raises(InputError, match="at least 1"):
        compose((), SceneOptions("", frames=9), DEFAULTS)
    with pytest.raises(InputError, match="width of 0 pixels"):
        compose((member("Ada"),), SceneOptions("", width=0, frames=9), DEFAULTS)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {}),
        ({"guidance_scale": 6.0}, {"guidance_scale": 6.0, "audio_guidance_scale": 6.0}),
        ({"audio_guidance_scale": 4.0, "scheduler": "dpm"}, {"audio_guidance_scale": 4.0, "scheduler": "dpm"}),
    ],
)
def test_override_sampling(options, changes):
    base = SamplingConfig(steps=16, guidance_scale=1.0, audio_guidance_scale=2.0, scheduler="ddim")
    unset = {"steps": None, "guidance_scale": None, "audio_guidance_scale": None, "scheduler": None, "seed": 3}
    assert override_sampling(base, **unset | options) == replace(base, seed=3, **changes)


def test_parse_matrix():
    assert parse_matrix("  ", 2, 2) is None
    matrix = parse_matrix("1, 0.5; 0 1", 2, 2)
    assert matrix is not None and matrix.tolist() == [[1, 0.5], [0, 1]]
    assert rotate_speeches(torch.eye(3)).argmax(1).tolist() == [1, 2, 0]


@pytest.mark.parametrize("text", ["1 0", "1 0; 0 1; 1 1", "1 0; 1", "1 x; 0 1", "1 0; 0 2", "1 0; 0 nan"])
def test_invalid_matrices_raise(text):
    with pytest.raises(InputError):
        parse_matrix(text, 2, 2)


def test_parse_prompts():
    spans = parse_prompts("0-1.5: Ada laughs\n\n 1.5 to 3 s : both: silent")
    expected = [(0, 1.5, "Ada laughs"), (1.5, 3, "both: silent")]
    assert [(span.start, span.end, span.prompt) for span in spans] == expected
    for invalid in ("Ada laughs", "1.2.3 - 4: Ada laughs", "2 - 1: Ada laughs"):
        with pytest.raises(InputError):
            parse_prompts(invalid)


@pytest.mark.parametrize(("length", "frames"), [("as long as the speech", None), ("seconds", 50), ("frames", 10)])
def test_video_frames(length, frames):
    assert video_frames(length, 2.0, 10) == frames


def test_unknown_length_raises():
    with pytest.raises(InputError, match='"seconds"'):
        video_frames("hours", 2.0, 10)
