"""Videos to evaluate: those of a folder, or of the benchmark.

SYSTEMS/
  our model/   001.mp4 002.mp4 ... and optionally masks as 001.npz (generate --masks)
  another/     001.mp4 ...
SCENES/        001.json ...: the scene file of each video (docs/reference/scene.md)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.io.atomic import write_json
from bya_core.progress import Progress, ProgressCallback, ProgressTracker
from bya_core.weights.bundle import ModelBundle
from training.benchmark.byab import Pair
from training.benchmark.targets import weights_hash


@dataclass(frozen=True)
class VideoTask:
    """One video to evaluate.

    Args:
        system: name of the system that generated it.
        clip: name of the clip, equal for all systems.
        video: video file.
        scene: scene file.
        masks: npz file, or None.
        judged: whether the assignment of speeches is known, so that binding can be measured.
    """

    system: str
    clip: str
    video: Path
    scene: Path
    masks: Path | None = None
    judged: bool = True


def folder_tasks(videos: Path, scenes: Path | None = None, systems: Sequence[str] = ()) -> list[VideoTask]:
    """List videos of a folder, or of its subfolders, one per system.

    Args:
        videos: the folder.
        scenes: folder of scene files; None = next to the videos or one level up.
        systems: names of the systems to list; none = all.

    Raises:
        InputError: no videos, or a video without a scene file.
    """
    files = sorted(videos.glob("*.mp4")) or sorted(videos.glob("*/*.mp4"))
    found = list(dict.fromkeys(video.parent.name for video in files))
    if missing := [system for system in systems if system not in found]:
        expected = f"a folder with that name; there are {', '.join(found) or 'none'}"
        raise InputError(f"{videos} has no videos of {missing[0]}", expected, "add them, or choose another system")
    files = [video for video in files if not systems or video.parent.name in systems]
    if not files:
        expected = "mp4 files, or subfolders of them, one per system"
        raise InputError(f"{videos} contains no videos", expected, "check the path")
    tasks = []
    for video in files:
        folders = [scenes] if scenes is not None else [video.parent, video.parent.parent, videos / "scenes"]
        scene = next((path for folder in folders if (path := folder / f"{video.stem}.json").is_file()), None)
        if scene is None:
            hint = "see docs/how-to/benchmark.md"
            raise InputError(f"no {video.stem}.json for {video}", "the scene file of each video", hint)
        tasks.append(VideoTask(video.parent.name, video.stem, video, scene, _masks_of(video)))
    return tasks


def generation_key(
    bundle: ModelBundle, steps: int | None, frames: int | None, scene_options: Mapping[str, Any] | None = None
) -> str:
    """Short hash of the weights and of everything else that the videos of a model depend on."""
    settings = {**asdict(bundle.sampling), **({} if steps is None else {"steps": steps}), "frames": frames}
    if scene_options:
        settings["scene"] = dict(scene_options)
    text = json.dumps([weights_hash(bundle.transformer), settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def byab_tasks(
    pairs: Sequence[Pair],
    output: Path,
    name: str,
    bundle: ModelBundle | None,
    *,
    steps: int | None = None,
    scene_options: Mapping[str, Any] | None = None,
    callback: ProgressCallback | None = None,
) -> list[VideoTask]:
    """Write the scene files of the benchmark to OUTPUT/scenes and generate missing videos in OUTPUT/videos/NAME.

    Raises:
        InputError: a pair is invalid for the model, or a video is missing and there is no model.
    """
    scenes, videos = output / "scenes", output / "videos" / name
    for folder in (scenes, videos):
        folder.mkdir(parents=True, exist_ok=True)
    tasks, tracker = [], ProgressTracker(callback)
    for index, pair in enumerate(pairs):
        file, video = scenes / f"{pair.name}.json", videos / f"{pair.name}.mp4"
        scene = pair.scene(seed=index) | dict(scene_options or {})
        write_json(file, scene, indent=1)
        if not video.is_file():
            if bundle is None:
                raise InputError(f"no {video}", "a video of each pair", "pass a model to generate them")
            tracker.report(Progress(f"Generating {pair.name}", index, len(pairs)))
            _generate(file, video, bundle, steps)
        tasks.append(VideoTask(name, pair.name, video, file, _masks_of(video), pair.separate))
    return tasks


def _masks_of(video: Path) -> Path | None:
    masks = video.with_suffix(".npz")
    return masks if masks.is_file() else None


def _generate(scene_file: Path, path: Path, bundle: ModelBundle, steps: int | None) -> None:
    from bya_core.pipelines.generate import generate
    from bya_core.pipelines.outputs import Outputs
    from bya_core.pipelines.run_report import build_report
    from bya_core.scene.loader import load_scene

    scene = load_scene(scene_file, bundle.defaults, steps=steps)
    video = generate(scene, bundle)
    outputs = Outputs(path, masks=path.with_suffix(".npz"))
    outputs.write(scene, video, build_report(scene, scene_file, bundle, video, {}, outputs.wanted))
