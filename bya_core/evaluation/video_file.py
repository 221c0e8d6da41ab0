"""The binding report of a video file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.encoders.domains import Domain, guess_domain, load_meter
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools, boxes_to_masks, measure_faces
from bya_core.evaluation.report import BindingReport, FaceMetrics, binding_report
from bya_core.grid import TokenGrid
from bya_core.io.media import read_image, read_video
from bya_core.scene.loader import matrix_of
from bya_core.scene.mask_archive import open_archive
from bya_core.scene.mask_files import select_characters
from bya_core.scene.schema import read_scene_file
from bya_core.scene.speech import read_speeches

People = Literal["auto", "drawn", "real"]
TIME_FACTOR = 4  # video frames per latent frame of all models
DOMAINS: dict[People, Domain] = {"drawn": "puppets", "real": "photos"}


def measure_file(
    video: Path, scene: Path, masks: Path | None = None, people: People = "auto", tools: FaceTools | None = None
) -> BindingReport:
    """Measure whether every mouth of a video follows its own speech.

    Args:
        video: Video file, of this or any other system.
        scene: Scene file with the characters and their speech.
        masks: npz file with the character masks; None to find the characters in the video.
        people: "drawn" puppets, "real" people, or "auto" to detect which.
        tools: Loaded face detector, SyncNet and face recognition; None to load those that are available.

    Raises:
        InputError: A video, scene or masks that cannot be read or do not match.
    """
    scene_file = read_scene_file(scene)
    names = [character.name for character in scene_file.characters]
    portraits = [read_image(scene.parent / character.image) for character in scene_file.characters]
    speeches = read_speeches(scene_file, scene.parent).speeches
    matrix = matrix_of(scene_file.audio_character_matrix, len(names))
    frames, fps = read_video(video)
    if len(frames) < 2:
        raise InputError(f"the video {video} has 1 frame", "a video of several frames", "choose another file")
    meter = load_meter(DOMAINS.get(people) or guess_domain(portraits))
    regions, notices = (None, []) if masks is None else _read_masks(masks, names, len(frames))
    faces = FaceMetrics()
    if meter is not None:
        regions = meter.segment(frames, portraits) if regions is None else regions
    else:
        size = (int(frames.shape[1]), int(frames.shape[2]))
        pixels = None if regions is None else F.interpolate(regions, size=size).numpy() > 0.5
        tools = tools or FaceTools.load()
        faces = measure_faces(frames, speeches, fps, portraits, tools, matrix=matrix, masks=pixels, names=names)
        if regions is None and faces.boxes is not None:
            regions = torch.from_numpy(boxes_to_masks(faces.boxes, *size)).float()
    if scene_file.audio_character_matrix == "auto":
        notice = "The scene matches voices automatically; measured as if each speech drives its own character."
        faces = replace(faces, notices=(*faces.notices, notice))
    faces = replace(faces, notices=(*notices, *faces.notices))
    return binding_report(
        frames,
        torch.zeros(len(names), len(frames), 8, 8) if regions is None else regions,
        speeches,
        fps,
        names,
        matrix=matrix,
        meter=meter,
        portraits=None if meter is None else portraits,
        faces=faces,
    )


def _read_masks(path: Path, names: list[str], length: int) -> tuple[Tensor, list[str]]:
    """Masks of an npz file for `length` video frames, [N, F, h, w] in the order of `names`, and notices."""
    archive, what = open_archive(path), f"the masks {path}"
    if archive.start is not None:
        raise InputError(f"{what} are those of one window", "masks of the whole video", "use those of bya generate")
    grid = TokenGrid((length - 1) // TIME_FACTOR + 1, 1, 1)
    masks, _, notices = select_characters(archive, names, names, grid, what)
    if not bool(torch.isfinite(masks).all()) or masks.min() < 0 or masks.max() > 1:
        raise InputError(f"{what} with values outside 0..1", "values in 0..1", "rescale them")
    frames = masks.shape[1]
    if frames == 1:
        return masks.expand(-1, length, -1, -1), notices
    if frames == length:
        return masks, notices
    if grid.video_frames == length and frames == grid.frames:
        return grid.latent_to_frames(masks, dim=1), notices
    expected = f"1, {grid.frames} (latent) or {length} (video)"
    raise InputError(f"{what} with {frames} frames", expected, "use the masks of this video")
