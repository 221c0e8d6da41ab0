"""Batches: order, sizes, encoding and caching."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bya_core.errors import InputError
from tests.fakes import FakeCodec, FakeFace, FakeSpeech, FakeText, fake_bundle, fake_transformer
from training.data.batches import as_float
from training.data.clip_folder import ClipFolder
from training.data.dataset import EncodedClips, open_data
from training.data.encode import ClipEncoder
from training.data.fill_cache import Arguments, fill
from training.data.puppet_plan import PuppetPlan
from training.data.shards.writer import ShardWriter
from training.engine.loop import train
from training.engine.recipe import load_recipe
from training.engine.settings import RunSettings

ROOT = Path(__file__).resolve().parents[3]
PUPPETS = "puppets:n=1-3,clips=14,seed=2000000,frames=5/9,size=64x96/96x64"


def encoders():
    return SimpleNamespace(text=FakeText(), face=FakeFace(), speech=FakeSpeech(), codec=FakeCodec())


def write_puppets(folder, text=PUPPETS, change=lambda clip: clip):
    plan = PuppetPlan.parse(text)
    return write_clips(folder, *(change(plan.clip(number)) for number in range(plan.clips)))


def puppet_clip(characters, frames=5):
    return PuppetPlan(n=(characters,), clips=1, seed=2_000_000, frames=(frames,)).clip(0)


def write_clips(folder, *clips):
    with ShardWriter(folder, per_shard=4) as writer:
        for clip in clips:
            writer.write(clip)
    return folder


def open_clips(source, cache=None, parts=None, **options):
    return open_data(source, parts or encoders(), cache=cache, **options)


def misses(data):
    """Kinds of features that were computed."""
    return {name.removesuffix(" miss") for name in data.cache.counts if name.endswith("miss")}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_puppets(tmp_path_factory.mktemp("shards ü"))


def equal(a, b, ignore=()):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if k not in ignore)


def seeds(batches, count):
    return [batch["seed"].tolist() for batch in islice(batches, count)]


def test_batch_has_documented_tensors(shards, tmp_path):
    data = open_clips(shards, tmp_path)
    assert data.clips == 14
    for batch in islice(data.batches(3, 0), 8):
        k, n = batch["masks"].shape[:2]
        _, frames, channels, height, width = batch["latents"].shape
        assert batch["latents"].shape == (k, frames, 3, height, width) and channels == 3
        assert batch["canvas"].shape == batch["first_frame"].shape == (k, 3, height, width)
        assert batch["masks"].shape == (k, n, frames, height // 2, width // 2)
        assert batch["emphasis"].shape == (k, frames, height, width)
        assert batch["text"].shape == (k, 5, 8) and batch["seed"].shape == (k,)
        assert batch["identity"].shape == (k, n, 6) and batch["hidden"].shape == (k, n, 2, 7, 10)
        assert batch["speech"].shape == (k, n, (frames - 1) * 4 + 5, 3, 12)
        assert batch["masks"].dtype == batch["emphasis"].dtype == torch.uint8 and batch["masks"].max() > 200
        assert batch["emphasis"].max() > 100
        ready = as_float(batch)
        assert "seed" not in ready and all(t.dtype == torch.float32 for t in ready.values())
        assert float(ready["masks"].max()) <= 1


@pytest.mark.parametrize("source", ["shards", "puppets"])
def test_batch_depends_on_seed_and_number_only(source, shards, tmp_path):
    def data():
        return open_clips(shards if source == "shards" else PUPPETS, tmp_path)

    expected = seeds(data().batches(3, seed=5), 9)
    assert seeds(data().batches(3, seed=5, start=5), 4) == expected[5:]
    assert seeds(data().batches(3, seed=6), 9) != expected
    used = data()
    next(used.batches(3, seed=7, start=20))
    assert seeds(used.batches(3, seed=5), 9) == expected


def test_every_clip_is_used_once_per_epoch(shards, tmp_path):
    data = open_clips(shards, tmp_path)
    per_epoch = len(data._order(1, 3, 0))
    first, second = (seeds(data.batches(1, 3, start=start), per_epoch) for start in (0, per_epoch))
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(2_000_000, 2_000_014))
    assert first != second


def test_ranks_partition_the_batch(shards, tmp_path):
    data = open_clips(shards, tmp_path)
    for processes in (2, 3):
        parts = [data.batches(5, 1, rank=r, world_size=processes) for r in range(processes)]
        for batch in islice(data.batches(5, 1), 6):
            pieces = [piece for piece in (next(part) for part in parts) if piece]
            assert equal({k: torch.cat([p[k] for p in pieces]) for k in batch}, batch)


@pytest.mark.slow
def test_batches_are_the_same_in_another_process(shards):
    code = (
        "import json; from itertools import islice; from training.data.dataset import open_data; "
        "from tests.training.data.test_dataset import encoders; "
        f"data = open_data({str(shards)!r}, encoders()); "
        "print(json.dumps([b['seed'].tolist() for b in islice(data.batches(4, 9, start=3, rank=1, world_size=2), 3)]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    expected = seeds(open_clips(shards).batches(4, 9, start=3), 3)
    assert json.loads(out.stdout) == [batch[len(batch) // 2 :] for batch in expected]


def test_cached_clips_are_not_decoded(shards, tmp_path, monkeypatch):
    data = open_clips(shards, tmp_path)
    first = list(islice(data.batches(1, 0), 14))
    counts = dict(data.cache.counts)
    assert counts["video miss"] == counts["masks miss"] == counts["text miss"] == 14
    assert not any(name in counts for name in ("video hit", "masks hit", "canvas hit"))
    monkeypatch.setattr("training.data.shards.index.unpack", lambda *_: pytest.fail("decoded"))
    cached = open_clips(shards, tmp_path)
    assert all(equal(a, b) for a, b in zip(first, cached.batches(1, 0), strict=False))
    assert not misses(cached) and cached.cache.counts["video hit"] == 14


def test_fill_cache_in_parts(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.dataset.load_encoders", lambda name: encoders())
    for part in ("0/2", "1/2"):
        counts = fill(Arguments(shards, cache=tmp_path, part=part))
        assert counts["video miss"] == 7
    data = open_clips(shards, tmp_path)
    list(islice(data.batches(3, 0), 8))
    assert not misses(data)
    for part in ("2/2", "1", "a/b"):
        with pytest.raises(InputError, match="r/w"):
            fill(Arguments(shards, part=part))


def test_changed_encoder_recomputes_its_features_only(shards, tmp_path):
    def computed(changed=None):
        parts = encoders()
        if changed is not None:
            getattr(parts, changed).setting = 1
        data = open_clips(shards, tmp_path, parts)
        list(islice(data.batches(1, 0), 14))
        return misses(data)

    assert computed() == {"index", "video", "masks", "text", "face", "canvas", "speech"}
    assert computed() == set()
    assert computed("text") == {"text"} and computed("speech") == {"speech"}
    assert computed("face") == {"face", "canvas"} and computed("codec") == {"video", "canvas"}
    assert computed() == set()


def test_changed_content_is_recomputed(tmp_path):
    text = "puppets:n=2,clips=1,seed=2000000,frames=5"

    def batch(folder, change=lambda clip: clip):
        data = open_clips(write_puppets(tmp_path / folder, text, change), tmp_path / "cache")
        return next(data.batches(1, 0)), misses(data)

    base, _ = batch("a")
    same, computed = batch("b")
    assert equal(base, same) and computed == {"index"}
    other, computed = batch("c", lambda clip: replace(clip, caption="other words"))
    assert computed == {"index", "text"} and equal(base, other, ignore=["text"])
    darker, computed = batch("d", lambda clip: replace(clip, frames=clip.frames // 2))
    assert computed == {"index", "video"} and not torch.equal(base["latents"], darker["latents"])


def test_damaged_features_are_recomputed(tmp_path):
    folder = write_clips(tmp_path / "data", puppet_clip(1))
    (shard,) = folder.glob("*.tar")
    before = next(open_clips(shard).batches(1, 0))
    cached = list((folder / "cache").rglob("*.safetensors"))
    assert len(cached) == 7  # beside the shards by default, and not taken for data
    for path in cached:
        path.write_bytes(path.read_bytes()[:-1])
    data = open_clips(folder)
    assert equal(next(data.batches(1, 0)), before)
    assert sum(count for name, count in data.cache.counts.items() if name.endswith("damaged")) == 7


def test_puppets_on_the_fly_match_shards(shards, tmp_path):
    drawn, stored = (islice(open_clips(source, tmp_path).batches(2, 4), 8) for source in (PUPPETS, shards))
    for a, b in zip(drawn, stored, strict=True):
        lossy = ("latents", "first_frame")
        assert equal(a, b, ignore=lossy)
        for name in lossy:  # video compression, in pixels averaged over 8x8
            assert 0 < float((a[name].float() - b[name].float()).abs().mean()) < 0.03


def test_encoded_folder_batches(tmp_path):
    rng = torch.Generator().manual_seed(0)
    for number, (n, frames) in enumerate([(1, 2), (2, 2), (2, 2), (2, 3)]):
        clip = {
            "latents": torch.randn(3, frames, 4, 4, 6, generator=rng),
            "masks": torch.zeros(3, n, frames, 2, 3, dtype=torch.uint8),
            "seed": torch.arange(3) + 10 * number,
        }
        save_file(clip, tmp_path / f"{number}.safetensors")
    data = open_data(tmp_path)
    assert isinstance(data, ClipFolder) and data.clips == 12
    batches = list(islice(data.batches(4, 1), 12))
    assert seeds(data.batches(4, 1, start=5), 7) == [b["seed"].tolist() for b in batches[5:]]
    assert {len(b["seed"]) for b in batches} == {3, 4}  # fewer of the longer ones
    numbers = {seed for batch in batches for seed in batch["seed"].tolist()}
    assert numbers <= {10 * k + i for k in range(4) for i in range(3)} and len({n // 10 for n in numbers}) == 4
    halves = [data.batches(4, 1, rank=r, world_size=2) for r in range(2)]
    for batch in batches:
        assert sum((next(half)["seed"].tolist() for half in halves), []) == batch["seed"].tolist()
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="bad.safetensors"):
        ClipFolder(tmp_path)


def test_missing_data_and_encoders_raise(shards, tmp_path):
    with pytest.raises(InputError, match="without shards"):
        ClipFolder(tmp_path)
    with pytest.raises(InputError, match="without encoders"):
        open_data(shards)
    with pytest.raises(InputError, match=r"no \*.tar"):
        open_clips(tmp_path)


@pytest.mark.parametrize(
    ("bucket", "words"),
    [("49x64x96", "smaller buckets"), ("64x96", "FRAMESxHEIGHTxWIDTH"), ("5x60x96", "height of 60")],
)
def test_invalid_buckets_raise(shards, bucket, words):
    with pytest.raises(InputError, match=words):
        open_clips(shards, buckets=[bucket])


def test_unusable_clips_raise_or_are_replaced(tmp_path):
    def mute(clip):  # neither speech nor features
        return replace(clip, speeches=clip.speeches[:, :0]) if clip.measured["seed"] == 2_000_001 else clip

    folder = write_puppets(tmp_path, "puppets:n=1,clips=4,seed=2000000,frames=5", mute)
    with pytest.raises(InputError, match="neither speech nor its features"):
        list(islice(open_clips(folder).batches(2, 0), 2))
    data = open_clips(folder, on_broken="skip")
    batches = seeds(data.batches(2, 0), 8)
    assert set(sum(batches, [])) == {2_000_000, 2_000_002, 2_000_003}
    assert len(data.skipped) == 1 and "puppet_2000001" in data.skipped[0]
    assert seeds(open_clips(folder, on_broken="skip").batches(2, 0, start=3), 2) == batches[3:5]


def test_masks_and_mouths_follow_the_crop(tmp_path):
    """Black borders are cropped again, with the masks and mouths."""
    plain = puppet_clip(2)
    frames = np.pad(plain.frames, [(0, 0), (0, 0), (48, 48), (0, 0)])
    masks = np.pad(plain.masks, [(0, 0), (0, 0), (0, 0), (48, 48)])
    wide = replace(plain, frames=frames, masks=masks, mouths=plain.mouths + np.float32([48, 0]))
    columns = np.flatnonzero(wide.masks.any((0, 1, 2)))
    offset = (columns[0] + columns[-1] + 1 - 96) // 2 - 48  # the crop is centered on the characters
    batch = next(open_clips(write_clips(tmp_path, wide), buckets=["5x64x96"]).batches(1, 0))
    shifted = np.roll(plain.masks, -offset, -1)
    grid = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(shifted[:, 0]).float(), (4, 6))
    assert float((batch["masks"][0, :, 0] / 255 - grid).abs().max()) < 0.08
    y, x = divmod(int(batch["emphasis"][0, 0].float().argmax()), 12)
    nearest = np.abs(plain.mouths[:, 0] - (x * 8 + 4 + offset, y * 8 + 4)).max(-1).min()
    assert nearest <= 8


def test_long_clips_are_split_into_windows(tmp_path):
    folder = write_clips(tmp_path, puppet_clip(1, 21))
    data = open_clips(folder, buckets=["9x64x96"])
    assert data.clips == 2
    batch = next(data.batches(2, 0))
    whole = next(open_clips(folder).batches(1, 0))
    for latents, speech in zip(batch["latents"], batch["speech"], strict=True):
        start = 0 if torch.equal(latents[0], whole["latents"][0, 0]) else 12
        assert torch.equal(latents[0], whole["latents"][0, start // 4])
        assert torch.equal(speech, whole["speech"][0, :, start : start + 13])  # with the neighboring frames as context
    assert data.cache.counts["speech miss"] == 1 and data.cache.counts["speech hit"] == 1


def with_streams(matrix, **changes):
    """A clip of two characters with three audio streams of different levels."""
    speeches = np.stack([np.full(3200, level, np.float32) for level in (0.1, 0.2, 0.4)])
    return replace(puppet_clip(2), speeches=speeches, matrix=np.array(matrix), **changes)


def encode_speech(folder, clip, parts=None):
    return next(open_clips(write_clips(folder, clip), folder / "c", parts).batches(1, 0))["speech"][0].float()


def test_streams_follow_the_matrix_and_listeners_get_silence(tmp_path):
    speech = encode_speech(tmp_path / "a", with_streams([[0, 1], [0, 0], [1, 0]]))
    assert speech.shape == (2, 9, 3, 12)
    assert torch.allclose(speech[:, 2:7].mean((1, 2, 3)), torch.tensor([0.4, 0.1]), atol=1e-3)
    assert torch.equal(speech[:, :2], torch.zeros(2, 2, 3, 12))
    listener, speaker = encode_speech(tmp_path / "b", with_streams([[0, 1], [0, 0], [0, 0]]))
    assert float(listener.abs().max()) == 0 and float(speaker.mean()) > 0.05
    with pytest.raises(InputError, match="2 audio streams for character 0"):
        encode_speech(tmp_path / "c", with_streams([[1, 0], [1, 0], [0, 1]]))


def test_stored_speech_features_are_used_if_they_match(tmp_path):
    features = np.random.default_rng(0).standard_normal((3, 9, 3, 12)).astype(np.float16)
    clip = with_streams(np.eye(3, 2, dtype=int), speech_features=features)
    assert not np.array_equal(encode_speech(tmp_path / "a", clip).half(), features[:2])  # of an unknown encoder
    parts = encoders()
    parts.speech.version = "7"
    named = replace(clip, measured={"speech_encoder": "FakeSpeech 7"})
    assert np.array_equal(encode_speech(tmp_path / "b", named, parts).half(), features[:2])
    features_only = replace(clip, speeches=clip.speeches[:, :0], measured={})
    assert np.array_equal(encode_speech(tmp_path / "c", features_only).half(), features[:2])


def test_native_length_limits_clips(tmp_path):
    bundle = fake_bundle()
    data = open_data(write_clips(tmp_path, puppet_clip(1, 21)), bundle)
    assert data.clips == 2 and next(data.batches(1, 0))["latents"].shape[1] == (bundle.native.num_frames - 1) // 4 + 1


class ShapeSource:
    """A source of clip sizes without content."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return self.clips

    def shape(self, number):
        return 1 + number % 2, 9, 64, 96, 25.0


