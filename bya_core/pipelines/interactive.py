"""Routing and mask edits from flat values, as the nodes have them, and their results as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from bya_core.config import BackgroundAudio, ProbeConfig, RefineConfig, Region, RouterConfig, RouterMode, Segmenter
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.masks import MaskControl, mask_statistics
from bya_core.pipelines.generate import Video
from bya_core.pipelines.mask_images import character_index, from_images
from bya_core.progress import ProgressCallback
from bya_core.routing import Routing
from bya_core.routing.audio_assignment import bound
from bya_core.scene.compose import parse_matrix
from bya_core.scene.types import Scene, moved_on, prompt_at
from bya_core.weights.bundle import ModelBundle


@dataclass(frozen=True)
class RoutingRequest:
    """Options of the router as flat values, as the nodes have them.

    Args:
        mode, region, segmenter, background_audio: See `RouterConfig`.
        audio_assignment: "given" uses `audio_character_matrix`, or assigns each speech to its own character; "swapped"
            shifts that by one character; "auto" matches voices to faces.
        audio_character_matrix: See `bya_core.scene.compose.parse_matrix`.
        probe_steps: `ProbeConfig.steps`; 0 runs until the masks converge.
        threshold, max_percent, num_seeds: See `ProbeConfig`.
        static_masks: See `RouterConfig.static`.
    """

    mode: RouterMode = "intra"
    audio_assignment: Literal["given", "swapped", "auto"] = "given"
    audio_character_matrix: str = ""
    probe_steps: int = 0
    threshold: float = ProbeConfig.threshold
    max_percent: float = ProbeConfig.max_fraction
    region: Region = "head"
    segmenter: Segmenter = "self"
    static_masks: bool = False
    background_audio: BackgroundAudio = "model"
    num_seeds: int = ProbeConfig.num_seeds

    def config(self) -> RouterConfig:
        """The options without the audio assignment."""
        probe = ProbeConfig(self.threshold, self.max_percent, self.probe_steps or None, self.num_seeds)
        return RouterConfig(
            mode=self.mode,
            probe=probe,
            region=self.region,
            segmenter=self.segmenter,
            static=self.static_masks,
            background_audio=self.background_audio,
        )


def routed_scene(scene: Scene, request: RoutingRequest, masks: Tensor | None, bundle: ModelBundle) -> Scene:
    """The scene with these router options, and its audio-character matrix resolved from all of the speech.

    Args:
        masks: Given mask images, see `bya_core.pipelines.mask_images.from_images`; None = none.

    Raises:
        InputError: Masks or a matrix that do not fit the scene, or a matrix with automatic assignment.
    """
    count = len(scene.characters)
    matrix = parse_matrix(request.audio_character_matrix, len(scene.speeches), count)
    if request.audio_assignment == "auto" and matrix is not None:
        came = "an audio-character matrix with automatic audio assignment"
        raise InputError(came, "one of the two", 'clear the matrix, or set audio_assignment to "given"')
    if request.audio_assignment == "swapped":
        matrix = moved_on(scene.matrix if matrix is None else matrix)
    grid = bundle.grid(scene.num_frames, scene.height, scene.width)
    routed = replace(
        scene,
        audio_character_matrix=scene.audio_character_matrix if matrix is None else matrix,
        bind="auto" if request.audio_assignment == "auto" else "given",
        mask_control=None if masks is None else MaskControl(from_images(masks, grid, count, "the masks of the router")),
        routing=request.config(),
    )
    return bound(routed, bundle)


def first_window(scene: Scene, bundle: ModelBundle) -> Scene:
    """The part of a scene that is made first: all of it, where it is no longer than a window."""
    from bya_core.pipelines.long_video import plan

    window = plan(scene, bundle)[0]
    if window.frames == scene.num_frames:
        return scene
    control = scene.mask_control
    return replace(
        scene,
        prompt=prompt_at(scene, 0.0, window.frames / scene.fps),
        prompts=(),
        num_frames=window.frames,
        mask_control=None if control is None else control.latent_frames(window.latent),
    )


@dataclass(frozen=True)
class Edit:
    """An edit of the masks.

    Args:
        refine: How they are refined; None = not at all.
        restart: Start from noise, so that edits apply to all steps.
        mask: Mask images [B, H, W] of one character, see `bya_core.pipelines.mask_images.from_images`; None = none.
        character: Its name, or its number from 1.
        strength, start_percent, end_percent: See `MaskControl`.
    """

    refine: RefineConfig | None = None
    restart: bool = False
    mask: Tensor | None = None
    character: str = "1"
    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0


def edited(
    routing: Routing, whole: Scene | None, grid: TokenGrid, edit: Edit, names: Sequence[str]
) -> tuple[Routing, Scene | None]:
    """Masks after an edit; where the video is made in windows, also the scene that tells each of them of it.

    Args:
        routing: of the scene, or of its first window.
        whole: the scene where it is longer than a window.
        grid: of `routing`.

    Raises:
        InputError: nobody of that name or number, another number of pictures, an end before the start.
    """
    if edit.refine is not None:
        from bya_core.routing.refine import refine

        routing = refine(routing, edit.refine)
        whole = whole and replace(whole, routing=replace(whole.routing, refine=edit.refine))
    if edit.mask is not None:
        index = character_index(edit.character, names)
        what = f"the mask of {names[index]}"
        if whole is not None:
            every = replace(grid, frames=(whole.num_frames - 1) // grid.time_factor + 1)
            whole = _with_override(whole, index, from_images(edit.mask, every, 1, what)[0], edit)
            given = whole.mask_control.masks[index, : grid.frames]  # type: ignore[union-attr]  # just given
        else:
            given = from_images(edit.mask, grid, 1, what)[0]
        masks, strength = torch.zeros_like(routing.masks), torch.zeros(len(names))
        masks[index], strength[index] = given, edit.strength
        routing = routing.override(
            MaskControl(masks, strength, torch.tensor(edit.start_percent), torch.tensor(edit.end_percent))
        )
    return (routing.from_noise() if edit.restart else routing), whole


def _with_override(scene: Scene, index: int, mask: Tensor, edit: Edit) -> Scene:
    """The scene with one character's mask [T, h, w] given."""
    count, before = len(scene.characters), scene.mask_control
    if before is None:
        before = MaskControl(torch.zeros(count, *mask.shape), torch.tensor(0.0))
    values = [part.clone() for part in (before.masks, before.strength, before.start_percent, before.end_percent)]
    for value, new in zip(values, (mask, edit.strength, edit.start_percent, edit.end_percent), strict=True):
        value[index] = new
    return replace(scene, mask_control=MaskControl(*values))


