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
from training.data.buckets import (
    Bucket,
    choose_bucket,
    find_crop,
    native_bucket,
    resample_frames,
    resize_frames,
    window_starts,
)
from training.data.clip import ClipSample
from training.data.dataset import ClipFolder, EncodedClips, as_float, open_data
from training.data.encode import ClipEncoder
from training.data.fill_cache import Arguments, fill
from training.data.puppet_plan import PuppetPlan
from training.data.shards.writer import ShardWriter
from training.engine.loop import train
from training.engine.settings import RunSettings
from training.engine.stages import load_recipe

ROOT = Path(__file__).resolve().parents[3]
PUPPETS = "puppets:n=1-3,clips=14,seed=2000000,frames=5/9,size=64x96/96x64"


def encoders(**changes):
    parts = {"text": FakeText(), "face": FakeFace(), "speech": FakeSpeech(), "codec": FakeCodec()}
    return SimpleNamespace(**parts | changes)


def written(folder, text=PUPPETS, change=lambda clip: clip):
    plan = PuppetPlan.parse(text)
    with ShardWriter(folder, per_shard=4) as writer:
        for number in range(plan.clips):
            writer.write(change(plan.clip(number)))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return written(tmp_path_factory.mktemp("shards ü"))


def equal(a, b, but=()):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if k not in but)


def seeds(batches, count):
    return [batch["seed"].tolist() for batch in islice(batches, count)]


def test_batch_has_documented_tensors(shards, tmp_path):
    data = open_data(shards, encoders(), cache=tmp_path)
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
        return open_data(shards if source == "shards" else PUPPETS, encoders(), cache=tmp_path)

    whole = seeds(data().batches(3, seed=5), 9)
    assert seeds(data().batches(3, seed=5, start=5), 4) == whole[5:]
    assert seeds(data().batches(3, seed=6), 9) != whole
    again = data()
    next(again.batches(3, seed=7, start=20))  # what was drawn before does not matter
    assert seeds(again.batches(3, seed=5), 9) == whole


def test_every_clip_is_used_once_per_epoch(shards, tmp_path):
    data = open_data(shards, encoders(), cache=tmp_path)
    per_epoch = len(data._order(1, 3, 0))
    first, second = (seeds(data.batches(1, 3, start=start), per_epoch) for start in (0, per_epoch))
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(2_000_000, 2_000_014))
    assert first != second


