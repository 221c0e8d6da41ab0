"""Output files and folders appear complete or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from bya_core.errors import InputError, WriteError
from bya_core.io.atomic import (
    AtomicFiles,
    atomic_contents,
    atomic_folder,
    atomic_write,
    format_size,
    write_json,
    write_text,
)
from bya_core.io.outputs import check_output, make_folder


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


def test_check_output_leaves_no_file(tmp_path: Path) -> None:
    assert check_output(tmp_path / "a.MP4", (".mp4",), "the video") == tmp_path / "a.MP4"
    assert names(tmp_path) == []


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to("real/a.txt")
    for text in ("new", "newer"):  # dangling, then existing
        write_text(link, text)
        assert link.is_symlink() and (tmp_path / "real" / "a.txt").read_text() == text
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(InputError, match="link"):
        write_text(link, "new")
    assert link.is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_pipes_devices_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "null.txt").symlink_to("/dev/null")
    (tmp_path / "folder.txt").mkdir()
    for name, reason in (("pipe", "regular file"), ("null", "regular file"), ("folder", "folder")):
        with pytest.raises(InputError, match=reason):
            write_text(tmp_path / f"{name}.txt", "new")
        with pytest.raises(InputError, match=reason):
            check_output(tmp_path / f"{name}.txt", (".txt",), "the text")
    assert names(tmp_path) == ["folder.txt", "null.txt", "pipe.txt"]


def test_names_of_255_bytes(tmp_path: Path) -> None:
    longest = "é" * 125 + "a.txt"
    assert len(longest.encode()) == 255
    write_text(check_output(tmp_path / longest, (".txt",), "the text"), "a")
    assert names(tmp_path) == [longest]
    with pytest.raises(InputError, match="too long"):
        check_output(tmp_path / f"b{longest}", (".txt",), "the text")


def test_undecodable_names(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.json")
    write_json(tmp_path / name, {"name": name})
    assert json.loads((tmp_path / name).read_text(encoding="utf-8")) == {"name": name}


def test_folders_are_created_with_the_file_and_removed_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = check_output(tmp_path / "new" / "a.txt", (".txt",), "the text")
    assert names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), atomic_write(path):
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    write_text(path, "a")
    assert names(tmp_path / "new") == ["a.txt"]

    for missing in (tmp_path / "b" / "c" / "a.txt", Path("/bya-no-such-folder/a.txt"), Path("~bya/a.txt")):
        with pytest.raises(InputError, match="existing folder"):
            check_output(missing, (".txt",), "the text")
        assert not missing.parent.exists()
    monkeypatch.chdir(tmp_path)
    make_folder("b/c/d")  # below the working directory
    assert (tmp_path / "b" / "c" / "d").is_dir()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "the limit of the file size is reached"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "the disk is full",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0"),
            "full",
        ),
    ],
)
def test_full_disk_is_told_with_sizes(error: Exception, reason: str, tmp_path: Path) -> None:
    writers = (atomic_write(tmp_path / "a.bin"), atomic_folder(tmp_path / "a.bin"), atomic_contents(tmp_path / "a.bin"))
    for writer in writers:
        with (
            pytest.raises(WriteError, match=rf"{reason}; 1\.5 MB written, [\d.]+ [kMGT]B free") as caught,
            writer as path,
        ):
            (path / "part" if path.is_dir() else path).write_bytes(bytes(1_500_000))
            raise error
        assert "more than 1.5 MB" in str(caught.value) and names(tmp_path) == []
    with pytest.raises(RuntimeError, match="other"), atomic_write(tmp_path / "a.bin") as path:
        raise RuntimeError("other")


@pytest.mark.skipif(os.name == "nt", reason="limits of the file size")
def test_limit_of_the_file_size(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from bya_core.io.atomic import write_text; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); write_text(sys.argv[1], 'a' * 200_000)"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.txt")], capture_output=True, text=True)
    assert "a.txt cannot be written" in run.stderr and "100.0 kB written" in run.stderr
    assert names(tmp_path) == []


def test_atomic_contents_keeps_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "a.txt").write_text("old")
    with atomic_contents(tmp_path) as folder:
        (folder / "a.txt").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text("new")
    assert names(tmp_path) == ["a.txt", "mine.txt", "sub"] and (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path / "sub") == ["b.txt"]


def test_small_sizes_are_told() -> None:
    assert [format_size(size) for size in (0, 999, 1_500, 2_000_000, 3.2e9)] == [
        "0 bytes", "999 bytes", "1.5 kB", "2.0 MB", "3.2 GB",
    ]  # fmt: skip
