"""Shards: round trip, atomic writing, broken files."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from dataclasses import fields, replace

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


def write(folder, *clips, **options):
    """Write clips and return the shards."""
    with ShardWriter(folder, **options) as writer:
        for sample in clips:
            writer.write(sample)
    assert writer.clips == len(clips)
    return writer.shards


def write_numbered(folder, count=4):
    return write(folder, *map(clip, range(count)), per_shard=2)


def same(a: ClipSample, b: ClipSample) -> bool:
    """Whether all fields except the video are identical, including dtypes."""
    for name in (f.name for f in fields(ClipSample) if f.name != "frames"):
        x, y = getattr(a, name), getattr(b, name)
        if name == "portraits":
            equal = len(x) == len(y) and all(map(np.array_equal, x, y))
        elif isinstance(x, np.ndarray):
            equal = isinstance(y, np.ndarray) and x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True)
        else:
            equal = x == y
        if not equal:
            return False
    return True


def psnr(a: ClipSample, b: ClipSample) -> float:
    """PSNR of the video in dB."""
    assert a.frames.shape == b.frames.shape and b.frames.dtype == np.uint8
    return float(10 * np.log10(255**2 / np.mean((a.frames.astype(float) - b.frames) ** 2)))


def test_round_trip_is_lossless_except_video(tmp_path):
    rng = np.random.default_rng(0)
    measured = {"sync": 1 / 3, "boxes": [[1, 2.5]], "none": None, "text": "ä ❤", "flag": True}
    clips = [
        clip(0),
        clip(1, speech_features=rng.standard_normal((len(clip(1).speeches), 13, 3, 5)).astype(np.float16)),
        clip(2, fps=24_000 / 1001, measured=measured),
        clip(3, caption="Zwei Füße — “quoted”\n", mouths=None),
    ]
    folder = tmp_path / "with space ü"
    assert [path.name for path in write(folder, *clips, per_shard=3)] == ["clips-000000.tar", "clips-000001.tar"]
    read = list(read_shards(folder))
    assert [sample.key for sample in read] == [f"clip_{k}" for k in range(4)]
    assert all(same(a, b) and psnr(a, b) > 28 for a, b in zip(clips, read, strict=True))
    index = ShardIndex(folder, FeatureCache(None))
    assert [index.content(k).header["fps"] for k in range(4)] == [index.shape(k)[4] for k in range(4)]


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
    write(tmp_path, sample)
    (read,) = read_shards(tmp_path)
    assert same(sample, read) and read.frames.shape == sample.frames.shape
    assert np.abs(read.frames.astype(int) - 90).max() <= 2
    index = ShardIndex(tmp_path, FeatureCache(None))
    assert index.content(0).key == sample.key and same(index.content(0).load(), sample)


def test_round_trip_with_features_only(tmp_path):
    sample = clip(0, speech_features=np.ones((len(PLAN.clip(0).masks), 13, 2, 3), np.float32))
    sample = replace(sample, speeches=sample.speeches[:, :0])
    write(tmp_path, sample)
    assert same(next(read_shards(tmp_path)), sample)


def test_writing_is_deterministic(tmp_path):
    a, b = (write(tmp_path / name, *map(clip, range(3)), per_shard=2) for name in "ab")
    assert [path.read_bytes() for path in a] == [path.read_bytes() for path in b]


def test_masks_are_compact():
    """At most 2 kB per frame for two characters at 720x480, 1/340 of the memory."""
    masks = np.zeros((2, 25, 480, 720), bool)
    y, x = np.mgrid[:480, :720]
    for f in range(25):
        for k, center in enumerate((200 + 2 * f, 520)):
            masks[k, f] = ((x - center) / 90) ** 2 + ((y - 240 - f) / 160) ** 2 < 1
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
def test_inconsistent_clips_raise(changes, words):
    single = PuppetPlan(n=(1,), clips=1, seed=2_000_000, frames=(9,)).clip(0)
    with pytest.raises(InputError, match=words):
        replace(single, **changes)


def test_safe_key():
    assert safe_key("a.b/c d\x00") == "a_b_c d_"


def test_invalid_metadata_and_duplicate_keys_raise(tmp_path):
    with pytest.raises(InputError, match="remove the value"):
        write(tmp_path, clip(0, measured={"loss": float("nan")}))
    with pytest.raises(InputError, match="second clip"):
        write(tmp_path, clip(0), clip(0))
    assert not list(tmp_path.iterdir())
    write(tmp_path, clip(0, measured={"numpy": np.float32(0.5), "list": np.arange(3)}))
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
    write(tmp_path, clip(2))  # continues the numbers
    assert [p.name for p in find_shards(tmp_path)] == ["clips-000000.tar", "clips-000001.tar"]
    assert [sample.key for sample in read_shards(tmp_path)] == ["clip_0", "clip_1", "clip_2"]


def test_max_bytes_closes_a_shard(tmp_path):
    assert len(write(tmp_path, clip(0), clip(1), max_bytes=1)) == 2


def test_full_disk_raises_and_complete_shards_remain(tmp_path, monkeypatch):
    calls = []

    def full(path):
        calls.append(path)
        if len(calls) > 2:  # the first shard and its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bya_core.io.atomic._sync", full)
    with pytest.raises(InputError, match=r"clips-000001.tar cannot be written .*the disk is full; [\d.]+ kB written"):
        write(tmp_path, clip(0), clip(1), per_shard=1)
    assert [p.name for p in tmp_path.iterdir()] == ["clips-000000.tar"]
    with pytest.raises(InputError, match="cannot be written"):
        ShardWriter(tmp_path / "clips-000000.tar")


def damage(path, what):
    content = path.read_bytes()
    at = content.index(b"mdat") + 400  # inside the first video
    flipped = content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]
    damaged = {"cut": content[: len(content) // 3], "empty": b"", "text": b"this is no tar file" * 100, "flip": flipped}
    path.write_bytes(damaged[what])


@pytest.mark.parametrize(("what", "clips"), [("cut", 2), ("empty", 2), ("text", 2), ("flip", 3)])
def test_broken_shards_raise_or_are_skipped(tmp_path, what, clips):
    first, _ = write_numbered(tmp_path)
    damage(first, what)
    with pytest.raises(BrokenClip, match=r"clips-000000\.tar"):
        list(read_shards(tmp_path))
    skipped: list[str] = []
    assert len(list(read_shards(tmp_path, "skip", skipped))) == clips
    assert len(skipped) == 1 and "clips-000000.tar" in skipped[0]


def test_missing_members_raise(tmp_path):
    members = pack(clip(0))
    for ending in ("json", "mp4", "portrait0.png", "masks.npz"):
        with pytest.raises(BrokenClip, match=ending):
            unpack("x", {k: v for k, v in members.items() if k != ending})
    newer = json.dumps({**json.loads(members["json"]), "format": 99}).encode()
    with pytest.raises(BrokenClip, match="format 99"):
        unpack("x", {**members, "json": newer})


def test_missing_shards_raise(tmp_path):
    for source in (tmp_path, tmp_path / "missing", [tmp_path / "a.tar"]):
        with pytest.raises(InputError, match="shards"):
            next(read_shards(source))


def test_index_finds_clips_and_skips_broken_shards(tmp_path):
    long_name = "k" * 150  # longer than the name field of a tar header
    clips = [replace(clip(number), key=f"{long_name}_{number}") for number in range(5)]
    first, _ = write(tmp_path / "data", *clips, per_shard=3)
    cache = FeatureCache(tmp_path / "cache")
    index = ShardIndex(tmp_path / "data", cache)
    assert len(index) == 5 and cache.counts == {"index miss": 2}
    for number in (4, 0, 2):
        content = index.content(number)
        assert content.key == clips[number].key and content.header["measured"]["seed"] == 2_000_000 + number
        assert same(content.load(), clips[number])
        assert index.shape(number) == (len(clips[number].masks), 9, 64, 96, 25.0)
    cached = FeatureCache(tmp_path / "cache")
    ShardIndex(tmp_path / "data", cached)
    assert cached.counts == {"index hit": 2}
    damage(first, "cut")
    with pytest.raises(BrokenClip, match="clips-000000"):
        ShardIndex(tmp_path / "data", cached)
    skipped: list[str] = []
    assert 2 <= len(ShardIndex(tmp_path / "data", cached, "skip", skipped)) < 5 and len(skipped) == 1
    with pytest.raises(BrokenClip, match="do not modify shards"):
        index.content(2).load()


def test_repacked_shards_are_readable(tmp_path):
    """With names in another order and with "./", and with a folder."""
    (path,) = write_numbered(tmp_path / "a", 2)
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
def test_invalid_json_raises(tmp_path, change):
    members = pack(clip(0))
    header = {**json.loads(members["json"]), **change} if isinstance(change, dict) else change
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for ending, content in {**members, "json": json.dumps(header).encode()}.items():
            entry = tarfile.TarInfo(f"odd.{ending}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(BrokenClip, match="odd"):
        list(read_shards(tmp_path))
    with pytest.raises(BrokenClip, match="odd"):
        ShardIndex(tmp_path, FeatureCache(None))


def test_replaced_shard_is_detected(tmp_path):
    (path,) = write_numbered(tmp_path, 1)
    index = ShardIndex(tmp_path, FeatureCache(None))
    assert write(tmp_path, replace(clip(0), fps=24.0), first=0) == [path]
    with pytest.raises(BrokenClip, match="shard has changed"):
        index.content(0)


def test_webdataset_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    paths = write_numbered(tmp_path, 2)
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
    [
        "puppets:x=1",
        "puppets:n=none",
        "puppets:clips=0",
        "puppets:motion=up",
        "puppets:seed=999990",
        "puppets:size=64",
        "puppets:n=1-5",
    ],
)
def test_invalid_puppet_plans_raise(text):
    with pytest.raises(InputError):
        PuppetPlan.parse(text)


def test_check_command(tmp_path, capsys):
    first, _ = write_numbered(tmp_path)
    assert check.main(check.Arguments(tmp_path)) == 0
    output = capsys.readouterr().out
    assert "4 clips in 2 shards, 36 frames" in output and "0 broken" in output and "mp4" in output
    damage(first, "flip")
    assert check.main(check.Arguments(tmp_path)) == 1
    output = capsys.readouterr().out
    assert "1 broken" in output and "clip_0" in output and "3 clips" in output


def test_caches_and_hidden_files_are_ignored(tmp_path):
    write_numbered(tmp_path / "data" / "deeper")
    for name in ("data/cache/x.tar", "data/.hidden/x.tar", "data/.x.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in find_shards(tmp_path)] == ["clips-000000.tar", "clips-000001.tar"]
