"""Finished videos, of this or any other system, measured by one code: the suites "byab" and "folder".

    SYSTEMS/
      our model/   001.mp4 002.mp4 ... and, where there are any, masks as 001.npz (generate --masks)
      another/     001.mp4 ...
    SCENES/        001.json ...: what each video was asked with (docs/reference/scene.md)

Each video's binding report is kept beside the results. What needs weights that are not here is left out and told once.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bya_core.evaluation.video_file import measure_file
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools, look
from bya_core.evaluation.face_tracks import face_pictures
from bya_core.evaluation.frechet import PictureFeatures, VideoFeatures, fid, fvd
from bya_core.evaluation.frechet_features import I3dFeatures, InceptionFeatures
from bya_core.evaluation.metric_weights import I3D, INCEPTION
from bya_core.io.atomic import AtomicFiles
from bya_core.io.media import read_image, read_video
from bya_core.scene.schema import read_scene_file
from bya_core.weights.bundle import ModelBundle
from training.benchmark.byab import Pair

FACE = 299  # pixels of a face region for FID
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
"""Figures of a system, in the order of the paper's tables 2 to 4; "margin" and "bound" are ours."""
Tick = Callable[[str], object]


@dataclass(frozen=True)
class VideoTask:
    """One video to measure.

    Args:
        system: who made it.
        clip: its name; the same in every system.
        video: the file.
        scene: the scene file it was asked with.
        masks: npz, or None.
        judged: False = who should follow which voice is not known.
    """

    system: str
    clip: str
    video: Path
    scene: Path
    masks: Path | None = None
    judged: bool = True


@dataclass
class Tools:
    """Networks that measure; None = not here, see `notices`."""

    faces: FaceTools
    pictures: PictureFeatures | None = None
    videos: VideoFeatures | None = None
    notices: list[str] = field(default_factory=list)

    @staticmethod
    def here(device: str = "cpu") -> Tools:
        tools = Tools(FaceTools.here(device))
        tools.notices += tools.faces.notices
        tools.faces = replace(tools.faces, notices=())  # told once, not with every video
        for weights, kind, name in ((INCEPTION, InceptionFeatures, "pictures"), (I3D, I3dFeatures, "videos")):
            file = weights.find()
            if file is None:
                tools.notices.append(weights.missing)
                continue
            try:
                setattr(tools, name, kind(file, device))
            except InputError as error:
                tools.notices.append(f"{weights.why} not measured: {error}")
        return tools


def folder_tasks(videos: Path, scenes: Path | None = None) -> list[VideoTask]:
    """Videos in a folder, or in its folders, one per system; scene files beside them, one folder up, or in `scenes`.

    Raises:
        InputError: no videos, or a video without a scene.
    """
    found = sorted(videos.glob("*.mp4")) or sorted(videos.glob("*/*.mp4"))
    if not found:
        raise InputError(f"{videos} without videos", "mp4 files, or folders of them, one per system", "check the path")
    tasks = []
    for video in found:
        places = [scenes] if scenes is not None else [video.parent, video.parent.parent, videos / "scenes"]
        scene = next((path for place in places if (path := place / f"{video.stem}.json").is_file()), None)
        if scene is None:
            raise InputError(
                f"no {video.stem}.json for {video}", "the scene it was made from", "see docs/how-to/benchmark.md"
            )
        masks = video.with_suffix(".npz")
        tasks.append(VideoTask(video.parent.name, video.stem, video, scene, masks if masks.is_file() else None))
    return tasks


