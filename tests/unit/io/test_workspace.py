"""Leftovers of killed processes are deleted, those of running ones are not; locks end with their process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bya_core.errors import InputError
from bya_core.io import workspace
from bya_core.io.interrupts import deferred_interrupts, interruptible
from bya_core.io.locks import LOCK, folder_lock
from bya_core.io.workspace import PREVIOUS, Workspace, remove_leftovers, temporary_folder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


@contextmanager
def running(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has printed a line."""
    command = [sys.executable, "-c", program + "; print(1, flush=True); import time; time.sleep(60)", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            yield process
        finally:
            process.kill()


OPEN = "import sys, pathlib; from bya_core.io.workspace import Workspace; w = Workspace(pathlib.Path(sys.argv[1]))"


def sweep(folder: Path) -> None:
    workspace._swept.clear()
    remove_leftovers(folder)


def test_leftovers_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".bya-mine.part").mkdir()
    (tmp_path / ".bya-000000-12345678.part").write_text("a file")
    with running(OPEN, str(tmp_path)) as process, Workspace(tmp_path) as own:
        (own / "unfinished").write_text("")
        sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 4  # both processes are alive
        process.send_signal(signal.SIGKILL)
        process.wait()
        sweep(tmp_path)
        assert own.is_dir() and len(list(tmp_path.iterdir())) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bya-000000-12345678.part", ".bya-mine.part"]


def test_leftovers_of_another_host_are_deleted_later(tmp_path: Path) -> None:
    other = tmp_path / ".bya-000000-12345678.part"
    other.mkdir()
    sweep(tmp_path)
    assert other.exists()
    past = time.time() - 2 * workspace.FOREIGN_AGE
    os.utime(other, (past, past))
    sweep(tmp_path)
    assert not other.exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_was_being_replaced_is_restored(replaced: bool, tmp_path: Path) -> None:
    with Workspace(tmp_path) as own:
        killed = own.name.replace(own.name[12:20], "12345678")
    (tmp_path / killed / PREVIOUS / "run").mkdir(parents=True)
    (tmp_path / killed / PREVIOUS / "run" / "old").write_text("")
    if replaced:
        (tmp_path / "run").mkdir()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ([] if replaced else ["old"])


def test_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.is_dir() and tmp_path in folder.parents and not list(folder.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_prevent_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with folder_lock(tmp_path, "the windows", "wait"):
        assert (tmp_path / LOCK).is_file()
    assert not list(tmp_path.iterdir())


def test_folder_lock_names_its_owner(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from bya_core.io.locks import folder_lock; "
        "c = folder_lock(pathlib.Path(sys.argv[1]), 'x', 'y'); c.__enter__()"
    )
    with running(program, str(tmp_path)) as process:
        expected = rf"the windows in .* are in use by process {process.pid} on .* since \d{{4}}-.*; wait"
        with pytest.raises(InputError, match=expected), folder_lock(tmp_path, "the windows", "wait"):
            pass
        process.kill()
        process.wait()
    with folder_lock(tmp_path, "the windows", "wait"), folder_lock(tmp_path, "the windows", "wait"):
        assert (tmp_path / LOCK).exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupts(number: signal.Signals) -> None:
    inherited = signal.signal(number, signal.SIG_DFL)  # ignored signals, as with nohup, stay ignored
    reached = False
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            with deferred_interrupts():
                os.kill(os.getpid(), number)
                time.sleep(0.01)
                reached = True
            pytest.fail("not raised at the end of the block")
        assert reached and signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, inherited)


def test_ignored_signals_stay_ignored() -> None:
    """As with nohup."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, previous)
