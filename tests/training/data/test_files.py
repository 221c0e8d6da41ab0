"""Linked folders are followed once; what is skipped is counted and named."""

from __future__ import annotations

import os
import shutil

import pytest

from bya_core.errors import InputError
from training.curation.record import list_sources
from training.data.check import check
from training.data.dataset import open_data
from training.data.files import list_files
from training.data.puppet_plan import PuppetPlan
from training.data.shards.reader import read_shards
from training.data.shards.writer import ShardWriter


def _write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def _names(folder, files):
    return [path.relative_to(folder).as_posix() for path in files]


def test_shards_behind_a_linked_folder_are_read(tmp_path):
    plan = PuppetPlan.parse("puppets:n=2,clips=6,frames=9")
    with ShardWriter(tmp_path / "store", per_shard=3) as writer:
        for number in range(plan.clips):
            writer.write(plan.clip(number))
    data = tmp_path / "data"
    data.mkdir()
    shutil.move(writer.shards[0], data / "a.tar")
    (data / "more").symlink_to(tmp_path / "store")
    assert len(list(read_shards(data))) == 6
    counts, broken = check(data)
    assert (counts["clips"], counts["shards"], broken) == (6, 2, [])
    assert open_data(data, "toy").clips == 6


def test_a_folder_that_several_links_reach_is_listed_once(tmp_path, caplog):
    _write(tmp_path, "store/1.tar", "data/0.tar")
    for name in ("a", "b"):
        (tmp_path / "data" / name).symlink_to("../store")
    (tmp_path / "data" / "same.tar").symlink_to("0.tar")
    assert _names(tmp_path / "data", list_files(tmp_path / "data", ".tar")) == ["0.tar", "a/1.tar"]
    assert "2 skipped" in caplog.text and "same.tar" in caplog.text and f"{tmp_path / 'data' / 'b'}" in caplog.text


@pytest.mark.parametrize("target", [".", "..", "../other"])
def test_cycles_are_refused(tmp_path, target):
    _write(tmp_path, "data/sub/1.tar", "data/other/2.tar")
    (tmp_path / "data/sub/back").symlink_to(target)
    (tmp_path / "data/other/back").symlink_to("../sub")
    with pytest.raises(InputError, match="leads back"):
        list_files(tmp_path / "data", ".tar")


def test_skipped_entries_are_named_with_the_reason(tmp_path):
    _write(tmp_path, "1.tar", ".2.tar", ".git/3.tar", "cache/4.tar", "cache/text/0a/5.safetensors")
    (tmp_path / "gone.tar").symlink_to("nowhere")
    skipped: list[str] = []
    assert _names(tmp_path, list_files(tmp_path, ".tar", skipped)) == ["1.tar"]
    assert sorted(os.path.basename(each.split(" (")[0]) for each in skipped) == [".2.tar", ".git", "cache", "gone.tar"]


def test_footage_behind_a_linked_folder_is_listed(tmp_path):
    _write(tmp_path, "disk/b.mp4", "videos/a.mp4")
    (tmp_path / "videos/disk").symlink_to(tmp_path / "disk")
    assert [record.name for record in list_sources(tmp_path / "videos")] == ["a.mp4", "disk/b.mp4"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_data_names_the_command_that_makes_some(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"python -m training\.data\.puppet_plan"):
        open_data(tmp_path / name)
