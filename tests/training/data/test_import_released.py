"""Conversion of the released annotation layout."""

from __future__ import annotations

import json
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
    """Writes videos of grey frames with their annotations, as the released loader expects them."""

    def __init__(self, folder: Path) -> None:
        self.videos, self.base, self.items = folder / "videos", folder / "annotations", []
        self.list = folder / "entries.txt"
        self.json = folder / "all.json"
        self.videos.mkdir(parents=True)

    def add(self, name, people=2, frames=FRAMES, valid=None, dual=True, speaker=None, sound=None, first_left=True):
        """A video whose person k is a square of its own; frame f has the grey value 5 * f."""
        pictures = (np.full((HEIGHT, WIDTH, 3), 5 * f, np.uint8) for f in range(frames))
        write_video(self.videos / f"{name}.mp4", pictures, 25)
        tracks = self.base / "track_masks_data" / name
        ids = [str(k + 1) for k in range(people)]
        for k in range(people):
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
            for k in range(people)
        ]
        self.write(self.base / "refine_bbox_jsons" / f"{name}.json", {str(f): {"head": boxes} for f in range(frames)})
        for k, side in enumerate(("left_audio", "right_audio") if dual else (".",)):
            values = torch.arange(sound or frames)[:, None, None] + 100 * k
            path = self.base / "audio_emb" / side / f"{name}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(values.expand(-1, BLOCKS, CHANNELS).half().clone(), path)
        item = {"path": f"/somewhere/else/{name}", "cap": f"words of {name}", "fps": 25, "duration": frames / 25}
        self.items.append(item | ({} if speaker is None else {"speaker": speaker}))
        return self

    def write(self, path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def convert(self, output, **changes):
        self.write(self.json, self.items)
        self.list.write_text(f"{self.videos},{self.json},{self.base}\n\n")
        rejected = convert(Arguments(self.list, output, **{"min_frames": 9, **changes}))
        return list(read_shards(output)), {Path(path).stem: why for path, why in rejected.items()}


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "made of ü and space")


def test_two_characters_and_two_streams(layout, tmp_path):
    (clip,), rejected = layout.add("talk").convert(tmp_path / "out")
    assert rejected == {} and clip.key == "talk_000002" and clip.caption == "words of talk"
    assert len(clip.frames) == FRAMES - 4  # two frames of sound on each side
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
    layout.add("alone", people=1, dual=False).add("two_one", dual=False, speaker="right")
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
    (clip,), _ = layout.add("short_sound", sound=12).convert(tmp_path / "out")
    assert clip.speech_features[1, :, 0, 0].tolist() == [*range(100, 112), *[0] * 8]


