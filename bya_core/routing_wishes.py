"""What a person asks of the router, as plain values; and what comes of it, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bya_core.cast import moved_on, parse_matrix
from bya_core.checkpoints.bundle import ModelBundle
from bya_core.config import Bystanders, ProbeConfig, Region, RouterMode, RoutingConfig, SegmenterName
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.mask_images import character_index, from_images, one_character
from bya_core.pipeline import Video
from bya_core.report import mask_figures
from bya_core.routing import Routing
from bya_core.scene import Scene

OVERRIDE = ("override_character", "blend", "start", "end")


@dataclass(frozen=True)
class RouterWishes:
    """How a scene's masks are found and its voices bound.

    Args:
        binding: "as given" = by `matrix`, or each voice its own character; "swapped" = that, moved on by one character;
            "auto" = voices are matched to faces.
        matrix: see `bya_core.cast.parse_matrix`.
        probe_steps: 0 = until the masks settle.
        settled, probe_most: see `ProbeConfig`.
        mode, region, segmenter, static, bystanders: see `RoutingConfig`.
    """

    mode: RouterMode = "intra"
    binding: Literal["as given", "swapped", "auto"] = "as given"
    matrix: str = ""
    probe_steps: int = 0
    settled: float = ProbeConfig.settled
    probe_most: float = ProbeConfig.most
    region: Region = "head"
    segmenter: SegmenterName = "self"
    static: bool = False
    bystanders: Bystanders = "model"


def routed_scene(scene: Scene, wishes: RouterWishes, masks: Tensor | None, bundle: ModelBundle) -> Scene:
    """The scene with the router that is wished for.

    Args:
        masks: given mask pictures, see `bya_core.mask_images.from_images`; None = none.

    Raises:
        InputError: masks or a matrix that do not fit the scene; a matrix beside automatic binding.
    """
    count = len(scene.characters)
    matrix = parse_matrix(wishes.matrix, len(scene.speeches), count)
    if wishes.binding == "auto" and matrix is not None:
        raise InputError("a matrix and automatic binding", "one of the two", "empty the matrix, or bind as given")
    if wishes.binding == "swapped":
        matrix = moved_on(scene.matrix if matrix is None else matrix)
    grid = bundle.grid(scene.num_frames, scene.height, scene.width)
    return replace(
        scene,
        audio_character_matrix=scene.audio_character_matrix if matrix is None else matrix,
        bind="auto" if wishes.binding == "auto" else "given",
        forced_masks=None if masks is None else from_images(masks, grid, count, "the masks of the router"),
        routing=RoutingConfig(
            mode=wishes.mode,
            probe=ProbeConfig(wishes.settled, wishes.probe_most, wishes.probe_steps or None),
            region=wishes.region,
            segmenter=wishes.segmenter,
            static=wishes.static,
            bystanders=wishes.bystanders,
        ),
    )


def overridden(
    routing: Routing,
    mask: Tensor,
    grid: TokenGrid,
    names: Sequence[str],
    *,
    override_character: str,
    blend: float,
    start: float,
    end: float,
) -> Routing:
    """One character's mask drawn towards a given one.

    Args:
        mask: pictures [B, H, W] of one character, see `bya_core.mask_images.from_images`.

    Raises:
        InputError: nobody of that name or number, another number of pictures, an end before the start.
    """
    index = character_index(override_character, names)
    chosen, given = one_character(routing.masks, index)
    given[index] = from_images(mask, grid, 1, f"the mask of {names[index]}")[0]
    span = torch.tensor([[start, end]]).expand(len(names), 2)
    return routing.override(given, chosen * blend, span)


def describe(names: Sequence[str], routing: Routing) -> str:
    """One line per character, then notices."""
    figures = mask_figures(routing.masks)
    lines = [
        f"{name}: {100 * figure.coverage:.0f} % of the picture, confidence {float(sure):.2f}"
        for name, figure, sure in zip(names, figures, routing.confidence, strict=True)
    ]
    lines += [f"{names[n]} hears {_heard(routing.matrix[:, n], names)}" for n in range(len(names))]
    lines.append(f"masks by the {routing.origin} router, {routing.calls} transformer calls so far")
    return "\n".join([*lines, *(f"note: {notice}" for notice in routing.notices)])


def _heard(column: Tensor, names: Sequence[str]) -> str:
    """Whose voices, and how strongly where not fully: column [M] of the audio-character matrix."""
    owners = [*names, *(f"voice {i + 1}" for i in range(len(names), len(column)))]
    parts = [
        f"the voice of {owner}" + ("" if weight == 1 else f" at {weight:.2f}")
        for owner, weight in zip(owners, column.tolist(), strict=False)
        if weight > 0
    ]
    return " and ".join(parts) or "nobody"


def describe_video(names: Sequence[str], video: Video) -> str:
    """One line per character, the seconds of each part, then notices."""
    lines = [
        f"{name}: {100 * figure.coverage:.0f} % of the picture, confidence {figure.confidence:.2f}"
        for name, figure in zip(names, mask_figures(video.masks), strict=True)
    ]
    lines += [f"{part}: {seconds:.1f} s" for part, seconds in video.seconds.items()]
    return "\n".join([*lines, *(f"note: {notice}" for notice in video.notices)])
