"""Output files and folders appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from bya_core.io.atomic import AtomicFiles, atomic_folder, atomic_write
from bya_core.io.outputs import check_output


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_appear_together(tmp_path: Path) -> None:
    with AtomicFiles() as files:
        files.at(tmp_path / "a.txt").write_text("a")
        files.at(tmp_path / "b.txt").write_text("b")
        assert not (tmp_path / "a.txt").exists()
    assert names(tmp_path) == ["a.txt", "b.txt"]
    with pytest.raises(RuntimeError), AtomicFiles() as files:
        files.at(tmp_path / "a.txt").write_text("new")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "a"
    assert names(tmp_path) == ["a.txt", "b.txt"]


def test_nested_writers_share_one_temporary_file(tmp_path: Path) -> None:
    with AtomicFiles() as files:
        outer = files.at(tmp_path / "a.txt")
        with atomic_write(outer) as inner:
            assert inner == outer
            inner.write_text("a")
        assert outer.exists() and not (tmp_path / "a.txt").exists()
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("earlier", [False, True])
def test_atomic_folder(tmp_path: Path, earlier: bool) -> None:
    target = tmp_path / "run"
    if earlier:
        target.mkdir()
        (target / "old.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "new.txt").write_text("new")
        raise KeyboardInterrupt
    assert names(tmp_path) == (["run"] if earlier else [])
    with atomic_folder(target) as folder:
        with atomic_write(folder / "new.txt") as path:
            path.write_text("new")
        assert names(folder) == ["new.txt"]
    assert names(tmp_path) == ["run"] and names(target) == ["new.txt"]


def test_other_processes_only_wait(tmp_path: Path) -> None:
    waited: list[Path | None] = []

    def share(path: Path | None) -> Path:
        waited.append(path)
        return tmp_path / "shared"  # by the main process

    with atomic_folder(tmp_path / "run", main=False, share=share) as folder:
        assert folder == tmp_path / "shared"
    assert waited == [None, None] and names(tmp_path) == []


def test_check_output_leaves_no_file(tmp_path: Path) -> None:
    assert check_output(tmp_path / "a.MP4", (".mp4",), "the video") == tmp_path / "a.MP4"
    assert names(tmp_path) == []
