"""The command `report`: did every mouth of a finished video follow its own voice?"""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from bya_core.evaluation.report import BindingReport

NOT_BOUND = 3
"""Exit code where a mouth does not follow its own voice."""


@dataclass(frozen=True)
class Report:
    """Measure a finished video: whether each mouth follows its own voice, listeners keep still, people stay themselves.

    Ends with 3 where something is not as it should be, with 0 where all is well or cannot be told.

    Args:
        video: the video, of this or any other system.
        scene: the scene file it was made from: who is in it, and what each one says.
        out: png to write; none = beside the video, as VIDEO.binding.png.
        json: json to write; none = beside the video, as VIDEO.binding.json.
        masks: npz that `generate --masks` wrote; none = people are found in the pictures.
        people: "drawn" puppets are measured by the colour of their mouths, "real" ones by the networks that are here;
            "auto" takes those on white for drawn.
    """

    video: tyro.conf.Positional[Path]
    scene: Path
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    json: Path | None = None
    masks: Path | None = None
    people: Literal["auto", "drawn", "real"] = "auto"

    def run(self) -> int:
        from bya_core.io.atomic import AtomicFiles, check_output
        from bya_core.io.media import existing_file

        out = check_output(self.out or self.video.with_suffix(".binding.png"), (".png",), "the picture")
        json = check_output(self.json or self.video.with_suffix(".binding.json"), (".json",), "the report")
        existing_file(self.video, "the video")
        made = measure_file(self.video, existing_file(self.scene, "the scene"), self.masks, self.people)
        with AtomicFiles() as files:
            made.picture.save(files.at(out))
            files_of = {"video": str(self.video), "scene": str(self.scene)}
            figures = files_of | made.figures | {"text": made.text.splitlines()}
            files.at(json).write_text(jsonlib.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(made.text)
        passed = {True: "passed", False: "NOT PASSED", None: "cannot be told"}[made.figures["passed"]]
        print(f"binding: {passed}\nwrote {out}\nwrote {json}")
        return NOT_BOUND if made.figures["passed"] is False else 0


def measure_file(
    video: Path,
    scene: Path,
    masks: Path | None = None,
    people: Literal["auto", "drawn", "real"] = "auto",
    tools: Any = None,
) -> BindingReport:
    """The binding report of a video file.

    Args:
        tools: `binding_faces.FaceTools` that are loaded already; None = those that are here.

    Raises:
        InputError: a video, scene or masks that cannot be used, or do not fit each other.
    """
    import torch

    from bya_core.encoders.domains import Domain, guess_domain, load_meter
    from bya_core.evaluation.report import FaceFigures, binding_report
    from bya_core.io.media import read_image, read_video
    from bya_core.scene.loader import matrix_of
    from bya_core.scene.schema import read_scene_file
    from bya_core.scene.speech import read_speeches

    given = read_scene_file(scene)
    names = [character.name for character in given.characters]
    portraits = [read_image(scene.parent / character.image) for character in given.characters]
    speeches = read_speeches(given, scene.parent).speeches
    matrix = matrix_of(given.audio_character_matrix, len(names))
    frames, fps = read_video(video)
    domains: dict[str, Domain] = {"drawn": "puppets", "real": "photos"}
    meter = load_meter(domains[people] if people in domains else guess_domain(portraits))
    where = None if masks is None else _read_masks(masks, names, len(frames))
    faces = FaceFigures()
    if meter is not None:
        where = meter.segment(frames, portraits) if where is None else where
    else:
        from bya_core.evaluation.face_report import FaceTools, look, regions_of

        size = (int(frames.shape[1]), int(frames.shape[2]))
        regions = None if where is None else torch.nn.functional.interpolate(where, size=size).numpy() > 0.5
        faces = look(
            frames, speeches, fps, portraits, tools or FaceTools.here(), matrix=matrix, masks=regions, names=names
        )
        if where is None and faces.boxes is not None:
            where = torch.from_numpy(regions_of(faces.boxes, *size)).float()
    if given.audio_character_matrix == "auto":
        said = "The scene leaves open which voice moves whom: measured as if each moved its own character."
        faces = replace(faces, notices=(*faces.notices, said))
    if where is None:
        where = torch.zeros(len(names), len(frames), 8, 8)
    return binding_report(
        frames,
        where,
        speeches,
        fps,
        names,
        matrix=matrix,
        meter=meter,
        portraits=None if meter is None else portraits,
        faces=faces,
    )


def _read_masks(path: Path, names: list[str], length: int) -> Tensor:
    """Masks that `generate --masks` wrote, or of one's own: [N, F, h, w], in the order of `names`."""
    import zlib
    from zipfile import BadZipFile

    import numpy as np
    import torch

    from bya_core.errors import InputError
    from bya_core.grid import TokenGrid
    from bya_core.io.media import existing_file

    try:
        with np.load(existing_file(path, "the masks"), allow_pickle=False) as archive:
            masks = torch.from_numpy(np.asarray(archive["masks"], dtype=np.float32))
            named = [str(name) for name in archive["names"]] if "names" in archive else names
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        came = f"the masks {path} cannot be read"
        raise InputError(came, 'an npz file with an array "masks"', "give what generate --masks wrote") from error
    if sorted(named) == sorted(names) and masks.ndim == 4 and masks.shape[0] == len(names):
        masks = masks[[named.index(name) for name in names]]
        grid = TokenGrid(masks.shape[1], masks.shape[2], masks.shape[3])
        if masks.shape[1] == length:
            return masks
        if grid.video_frames == length:
            return grid.latent_to_frames(masks, dim=1)
    came = f"masks of shape {' x '.join(map(str, masks.shape))} in {path}"
    raise InputError(came, f"{len(names)} characters over {length} frames", "give those of this video and scene")
