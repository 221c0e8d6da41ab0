"""Where the characters are in a film: by likeness to their reference images or by given masks, never by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bya_core.encoders.domains import PixelMeter, guess_domain, load_meter
from bya_core.encoders.face.matching import CharacterFinder, body_boxes
from bya_core.encoders.face.mesh import EYES
from bya_core.encoders.face.tracking import FaceTrack, track_faces
from bya_core.encoders.vad import is_audible
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools, cast_faces
from bya_core.evaluation.face_tracks import merge_tracks
from bya_core.routing.pre import LocatedCharacters, draw_regions
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle

STEP = 4  # drawn characters are searched in every fourth frame; between them, boxes are interpolated
GAP = 12  # frames without a face over which its box is interpolated
LEAST_SEEN = 0.2  # fraction of the searched frames in which a character is found
MASK_SIDE = 192  # pixels of the longer side of masks that are made here


@dataclass(frozen=True)
class People:
    """The N characters in F frames.

    Args:
        boxes: of the faces, forehead to chin, as (center x, top, width, height) in pixels [N, F, 4]; NaN where a
            character is not visible.
        roll: angle of the heads in radians, clockwise [N, F].
        masks: which part of the picture shows which character, bool [N, F, h, w] of any size.
        tracks: of the faces of real people, first those of the N characters, then those of others; empty for drawn
            ones.
        notices: one sentence each.
    """

    boxes: np.ndarray
    roll: np.ndarray
    masks: np.ndarray
    tracks: tuple[FaceTrack, ...] = ()
    notices: tuple[str, ...] = ()


def dubbed_characters(scene: Scene) -> list[int]:
    """Indices of the characters with a new voice.

    Raises:
        InputError: There are none.
    """
    voices = [is_audible(speech) for speech in scene.speeches]
    found = [
        n for n in range(len(scene.names)) if any(voices[m] and scene.matrix[m, n] > 0 for m in range(len(voices)))
    ]
    if not found:
        problem = "a scene in which no character speaks before the end of the film"
        raise InputError(problem, "the new speech of at least one character", 'add "speech", or correct its offset')
    return found


def find_people(frames: Tensor, scene: Scene, model: ModelBundle, masks: np.ndarray | None = None) -> People:
    """Find the characters of a scene in a film.

    Args:
        frames: uint8 [F, H, W, 3].
        scene: The scene, whose reference images are compared with the film.
        model: The model; drawn characters are found by its own finder.
        masks: Given masks, bool [N, F, h, w] of any size; None = characters are found by likeness.

    Raises:
        InputError: A character with a new voice is not found, or cannot be distinguished from another one.
    """
    portraits = [character.image for character in scene.characters]
    meter = load_meter(guess_domain(portraits))
    if meter is not None and model.character_finder is not None:
        people = _find_drawn(frames, portraits, meter, model.character_finder, model.device, masks)
        reasons: tuple[str, ...] = ()
    else:
        people = _find_real(frames, portraits, scene.names, masks)
        reasons = people.notices
    seen = np.isfinite(people.boxes[..., 0]).any(axis=1)
    dubbed = dubbed_characters(scene)
    if missing := [scene.names[n] for n in dubbed if not seen[n]]:
        why = f" ({' '.join(reasons).rstrip('.')})" if reasons else ""
        problem = f"a film in which {', '.join(missing)} cannot be recognized{why}"
        hint = "use a reference image taken from the film, or give the masks of the characters"
        raise InputError(problem, "the face of each character with a new voice", hint)
    others = [scene.names[n] for n in range(len(seen)) if not seen[n]]
    lost = [f"{name} keeps its voice and is not found in the film." for name in others]
    return replace(people, notices=(*people.notices, *lost))


def _find_drawn(
    frames: Tensor,
    portraits: Sequence[Tensor],
    meter: PixelMeter,
    finder: CharacterFinder,
    device: torch.device,
    given: np.ndarray | None,
) -> People:
    """Drawn characters: boxes by the finder of the model, masks by their colors."""
    from scipy.optimize import linear_sum_assignment

    count, length = len(portraits), len(frames)
    searched = sorted({*range(0, length, STEP), length - 1})
    images = [image.to(device) for image in portraits]
    found = np.full((count, length, 4), np.nan)
    for f in searched:
        detected = finder.find(rearrange(frames[f], "h w c -> c h w").to(device).float() / 255, images)
        boxes, scores = detected.faces.cpu().numpy(), detected.likeness.cpu().double().numpy()
        if given is not None and len(boxes):
            scores = np.array([_covered(box, given[:, f], frames.shape[1:3]) for box in boxes])
        for k, n in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
            if scores[k, n] >= (finder.threshold if given is None else 0.5):
                found[n, f] = boxes[k]
    rare = np.isfinite(found[:, searched, 0]).mean(axis=1) < LEAST_SEEN
    found[rare] = np.nan
    if given is None:
        masks = meter.segment(_reduced(frames), portraits).numpy() > 0.5
        masks[rare] = False
    else:
        masks = given
    return People(np.stack([_steady(boxes, STEP) for boxes in found]), np.zeros((count, length)), masks)


def _find_real(frames: Tensor, portraits: Sequence[Tensor], names: Sequence[str], given: np.ndarray | None) -> People:
    """Real people: tracks of faces, and masks around them."""
    tools, video = replace(FaceTools.load(), sync=None, notices=()), frames.numpy()
    tracks = track_faces(video, tools.mesh)
    cast, _, notices = cast_faces(video, tracks, portraits, given, tools, names)
    faces = [merge_tracks([tracks[k] for k in members], len(frames)) for members in cast]
    boxes = np.stack([_steady(face.boxes.astype(np.float64), GAP) for face in faces])
    eyes = np.stack([face.points[:, EYES[1], :2] - face.points[:, EYES[0], :2] for face in faces])
    roll = np.nan_to_num(np.arctan2(eyes[..., 1], eyes[..., 0]))
    masks = _drawn_masks(boxes, frames.shape[1:3]) if given is None else given
    others = [track for k, track in enumerate(tracks) if not any(k in members for members in cast)]
    return People(boxes, roll, masks, (*faces, *others), tuple(notices))


def _covered(box: np.ndarray, masks: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Fraction of a box that each of the masks [N, h, w] covers [N]; the picture has `size` (height, width)."""
    scale = np.tile([masks.shape[2] / size[1], masks.shape[1] / size[0]], 2)
    x0, y0, x1, y1 = (box * scale).round().astype(int).clip(0)
    inside = masks[:, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    return np.asarray(inside.mean(axis=(1, 2))) if inside.size else np.zeros(len(masks))


def _reduced(frames: Tensor) -> Tensor:
    """Frames with the longer side at most `MASK_SIDE` pixels."""
    scale = MASK_SIDE / max(frames.shape[1:3])
    if scale >= 1:
        return frames
    size = [max(1, round(side * scale)) for side in frames.shape[1:3]]
    small = [F.interpolate(rearrange(frame, "h w c -> 1 c h w").float(), size, mode="area")[0] for frame in frames]
    return rearrange(torch.stack(small), "f c h w -> f h w c").round().to(torch.uint8)


def _steady(boxes: np.ndarray, gap: int) -> np.ndarray:
    """Smooth boxes (center x, top, width, height) from (x0, y0, x1, y1) [F, 4]; short gaps are interpolated.

    The jaw changes the height of a face: sizes are medians over half a second.
    """
    from scipy.ndimage import gaussian_filter1d, median_filter

    known = np.flatnonzero(np.isfinite(boxes[:, 0]))
    if not known.size:
        return boxes
    x0, y0, x1, y1 = boxes[known].T
    window = min(2 * (len(known) // 2) + 1, max(3, 13 * len(known) // len(boxes) | 1))
    size = [median_filter(side, window, mode="nearest") for side in (x1 - x0, y1 - y0)]
    frames = np.arange(len(boxes))
    steady = np.stack([np.interp(frames, known, side) for side in ((x0 + x1) / 2, y0, *size)], axis=1)
    steady[:, :2] = gaussian_filter1d(steady[:, :2], 1.0, axis=0, mode="nearest")
    after = known[np.searchsorted(known, frames).clip(max=len(known) - 1)]
    before = known[(np.searchsorted(known, frames, side="right") - 1).clip(min=0)]
    inside = (before <= frames) & (frames <= after) & (after - before <= gap)
    near = np.minimum(abs(frames - before), abs(frames - after)) < STEP
    steady[~(inside | near)] = np.nan
    return steady


def _drawn_masks(boxes: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Masks of head, neck and shoulders around steady boxes [N, F, 4]: bool [N, F, h, w]."""
    scale = min(1.0, MASK_SIDE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    masks = np.zeros((*boxes.shape[:2], height, width), dtype=bool)
    for f in range(boxes.shape[1]):
        seen = np.flatnonzero(np.isfinite(boxes[:, f, 0]))
        if seen.size:
            x, top, across, down = (boxes[seen, f] * scale).T
            faces = torch.from_numpy(np.stack([x - across / 2, top, x + across / 2, top + down], axis=1)).float()
            masks[seen, f] = draw_regions(LocatedCharacters(faces, body_boxes(faces)), (height, width), "head") > 0.5
    return masks
