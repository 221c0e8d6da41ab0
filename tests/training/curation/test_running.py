"""Runs as a whole: interrupted and gone on with, on either engine, with what a person gets to see."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bya_core.errors import InputError
from training.curate import Arguments, curate
from training.curation.index import read_index
from training.curation.output import Layout
from training.curation.store import Store
from training.data.shards.reader import read_shards

ROOT = Path(__file__).resolve().parents[3]


def outcome(folder: Path) -> tuple[dict[str, str], list[dict]]:
    """Hashes of all shards, and the index."""
    shards = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}
    return shards, read_index(folder / "index.parquet")


@pytest.fixture(scope="session")
def whole(small, tmp_path_factory):
    """A run without interruption, in one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    progress = curate(Arguments(small.folder, out, small.config, workers=0))
    return out, progress, outcome(out)


def test_a_run_tells_what_it_kept_and_dropped(whole, small):
    out, progress, (shards, rows) = whole
    assert sorted(shards) == ["clips-000000.tar", "clips-000001.tar"]
    kept = [row for row in rows if row["kept"]]
    assert len(kept) == 3 and progress.clips == 3 and {row["level"] for row in kept} == {"clip"}
    assert [row["shard"] for row in kept] == ["clips-000000.tar"] * 2 + ["clips-000001.tar"]
    dropped = {(row["name"], row["stage"]) for row in rows if not row["kept"]}
    assert dropped == {("a film.mp4", "segments"), ("ein zweiter Film äöü.mp4", "segments")}
    line = progress.line()
    assert "2/2 files  3 clips" in line and "clips/s" in line and "segments 3/2" in line and "captions 3/0" in line


def test_shards_hold_what_was_measured(whole, small):
    out, _, (_, rows) = whole
    samples = list(read_shards(out))
    assert [s.key for s in samples] == [row["key"] for row in rows if row["kept"]]
    for sample in samples:
        frames = len(sample.frames)
        assert sample.frames.shape[1:] == (64, 96, 3) and frames in (17, 33) and sample.fps == 25
        assert sample.masks.shape == (2, frames, 64, 96) and sample.speeches.shape == (2, frames * 640)
        assert sample.speech_features.shape[:2] == (2, frames + 4) and sample.portraits[0].shape == (48, 48, 3)
        assert sample.matrix.tolist() == [[1, 0], [0, 1]] and "puppet" in sample.caption
        assert sample.measured["stand_ins"] and sample.measured["sync_mean"] > 0.5
        boxes = np.array(sample.measured["boxes"])
        assert boxes.shape == (2, frames, 4) and (boxes[..., 2] > boxes[..., 0]).all()


class Stopped(BaseException):
    """As sudden as a kill."""


def test_a_run_stopped_anywhere_ends_as_one_that_was_not(whole, small, tmp_path, monkeypatch):
    """Stopped after every fourth result, and while a shard is written."""
    _, _, truth = whole
    put, results, stops = Store.put, [0], 0
    from training.curation import output

    def stopping(self, *args):
        results[0] += 1
        if results[0] % 4 == 0:
            raise Stopped
        return put(self, *args)

    monkeypatch.setattr(Store, "put", stopping)
    arguments = Arguments(small.folder, tmp_path / "out", small.config, workers=0, resume=True)
    write = output.write_shard
    monkeypatch.setattr(output, "write_shard", lambda *args: (_ for _ in ()).throw(Stopped))
    while True:
        try:
            curate(arguments)
            break
        except Stopped:
            stops += 1
            if stops > 8:
                monkeypatch.setattr(output, "write_shard", write)
            assert stops < 40
    assert stops > 9
    assert outcome(tmp_path / "out") == truth


def test_going_on_does_nothing_twice(whole, small, tmp_path, monkeypatch):
    """A second run writes no shard and asks no stage; a new setting asks only the stages from there on."""
    out, _, truth = whole
    written = []
    monkeypatch.setattr("training.curation.output.write_shard", lambda *args: written.append(args))
    monkeypatch.setattr(Store, "put", lambda *args: pytest.fail("a stage ran again"))
    with pytest.raises(InputError, match="not empty"):
        curate(Arguments(small.folder, out, small.config, workers=0))
    curate(Arguments(small.folder, out, small.config, workers=0, resume=True))
    assert not written and outcome(out) == truth


