"""Evaluation of finished videos of any system with the same code: the suites "byab" and "folder".

The binding report of each video is saved next to the results. Metrics whose weights are missing are skipped with a
notice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bya_core.encoders.face.tracking import track_faces
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools
from bya_core.evaluation.face_tracks import face_crops
from bya_core.evaluation.frechet import I3dFeatures, ImageFeatures, InceptionFeatures, VideoFeatures, fid, fvd
from bya_core.evaluation.metric_weights import I3D, INCEPTION
from bya_core.evaluation.video_file import measure_file
from bya_core.io.atomic import atomic_write
from bya_core.io.media import read_video
from bya_core.progress import Progress, ProgressCallback, ProgressTracker
from bya_core.validation import parse_json
from training.benchmark.gallery import Cell
from training.benchmark.tables import markdown_table, number
from training.benchmark.video_tasks import VideoTask

FACE_SIZE = 299  # side of a face region for FID in pixels
COLUMNS = {
    "face_sim": "Face Sim ↑ (%)",
    "arcface_sim": "ArcFace ↑ (%)",
    "sync_c": "Sync-C ↑",
    "sync_d": "Sync-D ↓",
    "margin": "Sync-C margin ↑",
    "bound": "bound ↑ (%)",
    "fid": "FID ↓",
    "fvd": "FVD ↓",
}
"""Figures of a system in the order of the paper's tables 2 to 4; "margin" and "bound" are not in the paper."""


@dataclass
class MetricModels:
    """Networks of the metrics; None = not available, see `notices`."""

    faces: FaceTools
    images: ImageFeatures | None = None
    videos: VideoFeatures | None = None
    notices: list[str] = field(default_factory=list)

    @staticmethod
    def load_available(device: str = "cpu") -> MetricModels:
        """Load all networks whose weights are available."""
        faces = FaceTools.load(device)
        models = MetricModels(replace(faces, notices=()), notices=[*faces.notices])  # reported once, not per video
        for weights, network, name in ((INCEPTION, InceptionFeatures, "images"), (I3D, I3dFeatures, "videos")):
            file = weights.find()
            if file is None:
                models.notices.append(weights.missing)
                continue
            try:
                setattr(models, name, network(file, device))
            except InputError as error:
                models.notices.append(f"{weights.metrics} not measured: {error}")
        return models