def test_ranks_partition_the_batch(shards, tmp_path):
    data = open_data(shards, encoders(), cache=tmp_path)
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
    mine = [b["seed"].tolist() for b in islice(open_data(shards, encoders()).batches(4, 9, start=3), 3)]
    assert json.loads(out.stdout) == [batch[len(batch) // 2 :] for batch in mine]


def test_cached_clips_are_not_decoded(shards, tmp_path, monkeypatch):
    data = open_data(shards, encoders(), cache=tmp_path)
    first = list(islice(data.batches(1, 0), 14))
    counts = dict(data.cache.counts)
    assert counts["video miss"] == counts["masks miss"] == counts["text miss"] == 14
    assert not any(name in counts for name in ("video hit", "masks hit", "canvas hit"))
    monkeypatch.setattr("training.data.shards.index.unpack", lambda *_: pytest.fail("decoded"))
    again = open_data(shards, encoders(), cache=tmp_path)
    assert all(equal(a, b) for a, b in zip(first, again.batches(1, 0), strict=False))
    assert not [name for name in again.cache.counts if name.endswith(("miss", "damaged"))]
    assert again.cache.counts["video hit"] == 14


def test_fill_cache_in_parts(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.dataset.load_encoders", lambda name: encoders())
    for part in ("0/2", "1/2"):
        counts = fill(Arguments(shards, cache=tmp_path, part=part))
        assert counts["video miss"] == 7
    data = open_data(shards, encoders(), cache=tmp_path)
    list(islice(data.batches(3, 0), 8))
    assert not [name for name in data.cache.counts if name.endswith("miss")]
    for part in ("2/2", "1", "a/b"):
        with pytest.raises(InputError, match="r/w"):
            fill(Arguments(shards, part=part))


def test_changed_encoder_recomputes_its_features_only(shards, tmp_path):
    def counts(parts):
        data = open_data(shards, parts, cache=tmp_path)
        list(islice(data.batches(1, 0), 14))
        return {name.split()[0] for name in data.cache.counts if name.endswith("miss")}

    def other(part):
        part.setting = 1
        return part

    everything = {"index", "video", "masks", "text", "face", "canvas", "speech"}
    assert counts(encoders()) == everything and counts(encoders()) == set()
    assert counts(encoders(text=other(FakeText()))) == {"text"}
    assert counts(encoders(speech=other(FakeSpeech()))) == {"speech"}
    assert counts(encoders(face=other(FakeFace()))) == {"face", "canvas"}
    assert counts(encoders(codec=other(FakeCodec()))) == {"video", "canvas"}
    assert counts(encoders()) == set()


def test_changed_content_is_recomputed(tmp_path):
    text = "puppets:n=2,clips=1,seed=2000000,frames=5"

    def batch(folder, change):
        data = open_data(written(tmp_path / folder, text, change), encoders(), cache=tmp_path / "cache")
        return next(data.batches(1, 0)), {n for n in data.cache.counts if n.endswith("miss")}

    base, _ = batch("a", lambda clip: clip)
    same, missed = batch("b", lambda clip: clip)
    assert equal(base, same) and missed == {"index miss"}
    words, missed = batch("c", lambda clip: replace(clip, caption="other words"))
    assert missed == {"index miss", "text miss"} and equal(base, words, but=["text"])
    brighter, missed = batch("d", lambda clip: replace(clip, frames=clip.frames // 2))
    assert missed == {"index miss", "video miss"} and not torch.equal(base["latents"], brighter["latents"])


def test_damaged_features_are_recomputed(tmp_path):
    folder = written(tmp_path / "data", "puppets:n=1,clips=1,seed=2000000,frames=5")
    (shard,) = folder.glob("*.tar")
    data = open_data(shard, encoders())
    before = next(data.batches(1, 0))
    kept = [p for p in (folder / "cache").rglob("*.safetensors")]
    assert len(kept) == 7  # beside the shards by default, and not taken for data
    for path in kept:
        path.write_bytes(path.read_bytes()[:-1])
    again = open_data(folder, encoders())
    assert equal(next(again.batches(1, 0)), before)
    assert sum(v for k, v in again.cache.counts.items() if k.endswith("damaged")) == 7


def test_puppets_on_the_fly_match_shards(shards, tmp_path):
    parts = encoders()
    drawn, stored = (islice(open_data(source, parts, cache=tmp_path).batches(2, 4), 8) for source in (PUPPETS, shards))
    for a, b in zip(drawn, stored, strict=True):
        lossy = ("latents", "first_frame")
        assert equal(a, b, but=lossy)
        for name in lossy:  # the codec's loss, in pixels averaged over 8x8
            assert float((a[name].float() - b[name].float()).abs().mean()) < 0.03
            assert float((a[name].float() - b[name].float()).abs().mean()) > 0


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


def test_missing_data_is_an_error(shards, tmp_path):
    with pytest.raises(InputError, match="without shards"):
        ClipFolder(tmp_path)
    with pytest.raises(InputError, match="without encoders"):
        open_data(shards)
    with pytest.raises(InputError, match="no \\*.tar"):
        open_data(tmp_path, encoders())
    with pytest.raises(InputError, match="smaller buckets"):
        open_data(shards, encoders(), buckets=["49x64x96"])
    with pytest.raises(InputError, match="FRAMESxHEIGHTxWIDTH"):
        open_data(shards, encoders(), buckets=["64x96"])
    with pytest.raises(InputError, match="height of 60"):
        open_data(shards, encoders(), buckets=["5x60x96"])


def test_unusable_clips_are_errors_or_replaced(tmp_path):
    def blank(clip):
        if clip.measured["seed"] == 2_000_001:
            return replace(clip, speeches=clip.speeches[:, :0])  # neither voices nor features
        return clip

    folder = written(tmp_path, "puppets:n=1,clips=4,seed=2000000,frames=5", blank)
    with pytest.raises(InputError, match="neither speech nor its features"):
        list(islice(open_data(folder, encoders()).batches(2, 0), 2))
    data = open_data(folder, encoders(), on_broken="skip")
    drawn = seeds(data.batches(2, 0), 8)
    assert {s for batch in drawn for s in batch} == {2_000_000, 2_000_002, 2_000_003}
    assert len(data.skipped) == 1 and "puppet_2000001" in data.skipped[0]
    assert seeds(open_data(folder, encoders(), on_broken="skip").batches(2, 0, start=3), 2) == drawn[3:5]


def test_bucket_selection():
    buckets = [Bucket(9, 64, 96), Bucket(17, 64, 96), Bucket(17, 128, 192), Bucket(9, 96, 64)]
    assert choose_bucket(30, 720, 1280, buckets) == Bucket(17, 128, 192)
    assert choose_bucket(30, 70, 100, buckets) == Bucket(17, 64, 96)  # nothing is enlarged without need
    assert choose_bucket(10, 720, 1280, buckets) == Bucket(9, 64, 96)
    assert choose_bucket(10, 1280, 720, buckets) == Bucket(9, 96, 64)
    assert choose_bucket(8, 720, 1280, buckets) is None
    assert native_bucket(20, 70, 97, 16, 4) == Bucket(17, 64, 96) and native_bucket(20, 70, 97, 16, 4, 9).frames == 9
    assert native_bucket(5, 15, 97, 16, 4) is None
    assert window_starts(17, 17) == [0] and window_starts(40, 17) == [0, 23] and window_starts(51, 17) == [0, 17, 34]
    assert Bucket.parse("49x480x720") == Bucket(49, 480, 720)


def test_crop_keeps_characters_visible():
    masks = np.zeros((1, 2, 60, 200), bool)
    masks[0, :, 10:50, 140:190] = True
    bucket = Bucket(1, 60, 90)
    cut = find_crop(60, 200, bucket, "cover", masks)
    assert (cut.height, cut.width, cut.left) == (60, 90, 110)
    assert find_crop(60, 200, bucket, "cover").left == 55
    boxed = find_crop(60, 200, bucket, "letterbox")
    assert (boxed.height, boxed.width, boxed.left) == (133, 200, 0) and boxed.top < 0
    frames = np.full((1, 60, 200, 3), 255, np.uint8)
    video = resize_frames(frames, boxed, bucket)
    assert (
        video.shape == (1, 3, 1, 60, 90)
        and float(video[0, 0, 0, 0].max()) == -1
        and float(video[0, 0, 0, 30].min()) > 0.9
    )
    whole = np.random.default_rng(0).integers(0, 256, (1, 60, 90, 3), np.uint8)
    exact = resize_frames(whole, find_crop(60, 90, bucket, "cover"), bucket)
    assert np.array_equal(((exact[0, :, 0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), whole[0])


def test_masks_and_mouths_follow_the_crop(tmp_path):
    """A clip with black borders, brought back to its size, has the masks and mouths it had without them."""
    plan = PuppetPlan(n=(2,), clips=1, seed=2_000_000, frames=(5,))
    plain = plan.clip(0)
    frames = np.pad(plain.frames, [(0, 0), (0, 0), (48, 48), (0, 0)])
    masks = np.pad(plain.masks, [(0, 0), (0, 0), (0, 0), (48, 48)])
    wide = replace(plain, frames=frames, masks=masks, mouths=plain.mouths + np.float32([48, 0]))
    # centred people, so that the cut takes the borders off again
    masks = wide.masks.any((0, 1, 2))
    offset = (np.flatnonzero(masks)[0] + np.flatnonzero(masks)[-1] + 1 - 96) // 2 - 48
    with ShardWriter(tmp_path) as writer:
        writer.write(wide)
    batch = next(open_data(tmp_path, encoders(), buckets=["5x64x96"]).batches(1, 0))
    shifted = np.roll(plain.masks, -offset, -1)
    grid = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(shifted[:, 0]).float(), (4, 6))
    assert float((batch["masks"][0, :, 0] / 255 - grid).abs().max()) < 0.08
    at = batch["emphasis"][0, 0].float().argmax()
    y, x = divmod(int(at), 12)
    nearest = np.abs(plain.mouths[:, 0] - (x * 8 + 4 + offset, y * 8 + 4)).max(-1).min()
    assert nearest <= 8


def test_frame_rate_conversion():
    clip = PuppetPlan(n=(1,), clips=1, seed=2_000_000, frames=(24,)).clip(0)
    faster = replace(clip, fps=50.0, speech_features=np.zeros((1, 28, 2, 3)))
    half = resample_frames(faster, 25.0)
    assert len(half.frames) == 12 and half.fps == 25 and half.speech_features is None
    assert np.array_equal(half.frames, clip.frames[::2]) and np.array_equal(half.mouths, clip.mouths[:, ::2])
    assert len(resample_frames(replace(clip, fps=12.5), 25.0).frames) == 48 and resample_frames(clip, 25.0) is clip


def test_long_clips_are_split_into_windows(tmp_path):
    folder = written(tmp_path, "puppets:n=1,clips=1,seed=2000000,frames=21")
    data = open_data(folder, encoders(), buckets=["9x64x96"])
    assert data.clips == 2
    batch = next(data.batches(2, 0))
    whole = next(open_data(folder, encoders()).batches(1, 0))
    for latents, speech in zip(batch["latents"], batch["speech"], strict=True):
        start = 0 if torch.equal(latents[0], whole["latents"][0, 0]) else 12
        assert torch.equal(latents[0], whole["latents"][0, start // 4])
        assert torch.equal(speech, whole["speech"][0, :, start : start + 13])  # its neighbours are its context
    assert data.cache.counts["speech miss"] == 1 and data.cache.counts["speech hit"] == 1


def voices(matrix, **changes):
    """Two people and three voices of different loudness."""
    clip = PuppetPlan(n=(2,), clips=1, seed=2_000_000, frames=(5,)).clip(0)
    speeches = np.stack([np.full(3200, level, np.float32) for level in (0.1, 0.2, 0.4)])
    return replace(clip, speeches=speeches, matrix=np.array(matrix), **changes)


def encode_speech(tmp_path, clip, parts=None):
    with ShardWriter(tmp_path) as writer:
        writer.write(clip)
    return next(open_data(tmp_path, parts or encoders(), cache=tmp_path / "c").batches(1, 0))["speech"][0].float()


def test_streams_follow_the_matrix_and_listeners_get_silence(tmp_path):
    speech = encode_speech(tmp_path / "a", voices([[0, 1], [0, 0], [1, 0]]))
    assert speech.shape == (2, 9, 3, 12)
    assert torch.allclose(speech[:, 2:7].mean((1, 2, 3)), torch.tensor([0.4, 0.1]), atol=1e-3)
    assert torch.equal(speech[:, :2], torch.zeros(2, 2, 3, 12))
    quiet = encode_speech(tmp_path / "b", voices([[0, 1], [0, 0], [0, 0]]))
    assert float(quiet[0].abs().max()) == 0 and float(quiet[1].mean()) > 0.05
    with pytest.raises(InputError, match="2 audio streams for character 0"):
        encode_speech(tmp_path / "c", voices([[1, 0], [1, 0], [0, 1]]))


def test_stored_speech_features_are_used_if_they_match(tmp_path):
    features = np.random.default_rng(0).standard_normal((3, 9, 3, 12)).astype(np.float16)
    clip = voices(np.eye(3, 2, dtype=int), speech_features=features)
    assert not np.array_equal(encode_speech(tmp_path / "a", clip).half(), features[:2])  # nobody says who made them
    parts = encoders(speech=Named())
    named = replace(clip, measured={"speech_encoder": "Named 7"})
    assert np.array_equal(encode_speech(tmp_path / "b", named, parts).half(), features[:2])
    alone = replace(clip, speeches=clip.speeches[:, :0], measured={})
    assert np.array_equal(encode_speech(tmp_path / "c", alone).half(), features[:2])


class Named(FakeSpeech):
    version = "7"


def test_native_length_limits_clips(tmp_path):
    folder = written(tmp_path, "puppets:n=1,clips=1,seed=2000000,frames=21")
    bundle = fake_bundle()
    data = open_data(folder, bundle)
    assert data.clips == 2 and next(data.batches(1, 0))["latents"].shape[1] == (bundle.native.num_frames - 1) // 4 + 1


class Many:
    """Clips of which only the sizes are asked."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return self.clips

    def shape(self, number):
        return 1 + number % 2, 9, 64, 96, 25.0


def test_memory_per_clip_is_small():
    """What is held of a clip are a few numbers: at most 100 bytes."""

    def held(clips):
        tracemalloc.start()
        data = EncodedClips(Many(clips), ClipEncoder(encoders()))
        data._chosen(16, 0, 0)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    assert held(12_000) - held(2_000) < 1_000_000


def test_stage_three_trains_from_shards(shards, tmp_path):
    """A few steps; the same data from a warm cache gives the same losses."""
    stage = load_recipe("toy").stages[3]
    stage = replace(stage, batch_size=3, optimizer=replace(stage.optimizer, name="adamw", lr_schedule="constant"))

    def losses(name, steps):
        model = fake_transformer()
        data = open_data(shards, encoders(), cache=tmp_path / "cache")
        summary = train(model, data, replace(stage, steps=steps), RunSettings(tmp_path / name, logging_steps=1))
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        assert all(torch.isfinite(p).all() for p in model.parameters())
        return summary, [json.loads(line)["diffusion"] for line in lines]

    summary, first = losses("one", 3)
    assert summary["steps"] == 3 and len(first) == 3 and np.isfinite(first).all()
    assert losses("two", 2)[1] == first[:2]


def test_no_emphasis_without_mouths(tmp_path):
    clip = PuppetPlan(n=(1,), clips=1, seed=2_000_000, frames=(5,)).clip(0)
    with ShardWriter(tmp_path) as writer:
        writer.write(replace(clip, mouths=None))
    assert isinstance(clip, ClipSample)
    batch = next(open_data(tmp_path, encoders()).batches(1, 0))
    assert int(batch["emphasis"].max()) == 0