def test_only_stages_behind_a_changed_setting_run_again(whole, small, tmp_path, monkeypatch):
    import shutil

    out, _, (shards, _) = whole
    shutil.copytree(out, tmp_path / "out")
    changed = tmp_path / "curation.yaml"
    changed.write_text(small.config.read_text().replace("least: 0.5}", "least: 99.0}"))
    put, ran = Store.put, set()

    def noting(self, stage, *args):
        ran.add(stage)
        return put(self, stage, *args)

    monkeypatch.setattr(Store, "put", noting)
    curate(Arguments(small.folder, tmp_path / "out", changed, workers=0, resume=True))
    rows = read_index(tmp_path / "out" / "index.parquet")
    assert ran == {"sync"} and not any(row["kept"] for row in rows)
    assert not list((tmp_path / "out").glob("*.tar"))  # clips that are no longer wanted are gone


def test_the_report_and_the_audit_show_clips(whole, small, tmp_path):
    import av

    out, _, _ = whole
    report = tmp_path / "report.html"
    curate(Arguments(small.folder, out, small.config, workers=0, resume=True, report=report, audit=2))
    page = report.read_text()
    assert "Stand-ins for drawn puppets were used" in page and page.count("data:image/jpeg;base64,") == 3
    assert re.search(r"<td>segments<td>5<td>3<td>2", page) and "exactly 2 characters" in page
    assert "http" not in page and "<script" not in page
    looked = sorted((out / "audit").glob("*.mp4"))
    assert len(looked) == 2 and "right number of people: ?" in looked[0].with_suffix(".txt").read_text()
    with av.open(os.fspath(looked[0])) as film:
        assert film.streams.audio and film.streams.video


def command(small, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "training" / "curate.py"), "--input", str(small.folder), "--output", str(out),
        "--config", str(small.config), "--workers", "2", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_killed_processes_change_nothing(whole, small, tmp_path):
    """kill -9 of the run, twice, and of one of its workers; then it goes on to the same shards and index."""
    pytest.importorskip("pebble")
    _, _, truth = whole
    out = tmp_path / "out"
    store = Layout(out).store
    for results in (4, 12):
        run = subprocess.Popen(command(small, out, "--resume"), start_new_session=True, stderr=subprocess.DEVNULL)
        until(lambda results=results: len(list(store.glob("*/*/*.json"))) >= results, run)
        run.kill()
        run.wait()
        os.killpg(run.pid, signal.SIGKILL) if alive(run.pid) else None
    run = subprocess.Popen(command(small, out, "--resume"), start_new_session=True, stderr=subprocess.PIPE, text=True)
    done = len(list(store.glob("*/*/*.json")))
    until(lambda: len(list(store.glob("*/*/*.json"))) > done, run)
    import psutil

    workers = [p for p in psutil.Process(run.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    workers[-1].kill()
    _, told = run.communicate(timeout=600)
    assert run.returncode == 0, told
    assert outcome(out) == truth
    assert "a process died" in told or "3 clips" in told


def until(reached, run, seconds: float = 600.0) -> None:
    """Wait for something, as long as the run lives."""
    end = time.monotonic() + seconds
    while not reached() and run.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_ray_gives_the_same(whole, small, tmp_path):
    ray = pytest.importorskip("ray")
    _, progress, truth = whole
    from training.curation.output import Output
    from training.curation.progress import Progress
    from training.curation.ray_engine import run_ray
    from training.curation.settings import load_settings
    from training.curation.sources import list_sources

    settings = load_settings(small.config)
    sources = list_sources(small.folder)
    output = Output(tmp_path / "out", settings, {})
    told = Progress(sources, [stage.name for stage in output.stages])
    try:
        clips = run_ray(sources, output, told, num_cpus=4, include_dashboard=False)
    finally:
        ray.shutdown()
    assert clips == 3 and outcome(tmp_path / "out") == truth
    assert (told.kept, told.rejected, told.clips) == (progress.kept, progress.rejected, progress.clips)
