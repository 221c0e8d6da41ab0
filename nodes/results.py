"""What the nodes show on themselves: the `ui` values that web/js/lib draws.

All keys begin with `bya_`, so that ComfyUI's page draws none of them itself; every value is a list. Files lie in the
temporary folder of ComfyUI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from comfy_api.latest import io, ui

from . import convert, host, types
from .mask_view import masks_entry

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from bya_core.grid import TokenGrid
    from bya_core.pipelines.preflight import Finding
    from bya_core.scene.types import Speech

MAX_FRAMES, MAX_SIDE, FRAME_MS = 16, 480, 160  # of an overlay
PEAKS, SAMPLES = 240, 2000  # columns of a waveform, and samples that are looked at in each

Shown = dict[str, list[Any]]


def notices(sentences: Sequence[str], known: Sequence[str] = ()) -> Shown:
    """Show notices on the node and in the log, without those that are `known` from a node before."""
    new = [sentence for sentence in sentences if sentence not in known]
    host.show_notices(new)
    return {"bya_notices": new}


def text(lines: str) -> Shown:
    """A report in words."""
    return {"bya_text": [lines]}


def picture(image: Image.Image) -> Shown:
    """One image, drawn by ComfyUI. Only for nodes that send no live previews, which would hide it."""
    return ui.PreviewImage(convert.from_pil(image)).as_dict()


def findings(found: Sequence[Finding]) -> Shown:
    """The lines of a check."""
    return {"bya_findings": [asdict(finding) for finding in found]}


def routing(value: types.RoutingValue, shown: types.RoutingValue, known: Sequence[str]) -> io.NodeOutput:
    """Routing, masks and report; the masks of `shown` and notices that are not `known` are shown on the node."""
    from bya_core.pipelines.interactive import routing_notices, routing_summary

    scene = value.prepared.scene
    summary = routing_summary(scene, value.routing, (value.number, value.windows))
    displayed = {"bya_masks": [masks_entry(shown)], **notices(routing_notices(scene, value.routing), known)}
    return io.NodeOutput(value, value.mask_images, summary, ui=displayed)


def overlay(value: types.RoutingValue, masks: Tensor, grid: TokenGrid, frames: Tensor | None = None) -> Shown:
    """Character masks over the first frame or over video frames, as a short animation.

    Args:
        value: Names and first frame.
        masks: [N, T, h, w].
        grid: Their token grid.
        frames: IMAGE of all video frames, or of one; None is the first frame of the scene, or gray.
    """
    from PIL import Image

    from bya_core.pipelines.interactive import overlay_images, still_frame

    if frames is None:
        frames = convert.images(still_frame(value.prepared.scene.first_frame, grid))
    pictures = []
    for latent in np.unique(np.linspace(0, grid.frames - 1, MAX_FRAMES).round().astype(int)):
        index = min(int(latent) * grid.time_factor, frames.shape[0] - 1)
        under = convert.to_uint8(frames[index : index + 1])
        one = overlay_images(masks[:, latent : latent + 1], replace(grid, frames=1), under, value.names)
        pictures.append(Image.fromarray(one[0].numpy()))
        pictures[-1].thumbnail((MAX_SIDE, MAX_SIDE))

    path, entry = host.temporary_file("overlay", ".webp")
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0, quality=70)
    return {"bya_overlay": [entry]}


def waveform(speech: Speech, spans: Sequence[tuple[float, float]]) -> Shown:
    """The loudness of a recording over time, and where it contains speech.

    Args:
        speech: The recording.
        spans: Seconds of the video.
    """
    count = speech.waveform.shape[-1]
    edges = np.linspace(0, count, min(PEAKS, count) + 1).astype(int)
    step = 1 + count // (PEAKS * SAMPLES)
    parts = [speech.waveform[:, start:stop:step] for start, stop in pairwise(edges)]
    peaks = np.array([float(part.abs().max()) for part in parts]) * 10 ** (speech.gain / 20)
    return {
        "bya_waveform": [
            {
                "peaks": np.round(peaks, 3).tolist(),
                "start": speech.offset,
                "end": speech.end,
                "spans": [[round(start, 2), round(end, 2)] for start, end in spans],
            }
        ]
    }