def byab_tasks(
    pairs: Sequence[Pair],
    output: Path,
    name: str,
    bundle: ModelBundle | None,
    *,
    steps: int | None = None,
    frames: int | None = None,
    tick: Tick | None = None,
) -> list[VideoTask]:
    """The pairs of the benchmark, made where their videos are missing: OUTPUT/scenes and OUTPUT/videos/NAME.

    Raises:
        InputError: a pair that the model cannot make, or, without a model, a video that is missing.
    """
    scenes, videos = output / "scenes", output / "videos" / name
    for folder in (scenes, videos):
        folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for index, pair in enumerate(pairs):
        file, video = scenes / f"{pair.name}.json", videos / f"{pair.name}.mp4"
        asked = pair.scene(seed=index, **({} if frames is None else {"length": frames}))
        file.write_text(jsonlib.dumps(asked, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if not video.is_file():
            if bundle is None:
                raise InputError(f"no {video}", "a video of each pair", "name a model that makes them")
            if tick is not None:
                tick(f"making {pair.name}")
            _make(file, video, bundle, steps)
        masks = video.with_suffix(".npz")
        tasks.append(VideoTask(name, pair.name, video, file, masks if masks.is_file() else None, pair.separate))
    return tasks


def _make(scene_file: Path, video: Path, bundle: ModelBundle, steps: int | None) -> None:
    from bya_core.pipelines.outputs import Outputs
    from bya_core.pipelines.generate import generate
    from bya_core.pipelines.run_report import build_report
    from bya_core.scene.loader import load_scene

    scene = load_scene(scene_file, bundle.defaults, steps=steps)
    made = generate(scene, bundle)
    outputs = Outputs(video, masks=video.with_suffix(".npz"))
    outputs.write(scene, made, build_report(scene, scene_file, bundle, made, {}, outputs.wanted))


def measure_videos(
    tasks: Sequence[VideoTask],
    tools: Tools,
    output: Path,
    *,
    real: Path | None = None,
    known: Mapping[tuple[str, str], dict[str, Any]] | None = None,
    save: Callable[[list[dict[str, Any]]], object] | None = None,
    tick: Tick | None = None,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """A row of figures per video, and a summary per system.

    Args:
        output: binding reports go to its folder "reports".
        real: videos of real people, by the names of the clips; with it FID (of face regions) and FVD are measured.
        known: rows by (system, clip) of an earlier run of the same videos.
        save: called with the rows so far after each video.
    """
    rows: list[dict[str, Any]] = []
    for task in tasks:
        have = (known or {}).get((task.system, task.clip))
        if have is not None and have.get("bytes") == task.video.stat().st_size:
            rows.append(have)
            continue
        if tick is not None:
            tick(f"{task.system}, {task.clip}")
        rows.append(_row(task, tools, output))
        if save is not None:
            save(rows)
    systems: dict[str, dict[str, Any]] = {}
    for system in dict.fromkeys(task.system for task in tasks):
        systems[system] = summary([row for row in rows if row["system"] == system])
        if real is not None:
            systems[system] |= _frechet([task for task in tasks if task.system == system], real, tools)
    return rows, systems


def _row(task: VideoTask, tools: Tools, output: Path) -> dict[str, Any]:
    made = measure_file(task.video, task.scene, task.masks, tools=tools.faces)
    picture = output / "reports" / task.system / f"{task.clip}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    with AtomicFiles() as files:
        made.picture.save(files.at(picture))
    figures = made.figures
    talkers = [n for n, own in enumerate(figures["should_follow"]) if own >= 0]
    sync, identity = figures.get("sync"), figures["identity"]
    row: dict[str, Any] = {
        "system": task.system,
        "clip": task.clip,
        "video": str(task.video),
        "picture": str(picture),
        "bytes": task.video.stat().st_size,
        "judged": task.judged,
        "verdicts": figures["verdicts"],
        "passed": figures["passed"] if task.judged else None,
        "measure": figures["measure"],
        "text": made.text.splitlines(),
        "face_sim": identity.get("FaceNet", {}).get("mean"),
        "arcface_sim": identity.get("ArcFace", {}).get("mean"),
        "colour_sim": identity.get("colors", {}).get("mean"),
    }
    for name in ("confidence", "distance"):
        row[name] = None if sync is None else [sync[name][n][figures["should_follow"][n]] for n in talkers]
    row["margin"] = None if sync is None else [sync["margin"][n] for n in talkers]
    return row


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over characters, then over videos (paper sec. 5.2.2); None for what was not measured."""
    passed = [row["passed"] for row in rows if row["passed"] is not None]
    figures = {
        "face_sim": _mean(rows, "face_sim", 100.0),
        "arcface_sim": _mean(rows, "arcface_sim", 100.0),
        "sync_c": _mean([row for row in rows if row["judged"]], "confidence"),
        "sync_d": _mean([row for row in rows if row["judged"]], "distance"),
        "margin": _mean([row for row in rows if row["judged"]], "margin"),
        "bound": 100.0 * float(np.mean(passed)) if passed else None,
    }
    return {name: None if value is None else round(value, 4) for name, value in figures.items()} | {
        "videos": len(rows),
        "judged": len(passed),
    }


def _mean(rows: Sequence[dict[str, Any]], key: str, scale: float = 1.0) -> float | None:
    per_video = [float(np.mean(values)) for row in rows if (values := [v for v in row[key] or [] if v is not None])]
    return scale * float(np.mean(per_video)) if per_video else None


def _frechet(tasks: Sequence[VideoTask], real: Path, tools: Tools) -> dict[str, float | None]:
    """FID over face regions and FVD, against the real videos of the same names."""
    pairs = [(task, path) for task in tasks if (path := real / f"{task.clip}.mp4").is_file()]
    if not pairs:
        raise InputError(f"{real} without videos of these clips", f"{tasks[0].clip}.mp4, ...", "check the path")
    made: dict[str, float | None] = {"fid": None, "fvd": None}
    if tools.pictures is not None and tools.faces.detector is not None:
        made["fid"] = round(
            fid(
                tools.pictures,
                (_faces(task.video, task.scene, tools) for task, _ in pairs),
                (_faces(path, task.scene, tools) for task, path in pairs),
            ),
            3,
        )
    if tools.videos is not None:
        ours = (read_video(task.video)[0].numpy()[None] for task, _ in pairs)
        theirs = (read_video(path)[0].numpy()[None] for _, path in pairs)
        made["fvd"] = round(fvd(tools.videos, ours, theirs), 3)
    return made


def _faces(video: Path, scene: Path, tools: Tools) -> np.ndarray:
    """Face regions of a video: uint8 [K, 299, 299, 3]."""
    frames, fps = read_video(video)
    given = read_scene_file(scene)
    portraits = [read_image(scene.parent / character.image) for character in given.characters]
    alone = FaceTools(tools.faces.detector)
    boxes = look(frames, [None] * len(portraits), fps, portraits, alone).boxes
    assert boxes is not None
    return np.concatenate([_seen(frames.numpy(), track) for track in boxes])


def _seen(frames: np.ndarray, track: np.ndarray) -> np.ndarray:
    here = np.isfinite(track).all(axis=1)
    return face_pictures(frames[here], track[here], FACE)


def video_table(report: dict[str, Any]) -> str:
    """In the shape of the paper's tables 2 to 4; a column that nobody has figures for is left out."""
    systems = report["systems"]
    shown = [key for key in COLUMNS if any(figures.get(key) is not None for figures in systems.values())]
    head = ["Method", *(COLUMNS[key] for key in shown), "videos"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for name, figures in systems.items():
        cells = ["-" if figures.get(key) is None else f"{figures[key]:.2f}" for key in shown]
        lines.append(" | ".join([name, *cells, str(figures["videos"])]))
    table = "\n".join(f"| {line} |" for line in lines)
    return "\n".join([table, "", *(f"- {notice}" for notice in report["notices"])]).rstrip()


def page_rows(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """For the page: (clip, system -> video, picture, words)."""
    for clip in dict.fromkeys(row["clip"] for row in rows):
        here = [row for row in rows if row["clip"] == clip]
        yield (
            clip,
            {
                row["system"]: {key: row[key] for key in ("video", "picture")}
                | {"good": row["passed"], "words": row["text"]}
                for row in here
            },
        )