def sample_windows(scene: Scene, bundle: ModelBundle, folder: Path, callback: ProgressCallback | None = None) -> Video:
    """A video longer than a window, in memory. Stopped and asked for again, it goes on with the windows it has.

    Args:
        folder: finished windows wait there, each scene in a folder of its own, until the video is complete.
    """
    from bya_core.pipelines.long_video import generate_long
    from bya_core.pipelines.window_files import fingerprint

    made = generate_long(scene, bundle, folder / fingerprint(scene, bundle)[:16], callback)
    video = Video(
        torch.stack(list(made.frames)), made.masks, made.grid, made.audio, made.matrix, made.notices, made.seconds
    )
    made.files.remove(len(made.windows))
    return video


def describe(scene: Scene, routing: Routing, first_window: bool = False) -> str:
    """One line per character, then notices.

    Args:
        first_window: the routing is that of the first window only.
    """
    names = [character.name for character in scene.characters]
    lines = [
        f"{name}: {100 * figure.coverage:.0f} % of the picture, confidence {float(sure):.2f}"
        for name, figure, sure in zip(names, mask_statistics(routing.masks), routing.confidence, strict=True)
    ]
    lines += [f"{name} hears {_heard(routing.matrix[:, n], names)}" for n, name in enumerate(names)]
    lines.append(f"masks by the {routing.origin} router, {routing.calls} transformer calls so far")
    notices = [*scene.notices, *routing.notices]
    if first_window:
        notices.append("These are the masks of the first window; the sampler finds those of each window in turn.")
    return "\n".join([*lines, *(f"note: {notice}" for notice in dict.fromkeys(notices))])


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
        for name, figure in zip(names, mask_statistics(video.masks), strict=True)
    ]
    lines += [f"{part}: {seconds:.1f} s" for part, seconds in video.seconds.items()]
    return "\n".join([*lines, *(f"note: {notice}" for notice in video.notices)])