def measure_videos(
    tasks: Sequence[VideoTask],
    models: MetricModels,
    output: Path,
    *,
    real: Path | None = None,
    previous: Mapping[tuple[str, str], dict[str, Any]] | None = None,
    callback: ProgressCallback | None = None,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Evaluate videos; returns a row per video and a summary per system.

    Args:
        tasks: videos.
        models: networks of the metrics.
        output: binding reports are written to its subfolder "reports".
        real: folder of real videos with the names of the clips; enables FID (of face regions) and FVD.
        previous: rows of an earlier run by (system, clip); reused for unchanged videos.
        callback: progress per video.
    """
    rows: list[dict[str, Any]] = []
    tracker = ProgressTracker(callback)
    for index, task in enumerate(tasks):
        tracker.report(Progress(f"Evaluating {task.system}, {task.clip}", index, len(tasks)))
        row, key = (previous or {}).get((task.system, task.clip)), row_key(task, models)
        if row is not None and row.get("key") == key:
            rows.append(row)
            continue
        rows.append(_measure(task, models, output) | {"key": key})
    systems: dict[str, dict[str, Any]] = {}
    for system in dict.fromkeys(task.system for task in tasks):
        systems[system] = summary([row for row in rows if row["system"] == system])
        if real is not None:
            systems[system] |= _frechet([task for task in tasks if task.system == system], real, models)
    return rows, systems


def row_key(task: VideoTask, models: MetricModels) -> str:
    """Hash of what a row depends on: video, masks, scene with the files that it names, and the available networks."""
    scene = task.scene.read_bytes()
    named = (task.scene.parent / value for value in _texts(parse_json(scene.decode(errors="replace"), str(task.scene))))
    files = [task.video, *([task.masks] if task.masks else []), *(path for path in named if os.path.isfile(path))]
    faces = models.faces
    available = [faces.sync is not None, [type(network).__name__ for network in faces.identities], task.judged]
    digest = hashlib.sha256(scene + repr(available).encode())
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _texts(value: Any) -> Iterator[str]:
    """All texts of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _measure(task: VideoTask, models: MetricModels, output: Path) -> dict[str, Any]:
    report = measure_file(task.video, task.scene, task.masks, tools=models.faces)
    picture = output / "reports" / task.system / f"{task.clip}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(picture) as temporary:
        report.picture.save(temporary)
    figures = report.metrics
    speakers = [n for n, own in enumerate(figures["should_follow"]) if own >= 0]
    sync, identity = figures.get("sync"), figures["identity"]
    row: dict[str, Any] = {
        "system": task.system,
        "clip": task.clip,
        "video": str(task.video),
        "picture": str(picture),
        "judged": task.judged,
        "verdicts": figures["verdicts"],
        "passed": figures["passed"] if task.judged else None,
        "measure": figures["measure"],
        "text": report.text.splitlines(),
        "face_sim": identity.get("FaceNet", {}).get("mean"),
        "arcface_sim": identity.get("ArcFace", {}).get("mean"),
        "color_sim": identity.get("colors", {}).get("mean"),
    }
    for name in ("confidence", "distance"):
        row[name] = None if sync is None else [sync[name][n][figures["should_follow"][n]] for n in speakers]
    row["margin"] = None if sync is None else [sync["margin"][n] for n in speakers]
    return row


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over characters, then over videos (paper sec. 5.2.2); None for metrics that were not measured."""
    judged = [row for row in rows if row["judged"]]
    passed = [row["passed"] for row in rows if row["passed"] is not None]
    figures = {
        "face_sim": _mean(rows, "face_sim", 100.0),
        "arcface_sim": _mean(rows, "arcface_sim", 100.0),
        "sync_c": _mean(judged, "confidence"),
        "sync_d": _mean(judged, "distance"),
        "margin": _mean(judged, "margin"),
        "bound": 100.0 * float(np.mean(passed)) if passed else None,
    }
    return {name: None if value is None else round(value, 4) for name, value in figures.items()} | {
        "videos": len(rows),
        "judged": len(passed),
    }


def _mean(rows: Sequence[dict[str, Any]], key: str, scale: float = 1.0) -> float | None:
    per_video = [float(np.mean(values)) for row in rows if (values := [v for v in row[key] or [] if v is not None])]
    return scale * float(np.mean(per_video)) if per_video else None


def _frechet(tasks: Sequence[VideoTask], real: Path, models: MetricModels) -> dict[str, float | None]:
    """FID over face regions, and FVD, relative to the real videos of the same names."""
    pairs = [(task, path) for task in tasks if (path := real / f"{task.clip}.mp4").is_file()]
    if not pairs:
        raise InputError(f"{real} contains no videos of these clips", f"{tasks[0].clip}.mp4, ...", "check the path")
    result: dict[str, float | None] = {"fid": None, "fvd": None}
    if models.images is not None:
        generated_faces = (_face_regions(task.video, models) for task, _ in pairs)
        real_faces = (_face_regions(path, models) for task, path in pairs)
        result["fid"] = round(fid(models.images, generated_faces, real_faces), 3)
    if models.videos is not None:
        generated = (read_video(task.video)[0].numpy()[None] for task, _ in pairs)
        reference = (read_video(path)[0].numpy()[None] for _, path in pairs)
        result["fvd"] = round(fvd(models.videos, generated, reference), 3)
    return result


def _face_regions(video: Path, models: MetricModels) -> np.ndarray:
    """Regions of all faces of a video: uint8 [K, 299, 299, 3]."""
    frames = read_video(video)[0].numpy()
    regions = [np.zeros((0, FACE_SIZE, FACE_SIZE, 3), np.uint8)]
    for track in track_faces(frames, models.faces.mesh):
        regions.append(face_crops(frames[track.visible], track.boxes[track.visible].astype(np.float64), FACE_SIZE))
    return np.concatenate(regions)


def video_table(report: dict[str, Any]) -> str:
    """Format the figures like the paper's tables 2 to 4, without empty columns."""
    systems = report["systems"]
    shown = [key for key in COLUMNS if any(figures.get(key) is not None for figures in systems.values())]
    rows = [
        [name, *(number(figures.get(key)) for key in shown), str(figures["videos"])]
        for name, figures in systems.items()
    ]
    table = markdown_table(["Method", *(COLUMNS[key] for key in shown), "videos"], rows)
    return "\n".join([table, "", *(f"- {notice}" for notice in report["notices"])]).rstrip()


def gallery_rows(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Cell]]]:
    """Rows for the gallery: (clip, system -> cell)."""
    for clip in dict.fromkeys(row["clip"] for row in rows):
        cells: dict[str, Cell] = {}
        for row in rows:
            if row["clip"] == clip:
                cell = {"video": row["video"], "picture": row["picture"], "good": row["passed"], "words": row["text"]}
                cells[row["system"]] = cell
        yield clip, cells
