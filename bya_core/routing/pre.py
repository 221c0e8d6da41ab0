"""Pre-denoise router (paper sec. 3.3.1): static masks, from the faces of the first frame.

Faces are found and told apart by the bundle's `CharacterFinder`, each character gets the face that looks most like it
(the assignment with the highest sum), and a region is drawn around each face. The same masks act in every latent frame.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bya_core.config import Region
from bya_core.encoders.canvas import first_frame
from bya_core.encoders.face.detection import find_detector
from bya_core.encoders.face.matching import CharacterFinder, DetectedCharacters, FaceFinder
from bya_core.errors import InputError
from bya_core.progress import ProgressTracker
from bya_core.routing.result import Routing
from bya_core.sampling.prepared import Prepared
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle

log = logging.getLogger(__name__)

# A head with its hair is an ellipse around the face, and what it sits on; all in face widths and heights.
_HEAD_ACROSS, _HEAD_DOWN, _HEAD_UP = 0.60, 0.68, 0.10  # half width, half height, how far its middle is above the face's
_NECK = 0.25  # half width
_SHOULDERS = 0.15  # how far below the chin
_ROUND = 0.40  # radius of their corners


@dataclass(frozen=True)
class Found:
    """Where each of N characters is: face and body boxes [N, 4] (x0, y0, x1, y1 in pixels), and doubts in words."""

    faces: Tensor
    bodies: Tensor
    notices: tuple[str, ...] = ()


@torch.no_grad()
def route_pre(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker) -> Routing:
    """Masks around the faces of the first frame, the same in every latent frame; forced.

    Raises:
        InputError: no first frame, or a character that cannot be found in it.
        Cancelled: the watcher asked to stop.
    """
    scene, grid = prepared.scene, prepared.grid
    if scene.first_frame is None:
        came = 'router mode "pre" without a first frame'
        raise InputError(came, "a first frame to find the faces in", 'give one, or use router mode "intra"')
    with tracker.stage("Predicting masks"):
        frame = first_frame(scene)  # as the model sees it
        assert frame is not None
        found = locate_characters(frame, scene, bundle)
        regions = draw_regions(found, grid.pixels, scene.routing.region)
        masks = replace(grid, frames=1).pixels_to_tokens(regions[:, None]).expand(-1, grid.frames, -1, -1)
    return Routing.of("pre", masks.clone(), scene.matrix, strength=1.0, notices=found.notices)


@torch.no_grad()
def character_boxes(frame: Tensor, scene: Scene, bundle: ModelBundle) -> Tensor:
    """Box of everybody in a picture [3, H, W] in 0..1: [N, 4] as x0, y0, x1, y1 in its pixels.

    Raises:
        InputError: a character that cannot be found in it.
    """
    found = locate_characters(frame, scene, bundle)
    for notice in found.notices:
        log.warning(notice)
    height, width = frame.shape[1:]
    return torch.minimum(found.bodies.clamp(min=0), torch.tensor([width, height, width, height]))


def locate_characters(frame: Tensor, scene: Scene, bundle: ModelBundle) -> Found:
    """The face in `frame` [3, H, W] that belongs to each character. Raises InputError as `character_boxes` does."""
    finder: CharacterFinder = bundle.character_finder or FaceFinder(find_detector(), bundle.face)
    portraits = [character.image.to(bundle.device) for character in scene.characters]
    seen = finder.find(frame.to(bundle.device), portraits)
    names = [character.name for character in scene.characters]
    mine = match(seen, names, finder.threshold)
    notices = tuple(_doubts(seen, mine, names, finder.threshold))
    return Found(seen.faces[mine], seen.bodies[mine], notices)


def match(seen: DetectedCharacters, names: Sequence[str], sure: float) -> list[int]:
    """Which of K sightings each of N characters is: the assignment with the most likeness in all.

    Raises:
        InputError: fewer faces than characters, or two characters that look like one face.
    """
    from scipy.optimize import linear_sum_assignment

    likeness = seen.likeness.double().cpu().numpy()
    rows, columns = linear_sum_assignment(-likeness)
    owner = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    count = len(likeness)
    faces = f"{count} {'face' if count == 1 else 'faces'}"
    for n, name in enumerate(names):
        best = int(likeness[:, n].argmax()) if count else -1
        if owner.get(n) == best and count:
            continue
        rival = next((other for other, face in owner.items() if face == best and other != n), None)
        unsure = n not in owner or likeness[owner[n], n] < sure
        if rival is not None and unsure and likeness[best, n] >= sure:
            came = f"{names[rival]} and {name} both look like the same one of {faces} found in the first frame"
            do = "give pictures in which they differ, a first frame that shows both, or masks"
            raise InputError(came, "a face of its own for each character", do)
    lost = [name for n, name in enumerate(names) if n not in owner]
    if lost:
        came = f"{' and '.join(lost)} not found in the first frame ({faces} found, {len(names)} characters)"
        do = 'give a first frame that shows everybody, give masks, or use router mode "intra"'
        raise InputError(came, "a face that looks like each character's picture", do)
    return [owner[n] for n in range(len(names))]


def _doubts(seen: DetectedCharacters, mine: Sequence[int], names: Sequence[str], sure: float) -> Iterator[str]:
    for n, name in enumerate(names):
        likeness = float(seen.likeness[mine[n], n])
        if likeness < sure:
            yield (
                f"The face taken for {name} in the first frame looks little like the picture of {name} "
                f"({likeness:.2f}; {sure:.2f} or more is sure): check the masks."
            )


def draw_regions(found: Found, size: tuple[int, int], region: Region) -> Tensor:
    """Region of each character in a picture of `size` (H, W): zeros and ones [N, H, W], at most one owner a pixel.

    "box" is the box of the whole person. "head" is an ellipse around head and hair, and neck and shoulders below it,
    down to where the body's box ends. A pixel claimed twice goes to a head before a body, else to the nearer face.
    """
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    claims = []
    for face, body in zip(found.faces, found.bodies, strict=True):
        x0, y0, x1, y1 = face.tolist()
        across, down = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
        u, v = (x - (x0 + x1) / 2) / across, (y - (y0 + y1) / 2) / down
        head = (u / _HEAD_ACROSS) ** 2 + ((v + _HEAD_UP) / _HEAD_DOWN) ** 2 < 1
        left, top, right, bottom = body.tolist()
        within = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        if region == "box":
            inside, head = within, head & within
        else:
            shoulders = within & _rounded(x, y, left, right, y1 + _SHOULDERS * down, _ROUND * across)
            neck = (u.abs() < _NECK) & (v > 0) & (y < min(bottom, y1 + (_SHOULDERS + _ROUND) * down))
            inside = head | neck | shoulders
        nearness = 1 / (1 + (u**2 + v**2).sqrt())
        claims.append(torch.where(inside, nearness + head.float(), torch.zeros_like(nearness)))
    strength = torch.stack(claims)
    winner = strength.argmax(0)
    return torch.stack([(winner == n) & (claim > 0) for n, claim in enumerate(strength)]).float()


def _rounded(x: Tensor, y: Tensor, left: float, right: float, top: float, radius: float) -> Tensor:
    """What lies between `left` and `right` and below `top`, the upper corners cut round."""
    radius = min(radius, (right - left) / 2)
    aside = ((left + radius - x).clamp(min=0) + (x - right + radius).clamp(min=0)) / max(radius, 1e-6)
    above = (top + radius - y).clamp(min=0) / max(radius, 1e-6)
    return (x >= left) & (x < right) & (aside**2 + above**2 < 1)
