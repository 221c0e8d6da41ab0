"""Conversion of the released annotation layout."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bya_core.errors import InputError
from bya_core.io.media import write_video
from tests.training.data.test_dataset import encoders
from training.data.convert import Arguments, convert, main
from training.data.dataset import open_data
from training.data.import_released import portrait
from training.data.shards.reader import read_shards

FRAMES, HEIGHT, WIDTH = 20, 48, 64
BLOCKS, CHANNELS = 3, 12


class Layout:
    """Writes videos of gray frames with annotations in the released layout."""

    def __init__(self, folder: Path) -> None:
        self.videos, self.base, self.items = folder / "videos", folder / "annotations", []
        self.list = folder / "entries.txt"
        self.json = folder / "all.json"
        self.videos.mkdir(parents=True)

    def add(
        self, name, characters=2, frames=FRAMES, valid=None, streams=2, speaker=None, features=None, first_left=True
    ):
        """Add a video in which each character is a square; frame f has the gray value 5 * f."""
        images = (np.full((HEIGHT, WIDTH, 3), 5 * f, np.uint8) for f in range(frames))
        write_video(self.videos / f"{name}.mp4", images, 25)
        tracks = self.base / "track_masks_data" / name
        ids = [str(k + 1) for k in range(characters)]
        for k in range(characters):
            folder = tracks / "tracking_mask_results" / str(10 + k)
            folder.mkdir(parents=True)
            for f in range(frames):
                mask = np.zeros((HEIGHT, WIDTH), np.uint16)
                left = 4 if (k == 0) == first_left else 40
                mask[10:30, left + f % 3 : left + f % 3 + 16] = k + 1
                Image.fromarray(mask).save(folder / f"annotated_frame_{f:05d}.png")
        valid = list(range(frames)) if valid is None else valid
        self.write(tracks / "valid_frame.json", {i: {"face": valid, "head": valid} for i in ids})
        self.write(tracks / "control_sam2_frame.json", {})
        self.write(tracks / "corresponding_data.json", {i: {"face": 10 + k} for k, i in enumerate(ids)})
        boxes = [
            {"new_track_id": k + 1, "box": {"x1": 4 + 30 * k, "y1": 8, "x2": 20 + 30 * k, "y2": 30}}
            for k in range(characters)
        ]
        self.write(self.base / "refine_bbox_jsons" / f"{name}.json", {str(f): {"head": boxes} for f in range(frames)})
        for k, side in enumerate(("left_audio", "right_audio") if streams == 2 else (".",)):
            values = torch.arange(features or frames)[:, None, None] + 100 * k
            path = self.base / "audio_emb" / side / f"{name}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(values.expand(-1, BLOCKS, CHANNELS).half().clone(), path)
        item = {"path": f"/somewhere/else/{name}", "cap": f"caption of {name}", "fps": 25, "duration": frames / 25}
        self.items.append(item | ({} if speaker is None else {"speaker": speaker}))
        return self

    def write(self, path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def convert(self, output, **changes):
        self.write(self.json, self.items)
        self.list.write_text(f"{self.videos},{self.json},{self.base}\n\n")
        rejected = convert(Arguments(self.list, output, **{"min_frames": 9, **changes}))
        return list(read_shards(output)), {Path(path).stem: reason for path, reason in rejected.items()}


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "with ü and space")


def test_two_characters_and_two_streams(layout, tmp_path):
    (clip,), rejected = layout.add("talk").convert(tmp_path / "out")
    assert rejected == {} and clip.key == "talk_000002" and clip.caption == "caption of talk"
    assert len(clip.frames) == FRAMES - 4  # two frames of audio context on each side
    assert abs(clip.frames[0].mean() - 10) < 2.5 and abs(clip.frames[-1].mean() - 85) < 2.5
    assert clip.masks.shape == (2, 16, HEIGHT, WIDTH)
    assert clip.masks[0, 0, 10:30, 6:22].all() and clip.masks[0, 0].sum() == 320
    assert clip.masks[1, 0, 10:30, 42:58].all()
    assert clip.speech_features.shape == (2, 20, BLOCKS, CHANNELS) and clip.speeches.shape == (2, 0)
    assert clip.speech_features[:, :, 0, 0].tolist() == [list(range(20)), list(range(100, 120))]
    assert [p.shape for p in clip.portraits] == [(480, 480, 3)] * 2
    assert clip.matrix.tolist() == [[1, 0], [0, 1]]
    assert clip.measured["source"] == "talk.mp4" and clip.measured["first_frame"] == 2


@pytest.mark.parametrize(
    ("speaker", "first_left", "crossed"),
    [("left", True, False), ("left", False, True), ("right", True, True), ("right", False, False)],
)
def test_audio_character_matrix(layout, tmp_path, speaker, first_left, crossed):
    (clip,), _ = layout.add("talk", speaker=speaker, first_left=first_left).convert(tmp_path / "out")
    assert clip.matrix.tolist() == ([[0, 1], [1, 0]] if crossed else [[1, 0], [0, 1]])


def test_single_stream_and_single_character(layout, tmp_path):
    layout.add("alone", characters=1, streams=1).add("two_one", streams=1, speaker="right")
    clips, rejected = layout.convert(tmp_path / "out")
    assert rejected == {} and [clip.matrix.tolist() for clip in clips] == [[[1]], [[0, 1]]]
    assert [len(clip.speech_features) for clip in clips] == [1, 1]


def test_runs_of_valid_frames_become_clips(layout, tmp_path):
    valid = [*range(0, 14), *range(15, 33), *range(40, 45)]
    clips, _ = layout.add("gaps", frames=50, valid=valid).convert(tmp_path / "out")
    assert [(clip.key, len(clip.frames)) for clip in clips] == [("gaps_000002", 10), ("gaps_000017", 14)]
    assert abs(clips[1].frames[0].mean() - 85) < 2.5
    assert clips[1].speech_features[0, :, 0, 0].tolist() == list(range(15, 33))


def test_long_runs_are_split(layout, tmp_path):
    clips, _ = layout.add("long", frames=34).convert(tmp_path / "out", max_frames=10)
    assert [len(clip.frames) for clip in clips] == [10, 10, 10]
    assert [clip.measured["first_frame"] for clip in clips] == [2, 12, 22]
    clips, _ = layout.convert(tmp_path / "other", min_frames=16, max_frames=16)
    assert [len(clip.frames) for clip in clips] == [16]


def test_short_features_are_padded(layout, tmp_path):
    (clip,), _ = layout.add("short_features", features=12).convert(tmp_path / "out")
    assert clip.speech_features[1, :, 0, 0].tolist() == [*range(100, 112), *[0] * 8]


def _track(layout, name, character, frame):
    folder = layout.base / "track_masks_data" / name / "tracking_mask_results" / str(10 + character)
    return folder / f"annotated_frame_{frame:05d}.png"


def _features(layout, name, side):
    return layout.base / "audio_emb" / f"{side}_audio" / f"{name}.pt"


def _black_video(layout, name, frames, fps):
    write_video(layout.videos / f"{name}.mp4", iter(np.zeros((frames, HEIGHT, WIDTH, 3), np.uint8)), fps)


INVALID = {
    "no_video": ({}, lambda d, n: (d.videos / f"{n}.mp4").unlink(), "no video"),
    "broken_video": ({}, lambda d, n: (d.videos / f"{n}.mp4").write_bytes(b"no video"), "cannot be decoded"),
    "short_video": ({}, lambda d, n: _black_video(d, n, 10, 25), "ends before frame"),
    "fast_video": ({}, lambda d, n: _black_video(d, n, FRAMES, 30), "30 fps"),
    "short": ({"frames": 8}, None, "length of 8 frames"),
    "short_run": ({"valid": [*range(10), *range(11, 19)]}, None, "consecutive"),
    "missing_masks": ({}, lambda d, n: [_track(d, n, 1, f).unlink() for f in (3, 9, 15)], "consecutive"),
    "broken_mask": ({}, lambda d, n: _track(d, n, 0, 7).write_bytes(b"PNG"), "cannot be read"),
    "mask_size": ({}, lambda d, n: Image.new("L", (9, 9), 1).save(_track(d, n, 0, 7)), "same size"),
    "no_left_audio": ({}, lambda d, n: _features(d, n, "left").unlink(), "left_audio/no_left_audio.pt"),
    "no_audio": ({}, lambda d, n: [_features(d, n, s).unlink() for s in ("left", "right")], "right_audio/no_audio.pt"),
    "broken_audio": ({}, lambda d, n: _features(d, n, "right").write_bytes(b"\x80\x02no tensor"), "broken_audio.pt"),
    "three": ({"characters": 3}, None, "3 characters"),
    "empty": ({"characters": 0}, None, "0 characters"),
    "no_boxes": ({}, lambda d, n: (d.base / "refine_bbox_jsons" / f"{n}.json").write_text("{}"), "no box"),
    "broken_json": (
        {}, lambda d, n: (d.base / "track_masks_data" / n / "valid_frame.json").write_text("[1, 2"), "valid_frame.json",
    ),
    "both_sides": ({}, lambda d, n: Image.new("L", (WIDTH, HEIGHT), 1).save(_track(d, n, 0, 0)), "left or right"),
}  # fmt: skip
"""Name: options of `Layout.add`, damage, words of the reason."""


def test_invalid_videos_are_rejected_with_a_reason(layout, tmp_path):
    layout.add("good")
    for name, (options, damage, _) in INVALID.items():
        layout.add(name, **options)
        if damage is not None:
            damage(layout, name)
    clips, rejected = layout.convert(tmp_path / "out")
    assert [clip.key for clip in clips] == ["good_000002"]
    assert rejected.keys() == INVALID.keys()
    assert [name for name, (_, _, words) in INVALID.items() if words not in rejected[name]] == []
    report = json.loads((tmp_path / "out" / "convert-clips.json").read_text())
    assert report["videos"] == 18 and report["clips"] == 1 and len(report["rejected"]) == 17
    with pytest.raises(InputError, match="no_video"):
        layout.convert(tmp_path / "strict", strict=True)


def test_duplicate_names_get_distinct_keys(layout, tmp_path):
    layout.add("same")
    layout.items.append(layout.items[0])
    clips, rejected = layout.convert(tmp_path / "out")
    assert [clip.key for clip in clips] == ["same_000002", "same_000002_2"] and rejected == {}


def test_invalid_entry_lists_raise(layout, tmp_path):
    for content in ("only one part\n", "a,b,c\n"):
        layout.list.write_text(content)
        with pytest.raises(InputError, match="VIDEO_FOLDER"):
            convert(Arguments(layout.list, tmp_path / "out"))
    layout.add("short", frames=8)
    with pytest.raises(InputError, match="none of 1 videos"):
        layout.convert(tmp_path / "out")
    with pytest.raises(InputError, match="maximum"):
        convert(Arguments(layout.list, tmp_path / "out", min_frames=50, max_frames=10))


def test_converted_clips_become_batches(layout, tmp_path, capsys):
    layout.add("talk").add("alone", characters=1, streams=1)
    layout.write(layout.json, layout.items)
    layout.list.write_text(f"{layout.videos},{layout.json},{layout.base}")
    main(Arguments(layout.list, tmp_path / "out", min_frames=9))
    assert "0 videos rejected" in capsys.readouterr().out
    data = open_data(tmp_path / "out", encoders(), buckets=["9x32x48"])
    assert data.clips == 2
    batches = {batch["masks"].shape[1]: batch for batch in islice(data.batches(1, 0), 2)}
    assert batches[2]["speech"][0, :, :, 0, 0].tolist() == [list(range(13)), list(range(100, 113))]
    assert batches[1]["speech"].shape == (1, 1, 13, BLOCKS, CHANNELS)


def test_portrait_is_a_square_around_the_head():
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[30:70, 50:90] = 255  # 40 pixels wide; 8 more on each side
    image = portrait(frame, (50, 30, 90, 70))
    assert image.shape == (480, 480, 3)
    bright = np.flatnonzero(image[240, :, 0] > 127)
    assert abs(bright[0] - 480 * 8 / 56) < 4 and abs(bright[-1] - 480 * 48 / 56) < 4
    assert portrait(frame, (-10, -10, 30, 20)).shape == portrait(frame, (150, 0, 260, 100)).shape == (480, 480, 3)
    with pytest.raises(InputError, match="inside the frame"):
        portrait(frame, (250, 10, 260, 20))
