"""Shards: round trip, atomic writing, broken files."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from bya_core.errors import InputError
from training.data import check
from training.data.cache import FeatureCache
from training.data.clip import ClipSample, safe_key
from training.data.puppet_plan import Arguments, PuppetPlan, main
from training.data.shards.index import ShardIndex
from training.data.shards.members import BrokenClip, pack, unpack
from training.data.shards.reader import find_shards, read_shards
from training.data.shards.writer import ShardWriter

PLAN = PuppetPlan(n=(1, 2, 3), clips=6, seed=2_000_000, frames=(9,))


def clip(number=0, **changes):
    sample = PLAN.clip(number)
    return replace(sample, key=f"clip_{number}", **changes)


def same(a: ClipSample, b: ClipSample) -> bool:
    """All but the video is equal, to the last bit and kind of number."""
    for f in fields(ClipSample):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if f.name == "frames":
            continue
        if isinstance(x, np.ndarray):
            if not (isinstance(y, np.ndarray) and x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True)):
                return False
        elif f.name == "portraits":
            if len(x) != len(y) or not all(np.array_equal(p, q) for p, q in zip(x, y, strict=True)):
                return False
        elif x != y:
            return False
    return True


def psnr(a: ClipSample, b: ClipSample) -> float:
    """Signal to noise in dB."""
    assert a.frames.shape == b.frames.shape and b.frames.dtype == np.uint8
    return float(10 * np.log10(255**2 / np.mean((a.frames.astype(float) - b.frames) ** 2)))


def test_round_trip_is_lossless_except_video(tmp_path):
    rng = np.random.default_rng(0)
    given = [
        clip(0),
        clip(1, speech_features=rng.standard_normal((len(clip(1).speeches), 13, 3, 5)).astype(np.float16)),
        clip(
            2,
            measured={"sync": 1 / 3, "boxes": [[1, 2.5]], "why": None, "text": "ä ❤", "flag": True},
            fps=24_000 / 1001,
        ),
        clip(3, caption="Zwei Füße — “quoted”\n", mouths=None),
    ]
    with ShardWriter(tmp_path / "with space ü", per_shard=3) as writer:
        for sample in given:
            writer.write(sample)
    assert [path.name for path in writer.shards] == ["clips-000000.tar", "clips-000001.tar"] and writer.clips == 4
    read = list(read_shards(tmp_path / "with space ü"))
    assert [sample.key for sample in read] == [f"clip_{k}" for k in range(4)]
    assert all(same(a, b) for a, b in zip(given, read, strict=True))
    index = ShardIndex(tmp_path / "with space ü", FeatureCache(None))
    assert [index.content(k).header["fps"] for k in range(4)] == [index.shape(k)[4] for k in range(4)]
    assert min(psnr(a, b) for a, b in zip(given, read, strict=True)) > 28


def test_round_trip_of_unusual_clips(tmp_path):
    rng = np.random.default_rng(1)
    sample = ClipSample(
        key="ключ 键",
        frames=np.full((3, 37, 51, 3), 90, np.uint8),
        fps=25,
        speeches=rng.standard_normal((3, 1921)).astype(np.float32) * 3,
        masks=rng.random((2, 3, 37, 51)) < 0.5,
        portraits=(rng.integers(0, 256, (5, 7, 3), np.uint8), rng.integers(0, 256, (300, 1, 3), np.uint8)),
        caption="",
        matrix=np.array([[0, 1], [1, 0], [0, 0]], np.int8),
        speech_features=rng.standard_normal((3, 7, 2, 4)),
        mouths=np.full((2, 3, 2), np.nan, np.float32),
    )
    with ShardWriter(tmp_path) as writer:
        writer.write(sample)
    (read,) = read_shards(tmp_path)
    assert same(sample, read) and read.frames.shape == sample.frames.shape
    assert np.abs(read.frames.astype(int) - 90).max() <= 2
    index = ShardIndex(tmp_path, FeatureCache(None))
    assert index.content(0).key == sample.key and same(index.content(0).load(), sample)


def test_round_trip_with_features_only(tmp_path):
    sample = clip(0, speech_features=np.ones((len(PLAN.clip(0).masks), 13, 2, 3), np.float32))
    sample = replace(sample, speeches=sample.speeches[:, :0])
    with ShardWriter(tmp_path) as writer:
        writer.write(sample)
    assert same(next(read_shards(tmp_path)), sample)


def test_writing_is_deterministic(tmp_path):
    for folder in ("a", "b"):
        with ShardWriter(tmp_path / folder, per_shard=2) as writer:
            for number in range(3):
                writer.write(clip(number))
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_masks_are_compact():
    """Two people of 720x480 over 25 frames in at most 2 kB a frame: 1/340 of the bytes in memory."""
    masks = np.zeros((2, 25, 480, 720), bool)
    y, x = np.mgrid[:480, :720]
    for f in range(25):
        for k, middle in enumerate((200 + 2 * f, 520)):
            masks[k, f] = ((x - middle) / 90) ** 2 + ((y - 240 - f) / 160) ** 2 < 1
    sample = ClipSample(
        "large", np.zeros((25, 480, 720, 3), np.uint8), 25, np.zeros((0, 0), np.float32), masks,
        (np.zeros((4, 4, 3), np.uint8),) * 2, "", np.zeros((0, 2)),
    )  # fmt: skip
    members = pack(sample)
    assert len(members["masks.npz"]) < 25 * 2_000
    assert np.array_equal(unpack("large", members).masks, masks)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "a.b"}, "safe_key"),
        ({"key": ""}, "safe_key"),
        ({"fps": float("nan")}, "frames per second"),
        ({"caption": "x", "speeches": np.zeros((9, 4), np.float32)}, "matrix"),
        ({"speeches": np.full((1, 4), np.nan, np.float32), "matrix": np.ones((1, 1))}, "non-finite"),
        ({"masks": np.zeros((1, 8, 64, 96), bool)}, "masks"),
        ({"frames": np.zeros((9, 64, 96), np.uint8)}, "frames"),
        ({"portraits": ()}, "portraits"),
        ({"matrix": np.full((1, 1), 0.5)}, "0 and 1"),
        ({"mouths": np.zeros((1, 9, 3), np.float32)}, "mouths"),
        ({"speech_features": np.zeros((1, 9, 3, 2))}, "speech_features"),
    ],
)
def test_inconsistent_clips_are_rejected(changes, words):
    alone = PuppetPlan(n=(1,), clips=1, seed=2_000_000, frames=(9,)).clip(0)
    with pytest.raises(InputError, match=words):
        replace(alone, **changes)
    assert safe_key("a.b/c d\x00") == "a_b_c d_"


def test_invalid_metadata_and_duplicate_keys_are_rejected(tmp_path):
    with pytest.raises(InputError, match="remove the value"), ShardWriter(tmp_path) as writer:
        writer.write(clip(0, measured={"loss": float("nan")}))
    with pytest.raises(InputError, match="second clip"), ShardWriter(tmp_path) as writer:
        writer.write(clip(0))
        writer.write(clip(0))
    assert not list(tmp_path.iterdir())
    with ShardWriter(tmp_path) as writer:
        writer.write(clip(0, measured={"numpy": np.float32(0.5), "list": np.arange(3)}))
    assert next(read_shards(tmp_path)).measured == {"numpy": 0.5, "list": [0, 1, 2]}


def test_shards_are_atomic(tmp_path):
    class Stop(Exception):
        pass

    with pytest.raises(Stop), ShardWriter(tmp_path, per_shard=2) as writer:
        for number in range(3):
            writer.write(clip(number))
        assert find_shards(tmp_path) == [tmp_path / "clips-000000.tar"]
        raise Stop
    assert [p.name for p in tmp_path.iterdir()] == ["clips-000000.tar"]
    with ShardWriter(tmp_path) as writer:  # goes on after what is there
        writer.write(clip(2))
    assert [p.name for p in find_shards(tmp_path)] == ["clips-000000.tar", "clips-000001.tar"]
    assert [sample.key for sample in read_shards(tmp_path)] == ["clip_0", "clip_1", "clip_2"]


def test_max_bytes_closes_a_shard(tmp_path):
    with ShardWriter(tmp_path, max_bytes=1) as writer:
        for number in range(2):
            writer.write(clip(number))
    assert len(writer.shards) == 2


def test_full_disk_is_an_error_and_keeps_complete_shards(tmp_path, monkeypatch):
    real = os.fsync
    left = [1]

    def full(handle):
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left.pop()
        real(handle)

    fake = SimpleNamespace(fsync=full, replace=os.replace, getpid=os.getpid, listdir=os.listdir)
    monkeypatch.setattr("training.data.shards.writer.os", fake)
    with pytest.raises(InputError, match="No space left"), ShardWriter(tmp_path, per_shard=1) as writer:
        writer.write(clip(0))
        writer.write(clip(1))
    assert [p.name for p in tmp_path.iterdir()] == ["clips-000000.tar"]
    with pytest.raises(InputError, match="cannot be written"):
        ShardWriter(tmp_path / "clips-000000.tar")


def shards(folder, clips=4, per_shard=2):
    with ShardWriter(folder, per_shard=per_shard) as writer:
        for number in range(clips):
            writer.write(clip(number))
    return writer.shards


def damage(path, what):
    content = bytearray(path.read_bytes())
    if what == "cut":
        content = content[: len(content) // 3]
    elif what == "empty":
        content = bytearray()
    elif what == "text":
        content = bytearray(b"this is no tar file" * 100)
    elif what == "flip":  # inside the first video
        at = bytes(content).index(b"mdat") + 400
        content[at] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(("what", "kept"), [("cut", 2), ("empty", 2), ("text", 2), ("flip", 3)])
def test_broken_shards_are_errors_or_skipped(tmp_path, what, kept):
    first, _ = shards(tmp_path)
    damage(first, what)
    with pytest.raises(BrokenClip, match=r"clips-000000\.tar"):
        list(read_shards(tmp_path))
    skipped: list[str] = []
    assert len(list(read_shards(tmp_path, "skip", skipped))) == kept
    assert len(skipped) == 1 and "clips-000000.tar" in skipped[0]


def test_missing_members_are_errors(tmp_path):
    members = pack(clip(0))
    for ending in ("json", "mp4", "portrait0.png", "masks.npz"):
        with pytest.raises(BrokenClip, match=ending):
            unpack("x", {k: v for k, v in members.items() if k != ending})
    newer = json.dumps({**json.loads(members["json"]), "format": 99}).encode()
    with pytest.raises(BrokenClip, match="format 99"):
        unpack("x", {**members, "json": newer})


def test_missing_shards_are_an_error(tmp_path):
    for nothing in (tmp_path, tmp_path / "missing", [tmp_path / "a.tar"]):
        with pytest.raises(InputError, match="shards"):
            next(read_shards(nothing))


def test_index_finds_clips_and_skips_broken_shards(tmp_path):
    long_name = "k" * 150  # longer than a plain tar header holds
    with ShardWriter(tmp_path / "data", per_shard=3) as writer:
        for number in range(5):
            writer.write(replace(clip(number), key=f"{long_name}_{number}"))
    cache = FeatureCache(tmp_path / "cache")
    index = ShardIndex(tmp_path / "data", cache)
    assert len(index) == 5 and cache.counts == {"index miss": 2}
    for number in (4, 0, 2):
        content = index.content(number)
        assert content.key == f"{long_name}_{number}" and content.header["measured"]["seed"] == 2_000_000 + number
        assert same(replace(content.load(), key="x"), replace(clip(number), key="x"))
        n, frames, height, width, fps = index.shape(number)
        assert (n, frames, height, width, fps) == (len(clip(number).masks), 9, 64, 96, 25.0)
    again = FeatureCache(tmp_path / "cache")
    ShardIndex(tmp_path / "data", again)
    assert again.counts == {"index hit": 2}
    damage(writer.shards[0], "cut")
    with pytest.raises(BrokenClip, match="clips-000000"):
        ShardIndex(tmp_path / "data", again)
    skipped: list[str] = []
    assert 2 <= len(ShardIndex(tmp_path / "data", again, "skip", skipped)) < 5 and len(skipped) == 1
    with pytest.raises(BrokenClip, match="do not modify shards"):
        index.content(2).load()


def test_repacked_shards_are_readable(tmp_path):
    """Names in another order, behind "./", with folders between them and another owner."""
    (path,) = shards(tmp_path / "a", clips=2)
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "files", filter="data")
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(tmp_path / "files", "./", recursive=False)
        for file in sorted((tmp_path / "files").iterdir()):
            tar.add(file, f"./{file.name}")
    index = ShardIndex(tmp_path / "b", FeatureCache(None))
    assert [index.content(k).key for k in range(len(index))] == ["clip_0", "clip_1"]
    assert all(same(index.content(k).load(), clip(k)) for k in range(2))
    assert [sample.key for sample in read_shards(tmp_path / "b")] == ["clip_0", "clip_1"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": None}, {"frames": 0}, {"height": "64"}, {"fps": 0}, {"fps": "fast"}, {"matrix": [[1, 2], 3]},
        {"measured": None}, {"caption": 7}, {"sha256": {}}, {"sha256": None}, {"speeches": [1]}, None, [],
    ],
)  # fmt: skip
def test_invalid_json_is_an_error(tmp_path, change):
    members = pack(clip(0))
    head = {**json.loads(members["json"]), **change} if isinstance(change, dict) else change
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for ending, content in {**members, "json": json.dumps(head).encode()}.items():
            entry = tarfile.TarInfo(f"odd.{ending}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(BrokenClip, match="odd"):
        list(read_shards(tmp_path))
    with pytest.raises(BrokenClip, match="odd"):
        ShardIndex(tmp_path, FeatureCache(None))


def test_replaced_shard_is_detected(tmp_path):
    (path,) = shards(tmp_path, clips=1)
    index = ShardIndex(tmp_path, FeatureCache(None))
    with ShardWriter(tmp_path, first=0) as writer:
        writer.write(replace(clip(0), fps=24.0))
    assert writer.shards == [path]
    with pytest.raises(BrokenClip, match="shard has changed"):
        index.content(0)


def test_webdataset_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    paths = shards(tmp_path, clips=2)
    read = list(webdataset.WebDataset([str(p) for p in paths], shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in read] == ["clip_0", "clip_1"]
    assert read[0]["json"]["caption"] == clip(0).caption
    assert read[0]["portrait0.png"].size == (48, 48)


def test_puppet_plan_command(tmp_path, capsys):
    main(Arguments(tmp_path, "puppets:n=2,clips=3,seed=2000100,frames=5/9,size=64x96/96x64", per_shard=2))
    assert "3 clips in 2 shards" in capsys.readouterr().out
    read = list(read_shards(tmp_path))
    plan = PuppetPlan.parse("puppets:n=2,clips=3,seed=2000100,frames=5/9,size=64x96/96x64")
    assert all(same(sample, plan.clip(k)) for k, sample in enumerate(read))
    decibels = check.video_psnr(tmp_path, plan)
    assert decibels == pytest.approx([psnr(plan.clip(k), sample) for k, sample in enumerate(read)], abs=0.01)
    with tarfile.open(tmp_path / "clips-000000.tar") as tar:
        assert tar.getnames()[:2] == ["puppet_2000100.features.safetensors", "puppet_2000100.json"]


@pytest.mark.parametrize(
    "text",
    ["puppets:x=1", "puppets:n=none", "puppets:clips=0", "puppets:motion=up", "puppets:seed=999990", "puppets:size=64"],
)
def test_invalid_puppet_plans_are_rejected(text):
    with pytest.raises(InputError):
        PuppetPlan.parse(text)


def test_check_command(tmp_path, capsys):
    first, _ = shards(tmp_path)
    assert check.main(check.Arguments(tmp_path)) == 0
    output = capsys.readouterr().out
    assert "4 clips in 2 shards, 36 frames" in output and "0 broken" in output and "mp4" in output
    damage(first, "flip")
    assert check.main(check.Arguments(tmp_path)) == 1
    output = capsys.readouterr().out
    assert "1 broken" in output and "clip_0" in output and "3 clips" in output


def test_caches_and_hidden_files_are_ignored(tmp_path):
    shards(tmp_path / "data" / "deeper")
    for name in ("data/cache/x.tar", "data/.hidden/x.tar", "data/.x.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in find_shards(tmp_path)] == ["clips-000000.tar", "clips-000001.tar"]
