"""Read the annotation layout of the released stage-3 training code as clips.

An entry list has lines `VIDEO_FOLDER,ANNOTATIONS.json,ANNOTATION_FOLDER`; the JSON is a list of videos with `path`,
`cap`, `fps`, `duration` and optionally `speaker` ("left" or "right"). The annotation folder has the tracks, boxes and
speech features of each video (see `Annotation`). Separated speech is not available, only its features.

As in the released loader: characters are the one or two ids in `corresponding_data.json`, in that order; masks are the
face tracks; the portrait is a square around the head in the first frame of the clip, enlarged by 20 % on each side and
resized to 480 pixels. Speech features have two more frames on both sides and are zero-padded at the end. With two
characters, the left stream (or the only one) belongs to the character on side `speaker` in video frame 0.

Unlike there, all frames in which every character has a face and a mask are used instead of 49 random ones. Videos with
an ambiguous side, or not at 25 fps, are rejected.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bya_core.errors import InputError
from bya_core.io.container import open_media, video_stream
from bya_core.io.media import decode_pictures
from bya_core.io.video import nominal_fps
from training.data.clip import ClipSample, safe_key

FPS = 25.0  # rate of the released speech features
CONTEXT = 2  # frames of speech features before and after the clip
PORTRAIT = 480
PORTRAIT_MARGIN = 0.2
SPEECH_ENCODER = "wav2vec2-base-960h, as released"


class UnusableVideo(InputError):
    """A video that cannot be converted."""


def unusable(problem: str, expected: str) -> UnusableVideo:
    """The error for one video."""
    return UnusableVideo(problem, expected, "correct the annotation or remove the video")


@dataclass(frozen=True)
class Annotation:
    """One video of an entry list.

    Args:
        video: the mp4.
        base: annotation folder, with `track_masks_data/NAME/{valid_frame,corresponding_data}.json`,
            `track_masks_data/NAME/tracking_mask_results/TRACK/annotated_frame_00000.png`, `refine_bbox_jsons/NAME.json`
            and `audio_emb/NAME.pt` (one stream) or `audio_emb/{left,right}_audio/NAME.pt` (two).
        item: entry of the video in the JSON.
    """

    video: Path
    base: Path
    item: dict[str, Any]

    @property
    def name(self) -> str:
        return self.video.stem

    @cached_property
    def tracks(self) -> dict[str, Path]:
        """Folder of mask images by character id."""
        tracks, folder = {}, self.base / "track_masks_data" / self.name / "tracking_mask_results"
        for person, kinds in self._json("track_masks_data", self.name, "corresponding_data.json").items():
            if (track := kinds.get("face", kinds.get("head"))) is not None:
                tracks[person] = folder / os.path.basename(str(track))
        if not 1 <= len(tracks) <= 2:
            raise unusable(f"{len(tracks)} characters with a face or head", "1 or 2")
        return tracks

    def runs(self, min_frames: int) -> list[tuple[int, int]]:
        """(first, last) of all runs of at least `min_frames` frames in which every character has a face and a mask.

        Raises:
            UnusableVideo: there is none.
        """
        valid = self._json("track_masks_data", self.name, "valid_frame.json")
        usable = [
            {f for f in map(int, valid.get(person, {}).get("face", [])) if _mask_file(folder, f).is_file()}
            for person, folder in self.tracks.items()
        ]
        frames = np.array(sorted(set.intersection(*usable)), int)
        runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
        longest = max(map(len, runs))
        if longest < min_frames:
            problem = f"at most {longest} consecutive frames in which every character has a face and a mask"
            raise unusable(problem, f"at least {min_frames}")
        return [(int(run[0]), int(run[-1])) for run in runs if len(run) >= min_frames]

    @cached_property
    def speech_features(self) -> torch.Tensor:
        """Speech features of one or two streams (left, right), [M,length,blocks,channels], one per video frame."""
        single = self.base / "audio_emb" / f"{self.name}.pt"
        sides = [self.base / "audio_emb" / f"{side}_audio" / f"{self.name}.pt" for side in ("left", "right")]
        paths = [single] if single.is_file() else sides
        missing = [path for path in paths if not path.is_file()]
        if missing:
            names = " and ".join(f"{path.parent.name}/{path.name}" for path in missing)
            raise unusable(f"no speech features {names}", "audio_emb/NAME.pt, or left_audio and right_audio")
        streams = []
        for path in paths:
            try:
                streams.append(torch.load(path, map_location="cpu", weights_only=True).float())
            except Exception as error:  # torch raises many types for invalid files
                raise unusable(f"speech features {path.name} that cannot be read ({error})", "a tensor") from error
            if streams[-1].ndim != 3:
                raise unusable(f"speech features of shape {tuple(streams[-1].shape)}", "[frames, blocks, channels]")
        length = max(len(stream) for stream in streams)
        padded = [F.pad(stream, (0, 0, 0, 0, 0, length - len(stream))) for stream in streams]
        if len({stream.shape for stream in padded}) > 1:
            raise unusable("two streams with features of different sizes", "equal sizes")
        return torch.stack(padded)

    def matrix(self) -> np.ndarray:
        """Audio-character matrix [M,N].

        Raises:
            UnusableVideo: with two characters, the side of the first one in frame 0 is ambiguous.
        """
        streams = len(self.speech_features)
        if len(self.tracks) == 1:
            return np.eye(streams, 1, dtype=np.float32)
        side = self.item.get("speaker") or "left"
        mask = read_mask(_mask_file(next(iter(self.tracks.values())), 0))
        middle = mask.shape[1] // 2
        left, right = int(mask[:, :middle].sum()), int(mask[:, middle:].sum())
        if side not in ("left", "right") or left == right:
            problem = f"speaker {side!r}, and {left} and {right} mask pixels of character 1 on the left and right"
            raise unusable(problem, "left or right, and a character on one side")
        speaker = 0 if (left > right) == (side == "left") else 1
        return np.eye(2, dtype=np.float32)[[speaker, 1 - speaker][:streams]]

    def box(self, frame: int, person: str) -> tuple[int, int, int, int]:
        """Head (or face) box of a character in a frame: x1, y1, x2, y2. Raises UnusableVideo if there is none."""
        boxes = self._json("refine_bbox_jsons", f"{self.name}.json").get(str(frame), {})
        for item in [*boxes.get("head", []), *boxes.get("face", [])]:
            if str(item.get("new_track_id")) == person:
                box = item["box"]
                return int(box["x1"]), int(box["y1"]), int(box["x2"]), int(box["y2"])
        raise unusable(f"no box of character {person} in frame {frame}", "a head or a face")

    def clips(self, min_frames: int = 49, max_frames: int = 490) -> Iterator[ClipSample]:
        """All clips of the video with `min_frames` to `max_frames` frames.

        Raises:
            UnusableVideo: missing or inconsistent annotations.
        """
        length = float(self.item.get("fps") or 0) * float(self.item.get("duration") or 0)
        if length < min_frames:
            raise unusable(f"a length of {length:g} frames", f"at least {min_frames}")
        if not self.video.is_file():
            raise unusable(f"no video {self.video.name}", "an mp4 in the video folder")
        pieces = []
        for first, last in self.runs(min_frames + 2 * CONTEXT):
            start, end = first + CONTEXT, last - CONTEXT + 1
            parts = min(-(-(end - start) // max_frames), (end - start) // min_frames)
            edges = [start + i * (end - start) // parts for i in range(parts + 1)]
            pieces += [(a, min(b, a + max_frames)) for a, b in pairwise(edges)]
        matrix = self.matrix()
        for (start, end), frames in zip(pieces, read_frames(self.video, pieces), strict=True):
            yield self._clip(start, end, frames, matrix)

    def _clip(self, start: int, end: int, frames: np.ndarray, matrix: np.ndarray) -> ClipSample:
        masks = np.zeros((len(self.tracks), *frames.shape[:3]), bool)
        portraits = []
        for k, (person, folder) in enumerate(self.tracks.items()):
            for index, frame in enumerate(range(start, end)):
                mask = read_mask(_mask_file(folder, frame))
                if mask.shape != frames.shape[1:3]:
                    raise unusable(f"a mask of {mask.shape} for frames of {frames.shape[1:3]}", "the same size")
                masks[k, index] = mask
            portraits.append(portrait(frames[0], self.box(start, person)))
        features = self.speech_features[:, start - CONTEXT : end + CONTEXT]
        if not features.shape[1]:
            raise unusable(f"speech features that end before frame {start}", "features for the whole video")
        features = F.pad(features, (0, 0, 0, 0, 0, end - start + 2 * CONTEXT - features.shape[1]))
        return ClipSample(
            key=safe_key(f"{self.name}_{start:06d}"),
            frames=frames,
            fps=FPS,
            speeches=np.zeros((len(features), 0), np.float32),
            masks=masks,
            portraits=tuple(portraits),
            caption=str(self.item.get("cap") or ""),
            matrix=matrix,
            measured={
                "source": self.video.name,
                "first_frame": start,
                "annotated_fps": self.item.get("fps"),
                "speech_encoder": SPEECH_ENCODER,
            },
            speech_features=features.numpy(),
        )

    def _json(self, *parts: str) -> dict[str, Any]:
        path = self.base.joinpath(*parts)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise unusable(f"no readable {'/'.join(parts)} ({error})", "a JSON object") from error
        if not isinstance(content, dict):
            raise unusable(f"a {type(content).__name__} in {'/'.join(parts)}", "a JSON object")
        return content


def read_entries(path: Path) -> list[Annotation]:
    """All videos of an entry list.

    Raises:
        InputError: the list or one of its JSON files is invalid.
    """
    entries = []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for line in lines:
            videos, annotations, base = (Path(part.strip()) for part in line.split(","))
            for item in json.loads(annotations.read_text(encoding="utf-8")):
                name = os.path.basename(str(item["path"]))
                entries.append(Annotation(videos / (name if name.endswith(".mp4") else f"{name}.mp4"), base, item))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"the entry list {path} is invalid ({error!r})"
        raise InputError(problem, "lines of VIDEO_FOLDER,ANNOTATIONS.json,ANNOTATION_FOLDER", "correct it") from error
    return entries


def read_frames(path: Path, pieces: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Decode the frames [F,H,W,3] of each (start, end), in order, one at a time.

    Raises:
        UnusableVideo: the video cannot be decoded or is too short.
    """
    number = 0
    try:
        with open_media(path, "the video", "a video such as mp4") as container:
            rate = nominal_fps(video_stream(container, path))
        if abs(rate / FPS - 1) > 0.01:
            raise unusable(f"a video at {rate:g} fps", f"{FPS:g} fps, the rate of its speech features")
        images = decode_pictures(path, zero="video")
        for start, end in pieces:
            frames = [image.pixels for image in islice(images, start - number, end - number)]
            if len(frames) < end - start:
                raise unusable(f"a video that ends before frame {pieces[-1][1]}", "as many frames as masks")
            number = end
            yield np.stack(frames)
    except UnusableVideo:
        raise
    except InputError as error:
        raise unusable(f"a video that cannot be decoded ({error.problem})", "h264 in an mp4") from error


