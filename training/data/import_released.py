"""The annotation layout that the released stage-3 training reads, as clips.

An entry list has lines `VIDEO_FOLDER,ANNOTATIONS.json,ANNOTATION_FOLDER`; the JSON is a list of videos with `path`,
`cap`, `fps`, `duration` and perhaps `speaker` ("left" or "right"). In the annotation folder lie, for the name of each
video, its tracks, boxes and speech features (see `Annotation`). There are no separated voices, only their features.

What is taken, as in the released loader: people are the one or two ids of `corresponding_data.json` in its order; a
mask is the face's track; the portrait is a square around the head in the clip's first frame, 20 % wider on each side,
480 pixels. Voices have two more frames on each side; where features end early, zeros follow. With two people, the
left voice (or the only one) belongs to whoever stands on side `speaker` in video frame 0.

What is different: all frames in which everybody has a face and a mask are taken, not 49 at random; a video where
nobody can tell who stands on which side is refused, and one that has not 25 frames a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from bya_core.errors import InputError
from training.data.clip import ClipSample, safe_key

FPS = 25.0  # the released training counts frames, and its features come 25 a second
CONTEXT = 2  # frames of speech features before and after the pictures
PORTRAIT = 480
WIDER = 0.2
SPEECH_ENCODER = "wav2vec2-base-960h, as released"


class Unusable(InputError):
    """A video that cannot become a clip."""


def refuse(came: str, expected: str) -> Unusable:
    """The error for one video."""
    return Unusable(came, expected, "correct the annotation or leave the video out")


@dataclass(frozen=True)
class Annotation:
    """One video of an entry list.

    Args:
        video: the mp4.
        base: annotation folder, with `track_masks_data/NAME/{valid_frame,corresponding_data}.json`,
            `track_masks_data/NAME/tracking_mask_results/TRACK/annotated_frame_00000.png`, `refine_bbox_jsons/NAME.json`
            and `audio_emb/NAME.pt` (one voice) or `audio_emb/{left,right}_audio/NAME.pt` (two).
        item: its entry in the JSON.
    """

    video: Path
    base: Path
    item: dict[str, Any]

    @property
    def name(self) -> str:
        return self.video.stem

    @property
    def frames_told(self) -> float:
        """Length by the annotation, in frames."""
        return float(self.item.get("fps") or 0) * float(self.item.get("duration") or 0)

    @cached_property
    def tracks(self) -> dict[str, Path]:
        """Folder of mask pictures of each person."""
        found = {}
        for person, kinds in self._json("track_masks_data", self.name, "corresponding_data.json").items():
            track = next((kinds[kind] for kind in ("face", "head", "person") if kind in kinds), None)
            if track is not None and ("face" in kinds or "head" in kinds):
                found[person] = (
                    self.base / "track_masks_data" / self.name / "tracking_mask_results" / os.path.basename(str(track))
                )
        if not 1 <= len(found) <= 2:
            raise refuse(f"{len(found)} people with a face or head", "1 or 2")
        return found

    def runs(self, shortest: int) -> list[tuple[int, int]]:
        """(first, last) of all runs of at least `shortest` frames in which everybody has a face and a mask.

        Raises:
            Unusable: there is none.
        """
        valid = self._json("track_masks_data", self.name, "valid_frame.json")
        good: set[int] | None = None
        for person, folder in self.tracks.items():
            seen = {int(f) for f in valid.get(person, {}).get("face", [])}
            seen &= {f for f in seen if _mask_file(folder, f).is_file()}
            good = seen if good is None else good & seen
        runs: list[tuple[int, int]] = []
        for frame in sorted(good or ()):
            if runs and frame == runs[-1][1] + 1:
                runs[-1] = runs[-1][0], frame
            else:
                runs.append((frame, frame))
        longest = max((last - first + 1 for first, last in runs), default=0)
        if longest < shortest:
            came = f"at most {longest} frames in a row in which everybody has a face and a mask"
            raise refuse(came, f"at least {shortest}")
        return [run for run in runs if run[1] - run[0] + 1 >= shortest]

    @cached_property
    def voices(self) -> torch.Tensor:
        """Features of one or two voices (left, right), [M,length,blocks,channels]; value k belongs to frame k."""
        single = self.base / "audio_emb" / f"{self.name}.pt"
        sides = [self.base / "audio_emb" / f"{side}_audio" / f"{self.name}.pt" for side in ("left", "right")]
        paths = [single] if single.is_file() else sides
        missing = [path for path in paths if not path.is_file()]
        if missing:
            lacking = " and ".join(f"{path.parent.name}/{path.name}" for path in missing)
            raise refuse(f"no speech features {lacking}", "audio_emb/NAME.pt, or left_audio and right_audio")
        voices = []
        for path in paths:
            try:
                voices.append(torch.load(path, map_location="cpu", weights_only=True).float())
            except Exception as error:  # whatever is in such a file, torch has many words for it
                raise refuse(f"speech features {path.name} that cannot be read ({error})", "a tensor") from error
            if voices[-1].ndim != 3:
                raise refuse(f"speech features of shape {tuple(voices[-1].shape)}", "[frames, blocks, channels]")
        length = max(len(voice) for voice in voices)
        padded = [torch.nn.functional.pad(v, (0, 0, 0, 0, 0, length - len(v))) for v in voices]
        if len({v.shape for v in padded}) > 1:
            raise refuse("two voices with features of different sizes", "the same")
        return torch.stack(padded)

    def matrix(self) -> np.ndarray:
        """[M,N]: who has which voice.

        Raises:
            Unusable: two people, and the first one's mask in frame 0 does not say on which side that one stands.
        """
        people, streams = len(self.tracks), len(self.voices)
        if people == 1:
            return np.eye(streams, 1, dtype=np.float32)
        side = self.item.get("speaker") or "left"
        first = next(iter(self.tracks.values()))
        mask = read_mask(_mask_file(first, 0))
        middle = mask.shape[1] // 2
        left, right = int(mask[:, :middle].sum()), int(mask[:, middle:].sum())
        if side not in ("left", "right") or left == right:
            came = f"speaker {side!r}, and {left} and {right} pixels of the first person left and right of the middle"
            raise refuse(came, "left or right, and a person on one side")
        own = 0 if (left > right) == (side == "left") else 1
        return np.eye(2, dtype=np.float32)[[own, 1 - own][:streams]]

    def box(self, frame: int, person: str) -> tuple[int, int, int, int]:
        """Head (or face) of a person in a frame: x1, y1, x2, y2. Raises Unusable where there is none."""
        boxes = self._json("refine_bbox_jsons", f"{self.name}.json").get(str(frame), {})
        for item in [*boxes.get("head", []), *boxes.get("face", [])]:
            if str(item.get("new_track_id")) == person:
                box = item["box"]
                return int(box["x1"]), int(box["y1"]), int(box["x2"]), int(box["y2"])
        raise refuse(f"no box of person {person} in frame {frame}", "a head or a face")

    def clips(self, shortest: int = 49, longest: int = 490) -> Iterator[ClipSample]:
        """All clips of the video, of at least `shortest` frames each and at most `longest`.

        Raises:
            Unusable: anything missing or in disagreement, told with what.
        """
        if self.frames_told < shortest:
            raise refuse(f"a length of {self.frames_told:g} frames", f"at least {shortest}")
        if not self.video.is_file():
            raise refuse(f"no video {self.video.name}", "an mp4 in the video folder")
        pieces = []
        for first, last in self.runs(shortest + 2 * CONTEXT):
            start, end = first + CONTEXT, last - CONTEXT + 1
            parts = min(-(-(end - start) // longest), (end - start) // shortest)
            edges = [start + i * (end - start) // parts for i in range(parts + 1)]
            pieces += [(a, min(b, a + longest)) for a, b in zip(edges, edges[1:], strict=False)]
        matrix = self.matrix()
        for (start, end), frames in zip(pieces, read_frames(self.video, pieces), strict=True):
            yield self._clip(start, end, frames, matrix)

    def _clip(self, start: int, end: int, frames: np.ndarray, matrix: np.ndarray) -> ClipSample:
        masks = np.zeros((len(self.tracks), *frames.shape[:3]), bool)
        portraits = []
        for k, (person, folder) in enumerate(self.tracks.items()):
            for place, frame in enumerate(range(start, end)):
                mask = read_mask(_mask_file(folder, frame))
                if mask.shape != frames.shape[1:3]:
                    raise refuse(f"a mask of {mask.shape} for pictures of {frames.shape[1:3]}", "the same size")
                masks[k, place] = mask
            portraits.append(portrait(frames[0], self.box(start, person)))
        heard = self.voices[:, max(0, start - CONTEXT) : end + CONTEXT]
        if not heard.shape[1]:
            raise refuse(f"speech features that end before frame {start}", "as long as the video")
        wanted = end - start + 2 * CONTEXT
        features = torch.nn.functional.pad(heard, (0, 0, 0, 0, 0, wanted - heard.shape[1]))
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
                "fps_told": self.item.get("fps"),
                "speech_encoder": SPEECH_ENCODER,
            },
            speech_features=features.numpy(),
        )

    def _json(self, *parts: str) -> dict[str, Any]:
        path = self.base.joinpath(*parts)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise refuse(f"no readable {'/'.join(parts)} ({error})", "a JSON object") from error
        if not isinstance(content, dict):
            raise refuse(f"a {type(content).__name__} in {'/'.join(parts)}", "a JSON object")
        return content


def read_entries(path: Path) -> list[Annotation]:
    """All videos of an entry list.

    Raises:
        InputError: the list or one of its JSON files cannot be used.
    """
    found = []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for line in lines:
            videos, annotations, base = (Path(part.strip()) for part in line.split(","))
            for item in json.loads(annotations.read_text(encoding="utf-8")):
                name = os.path.basename(str(item["path"]))
                found.append(Annotation(videos / (name if name.endswith(".mp4") else f"{name}.mp4"), base, item))
    except (OSError, ValueError, KeyError, TypeError) as error:
        came = f"the entry list {path} cannot be used ({error!r})"
        raise InputError(came, "lines of VIDEO_FOLDER,ANNOTATIONS.json,ANNOTATION_FOLDER", "correct it") from error
    return found


def read_frames(path: Path, pieces: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """The pictures [F,H,W,3] of each (start, end) of a video, which must be in order; one piece in memory at a time.

    Raises:
        Unusable: the video cannot be decoded or ends before the last piece.
    """
    wanted = list(pieces)
    held: list[np.ndarray] = []
    try:
        with av.open(os.fspath(path)) as container:
            rate = float(container.streams.video[0].average_rate or FPS)
            if abs(rate / FPS - 1) > 0.01:
                raise refuse(f"a video of {rate:g} frames a second", f"{FPS:g}, as many as its speech features have")
            for number, picture in enumerate(container.decode(video=0)):
                if wanted and wanted[0][0] <= number < wanted[0][1]:
                    held.append(picture.to_ndarray(format="rgb24"))
                if wanted and number == wanted[0][1] - 1:
                    wanted.pop(0)
                    yield np.stack(held)
                    held = []
                if not wanted:
                    return
    except Unusable:
        raise
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise refuse(f"a video that cannot be decoded ({error})", "h264 in an mp4") from error
    raise refuse(f"a video that ends before frame {wanted[-1][1]}", "as many frames as have masks")


def read_mask(path: Path) -> np.ndarray:
    """[H,W] bool: everything above zero. Raises Unusable."""
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise refuse(f"a mask {path.parent.name}/{path.name} that cannot be read ({error})", "a png") from error
    return np.asarray(values > 0) if values.ndim == 2 else np.asarray(values.any(-1))


def portrait(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The square around a box, 20 % of its side wider on each side and inside the picture, 480 x 480."""
    rows, columns = frame.shape[:2]
    x1, y1, x2, y2 = box
    side = min(max(x2 - x1, y2 - y1), rows, columns)
    if side < 1 or x2 <= 0 or y2 <= 0 or x1 >= columns or y1 >= rows:
        raise refuse(f"a box {box} in a picture of {columns}x{rows}", "one inside the picture")
    left = int(np.clip((x1 + x2) // 2 - side // 2, 0, columns - side))
    top = int(np.clip((y1 + y2) // 2 - side // 2, 0, rows - side))
    more = int(side * WIDER)
    x1, y1, x2, y2 = (
        max(0, left - more), max(0, top - more),
        min(columns, left + side + more), min(rows, top + side + more),
    )  # fmt: skip
    side = min(x2 - x1, y2 - y1)
    square = Image.fromarray(frame[y1 : y1 + side, x1 : x1 + side])
    return np.asarray(square.resize((PORTRAIT, PORTRAIT), Image.Resampling.LANCZOS))


def _mask_file(folder: Path, frame: int) -> Path:
    return folder / f"annotated_frame_{frame:05d}.png"
