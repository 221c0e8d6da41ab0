"""Settings and the order of stages."""

from __future__ import annotations

import pytest

from bya_core.errors import InputError
from tests.training.curation.conftest import RECIPES
from training.curation.pipeline import CurationSettings, build_stages, load_settings, puppet_only_models


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
