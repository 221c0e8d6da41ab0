"""The binding report of a video file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bya_core.config import MAX_NAME
from bya_core.encoders.domains import Domain, guess_domain, load_meter
from bya_core.encoders.face.tracking import track_faces
from bya_core.errors import InputError, one_line
from bya_core.evaluation.face_report import FaceMetrics, FaceTools, measure_faces
from bya_core.evaluation.report import BindingReport, binding_report
from bya_core.grid import TokenGrid
from bya_core.io.media import Video, read_frames, read_image, read_recording
from bya_core.scene.loader import matrix_of
from bya_core.scene.mask_archive import open_archive
from bya_core.scene.mask_files import select_characters
from bya_core.scene.schema import read_scene_file
from bya_core.scene.speech import read_speeches
from bya_core.scene.types import Speech

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
        masks: npz file with the character masks; None to find the characters in the video by likeness.
        people: "drawn" puppets, "real" people, or "auto" to detect which.
        tools: Loaded networks; None to load those that are available.

    Raises:
        InputError: A video, scene or masks that cannot be read or do not match.
    """
    scene_file = read_scene_file(scene)
    names = [character.name for character in scene_file.characters]
    portraits = [read_image(scene.parent / character.image) for character in scene_file.characters]
    matrix = matrix_of(scene_file.audio_character_matrix, len(names))
    automatic = scene_file.audio_character_matrix == "auto"
    read = read_frames(video)
    frames, fps = read.frames, read.fps
    audio = read_speeches(scene_file, scene.parent, len(frames) / fps)
    speeches = audio.speeches
    if len(frames) < 2:
        raise InputError(f"the video {video} has 1 frame", "a video of several frames", "choose another file")
    meter = load_meter(DOMAINS.get(people) or guess_domain(portraits))
    regions, notices = None, [*read.notices, *audio.notices]
    if masks is not None:
        regions, more = read_video_masks(masks, names, read)
        notices += more
    if meter is not None:
        regions = meter.segment(frames, portraits) if regions is None else regions
        if automatic:
            notices.append("The scene matches voices automatically; measured as if each drives its own character.")
        faces = FaceMetrics(notices=tuple(notices))
    else:
        pixels = None if regions is None else regions.numpy() > 0.5
        wanted: Tensor | Literal["match"] | None = "match" if automatic else matrix
        faces = measure_faces(
            frames, speeches, fps, portraits, tools or FaceTools.load(), matrix=wanted, masks=pixels, names=names
        )
        if automatic:
            notices.append("The scene matches voices automatically; voices were matched to mouths by lip movement.")
            matrix = faces.matrix
        faces = replace(faces, notices=(*notices, *faces.notices))
    return binding_report(
        frames,
        regions,
        speeches,
        fps,
        names,
        matrix=matrix,
        meter=meter,
        portraits=None if meter is None else portraits,
        faces=faces,
    )


def measure_voices(video: Path, voices: Sequence[Path]) -> BindingReport:
    """Measure which mouth of a video follows which voice, without a scene.

    Args:
        video: Video file with real people, of any system.
        voices: One recording per voice, which starts with the video.

    Raises:
        InputError: A file that cannot be read, or no face in the video.
    """
    recordings = [read_recording(path, what="the voice") for path in voices]
    speeches = [Speech(each.waveform, each.sample_rate) for each in recordings]
    read = read_frames(video)
    notices = [*read.notices, *(notice for each in recordings for notice in each.notices)]
    names = _distinct([one_line(path.stem, MAX_NAME) for path in voices])
    return measure_frames(read.frames, speeches, read.fps, names, notices, str(video))


def measure_frames(
    frames: Tensor,
    speeches: Sequence[Speech],
    fps: float,
    voices: Sequence[str],
    notices: Sequence[str] = (),
    what: str = "the video",
) -> BindingReport:
    """As `measure_voices`, of frames and recordings in memory.

    Args:
        frames: uint8 [F, H, W, 3].
        speeches: M voices.
        fps: Frames per second.
        voices: Names of the voices.
        notices: For the report.
        what: Name of the video for messages.

    Raises:
        InputError: A video of one frame, or without a face.
    """
    if len(frames) < 2:
        raise InputError(f"{what} has 1 frame", "a video of several frames", "choose another one")
    tools = FaceTools.load()
    tracks = track_faces(frames.numpy(), tools.mesh)
    if not tracks:
        raise InputError(f"no face in {what}", "a video with faces of at least 24 pixels", "check the video")
    faces = measure_faces(frames, speeches, fps, None, tools, matrix="match", tracks=tracks)
    numbered = "Faces are numbered from left to right; voices were matched to them by lip movement."
    return binding_report(
        frames,
        None,
        speeches,
        fps,
        [f"face {k + 1}" for k in range(len(tracks))],
        faces=replace(faces, notices=(*notices, numbered, *faces.notices)),
        voices=voices,
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number where they repeat."""
    return [f"{name} ({names[: k + 1].count(name)})" if names.count(name) > 1 else name for k, name in enumerate(names)]


def read_video_masks(path: Path, names: list[str], video: Video) -> tuple[Tensor, list[str]]:
    """Masks of an npz file for the F frames of a video, [N, F, h, w] in the order of `names`, and notices.

    Raises:
        InputError: A file that is invalid or does not match.
    """
    length = len(video.frames)
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
    if frames == video.num_pictures:  # one mask per picture of a video with a variable rate
        return masks[:, video.pictures], notices
    if grid.video_frames == length and frames == grid.frames:
        return grid.latent_to_frames(masks, dim=1), notices
    expected = f"1, {grid.frames} (latent) or {length} (video)"
    raise InputError(f"{what} with {frames} frames", expected, "use the masks of this video")
