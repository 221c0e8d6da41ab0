"""Selection of buckets, crops and frame rates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.data.buckets import (
    Bucket,
    choose_bucket,
    find_crop,
    native_bucket,
    resample_frames,
    resize_frames,
    window_starts,
)
from training.data.puppet_plan import PuppetPlan


def test_bucket_selection():
    buckets = [Bucket(9, 64, 96), Bucket(17, 64, 96), Bucket(17, 128, 192), Bucket(9, 96, 64)]
    assert choose_bucket(30, 720, 1280, buckets) == Bucket(17, 128, 192)
    assert choose_bucket(30, 70, 100, buckets) == Bucket(17, 64, 96)  # no upscaling
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
    crop = find_crop(60, 200, bucket, "cover", masks)
    assert (crop.height, crop.width, crop.left) == (60, 90, 110)
    assert find_crop(60, 200, bucket, "cover").left == 55
    letterbox = find_crop(60, 200, bucket, "letterbox")
    assert (letterbox.height, letterbox.width, letterbox.left) == (133, 200, 0) and letterbox.top < 0
    video = resize_frames(np.full((1, 60, 200, 3), 255, np.uint8), letterbox, bucket)
    assert video.shape == (1, 3, 1, 60, 90)
    assert float(video[0, 0, 0, 0].max()) == -1 and float(video[0, 0, 0, 30].min()) > 0.9
    whole = np.random.default_rng(0).integers(0, 256, (1, 60, 90, 3), np.uint8)
    exact = resize_frames(whole, find_crop(60, 90, bucket, "cover"), bucket)
    assert np.array_equal(((exact[0, :, 0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), whole[0])


def test_frame_rate_conversion():
    clip = PuppetPlan(n=(1,), clips=1, seed=2_000_000, frames=(24,)).clip(0)
    faster = replace(clip, fps=50.0, speech_features=np.zeros((1, 28, 2, 3)))
    half = resample_frames(faster, 25.0)
    assert len(half.frames) == 12 and half.fps == 25 and half.speech_features is None
    assert np.array_equal(half.frames, clip.frames[::2]) and np.array_equal(half.mouths, clip.mouths[:, ::2])
    assert len(resample_frames(replace(clip, fps=12.5), 25.0).frames) == 48 and resample_frames(clip, 25.0) is clip
