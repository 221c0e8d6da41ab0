"""docs/reference/shards.md is enough to write a shard by hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from training.data.check import check
from training.data.dataset import open_data
from training.data.shards.reader import read_shards

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/shards.md"


def test_the_example_of_the_page_is_a_valid_shard(tmp_path, monkeypatch):
    section = PAGE.read_text(encoding="utf-8").partition("### A shard by hand")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert "bya_core" not in code and "training" not in code
    monkeypatch.chdir(tmp_path)
    written: dict = {}
    exec(compile(code, str(PAGE), "exec"), written)
    counts, problems = check(Path("mine"))
    assert problems == [] and counts["clips"] == 1
    (clip,) = read_shards("mine")
    assert np.array_equal(clip.masks, written["masks"]) and np.array_equal(clip.speeches, written["speeches"])
    assert clip.frames.shape == written["frames"].shape and clip.matrix.tolist() == [[1, 0], [0, 1]]
    batch = next(open_data("mine", "toy").batches(1, 0))
    assert batch["masks"].shape[:2] == (1, 2) and batch["masks"].max() == 255
