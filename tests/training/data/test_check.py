"""The checker of shards: what it finds, what it repairs, and the sheet of clips."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from bya_core.errors import InputError
from training.data import check, view
from training.data.cache import FeatureCache
from training.data.check import find_problems, fix
from training.data.puppet_plan import PuppetPlan
from training.data.shards.index import ShardIndex
from training.data.shards.members import pack
from training.data.shards.reader import read_shards
from training.data.shards.writer import ShardWriter

PLAN = PuppetPlan(n=(2,), clips=2, seed=2_000_000, frames=(9,))
CLIP = PLAN.clip(0)


def _with_masks(**changes):
    masks = CLIP.masks.copy()
    for n, value in changes.items():
        masks[int(n[1])] = value
    return replace(CLIP, masks=masks)


WRONG = {
    "empty in all frames": _with_masks(n1=False),
    "have the same mask": _with_masks(n1=CLIP.masks[0]),
    "voice 0 belongs to 2 characters": replace(CLIP, matrix=np.array([[1, 1], [0, 0]])),
    "character 0 has 2 voices": replace(CLIP, matrix=np.array([[1, 0], [1, 0]])),
    "full scale is 1": replace(CLIP, speeches=CLIP.speeches * 32768),
    "the voices last 0.13 s": replace(CLIP, speeches=CLIP.speeches[:, :2080]),
    "the voices last 3.36 s": replace(CLIP, speeches=np.pad(CLIP.speeches, ((0, 0), (0, 48_000)))),
    "the caption is empty": replace(CLIP, caption=" "),
}


def write(folder, *clips):
    with ShardWriter(folder) as writer:
        for clip in clips:
            writer.write(clip)


def write_tar(path, files):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def test_intact_clips_have_no_problems():
    for number in range(PLAN.clips):
        assert find_problems(PLAN.clip(number), pack(PLAN.clip(number))) == []


@pytest.mark.parametrize("text", WRONG)
def test_problem_is_found(text):
    assert text in "; ".join(problem.text for problem in find_problems(WRONG[text]))


def test_problems_are_listed_and_repaired_where_that_is_safe(tmp_path, capsys):
    source, repaired = tmp_path / "source", tmp_path / "repaired"
    wrong = [WRONG[text] for text in ("full scale is 1", "the voices last 3.36 s", "empty in all frames")]
    write(source, *(replace(clip, key=f"clip{k}") for k, clip in enumerate(wrong)))
    extra = [(f"more.{name}", content) for name, content in pack(CLIP).items()] + [("more.note.txt", b"hello")]
    again = [(f"clip0.{name}", content) for name, content in pack(CLIP).items()]
    write_tar(source / "more.tar", [*extra, *again, ("alone.mp4", b"x")])
    assert check.main(check.Arguments(source)) == 1
    shown = capsys.readouterr().out
    assert "5 clips" in shown and "the key occurs in clips-000000.tar already" in shown and "note.txt" in shown
    assert "'alone'" in shown and shown.count("--fix repairs it") == 4
    assert check.main(check.Arguments(source, fix=True, output=repaired)) == 1  # one mask is still empty
    shown = capsys.readouterr().out
    assert "wrote 5 clips" in shown and "left out 1" in shown and "1 broken" in shown and "empty in all" in shown
    clips = {clip.key: clip for clip in read_shards(repaired)}
    assert set(clips) == {"clip0", "clip1", "clip2", "more", "clip0_2"}
    assert np.allclose(clips["clip0"].speeches, CLIP.speeches, atol=1e-6)
    assert np.array_equal(clips["clip1"].speeches, CLIP.speeches)
    original = next(clip for clip in read_shards(source) if clip.key == "clip0")
    assert np.array_equal(clips["clip0"].frames, original.frames), "the video is copied, not encoded again"


def test_adjacent_clips_of_one_key_are_two_clips(tmp_path):
    files = [(f"same.{name}", content) for _ in range(2) for name, content in pack(CLIP).items()]
    write_tar(tmp_path / "a.tar", files)
    assert len(list(read_shards(tmp_path))) == len(ShardIndex(tmp_path, FeatureCache(None))) == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda h: h.update(sha256={f"key.{name}": value for name, value in h["sha256"].items()}), "not the extension"),
        (lambda h: h.update(speeches=[2, 77]), "not 77 mono samples"),
        (lambda h: h["sha256"].pop("mp4"), "no mp4"),
        (lambda h: h.pop("caption"), "no caption"),
    ],
)
def test_messages_about_json_name_the_mistake(tmp_path, change, expected):
    members = pack(CLIP)
    header = json.loads(members["json"])
    change(header)
    write_tar(tmp_path / "a.tar", [(f"key.{name}", content) for name, content in members.items() if name != "json"]
              + [("key.json", json.dumps(header).encode())])  # fmt: skip
    _, broken = check.check(tmp_path)
    assert len(broken) == 1 and expected in broken[0]


def test_repaired_shards_do_not_go_into_the_source(tmp_path):
    write(tmp_path / "source", CLIP)
    for output in (tmp_path / "source", tmp_path / "source/fixed"):
        with pytest.raises(InputError, match="outside of the shards"):
            fix(tmp_path / "source", output)
    with pytest.raises(InputError, match="--fix"):
        check.main(check.Arguments(tmp_path / "source", fix=True))


def test_sheet_shows_clips_captions_and_problems(tmp_path):
    good, bad = replace(CLIP, key="good", caption="a <red> one"), replace(WRONG["empty in all frames"], key="bad")
    write(tmp_path / "source", good, bad)
    view.main(view.Arguments(tmp_path / "source", tmp_path / "sheet.html"))
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("data:image/jpeg") == 2 and "a &lt;red&gt; one" in page and "empty in all frames" in page
    with pytest.raises(InputError, match="no shard|tar"):
        view.main(view.Arguments(tmp_path / "nothing", tmp_path / "sheet.html"))
