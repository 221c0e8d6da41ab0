"""The same results on a Ray cluster."""

from __future__ import annotations

import pytest

from tests.training.curation.conftest import outcome
from training.curation.output import CurationOutput
from training.curation.pipeline import STAGE_NAMES, load_settings
from training.curation.record import list_sources
from training.curation.stats import RunStats


@pytest.mark.slow
def test_ray_engine(reference, footage, tmp_path):
    ray = pytest.importorskip("ray")
    from training.curation.ray_engine import run_ray

    _, stats, expected = reference
    sources = list_sources(footage.folder)
    ray_stats = RunStats(sources, STAGE_NAMES)
    try:
        output = CurationOutput(tmp_path / "out", load_settings(footage.config))
        clips = run_ray(sources, output, ray_stats, num_cpus=4, include_dashboard=False)
    finally:
        ray.shutdown()
    assert clips == 3 and outcome(tmp_path / "out") == expected
    assert (ray_stats.kept, ray_stats.rejected, ray_stats.clips) == (stats.kept, stats.rejected, stats.clips)
