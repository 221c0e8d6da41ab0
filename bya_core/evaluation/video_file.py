"""The binding report of a video file."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.encoders.domains import Domain, guess_domain, load_meter
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools, boxes_to_masks, measure_faces
from bya_core.evaluation.report import BindingReport, FaceMetrics, binding_report
from bya_core.grid import TokenGrid
from bya_core.io.files import existing_file
from bya_core.io.media import read_image, read_video
from bya_core.scene.loader import matrix_of
from bya_core.scene.schema import read_scene_file
from bya_core.scene.speech import read_speeches

People = Literal["auto", "drawn", "real"]
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
    meter = load_meter(DOMAINS.get(people) or guess_domain(portraits))
    regions = None if masks is None else _read_masks(masks, names, len(frames))
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


def _read_masks(path: Path, names: list[str], length: int) -> Tensor:
    """Masks of an npz file for `length` video frames: [N, F, h, w] in the order of `names`."""
    try:
        with np.load(existing_file(path, "the masks"), allow_pickle=False) as archive:
            masks = torch.from_numpy(np.asarray(archive["masks"], dtype=np.float32))
            order = [str(name) for name in archive["names"]] if "names" in archive else names
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        problem = f"the masks {path} cannot be read"
        raise InputError(problem, 'an npz file with an array "masks"', "use a file saved with --masks") from error
    if sorted(order) == sorted(names) and masks.ndim == 4 and masks.shape[0] == len(names):
        masks = masks[[order.index(name) for name in names]]
        grid = TokenGrid(masks.shape[1], masks.shape[2], masks.shape[3])
        if masks.shape[1] == length:
            return masks
        if grid.video_frames == length:
            return grid.latent_to_frames(masks, dim=1)
    problem = f"masks of shape {' x '.join(map(str, masks.shape))} in {path}"
    raise InputError(problem, f"{len(names)} characters and {length} frames", "use the masks of this video")
