"""Detections of a video linked to paths: one per face, by position, motion and appearance.

Faces are detected in every fourth frame; the costly fine scales run less often. A face that is not detected is searched
where it was last seen; paths of which one begins where another one was lost are joined if the faces look alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from bya_core.encoders.face.crops import Squares, cut
from bya_core.encoders.face.mesh import Detections, FaceMesh, costly_scales, mean_size, squares

STEP = 4  # frames between detections
_EVERY = (12, 3)  # keyframes between runs of the finest and of the second scale where these are costly
_SEARCHED = 24  # frames after which a lost face is no longer searched where it was last seen
_CHUNK = 64  # keyframes decoded into network inputs at once
_SEARCH = 3.0  # side of the searched square over the side of the face
_NEAR = 1.0  # largest distance of a linked detection from the predicted position, in face sizes
_LOST = 75  # frames after which a lost face becomes a new track
_ALIKE = 0.75  # smallest similarity of appearance of a face that was lost and found again
_SAME = 0.5  # the same of a face found in the previous keyframe
_ACROSS_CUT = 0.9  # the same of a face at the same place after a cut, or a flash taken for one
_NEW, _CONFIRMED = 0.55, 0.65  # smallest first and best score of a track
_GROWTH = 0.7  # largest change of the logarithm of the size between linked detections


@dataclass(eq=False)
class Path:
    """Linked detections of one face, in the order of their frames."""

    frames: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    look: np.ndarray | None = None  # of the last detections
    looks: list[np.ndarray] = field(default_factory=list)

    def add(self, frame: int, detections: Detections, k: int, look: np.ndarray) -> None:
        place = int(np.searchsorted(self.frames, frame))
        self.frames.insert(place, frame)
        self.boxes.insert(place, detections.boxes[k])
        self.points.insert(place, detections.points[k])
        self.scores.insert(place, float(detections.scores[k]))
        self.looks.insert(place, look)
        self.look = look if self.look is None else 0.8 * self.look + 0.2 * look

    def resembles(self, look: np.ndarray) -> bool:
        """Whether the appearance of a detection near the last position fits the face."""
        assert self.look is not None
        return float(look @ self.look) > _SAME * float(np.linalg.norm(self.look))

    def predicted(self, frame: int) -> np.ndarray:
        """Box at a later frame, by constant velocity for a short time."""
        box = self.boxes[-1]
        if len(self.frames) < 2 or frame - self.frames[-1] > 3 * STEP:
            return box
        speed = (box - self.boxes[-2]) / (self.frames[-1] - self.frames[-2])
        center = np.tile((speed[:2] + speed[2:]) / 2, 2)
        return box + center * (frame - self.frames[-1])


def find_paths(mesh: FaceMesh, frames: np.ndarray, shots: np.ndarray) -> list[Path]:
    """Paths of the faces in a video.

    Args:
        mesh: Networks.
        frames: uint8 [F, H, W, 3].
        shots: Number of the shot of each frame, [F].
    """
    length = len(frames)
    keyframes = sorted({*range(0, length, STEP), *([length - 1] if length else [])})
    paths: list[Path] = []
    for start in range(0, len(keyframes), _CHUNK):
        chosen = keyframes[start : start + _CHUNK]
        for frame, detections in zip(chosen, _detect(mesh, frames, chosen, start, shots), strict=True):
            _link(mesh, frames, paths, frame, detections, shots)
    paths = [path for path in paths if max(path.scores) >= _CONFIRMED]
    for path in paths:
        _search_back(mesh, frames, path, [each for each in paths if each is not path], keyframes, shots)
    return _stitch(paths, shots)


def _detect(mesh: FaceMesh, frames: np.ndarray, chosen: list[int], start: int, shots: np.ndarray) -> list[Detections]:
    """Detections of keyframes; costly scales run at the start of shots and now and then."""
    costly = costly_scales(*frames.shape[1:3])
    skips = []
    for k, frame in enumerate(chosen):
        first = frame < STEP or shots[frame] != shots[frame - STEP]
        due = [first or (start + k) % every == 0 for every in _EVERY]
        skips.append(min(costly, 0 if due[0] else 1 if due[1] else 2))
    result = [Detections.none()] * len(chosen)
    for skip in set(skips):
        part = [k for k in range(len(chosen)) if skips[k] == skip]
        for k, detections in zip(part, mesh.detections(frames[[chosen[k] for k in part]], skip), strict=True):
            result[k] = detections
    return result


def _center(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _looks(frames: np.ndarray, frame: int, boxes: np.ndarray) -> np.ndarray:
    """Appearance of faces with hair and neck: normalized colors of 8 x 8 patches, [K, 192]."""
    around = Squares(np.full(len(boxes), frame), _center(boxes), 2.0 * mean_size(boxes), np.zeros(len(boxes)))
    patches = F.adaptive_avg_pool2d(cut(frames, around, 32, torch.device("cpu")), 8).flatten(1)
    return F.normalize(patches - 0.4, dim=1).numpy()


def _link(
    mesh: FaceMesh, frames: np.ndarray, paths: list[Path], frame: int, found: Detections, shots: np.ndarray
) -> None:
    """Continue the paths with the detections of a keyframe, search lost ones locally, start new paths."""
    from scipy.optimize import linear_sum_assignment

    alive = [path for path in paths if frame - path.frames[-1] <= _LOST]
    looks = _looks(frames, frame, found.boxes)
    free = np.ones(len(found), bool)
    matched: set[int] = set()
    recent = [frame - path.frames[-1] <= STEP for path in alive]
    for group in (True, False):  # faces seen a moment ago take precedence over lost ones
        rows = [k for k in range(len(alive)) if recent[k] == group]
        columns = np.flatnonzero(free)
        if not rows or not columns.size:
            continue
        cost = np.stack([_cost(alive[k], frame, found[columns], looks[columns], shots) for k in rows])
        for i, j in zip(*linear_sum_assignment(np.minimum(cost, 1e3)), strict=True):
            if cost[i, j] < 1e3:
                alive[rows[i]].add(frame, found, int(columns[j]), looks[columns[j]])
                free[columns[j]] = False
                matched.add(rows[i])
    missing = [path for k, path in enumerate(alive) if k not in matched and frame - path.frames[-1] <= _SEARCHED]
    missing = [path for path in missing if shots[path.frames[-1]] == shots[frame]]
    if missing:
        _search(mesh, frames, missing, frame, [path.boxes[-1] for path in paths if path.frames[-1] == frame])
    taken = [path.boxes[-1] for path in paths if path.frames[-1] == frame]
    new = [int(k) for k in np.flatnonzero(free) if found.scores[k] >= _NEW and not overlaps(found.boxes[k], taken)]
    meshes = mesh.meshes(frames, squares(np.full(len(new), frame), found[new]))
    for k, presence in zip(new, meshes.presence, strict=True):
        if presence >= mesh.min_presence:
            paths.append(Path())
            paths[-1].add(frame, found, int(k), looks[k])


def _cost(path: Path, frame: int, found: Detections, looks: np.ndarray, shots: np.ndarray) -> np.ndarray:
    """Cost of continuing a path with each detection; 1e3 and more: impossible."""
    assert path.look is not None
    box = path.predicted(frame)
    size, sizes = mean_size(box), mean_size(found.boxes)
    distance = np.linalg.norm(_center(found.boxes) - _center(box), axis=-1) / np.maximum(size, sizes)
    ratio = np.abs(np.log(np.maximum(sizes, 1e-3) / max(float(size), 1e-3)))
    alike = looks @ path.look / max(float(np.linalg.norm(path.look)), 1e-6)
    gap = frame - path.frames[-1]
    near = (distance < _NEAR * (1 + 0.5 * max(0, gap // STEP - 1))) & (ratio < _GROWTH)
    if shots[path.frames[-1]] != shots[frame]:
        near &= (alike > _ACROSS_CUT) & (distance < _NEAR / 2)
    else:
        near &= alike > (_ALIKE if gap > 2 * STEP else _SAME)
    return np.where(near, distance + ratio + 2.0 * (1.0 - alike) + 0.02 * gap, 1e4)


def overlaps(box: np.ndarray, others: list[np.ndarray], share: float = 0.4) -> bool:
    """Whether a box shares more than `share` of the smaller area with another one."""
    for other in others:
        both = np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None).prod()
        if both > share * min((box[2:] - box[:2]).prod(), (other[2:] - other[:2]).prod()):
            return True
    return False


def _search(
    mesh: FaceMesh,
    frames: np.ndarray,
    paths: list[Path],
    frame: int,
    taken: list[np.ndarray],
    boxes: np.ndarray | None = None,
) -> list[bool]:
    """Search paths around `boxes` [K, 4], or their predicted positions, in `frame`; whether each was found."""
    if boxes is None:
        boxes = np.stack([path.predicted(frame) for path in paths])
    around = Squares(np.full(len(paths), frame), _center(boxes), _SEARCH * mean_size(boxes), np.zeros(len(paths)))
    results = []
    for path, box, detections in zip(paths, boxes, mesh.detections_in(frames, around), strict=True):
        distance = np.linalg.norm(_center(detections.boxes) - _center(box), axis=-1) / mean_size(box)
        ratio = np.abs(np.log(np.maximum(mean_size(detections.boxes), 1e-3) / mean_size(box)))
        order = [int(k) for k in np.argsort(distance) if distance[k] < _NEAR and ratio[k] < _GROWTH]
        looks = _looks(frames, frame, detections.boxes)
        order = [k for k in order if not overlaps(detections.boxes[k], taken) and path.resembles(looks[k])][:1]
        for k in order:
            path.add(frame, detections, k, looks[k])
            taken.append(detections.boxes[k])
        results.append(bool(order))
    return results


def _search_back(
    mesh: FaceMesh, frames: np.ndarray, path: Path, others: list[Path], keyframes: list[int], shots: np.ndarray
) -> None:
    """Search the face in the keyframes before its first detection and before those that follow a gap."""
    known = set(path.frames)
    for position in range(len(keyframes) - 1, 0, -1):
        frame, before = keyframes[position], keyframes[position - 1]
        if frame in known and before not in known and shots[frame] == shots[before]:
            box = path.boxes[path.frames.index(frame)]
            taken = [other.boxes[other.frames.index(before)] for other in others if before in other.frames]
            if _search(mesh, frames, [path], before, taken, box[None])[0]:
                known.add(before)


def _stitch(paths: list[Path], shots: np.ndarray) -> list[Path]:
    """Join paths of which one begins where the other was lost, by their appearance, the most similar first."""
    paths = list(paths)
    while True:
        best, pair = _ALIKE, None
        for early in paths:
            for late in paths:
                gap = late.frames[0] - early.frames[-1]
                if not 0 < gap <= _LOST or shots[late.frames[0]] != shots[early.frames[-1]]:
                    continue
                first, second = np.median(early.looks, axis=0), np.median(late.looks, axis=0)
                alike = float(first @ second / max(1e-6, np.linalg.norm(first) * np.linalg.norm(second)))
                size = max(mean_size(early.boxes[-1]), mean_size(late.boxes[0]))
                distance = float(np.linalg.norm(_center(late.boxes[0]) - _center(early.boxes[-1])) / size)
                if alike > best and distance < _NEAR * (1 + 0.5 * gap / STEP):
                    best, pair = alike, (early, late)
        if pair is None:
            return paths
        early, late = pair
        for name in ("frames", "boxes", "points", "scores", "looks"):
            getattr(early, name).extend(getattr(late, name))
        paths.remove(late)
