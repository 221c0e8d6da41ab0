"""Options for the rows of the paper's tables."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bya_core.errors import InputError
from training.benchmark import suites
from training.benchmark.byab import Pair
from training.benchmark.rows import apply_row, read_rows, read_scene_options
from training.benchmark.suites import EvaluateOptions
from training.benchmark.video_tasks import byab_tasks, folder_tasks
from training.evaluate import main

PAPER = {
    "table2": ["Ingredients", "Sonic", "Sonic (Concat)", "Hallo3", "Hallo3 (Concat)", "ours"],
    "table3": ["Ingredients", "Sonic", "Sonic (Concat)", "Hallo3", "Hallo3 (Concat)", "ours"],
    "table4": ["Ingredients", "ours"],
    "figure8a": ["box", "fine"],
    "figure8b": ["2d", "3d"],
}


@pytest.mark.parametrize(("part", "rows"), PAPER.items())
def test_every_row_of_the_paper_has_options(part, rows):
    known = read_rows()
    for row in rows:
        name = f"{part}-{re.sub('[ ()]+', '-', row.lower()).strip('-')}"
        options = apply_row(EvaluateOptions(), name)
        if part.startswith("table") and row != "ours":
            assert (options.suite, options.systems) == ("folder", (row,))
        else:
            assert (options.suite, options.model, options.scenes) == ("byab", "official", 20)
            assert options.first_frames == ("without" if part == "table4" else "with")
            router = read_scene_options(options.scene_options)["router"]
            by_first_frame = row in ("box", "2d")
            assert (router.get("mode") == "pre") == by_first_frame == bool(router.get("static"))
            assert router.get("refine", False) is not by_first_frame
        known.pop(name)
    assert not [name for name in known if name.startswith(part + "-")], "rows that the paper does not have"


def test_given_options_take_precedence(monkeypatch):
    options = apply_row(EvaluateOptions(model="mine", scenes=3), "table3-ours")
    assert (options.model, options.scenes, options.suite) == ("mine", 3, "byab")
    with pytest.raises(InputError, match="use table3-ours"):
        main(EvaluateOptions(row="table3-our"))
    monkeypatch.setattr(suites, "_load", lambda options: pytest.fail("loaded"))
    with pytest.raises(InputError, match="--suite byab without --output"):
        main(EvaluateOptions(row="table4-ours"))


def test_pairs_are_selected_by_their_first_frame(monkeypatch):
    faces = (Path("a.png"), Path("b.png"))
    pairs = [Pair(str(k), faces, (), "", False, faces[0] if k % 2 else None) for k in range(6)]
    monkeypatch.setattr(suites.byab, "read_pairs", lambda data: pairs)
    for choice, expected in (("any", "012345"), ("with", "135"), ("without", "024")):
        chosen = suites._pairs(Path(), EvaluateOptions(first_frames=choice))
        assert "".join(pair.name for pair in chosen) == expected
    assert len(suites._pairs(Path(), EvaluateOptions(first_frames="with", scenes=2))) == 2
    monkeypatch.setattr(suites.byab, "read_pairs", lambda data: pairs[::2])
    with pytest.raises(InputError, match="no pair with"):
        suites._pairs(Path(), EvaluateOptions(first_frames="with"))


def test_scene_options_reach_the_scene_files(tmp_path):
    pair = Pair("001", (Path("a.png"), Path("b.png")), (Path("a.wav"), Path("b.wav")), "Two.", False, None)
    (tmp_path / "videos" / "x").mkdir(parents=True)
    (tmp_path / "videos" / "x" / "001.mp4").touch()
    options = read_scene_options('{"router": {"static": true}}')
    byab_tasks([pair], tmp_path, "x", None, scene_options=options | {"length": 9})
    scene = json.loads((tmp_path / "scenes" / "001.json").read_text())
    assert scene["router"] == {"static": True} and scene["length"] == 9 and scene["prompt"] == "Two."
    for wrong in ("[1]", "{", '{"rooter": {}}', '{"router": {"static": 3}}'):
        with pytest.raises(InputError):
            read_scene_options(wrong)


def test_systems_are_selected_by_name(tmp_path):
    for system in ("Sonic", "Hallo3"):
        (tmp_path / system).mkdir()
        (tmp_path / system / "001.mp4").touch()
    (tmp_path / "001.json").touch()
    assert [task.system for task in folder_tasks(tmp_path, systems=("Sonic",))] == ["Sonic"]
    with pytest.raises(InputError, match="no videos of Ingredients"):
        folder_tasks(tmp_path, systems=("Ingredients",))
