"""Outputs never replace inputs, each other, or files of the package."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import bya_core
from bya_core.errors import InputError
from bya_core.io.atomic import atomic_folder, write_text
from bya_core.io.files import existing_file
from bya_core.io.inputs import note_input, protect_inputs
from bya_core.io.outputs import check_distinct, check_folder, check_output


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.txt"
    path.parent.mkdir()
    path.write_text("input")
    (tmp_path / "link.txt").symlink_to(path)
    (tmp_path / "linked").symlink_to(path.parent)
    os.link(path, tmp_path / "hard.txt")
    return path


@pytest.mark.parametrize("spelling", ["in/a.txt", "in/../in/./a.txt", "link.txt", "linked/a.txt", "hard.txt"])
def test_an_input_is_never_replaced(spelling: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / spelling
    with protect_inputs():
        existing_file(source, "the text")
        for write in (lambda: check_output(target, (".txt",), "the copy"), lambda: write_text(target, "new")):
            with pytest.raises(InputError, match="which is an input"):
                write()
    assert source.read_text() == "input"
    write_text(target, "new")  # outside of a command


def test_what_this_command_wrote_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with protect_inputs():
        write_text(path, "first")
        existing_file(path, "the text")
        write_text(path, "second")
    assert path.read_text() == "second"


def test_files_of_an_input_folder(tmp_path: Path) -> None:
    for name in ("data/deep/a.txt", "data/out/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("input")
    with protect_inputs():
        note_input(tmp_path / "data", ignore=[tmp_path / "data" / "out"])
        write_text(tmp_path / "data" / "out" / "b.txt", "new")
        with pytest.raises(InputError, match="which is an input"):
            write_text(tmp_path / "data" / "deep" / "a.txt", "new")
        with pytest.raises(InputError, match="contains an input"), atomic_folder(tmp_path / "data"):
            pass
    assert (tmp_path / "data" / "deep" / "a.txt").read_text() == "input"


@pytest.mark.parametrize("other", ["a.txt", "./sub/../a.txt", "A.TXT", "link.txt", "hard.txt"])
def test_two_outputs_with_one_target(other: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("a.txt")
    os.link(tmp_path / "a.txt", tmp_path / "hard.txt")
    with pytest.raises(InputError, match="same file|given twice"):
        check_distinct([tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / other])
    check_distinct([tmp_path / "a.txt", tmp_path / "b.txt"])


def test_the_package_is_never_written(tmp_path: Path) -> None:
    package = Path(bya_core.__file__).parent
    (tmp_path / "link").symlink_to(package)
    for path in (package / "toy" / "weights" / "x.txt", tmp_path / "link" / "x.txt"):
        for write in (lambda: check_output(path, (".txt",), "it"), lambda: write_text(path, "")):  # noqa: B023
            with pytest.raises(InputError, match="inside the folder bya_core"):
                write()
    with pytest.raises(InputError, match="inside the folder bya_core"):
        check_folder(package, "the model")


@pytest.mark.parametrize("name", ["", "a\0.txt", "b" * 300 + ".txt"])
def test_impossible_names_are_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        check_output(os.path.join(tmp_path, name), (".txt",), "the text")
    assert list(tmp_path.iterdir()) == []
