"""Face tracks of a video: linked detections, one mesh per frame.

    tracks = track_faces(frames)        # frames uint8 [F, H, W, 3] -> one `FaceTrack` per face, left to right
    tracks[0].points                    # [F, 468, 3] in pixels, NaN where the face is not visible

Faces are detected in every fourth frame and linked by position, motion and appearance; between them, squares are
interpolated and the mesh network finds the face. Everything is offline: nothing lags behind the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bya_core.encoders.face.crops import Squares
from bya_core.encoders.face.mesh import Detections, FaceMesh, squares, squares_of_meshes
from bya_core.encoders.face.paths import STEP, Path, find_paths, overlaps

_CUT = (20.0, 4.0)  # smallest mean difference of a frame to the last one at a cut: absolute, and over the median around
_SHARED = 0.6  # of the smaller of two boxes: the same face
_DRIFT = 0.12  # of the side of the square: a larger deviation of the mesh from its center calls for a second pass
_SHORTEST = 5  # frames; shorter tracks in longer videos are discarded


@dataclass(frozen=True)
class FaceTrack:
    """One face over all F frames of a video.

    Args:
        boxes: (x0, y0, x1, y1) in pixels from forehead to chin, float32 [F, 4]; NaN where the face is not visible.
        scores: Confidence of the detector in [0, 1], interpolated between detections, [F]; 0 where not visible.
        points: (x, y, z) of the mesh in pixels, float32 [F, 468, 3]; NaN where the face is not visible.
        presence: Probability of a face by the mesh network, [F]; 0 where nothing was searched.
    """

    boxes: np.ndarray
    scores: np.ndarray
    points: np.ndarray
    presence: np.ndarray

    @property
    def visible(self) -> np.ndarray:
        """Frames in which the face is visible, bool [F]."""
        return np.isfinite(self.boxes[:, 0])


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(first, end) of each run of true values of a bool vector."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def track_faces(frames: np.ndarray, mesh: FaceMesh | None = None, max_faces: int = 8) -> list[FaceTrack]:
    """Track the faces of a video.

    Args:
        frames: uint8 [F, H, W, 3]; an array on disk (`numpy.memmap`) is read piece by piece.
        mesh: Networks; `None` loads them.
        max_faces: Of more faces, those visible longest are returned.

    Returns:
        One track per face, from left to right by median position.
    """
    mesh = mesh or FaceMesh()
    length = len(frames)
    shots = np.cumsum(np.isin(np.arange(length), find_cuts(frames)))
    paths = find_paths(mesh, frames, shots)
    tracks = [_fill(mesh, frames, path, shots) for path in paths if len(path.frames) > 1 or length <= STEP]
    shortest = min(_SHORTEST, length)
    tracks = _without_duplicates([track for track in tracks if track.visible.sum() >= shortest])
    tracks = [track for track in tracks if track.visible.sum() >= shortest]
    tracks = sorted(tracks, key=lambda track: -int(track.visible.sum()))[:max_faces]
    return sorted(tracks, key=lambda track: float(np.nanmedian(track.boxes[:, 0] + track.boxes[:, 2])))


def find_cuts(frames: np.ndarray) -> np.ndarray:
    """Frames in which a new shot begins, from the differences of consecutive frames uint8 [F, H, W, 3]."""
    rows, columns = (max(1, side // 32) for side in frames.shape[1:3])
    small = np.ascontiguousarray(frames[:, rows // 2 :: rows, columns // 2 :: columns])
    differences = np.zeros(len(small))
    for f in range(1, len(small)):
        differences[f] = np.abs(small[f].astype(np.int16) - small[f - 1]).mean()
    candidates = np.flatnonzero(differences > _CUT[0])
    usual = [np.median(differences[max(1, f - 12) : f + 13]) for f in candidates]
    return candidates[differences[candidates] > _CUT[1] * np.array(usual)]


def _fill(mesh: FaceMesh, frames: np.ndarray, path: Path, shots: np.ndarray) -> FaceTrack:
    """Meshes in every frame near the detections of a path, in squares interpolated between them."""
    length = len(frames)
    known = np.array(path.frames)
    detected = Detections(np.stack(path.boxes), np.stack(path.points), np.array(path.scores))
    at = squares(known, detected)
    wanted = np.zeros(length, bool)
    for frame in known:
        around = slice(max(0, frame - STEP + 1), frame + STEP)
        wanted[around] |= shots[around] == shots[frame]
    chosen = np.flatnonzero(wanted)
    turn = np.unwrap(at.angle)
    columns = [np.interp(chosen, known, values) for values in (*at.center.T, at.side, turn)]
    regions = Squares(chosen, np.stack(columns[:2], -1), columns[2], columns[3])
    meshes = mesh.meshes(frames, regions)
    points, presence = meshes.points, meshes.presence
    again = squares_of_meshes(chosen, points)
    drift = np.linalg.norm(again.center - regions.center, axis=1) / regions.side
    drift = np.maximum(drift, np.abs(np.log(np.maximum(again.side, 1.0) / np.maximum(regions.side, 1.0))) / 2)
    redo = np.flatnonzero((drift > _DRIFT) & (presence > 0.2))
    if redo.size:
        second = mesh.meshes(frames, again[redo])
        better = second.presence >= mesh.min_presence
        points[redo[better]], presence[redo[better]] = second.points[better], second.presence[better]
    present = presence >= mesh.min_presence
    track = FaceTrack(
        np.full((length, 4), np.nan, np.float32),
        np.zeros(length, np.float32),
        np.full((length, points.shape[1], 3), np.nan, np.float32),
        np.zeros(length, np.float32),
    )
    track.presence[chosen] = presence
    visible = chosen[present]
    track.points[visible] = points[present]
    track.boxes[visible] = np.concatenate([points[present, :, :2].min(1), points[present, :, :2].max(1)], axis=1)
    after = np.searchsorted(known, visible).clip(max=len(known) - 1)
    before = (np.searchsorted(known, visible, side="right") - 1).clip(min=0)
    firm = (known[before] <= visible) & (visible <= known[after]) & (known[after] - known[before] <= STEP)
    track.scores[visible] = np.interp(visible, known, detected.scores) * np.where(firm, 1.0, 0.8)
    return track


def _without_duplicates(tracks: list[FaceTrack]) -> list[FaceTrack]:
    """Leave each face to one track: the one with the higher score in the frames around, else the longer one."""
    tracks = sorted(tracks, key=lambda track: -int(track.visible.sum()))
    lengths = [int(track.visible.sum()) for track in tracks]
    for k, track in enumerate(tracks):
        for j in range(k):
            other = tracks[j]
            both = np.flatnonzero(track.visible & other.visible)
            shared = np.array([f for f in both if overlaps(track.boxes[f], [other.boxes[f]], _SHARED)], int)
            if len(shared) < 0.5 * lengths[k]:  # a moment in which one hides the other
                weaker = track.scores[shared] <= other.scores[shared]
                _hide(other, shared[~weaker])
                shared = shared[weaker]
            _hide(track, shared)
    return tracks


def _hide(track: FaceTrack, frames: np.ndarray) -> None:
    track.boxes[frames], track.points[frames], track.scores[frames] = np.nan, np.nan, 0.0
