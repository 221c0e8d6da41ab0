"""Steps for interactive tools such as the nodes: set the router, edit its masks, sample, and summarize the results.

Masks are exchanged as batches of images, all images of the first character first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from bya_core.config import RefineConfig, RouterConfig
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.media import Video as Footage
from bya_core.io.media import fit_image
from bya_core.io.overlay import render_overlay
from bya_core.masks import MaskControl, mask_notices, mask_statistics
from bya_core.pipelines.assignment import with_audio_assignment
from bya_core.pipelines.long_video import PreparedWindow, WindowRouting, generate_long, plan, prepare_window
from bya_core.pipelines.preview import preview_frames, scene_colors
from bya_core.pipelines.sample import Video
from bya_core.pipelines.window_files import fingerprint
from bya_core.progress import ProgressCallback, ProgressTracker
from bya_core.routing import Routing
from bya_core.routing.refine import refine
from bya_core.routing.route import route
from bya_core.scene.compose import parse_matrix
from bya_core.scene.mask_files import empty_notices, resize_masks
from bya_core.scene.types import Scene, rotate_speeches
from bya_core.weights.bundle import ModelBundle

AudioAssignment = Literal["given", "swapped", "auto", "matrix"]


def set_router(
    scene: Scene,
    router: RouterConfig,
    model: ModelBundle,
    audio_assignment: AudioAssignment = "given",
    audio_character_matrix: str = "",
    masks: Tensor | None = None,
    reference_video: Footage | None = None,
) -> Scene:
    """The scene with another router and audio-character matrix.

    Args:
        scene: the scene.
        router: where the masks come from.
        model: the model.
        audio_assignment: "given" is the matrix of the scene, by default each speech for its own character; "swapped"
            shifts that by one character; "auto" matches voices to faces; "matrix" is the following one.
        audio_character_matrix: see `bya_core.scene.compose.parse_matrix`; only used with "matrix".
        masks: mask override as images, see `images_to_masks`; None = none.
        reference_video: for "auto", a video in which the characters say the speeches; None = that of the scene.

    Raises:
        InputError: masks or matrix do not fit the scene.
    """
    count = len(scene.characters)
    matrix = None
    if audio_assignment == "matrix":
        matrix = parse_matrix(audio_character_matrix, len(scene.speeches), count)
    reference = reference_video or (scene.reference_video if audio_assignment == "auto" else None)
    if audio_assignment == "swapped":
        matrix = rotate_speeches(scene.matrix)
    grid, notices = model.grid(scene.num_frames, scene.height, scene.width), scene.notices
    tokens = None if masks is None else images_to_masks(masks, grid, count)
    if tokens is not None:
        notices = (*notices, *empty_notices(tokens, scene.names))
    scene = replace(
        scene,
        audio_character_matrix=scene.audio_character_matrix if matrix is None else matrix,
        bind="auto" if audio_assignment == "auto" else "given",
        reference_video=reference,
        mask_control=None if tokens is None else MaskControl(tokens),
        routing=router,
        notices=notices,
    )
    return with_audio_assignment(scene, model)


def first_window(scene: Scene, model: ModelBundle) -> Scene:
    """A scene as long as the first window, such as to estimate memory; the scene itself if it is one window."""
    window = plan(scene, model)[0]
    if window.frames == scene.num_frames:
        return scene
    control = scene.mask_control and scene.mask_control.latent_frames(window.latent)
    return replace(scene, prompts=(), num_frames=window.frames, mask_control=control)


def probe_window(
    scene: Scene, model: ModelBundle, number: int, folder: Path, callback: ProgressCallback | None = None
) -> tuple[PreparedWindow, Routing]:
    """Encode a window of a scene of any length and predict its masks.

    Args:
        scene: the scene.
        model: the model.
        number: of the window, from 1; the windows before it are generated.
        folder: for the windows, in a subfolder per scene; `sample_windows` reuses them.
        callback: as in `generate`.

    Raises:
        InputError: no such window, or as `generate` does.
        Cancelled: `callback` returned False; finished windows are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    window = prepare_window(scene, model, number, _folder_of(scene, model, folder), callback)
    return window, route(window.prepared, model, ProgressTracker(callback))


def _folder_of(scene: Scene, model: ModelBundle, folder: Path) -> Path:
    return folder / fingerprint(scene, model)[:16]


def routing_preview(routing: Routing, scene: Scene, model: ModelBundle) -> Tensor | None:
    """Predicted latent frames of a partial run in colors: uint8 [T, H, W, 3]; None if nothing was denoised."""
    state = routing.state
    if state is None or state.previous_x0 is None:
        return None
    return preview_frames(state.previous_x0, scene_colors(model, scene))


