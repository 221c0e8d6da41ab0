"""Pre-denoise router (paper sec. 3.3.1): static masks, from the faces of the first frame.

The bundle's `CharacterFinder` detects faces and compares them with the reference images. The assignment with the
largest total similarity is used, and a region is drawn around each face. Masks are the same in every latent frame.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bya_core.config import Region
from bya_core.encoders.canvas import first_frame
from bya_core.encoders.face.matching import CharacterFinder, DetectedCharacters, FaceFinder
from bya_core.encoders.face.mesh import FaceMesh
from bya_core.errors import InputError
from bya_core.progress import ProgressTracker
from bya_core.routing.result import Routing
from bya_core.sampling.conditions import Prepared
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle

log = logging.getLogger(__name__)

# Region of a head: an ellipse around face and hair, plus neck and shoulders; in units of face width and height.
_HEAD_WIDTH, _HEAD_HEIGHT, _HEAD_OFFSET = 0.60, 0.68, 0.10  # half sizes, upward offset of the center
_NECK_WIDTH = 0.25  # half width
_SHOULDER_OFFSET = 0.15  # below the chin
_SHOULDER_RADIUS = 0.40  # of the rounded corners


@dataclass(frozen=True)
class LocatedCharacters:
    """Face and body boxes of N characters, each [N, 4] as (x0, y0, x1, y1) in pixels, and notices for the user."""

    faces: Tensor
    bodies: Tensor
    notices: tuple[str, ...] = ()


@torch.no_grad()
def route_pre(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker) -> Routing:
    """Masks around the faces of the first frame, the same in every latent frame.

    Raises:
        InputError: no first frame, or a character was not found in it.
        Cancelled: the progress callback cancelled.
    """
    scene, grid = prepared.scene, prepared.grid
    if scene.first_frame is None:
        problem = 'router mode "pre" without a first frame'
        raise InputError(problem, "a first frame", 'provide one, or use router mode "intra"')
    with tracker.stage("Predicting masks"):
        frame = first_frame(scene)
        assert frame is not None
        located = locate_characters(frame, scene, bundle)
        regions = draw_regions(located, grid.pixels, scene.routing.region)
        masks = replace(grid, frames=1).pixels_to_tokens(regions[:, None]).expand(-1, grid.frames, -1, -1)
    return Routing.of("pre", masks.clone(), scene.matrix, strength=1.0, notices=located.notices)


@torch.no_grad()
def character_boxes(frame: Tensor, scene: Scene, bundle: ModelBundle) -> Tensor:
    """Bounding boxes [N, 4] (x0, y0, x1, y1 in pixels) of the characters in an image [3, H, W] in 0..1.

    Raises:
        InputError: a character was not found.
    """
    located = locate_characters(frame, scene, bundle)
    for notice in located.notices:
        log.warning(notice)
    height, width = frame.shape[1:]
    return torch.minimum(located.bodies.clamp(min=0), torch.tensor([width, height, width, height]))


def locate_characters(frame: Tensor, scene: Scene, bundle: ModelBundle) -> LocatedCharacters:
    """Locate each character in `frame` [3, H, W]. Raises InputError as `character_boxes` does."""
    finder: CharacterFinder = bundle.character_finder or FaceFinder(FaceMesh(bundle.device), bundle.face)
    portraits = [character.image.to(bundle.device) for character in scene.characters]
    detected = finder.find(frame.to(bundle.device), portraits)
    names = [character.name for character in scene.characters]
    faces = assign_faces(detected, names, finder.threshold)
    similarities = [float(detected.likeness[face, n]) for n, face in enumerate(faces)]
    notices = tuple(
        f"The face assigned to {name} in the first frame has a low similarity to the reference image "
        f"({similarity:.2f}, below {finder.threshold:.2f}): check the masks."
        for name, similarity in zip(names, similarities, strict=True)
        if similarity < finder.threshold
    )
    return LocatedCharacters(detected.faces[faces], detected.bodies[faces], notices)


def assign_faces(detected: DetectedCharacters, names: Sequence[str], threshold: float) -> list[int]:
    """Face of each of N characters among K detections: the assignment with the largest total similarity.

    Raises:
        InputError: fewer faces than characters, or two characters match the same face.
    """
    from scipy.optimize import linear_sum_assignment

    similarity = detected.likeness.cpu().double().numpy()  # MPS has no float64
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    assigned = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    count = len(similarity)
    faces = f"{count} {'face' if count == 1 else 'faces'}"
    for n, name in enumerate(names if count else ()):
        best = int(similarity[:, n].argmax())
        rival = next((other for other, face in assigned.items() if face == best and other != n), None)
        unsure = n not in assigned or similarity[assigned[n], n] < threshold
        if rival is not None and unsure and similarity[best, n] >= threshold:
            problem = f"{names[rival]} and {name} both match the same one of {faces} found in the first frame"
            hint = "use reference images that differ more, a first frame that shows both, or masks"
            raise InputError(problem, "one face per character", hint)
    missing = [name for n, name in enumerate(names) if n not in assigned]
    if missing:
        problem = f"{' and '.join(missing)} not found in the first frame ({faces} found, {len(names)} characters)"
        hint = 'use a first frame that shows all characters, provide masks, or use router mode "intra"'
        raise InputError(problem, "a face similar to each reference image", hint)
    return [assigned[n] for n in range(len(names))]


def draw_regions(located: LocatedCharacters, size: tuple[int, int], region: Region) -> Tensor:
    """Regions of the characters in an image of `size` (H, W): binary, disjoint masks [N, H, W].

    Args:
        region: "box" is the body box; "head" an ellipse around head and hair with neck and shoulders, inside the body
            box. Overlaps belong to a head rather than a body, otherwise to the nearer face.
    """
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    priorities = []
    for face, body in zip(located.faces, located.bodies, strict=True):
        x0, y0, x1, y1 = face.tolist()
        face_width, face_height = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
        u, v = (x - (x0 + x1) / 2) / face_width, (y - (y0 + y1) / 2) / face_height
        head = (u / _HEAD_WIDTH) ** 2 + ((v + _HEAD_OFFSET) / _HEAD_HEIGHT) ** 2 < 1
        left, top, right, bottom = body.tolist()
        box = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        if region == "box":
            inside, head = box, head & box
        else:
            neck_end = min(bottom, y1 + (_SHOULDER_OFFSET + _SHOULDER_RADIUS) * face_height)
            neck = (u.abs() < _NECK_WIDTH) & (v > 0) & (y < neck_end)
            shoulders = _rounded(x, y, left, right, y1 + _SHOULDER_OFFSET * face_height, _SHOULDER_RADIUS * face_width)
            inside = head | neck | (box & shoulders)
        priorities.append(inside * (head.float() + 1 / (1 + torch.hypot(u, v))))
    priority = torch.stack(priorities)
    winner = priority.argmax(0)
    return torch.stack([(winner == n) & (own > 0) for n, own in enumerate(priority)]).float()


def _rounded(x: Tensor, y: Tensor, left: float, right: float, top: float, radius: float) -> Tensor:
    """Area between `left` and `right` and below `top`, with rounded upper corners."""
    radius = max(min(radius, (right - left) / 2), 1e-6)
    dx = ((left + radius - x).clamp(min=0) + (x - right + radius).clamp(min=0)) / radius
    dy = (top + radius - y).clamp(min=0) / radius
    return (x >= left) & (x < right) & (dx**2 + dy**2 < 1)
