"""Masks as small temporary files for the viewer of the page (web/js/lib/masks.mjs)."""

from __future__ import annotations

import hashlib
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from . import host, types

Entry = dict[str, Any]
STILL_SIDE = 768  # pixels; a larger first frame is reduced


def masks_entry(value: types.RoutingValue) -> Entry:
    """What the viewer shows: masks at the resolution of the token grid, and the pictures below them.

    Returns:
        The file of the masks (one gray tile per character and latent frame), its layout, names and colors of the
        characters, times, and the files of the pictures: `still` (the first frame) and `preview` (one tile per latent
        frame), None where there is none.
    """
    from bya_core.io.overlay import character_color, tile_sheet
    from bya_core.pipelines.interactive import still_frame

    masks, grid, scene = value.routing.masks, value.prepared.grid, value.prepared.scene
    sheet, columns = tile_sheet((masks.float() * 255).round().clamp(0, 255).to(torch.uint8).flatten(0, 1))
    still = None if scene.first_frame is None else still_frame(scene.first_frame, grid)[0]
    return _file("masks", Image.fromarray(sheet)) | {
        "columns": columns,
        "grid": list(grid.shape),
        "size": list(grid.pixels),
        "names": value.names,
        "colors": [list(character_color(index)) for index in range(len(value.names))],
        "fps": scene.fps,
        "time_factor": grid.time_factor,
        "start": value.latent_start,
        "still": None if still is None else _picture("first_frame", still),
        "preview": None if value.preview is None else _sheet(value.preview),
    }


def _picture(name: str, pixels: Tensor) -> Entry:
    picture = Image.fromarray(pixels.numpy())
    picture.thumbnail((STILL_SIDE, STILL_SIDE))
    return _file(name, picture)


def _sheet(frames: Tensor) -> Entry:
    from bya_core.io.overlay import tile_sheet

    sheet, columns = tile_sheet(frames)
    return _file("preview", Image.fromarray(sheet)) | {"columns": columns, "frames": len(frames)}


def _file(name: str, picture: Image.Image) -> Entry:
    """Save a picture once per content; ComfyUI empties the folder at startup."""
    stream = BytesIO()
    picture.save(stream, "PNG")
    content = stream.getvalue()
    path = host.temporary_folder() / f"{name}_{hashlib.sha256(content).hexdigest()[:16]}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"filename": path.name, "subfolder": path.parent.name, "type": "temp"}
