"""Stages 4 and 5: where exactly n characters are to be seen, and whether they are near enough (sec. 4.1).

The paper gives the second rule in words: "the bounding-box-to-inter-character-distance ratio to exclude segments where
the characters' bodies are too distant". Written down here: with s_i = sqrt(width_i * height_i) the size of a face box
and c_i its centre,

    r = min over i of  max over j != i of  ((s_i + s_j) / 2) / |c_i - c_j|,    mean over the frames of a clip.

So r asks, for everybody, how far the nearest other person is, in faces; the loneliest one counts. A face is some 15 cm
wide and shoulders three faces: people who touch have r of about 1/3, people a metre and a half apart 1/10. The paper
gives no number; 0.12 keeps those within arm's reach (about 1.25 m). With one character the rule says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bya_core.errors import InputError
from training.curation.record import Record, digest
from training.curation.stage import Resources
from training.curation.tracks import boxes_at


@dataclass(frozen=True)
class SegmentSettings:
    """Which clips are cut.

    Args:
        characters: n, exactly as many as must be seen.
        lengths: frames (25 a second) a clip may have, each 1 + a multiple of 4 for the video codec; the longest that
            fits is taken again and again.
        context: frames kept on each side of a clip for the models that hear and see, where the same people are seen.
        bystander: faces less high than this share of the picture are nobody.
        face_pixels: least height of every face, mean over the clip.
        size: height, width that clips will have; a part of the picture of this form that holds all faces is cut out.
    """

    characters: int = 2
    lengths: tuple[int, ...] = (49,)
    context: int = 25
    bystander: float = 0.04
    face_pixels: int = 48
    size: tuple[int, int] = (480, 720)

    def __post_init__(self) -> None:
        if self.characters < 1 or not self.lengths or any(n < 5 or n % 4 != 1 for n in self.lengths):
            came = f"{self.characters} characters in clips of {list(self.lengths)} frames"
            raise InputError(came, "at least 1 character, and lengths of 5, 9, 13 ... frames", "change the recipe")


class Segments:
    """Cuts a shot into clips with exactly n characters."""

    name = "segments"
    version = 1

    def __init__(self, settings: SegmentSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources

    def __call__(self, record: Record) -> list[Record]:
        rows = record.array("tracks")
        tracks = [rows[rows[:, 0] == number] for number in np.unique(rows[:, 0])]
        height = float(record.data["height"])
        tracks = [t for t in tracks if np.mean(t[:, 5] - t[:, 3]) >= self.settings.bystander * height]
        frames = np.arange(record.start, record.end)
        seen = np.zeros((len(tracks), len(frames)), bool)
        for n, track in enumerate(tracks):
            seen[n] = (frames >= track[0, 1]) & (frames <= track[-1, 1])
            if track[-1, 1] >= record.data["last_look"]:  # still there when the shot ends
                seen[n] |= frames > track[-1, 1]
        counts = seen.sum(axis=0)
        n = self.settings.characters
        share = {str(k): round(float((counts == k).mean()), 4) for k in np.unique(counts)}
        bare = Record(**{**vars(record), "arrays": {}}).with_data(seen=share)
        clips, longest, small = [], 0, 0
        for first, last in _runs(seen, n):
            longest = max(longest, last - first)
            for start, end in self._cut(first, last):
                clip = self._clip(bare, tracks, seen[:, start].nonzero()[0], (start, end), (first, last))
                small += clip is None
                clips += [clip] if clip is not None else []
        if clips:
            return clips
        if small:
            return [bare.reject(f"{small} clips with faces too small or too far apart for {self._form}")]
        reason = f"no {min(self.settings.lengths)} frames with exactly {n} characters: at most {longest} in a row"
        return [bare.reject(reason)]

    @property
    def _form(self) -> str:
        height, width = self.settings.size
        return f"{self.settings.face_pixels} pixels of face in a picture of {width}x{height}"

    def _cut(self, first: int, last: int) -> list[tuple[int, int]]:
        """Clips, one after the other; what is left over is shared by both ends."""
        lengths, room = [], last - first
        while fitting := [n for n in self.settings.lengths if n <= room]:
            lengths.append(max(fitting))
            room -= max(fitting)
        starts = first + room // 2 + np.concatenate([[0], np.cumsum(lengths)]).astype(int)
        return [(int(a), int(b)) for a, b in zip(starts, starts[1:], strict=False)]

    def _clip(
        self,
        record: Record,
        tracks: list[np.ndarray],
        who: np.ndarray,
        span: tuple[int, int],
        run: tuple[int, int],
    ) -> Record | None:
        """The clip with the boxes of its characters; None where they do not fit into the picture.

        Characters come in an order that says nothing about where they are: training takes slots as they are stored, and
        must not learn that the first voice is the left one's.
        """
        around = (
            record.start + max(run[0], span[0] - self.settings.context),
            record.start + min(run[1], span[1] + self.settings.context),
        )
        start, end = record.start + span[0], record.start + span[1]
        boxes = np.stack([boxes_at(tracks[n], np.arange(*around)) for n in who])
        inside = boxes[:, start - around[0] : end - around[0]]
        order = np.random.default_rng(int(digest(record.content, start)[:8], 16)).permutation(len(who))
        boxes, inside, who = boxes[order], inside[order], who[order]
        window = self._window(inside, record.data["width"], record.data["height"])
        if window is None or float(np.mean(inside[..., 3] - inside[..., 1], axis=-1).min()) < self.settings.face_pixels:
            return None
        clip = record.part(
            "clip",
            start,
            end,
            context=[around[0], around[1]],
            window=[round(v, 2) for v in window],
            face_height=[round(float(v), 1) for v in np.mean(inside[..., 3] - inside[..., 1], axis=-1)],
            left_to_right=np.argsort(inside[:, 0, [0, 2]].mean(axis=-1), kind="stable").tolist(),
            portrait=[self._portrait(tracks[n], start, end) for n in who],
        )
        return clip.with_arrays(boxes=boxes.astype(np.float32))

    def _window(self, boxes: np.ndarray, width: int, height: int) -> tuple[float, float, float, float] | None:
        """The largest part of the picture of the wanted form, with all faces as near to its middle as can be."""
        form = self.settings.size[1] / self.settings.size[0]
        wide, high = min(width, height * form), min(height, width / form)
        x0, x1 = float(boxes[..., 0].min()), float(boxes[..., 2].max())
        y0, y1 = float(boxes[..., 1].min()), float(boxes[..., 3].max())
        if min(x1, width) - max(x0, 0) > wide or min(y1, height) - max(y0, 0) > high:
            return None
        left = float(np.clip((x0 + x1) / 2 - wide / 2, 0, width - wide))
        top = float(np.clip((y0 + y1) / 2 - high / 2, 0, height - high))
        return left, top, left + wide, top + high

    def _portrait(self, track: np.ndarray, start: int, end: int) -> dict[str, object]:
        """The sighting that is best as a reference picture: outside the clip if there is one, then surest and largest.

        A reference that is a frame of the clip itself would teach to copy it.
        """
        outside = (track[:, 1] < start) | (track[:, 1] >= end)
        usable = track[outside] if outside.any() else track
        quality = usable[:, 6] * np.sqrt((usable[:, 4] - usable[:, 2]) * (usable[:, 5] - usable[:, 3]))
        best = usable[int(np.argmax(quality))]
        return {
            "frame": int(best[1]),
            "box": [round(float(v), 1) for v in best[2:6]],
            "inside": not bool(outside.any()),
        }


def _runs(seen: np.ndarray, n: int) -> list[tuple[int, int]]:
    """(first, end) of every stretch in which the same n are seen; [tracks, frames]."""
    runs, first = [], 0
    frames = seen.shape[1]
    for k in range(1, frames + 1):
        if k == frames or not np.array_equal(seen[:, k], seen[:, first]):
            if seen[:, first].sum() == n:
                runs.append((first, k))
            first = k
    return runs


@dataclass(frozen=True)
class DistanceSettings:
    """How near characters must be.

    Args:
        least: smallest ratio r of face size to distance that is kept (see above).
    """

    least: float = 0.12


class Distance:
    """Drops clips whose characters are too far apart."""

    name = "distance"
    version = 1

    def __init__(self, settings: DistanceSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources

    def __call__(self, record: Record) -> list[Record]:
        boxes = record.array("boxes")
        if len(boxes) < 2:
            return [record]
        ratio = distance_ratio(boxes)
        seen = record.with_data(distance_ratio=round(ratio, 4))
        if ratio < self.settings.least:
            reason = f"too far apart: face size to distance {ratio:.3f}, at least {self.settings.least:g}"
            return [seen.reject(reason)]
        return [seen]


def distance_ratio(boxes: np.ndarray) -> float:
    """r of the formula above for face boxes [N,F,4], N of at least 2."""
    size = np.sqrt(np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), axis=-1))
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    apart = np.linalg.norm(centre[:, None] - centre[None], axis=-1)
    ratio = (size[:, None] + size[None]) / 2 / np.maximum(apart, 1e-6)
    ratio[np.arange(len(boxes)), np.arange(len(boxes))] = 0.0
    return float(ratio.max(axis=1).min(axis=0).mean())
