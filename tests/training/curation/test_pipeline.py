"""Settings and the order of stages."""

from __future__ import annotations

import pytest

from bya_core.errors import InputError
from tests.training.curation.conftest import RECIPES
from training.curation.masks import MaskSettings
from training.curation.models import ModelChoice
from training.curation.pipeline import (
    STAGE_NAMES,
    CurationSettings,
    build_stages,
    load_settings,
    puppet_only_models,
)


def test_recipes(footage):
    settings = load_settings(footage.config)
    assert settings.faces.detector.name == "puppet" and settings.extract.extractor.options["truth"]
    assert "sync: puppet" in puppet_only_models(settings) and puppet_only_models(CurationSettings()) == []
    real = load_settings(RECIPES / "curation.yaml")
    assert puppet_only_models(real) == [] and real.segments.size == (480, 720) and real.segments.lengths == (49,)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("faces: {strde: 3}", "strde"),
        ("faces: {track: {min_ious: 3}}", "faces.track"),
        ("segments: {lengths: [48]}", "lengths"),
        ("probe: {min_side: many}", "probe.min_side"),
        ("shards: {clips_per_shard: 0}", "clips_per_shard"),
        ("[1, 2]", "bad.yaml"),
        ("a: [", "not valid YAML"),
        ("resources: {cooking: {cpus: 1}}", "cooking"),
    ],
)
def test_invalid_configs_raise(tmp_path, text, problem):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        build_stages(load_settings(tmp_path / "bad.yaml"))
    assert problem in error.value.problem


def test_recipe_without_downloads():
    """Every model of the recipe loads on a fresh machine."""
    settings = load_settings(RECIPES / "curation_local.yaml")
    assert settings.complete and puppet_only_models(settings) == []
    assert [stage.find_problems() for stage in build_stages(settings)] == [[]] * len(STAGE_NAMES)


def test_until_limits_the_stages():
    settings = CurationSettings(until="segments")
    assert [stage.name for stage in build_stages(settings)] == ["probe", "shots", "faces", "segments"]
    assert not settings.complete and CurationSettings().complete
    assert not CurationSettings(masks=MaskSettings(ModelChoice("none"))).complete


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("until: cooking", "cooking"),
        ("extract: {extractor: none}", "segments.characters 2"),
        ("faces: {detector: scrfd}\nextract: {extractor: lips}", "extract.extractor lips"),
        ("faces: {detector: scrfd}\nmasks: {segmenter: mesh}", "masks.segmenter mesh"),
    ],
)
def test_options_that_exclude_each_other(tmp_path, text, problem):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        load_settings(tmp_path / "bad.yaml")
    assert problem in error.value.problem