@dataclass(frozen=True)
class MaskEdit:
    """An edit of the masks of a router.

    Args:
        refine: refinement of all masks; None = none.
        restart: discard the partially denoised latents, so that the masks apply to all steps.
        mask: override for the mask of one character as images [B, H, W], see `images_to_masks`; None = none.
        character: name or number (from 1) of that character.
        strength: of the override; 0 = none, 1 = only the override.
        start_percent, end_percent: fraction of the steps in which the override applies.
    """

    refine: RefineConfig | None = None
    restart: bool = False
    mask: Tensor | None = None
    character: str = "1"
    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0


def edit_masks(
    routing: Routing,
    long_scene: Scene | None,
    grid: TokenGrid,
    edit: MaskEdit,
    names: Sequence[str],
    latent: slice = slice(0, None),
) -> tuple[Routing, Scene | None]:
    """Apply an edit to the routing of a scene and, for a long video, to the scene of which all windows are generated.

    Args:
        routing: of the scene, or of one of its windows.
        long_scene: the scene if it is longer than one window, else None.
        grid: token grid of `routing`.
        edit: what to change. A mask with as many images as the window has frames changes this window only.
        names: of the characters.
        latent: latent frames of the window in the video.

    Raises:
        InputError: unknown character, wrong number of images, or an end before the start.
    """
    if edit.refine is not None:
        routing = refine(routing, edit.refine)
        if long_scene is not None:
            long_scene = replace(long_scene, routing=replace(long_scene.routing, refine=edit.refine))
    if edit.mask is not None:
        index = character_index(edit.character, names)
        what, whole = f"the mask of {names[index]}", grid
        if long_scene is not None and edit.mask.shape[0] not in (grid.frames, grid.video_frames):
            whole = replace(grid, frames=(long_scene.num_frames - 1) // grid.time_factor + 1)
        mask = images_to_masks(edit.mask, whole, 1, what)[0]
        if edit.strength > 0:
            empty_notices(mask[None], names[index : index + 1], "the mask")  # raises if it is black
        if long_scene is not None and whole is not grid:
            long_scene = replace(long_scene, mask_control=_with_override(long_scene, index, mask, edit))
        masks, strength = torch.zeros_like(routing.masks), torch.zeros(len(names))
        masks[index], strength[index] = (mask if whole is grid else mask[latent]), edit.strength
        start, end = torch.tensor(edit.start_percent), torch.tensor(edit.end_percent)
        routing = routing.override(MaskControl(masks, strength, start, end))
    return (routing.from_noise() if edit.restart else routing), long_scene


def _with_override(scene: Scene, index: int, mask: Tensor, edit: MaskEdit) -> MaskControl:
    """The mask control of a scene with the mask [T, h, w] of one character replaced."""
    old = scene.mask_control or MaskControl(torch.zeros(len(scene.characters), *mask.shape), torch.tensor(0.0))
    masks, strength, start, end = (x.clone() for x in (old.masks, old.strength, old.start_percent, old.end_percent))
    masks[index], strength[index], start[index], end[index] = mask, edit.strength, edit.start_percent, edit.end_percent
    return MaskControl(masks, strength, start, end)


def sample_windows(
    scene: Scene, model: ModelBundle, folder: Path, callback: ProgressCallback | None = None, *, resume: WindowRouting
) -> Video:
    """Generate a video longer than one window, in memory. After a cancellation, finished windows are reused.

    Args:
        scene: the scene.
        model: the model.
        folder: for the windows, in a subfolder per scene. Once the video is complete, only those before the resumed
            window are kept.
        callback: as in `generate`.
        resume: the routing of one window, see `window_routing`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = generate_long(scene, model, _folder_of(scene, model, folder), callback, resume=resume)
    video = result.load()
    result.files.remove(len(result.windows), keep=resume.index)
    return video


def window_routing(index: int, routing: Routing, before: Scene) -> WindowRouting:
    """The routing of window `index` (from 0) as `generate_long` takes it; `before` as in `WindowRouting`."""
    digest = hashlib.sha256(repr((index, routing.origin, routing.calls)).encode())
    state = routing.state
    tensors = [routing.masks, routing.control.strength, routing.matrix, *(() if state is None else (state.latents,))]
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return WindowRouting(index, lambda prepared, continues: routing, digest.hexdigest(), before)


def routing_summary(scene: Scene, routing: Routing, window: tuple[int, int] = (1, 1)) -> str:
    """Summary of a routing: mask and speech of each character, then notices.

    Args:
        scene: the scene.
        routing: its routing.
        window: number of the window that the routing belongs to, and number of windows.
    """
    names = [character.name for character in scene.characters]
    statistics = mask_statistics(routing.masks)
    lines = [
        f"{name}: {replace(mask, confidence=float(confidence))}"
        for name, mask, confidence in zip(names, statistics, routing.confidence, strict=True)
    ]
    lines += [f"{name} follows {_speech_of(routing.matrix[:, n], names)}" for n, name in enumerate(names)]
    lines.append(f"masks by the {routing.origin} router, {routing.calls} transformer calls so far")
    notices = routing_notices(scene, routing)
    number, count = window
    if count > 1:
        notices.append(
            f"These are the masks of window {number} of {count}; the sampler predicts those of the other windows."
        )
    return "\n".join([*lines, *(f"note: {notice}" for notice in dict.fromkeys(notices))])


def routing_notices(scene: Scene, routing: Routing) -> list[str]:
    """What the user should know about a scene and its masks, one sentence each."""
    return list(dict.fromkeys([*scene.notices, *routing.notices, *mask_notices(scene.names, routing.masks)]))


def _speech_of(column: Tensor, names: Sequence[str]) -> str:
    """Speeches that a character follows, with their weights: column [M] of the audio-character matrix."""
    owners = [*names, *(f"speech {i + 1}" for i in range(len(names), len(column)))]
    parts = [
        f"the voice of {owner}" + ("" if weight == 1 else f" at {weight:.2f}")
        for owner, weight in zip(owners, column.tolist(), strict=False)
        if weight > 0
    ]
    return " and ".join(parts) or "no voice"


def video_summary(names: Sequence[str], video: Video) -> str:
    """Summary of a video: mask of each character, duration of each stage, then notices."""
    lines = [f"{name}: {mask}" for name, mask in zip(names, mask_statistics(video.masks), strict=True)]
    lines += [f"{stage}: {seconds:.1f} s" for stage, seconds in video.seconds.items()]
    return "\n".join([*lines, *(f"note: {notice}" for notice in video.notices)])


def masks_to_images(masks: Tensor, grid: TokenGrid) -> Tensor:
    """Masks [N, T, h, w] to images [N * T, height, width] in the size of the video."""
    flat = rearrange(masks.float(), "n t h w -> (n t) 1 h w")
    return replace(grid, frames=1).tokens_to_pixels(flat, mode="nearest")[:, 0]


def images_to_masks(images: Tensor, grid: TokenGrid, count: int, what: str = "the masks") -> Tensor:
    """Mask images to masks on the token grid.

    Args:
        images: [B, H, W] in 0..1 of any size; B = N (static), N * T (one per latent frame) or N * F (one per video
            frame).
        grid: token grid of the video.
        count: N.
        what: the masks in error messages.

    Returns:
        [N, T, h, w].

    Raises:
        InputError: another number of images, or values outside 0..1.
    """
    images = (images[None] if images.ndim == 2 else images).float().cpu()
    expected = (
        f"{count} image{'' if count == 1 else 's'} (static), {count * grid.frames} (one per latent frame) or "
        f"{count * grid.video_frames} (one per video frame)"
    )
    if images.ndim != 3 or images.shape[0] % count:
        number = images.shape[0] if images.ndim == 3 else 0
        given = f"{number} image{'' if number == 1 else 's'}"
        problem = f"{what}: {given} for {count} character{'s' if count > 1 else ''}"
        raise InputError(problem, expected, "batch one mask for each character, in their order")
    stacked = rearrange(images, "(n f) h w -> n f h w", n=count)
    if stacked.shape[1] not in (1, grid.frames, grid.video_frames):
        raise InputError(f"{what}: {images.shape[0]} images", expected, "connect one of these numbers")
    return resize_masks(stacked, grid, count, what)


def character_index(character: str, names: Sequence[str]) -> int:
    """Index of a character by name, or by number from 1. Raises InputError if there is none."""
    text = character.strip()
    if text in names:
        return list(names).index(text)
    if text.isdigit() and 1 <= int(text) <= len(names):
        return int(text) - 1
    alike = [index for index, name in enumerate(names) if name.strip().casefold() == text.casefold()]
    if len(alike) == 1:
        return alike[0]
    known = ", ".join(f"{i + 1} ({name})" for i, name in enumerate(names))
    raise InputError(f'unknown character "{character}"', known, "enter a name or a number")


def still_frame(image: Tensor | None, grid: TokenGrid) -> Tensor:
    """An image [3, H, W] in 0..1 in the size of the video, gray if there is none: uint8 [1, H, W, 3]."""
    pixels = torch.full((3, *grid.pixels), 0.5) if image is None else fit_image(image, *grid.pixels)
    return rearrange((pixels * 255).round().to(torch.uint8), "c h w -> 1 h w c")


def overlay_images(
    masks: Tensor, grid: TokenGrid, frames: Tensor, names: Sequence[str] = (), opacity: float = 0.5
) -> Tensor:
    """Mask overlay of a whole video: uint8 [F, H', W', 3].

    Args:
        masks, grid, names, opacity: as in `bya_core.io.overlay.render_overlay`.
        frames: uint8 [F, H, W, 3], or one frame that is repeated.

    Raises:
        InputError: the number of frames does not match the grid.
    """
    if frames.shape[0] not in (1, grid.video_frames):
        problem = f"{frames.shape[0]} images for masks of {grid.video_frames} frames"
        raise InputError(problem, f"1 or {grid.video_frames}", "connect all frames and the masks of one video")
    frames = frames.expand(grid.video_frames, -1, -1, -1)
    return torch.from_numpy(np.stack(list(render_overlay(frames, masks, grid, names, opacity))))
