"""`bya faces`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from bya_core.cli.common import optional, output, report_saved, warn
from bya_core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from bya_core.encoders.face.encoder import FaceModels, PhotoFaceEncoder


@dataclass(frozen=True)
class Faces:
    """Show the face and the crop that the released model uses of each image.

    Without the weights of its face path, the face detector of the package is used. The exit code is 1 if an image has
    no face.
    """

    images: Annotated[
        Positional[tuple[Path, ...]],
        arg(
            help="Images, or scene files for the images of their characters.",
            metavar="IMAGE ...",
            help_behavior_hint="",
        ),
    ]
    output: Annotated[Path, output("Image to save (png), one row per input.")]
    select: Annotated[Literal["largest", "most_confident"], arg(help="Which of several faces to use.")] = "largest"
    models_dir: Annotated[Path | None, optional("Folder to search for models first.")] = None

    def run(self) -> int:
        from bya_core.io.atomic import atomic_write
        from bya_core.io.inputs import note_input
        from bya_core.io.media import read_image
        from bya_core.io.outputs import check_output

        named = [item for each in self.images for item in _named_images(each)]
        for each in (*self.images, *(image for _, image in named)):
            note_input(each)
        path = check_output(self.output, (".png",), "the preview")
        if not named:
            raise InputError("no images", "at least one image or scene file", "add one")
        images = [(name, read_image(each)) for name, each in named]
        encoder = face_encoder(self.models_dir, self.select)
        rows = []
        for name, image in images:
            try:
                detected = encoder.crop(image)
            except InputError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            rows.append(detected.preview())
            warn(f"{name}: {notice}" for notice in detected.notices)
        if rows:
            with atomic_write(path) as temporary:
                _stack(rows).save(temporary)
            report_saved(path)
        return 0 if len(rows) == len(images) else 1


def face_encoder(models_dir: Path | None, select: Literal["largest", "most_confident"]) -> PhotoFaceEncoder:
    """The face encoder of the released model; where its files are missing, the networks of the package, with a notice.

    Raises:
        InputError: If `models_dir` is given and lacks the files.
    """
    from bya_core.encoders.face.encoder import FaceModels, PhotoFaceEncoder
    from bya_core.weights import official
    from bya_core.weights.cache import model_folders
    from bya_core.weights.components import FACES, RECOGNITION, VISION

    folders = [folder / "official" for folder in model_folders(models_dir)]
    folder = next((each for each in folders if (each / official.FACES).is_dir()), folders[0])
    try:
        official.check_components([FACES, RECOGNITION, VISION], folder)
    except InputError:
        if models_dir is not None:
            raise
        warn(
            [
                "The face models of the released weights are not on this machine: faces are found by BlazeFace, and "
                "the crops show the outline of the person; the released model may crop differently."
            ]
        )
        return PhotoFaceEncoder(_package_models(), select=select)
    files = (official.DETECTOR, official.PARSER, official.RECOGNIZER, official.VISION)
    return PhotoFaceEncoder(FaceModels.load(*(folder / file for file in files)), select=select)


def _package_models() -> FaceModels:
    """Networks inside the package, which detect and crop faces but do not encode them."""
    from bya_core.encoders.face.encoder import FaceModels
    from bya_core.encoders.face.mesh import FaceMesh
    from bya_core.encoders.person import PersonParser

    return FaceModels(FaceMesh(), PersonParser(), None, None)


def _named_images(path: Path) -> list[tuple[str, Path]]:
    """Names and files: one image, or those of the characters of a scene file."""
    if path.suffix.lower() != ".json":
        return [(path.name, path)]
    from bya_core.scene.schema import read_scene_file

    return [(each.name, path.parent / each.image) for each in read_scene_file(path).characters]


def _stack(rows: list[Image.Image]) -> Image.Image:
    """Images below each other on white."""
    from PIL import Image

    page = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page
