"""Demo scenes, and their files for the workflows."""

from __future__ import annotations

from pathlib import Path

from bya_core.toy.demo import FILES, FOLDER, copy_demo_files, demo_names, load_demo


def test_demo_scenes_load() -> None:
    for name in demo_names():
        assert len(load_demo(name).characters) >= 2


def test_files_of_the_workflows_are_copied_once(tmp_path: Path) -> None:
    own = tmp_path / "bya_A.png"
    own.write_bytes(b"own")
    new = copy_demo_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    assert len(new) == len(FILES) - 1 and own.read_bytes() == b"own"
    assert (tmp_path / "bya_B.wav").read_bytes() == (FOLDER / "puppet_B.wav").read_bytes()
    assert copy_demo_files(tmp_path) == []