def test_memory_per_clip_is_small():
    """At most 100 bytes."""

    def traced(clips):
        tracemalloc.start()
        data = EncodedClips(ShapeSource(clips), ClipEncoder(encoders()))
        data._chosen(16, 0, 0)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    assert traced(12_000) - traced(2_000) < 1_000_000


def test_stage_three_trains_from_shards(shards, tmp_path):
    """Losses are the same with cached features."""
    stage = load_recipe("toy").stages[3]
    stage = replace(stage, batch_size=3, optimizer=replace(stage.optimizer, name="adamw", lr_schedule="constant"))

    def losses(name, steps):
        model = fake_transformer()
        data = open_clips(shards, tmp_path / "cache")
        summary = train(model, data, replace(stage, steps=steps), RunSettings(tmp_path / name, logging_steps=1))
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        assert all(torch.isfinite(p).all() for p in model.parameters())
        return summary, [json.loads(line)["diffusion"] for line in lines]

    summary, first = losses("one", 3)
    assert summary["steps"] == 3 and len(first) == 3 and np.isfinite(first).all()
    assert losses("two", 2)[1] == first[:2]


def test_no_emphasis_without_mouths(tmp_path):
    clip = replace(puppet_clip(1), mouths=None)
    batch = next(open_clips(write_clips(tmp_path, clip)).batches(1, 0))
    assert int(batch["emphasis"].max()) == 0