def invalid_videos(layout):
    """One good video, and one of each kind that cannot be used; {name: words of the reason}."""
    tracks = layout.base / "track_masks_data"
    sounds = layout.base / "audio_emb"
    layout.add("good")
    layout.add("no_video")
    (layout.videos / "no_video.mp4").unlink()
    layout.add("broken_video")
    (layout.videos / "broken_video.mp4").write_bytes(b"no video")
    layout.add("video_ends")
    write_video(layout.videos / "video_ends.mp4", iter(np.zeros((10, HEIGHT, WIDTH, 3), np.uint8)), 25)
    layout.add("fast")
    write_video(layout.videos / "fast.mp4", iter(np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)), 30)
    layout.add("short", frames=8)
    layout.add("short_run", valid=range_list(0, 9) + range_list(11, 18))
    layout.add("masks_gone")
    for f in (3, 9, 15):
        (tracks / "masks_gone" / "tracking_mask_results" / "11" / f"annotated_frame_{f:05d}.png").unlink()
    layout.add("mask_broken")
    (tracks / "mask_broken" / "tracking_mask_results" / "10" / "annotated_frame_00007.png").write_bytes(b"PNG")
    layout.add("mask_size")
    Image.new("L", (9, 9), 1).save(tracks / "mask_size" / "tracking_mask_results" / "10" / "annotated_frame_00007.png")
    layout.add("no_left_sound")
    (sounds / "left_audio" / "no_left_sound.pt").unlink()
    layout.add("no_sound")
    (sounds / "left_audio" / "no_sound.pt").unlink()
    (sounds / "right_audio" / "no_sound.pt").unlink()
    layout.add("bad_sound")
    (sounds / "right_audio" / "bad_sound.pt").write_bytes(b"\x80\x02no tensor")
    layout.add("three", people=3)
    layout.add("nobody", people=0)
    layout.add("no_boxes")
    (layout.base / "refine_bbox_jsons" / "no_boxes.json").write_text("{}")
    layout.add("bad_json")
    (tracks / "bad_json" / "valid_frame.json").write_text("[1, 2")
    layout.add("both_sides")
    everywhere = tracks / "both_sides" / "tracking_mask_results" / "10" / "annotated_frame_00000.png"
    Image.new("L", (WIDTH, HEIGHT), 1).save(everywhere)
    return {
        "no_video": "no video",
        "broken_video": "cannot be decoded",
        "video_ends": "ends before frame",
        "fast": "30 fps",
        "short": "length of 8 frames",
        "short_run": "consecutive",
        "masks_gone": "consecutive",
        "mask_broken": "cannot be read",
        "mask_size": "same size",
        "no_left_sound": "left_audio/no_left_sound.pt",
        "no_sound": "right_audio/no_sound.pt",
        "bad_sound": "bad_sound.pt",
        "three": "3 characters",
        "nobody": "0 characters",
        "no_boxes": "no box of character 1",
        "bad_json": "valid_frame.json",
        "both_sides": "left or right",
    }


def range_list(first, last):
    return list(range(first, last + 1))


def test_invalid_videos_are_rejected_with_a_reason(layout, tmp_path):
    expected = invalid_videos(layout)
    clips, rejected = layout.convert(tmp_path / "out")
    assert [clip.key for clip in clips] == ["good_000002"]
    assert rejected.keys() == expected.keys()
    assert [name for name, words in expected.items() if words not in rejected[name]] == []
    report = json.loads((tmp_path / "out" / "convert-clips.json").read_text())
    assert report["videos"] == 18 and report["clips"] == 1 and len(report["rejected"]) == 17
    with pytest.raises(InputError, match="no_video"):
        layout.convert(tmp_path / "strict", strict=True)


def test_duplicate_names_are_kept(layout, tmp_path):
    layout.add("same")
    layout.items.append(layout.items[0])
    clips, rejected = layout.convert(tmp_path / "out")
    assert [clip.key for clip in clips] == ["same_000002", "same_000002_2"] and rejected == {}


def test_invalid_entry_lists_are_errors(layout, tmp_path):
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
    layout.add("talk").add("alone", people=1, dual=False)
    layout.write(layout.json, layout.items)
    layout.list.write_text(f"{layout.videos},{layout.json},{layout.base}")
    main(Arguments(layout.list, tmp_path / "out", min_frames=9))
    assert "0 videos rejected" in capsys.readouterr().out
    data = open_data(tmp_path / "out", encoders(), buckets=["9x32x48"])
    assert data.clips == 2
    by_people = {b["masks"].shape[1]: b for b, _ in zip(data.batches(1, 0), range(2), strict=False)}
    assert by_people[2]["speech"][0, :, :, 0, 0].tolist() == [list(range(13)), list(range(100, 113))]
    assert by_people[1]["speech"].shape == (1, 1, 13, BLOCKS, CHANNELS)


def test_portrait_is_a_square_around_the_head():
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[30:70, 50:90] = 255  # 40 pixels wide; 8 more on each side
    picture = portrait(frame, (50, 30, 90, 70))
    assert picture.shape == (480, 480, 3)
    bright = np.flatnonzero(picture[240, :, 0] > 127)
    assert abs(bright[0] - 480 * 8 / 56) < 4 and abs(bright[-1] - 480 * 48 / 56) < 4
    assert portrait(frame, (-10, -10, 30, 20)).shape == portrait(frame, (150, 0, 260, 100)).shape == (480, 480, 3)
    with pytest.raises(InputError, match="inside the frame"):
        portrait(frame, (250, 10, 260, 20))