def read_mask(path: Path) -> np.ndarray:
    """Read a mask [H,W] bool; values above zero are inside. Raises UnusableVideo."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            values = np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise unusable(f"a mask {path.parent.name}/{path.name} that cannot be read ({error})", "a PNG image") from error
    return np.asarray(values > 0) if values.ndim == 2 else np.asarray(values.any(-1))


def portrait(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The square around a box, enlarged by 20 % on each side within the image, resized to 480 x 480."""
    rows, columns = frame.shape[:2]
    x1, y1, x2, y2 = box
    side = min(max(x2 - x1, y2 - y1), rows, columns)
    if side < 1 or x2 <= 0 or y2 <= 0 or x1 >= columns or y1 >= rows:
        raise unusable(f"a box {box} in a frame of {columns}x{rows}", "one inside the frame")
    left = int(np.clip((x1 + x2) // 2 - side // 2, 0, columns - side))
    top = int(np.clip((y1 + y2) // 2 - side // 2, 0, rows - side))
    margin = int(side * PORTRAIT_MARGIN)
    x1, y1, x2, y2 = (
        max(0, left - margin), max(0, top - margin),
        min(columns, left + side + margin), min(rows, top + side + margin),
    )  # fmt: skip
    side = min(x2 - x1, y2 - y1)
    square = Image.fromarray(frame[y1 : y1 + side, x1 : x1 + side])
    return np.asarray(square.resize((PORTRAIT, PORTRAIT), Image.Resampling.LANCZOS))


def _mask_file(folder: Path, frame: int) -> Path:
    return folder / f"annotated_frame_{frame:05d}.png"
