"""The command `faces`: which face the released model would take from a picture, and what it keeps of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from bya_core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from bya_core.encoders.face.encoder import PhotoFaceEncoder


@dataclass(frozen=True)
class Faces:
    """Show which face the released model takes from each picture and what it keeps of it, before a long run.

    Args:
        pictures: pictures; of a scene file, those of its characters.
        out: png to write: one row per picture, all faces framed, the chosen one boldly, and beside it what is kept.
        select: which of several faces counts.
        models_dir: look for the face networks here first.
    """

    pictures: tyro.conf.Positional[tuple[Path, ...]]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    select: Literal["largest", "most_confident"] = "largest"
    models_dir: Path | None = None

    def run(self) -> int:
        from bya_core.io.atomic import AtomicFiles, check_output
        from bya_core.io.media import read_image

        out = check_output(self.out, (".png",), "the picture of the faces")
        named = [item for path in self.pictures for item in named_pictures(path)]
        if not named:
            raise InputError("no pictures", "at least one picture or scene file", "name one")
        images = [(name, read_image(path)) for name, path in named]
        encoder = face_encoder(self.models_dir, self.select)
        rows, without = [], 0
        for name, image in images:
            try:
                look = encoder.crop(image)
            except InputError as error:
                without += 1
                print(f"{name}: {error}", file=sys.stderr)
                continue
            rows.append(look.preview())
            for notice in look.notices:
                print(f"warning: {name}: {notice}", file=sys.stderr)
        if rows:
            with AtomicFiles() as files:
                stacked(rows).save(files.at(out))
            print(f"wrote {out}")
        return 1 if without else 0


def named_pictures(path: Path) -> list[tuple[str, Path]]:
    """(what to call it, file): one picture, or those of the characters of a scene file."""
    if path.suffix.lower() != ".json":
        return [(path.name, path)]
    from bya_core.scene.schema import read_scene_file

    return [(each.name, path.parent / each.image) for each in read_scene_file(path).characters]


def face_encoder(models_dir: Path | None, select: Literal["largest", "most_confident"]) -> PhotoFaceEncoder:
    """The face path of the released model alone. Raises InputError where its files are not here."""
    from bya_core.encoders.face.encoder import FaceModels, PhotoFaceEncoder
    from bya_core.weights import official
    from bya_core.weights.cache import model_folders
    from bya_core.weights.components import FACES, RECOGNITION, VISION

    folders = [folder / "official" for folder in model_folders(models_dir)]
    folder = next((each for each in folders if (each / official.FACES).is_dir()), folders[0])
    official.check_components([FACES, RECOGNITION, VISION], folder)
    files = (official.DETECTOR, official.PARSER, official.RECOGNIZER, official.VISION)
    return PhotoFaceEncoder(FaceModels.load(*(folder / file for file in files)), select=select)


def stacked(rows: list[Image.Image]) -> Image.Image:
    """Pictures under each other, on white."""
    from PIL import Image

    page = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page
