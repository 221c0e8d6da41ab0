"""Check the inputs of a run before a model is loaded: faces, speech, masks, sizes, weights, time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from bya_core.encoders.domains import PixelBox, PixelMeter, load_meter
from bya_core.encoders.face.mesh import FaceMesh
from bya_core.encoders.vad import first_spans
from bya_core.environment import missing_packages
from bya_core.errors import InputError
from bya_core.evaluation.plots import BAD, GOOD, TEXT, Page
from bya_core.grid import TokenGrid
from bya_core.pipelines.estimate import ModelFolder, estimate
from bya_core.pipelines.interactive import images_to_masks
from bya_core.scene.checks import stream_notices
from bya_core.scene.compose import CastMember, SceneOptions, compose, override_sampling
from bya_core.scene.windows import plan_windows
from bya_core.weights.registry import MODELS

SIDE, LINE = 256, 22  # pixels: column width of the picture, and height of a line of text
MIN_FACE, SMALL_FACE = 8, 48  # pixels per side of a face: fewer are an error, and a warning
SPEECH_SECONDS = 30  # of each recording in which speech is looked for


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    level: Literal["ok", "warning", "error"]
    text: str


@dataclass(frozen=True)
class Preflight:
    """Result of `preflight`.

    Args:
        findings: one per check.
        picture: each reference image with the detected face, and its crop below.
    """

    findings: tuple[Finding, ...]
    picture: Image.Image

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.level != "error" for finding in self.findings)

    @property
    def text(self) -> str:
        """The findings, one per line."""
        return "\n".join(f"{finding.level:<8}{finding.subject}: {finding.text}" for finding in self.findings)

    def raise_errors(self) -> None:
        """Raise InputError with all errors, if there are any."""
        errors = [f"{finding.subject}: {finding.text}" for finding in self.findings if finding.level == "error"]
        if errors:
            raise InputError(" | ".join(errors).rstrip("."), "a scene without errors", "correct them and run again")


def preflight(
    cast: Sequence[CastMember],
    model: tuple[str, Path | None],
    *,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    steps: int | None = None,
    first_frame: Tensor | None = None,
    masks: Tensor | None = None,
    force: bool = False,
) -> Preflight:
    """Run all checks. Takes about as long for a video of any length.

    Args:
        cast: the characters.
        model: its name, and its folder if it is not in the registry.
        width, height: of the video in pixels; None = native size of the model.
        frames: of the video; None = length of the speech.
        steps: denoising steps; None = default of the model.
        first_frame: [3, H, W] in 0..1.
        masks: mask images [B, H, W], see `bya_core.pipelines.interactive.images_to_masks`.
        force: as in `SceneOptions`.
    """
    findings, folder = _check_model(*model)
    usable = None if missing_packages() else folder
    meter = None if usable is None else load_meter(usable.domain)
    found = [_faces(member.image, meter) for member in cast]
    photos = [] if meter is None else [member.name for member in cast if not _is_portrait(member.image, meter)]
    if photos:
        text = f"{', '.join(photos)}: not a drawn puppet on white, which is all that the model knows"
        known = "expect poor quality" if force else "use another model, or set force"
        findings.append(Finding("reference images", "warning" if force else "error", f"{text}; {known}"))
    faces = [max(boxes, key=_area, default=None) for boxes in found]
    findings += [_check_face(member, boxes) for member, boxes in zip(cast, found, strict=True)]
    findings += [_check_speech(member) for member in cast]
    notices = stream_notices([member.name for member in cast], [member.speech for member in cast], [None] * len(cast))
    findings += [Finding("speech", "warning", notice) for notice in notices]
    if usable is not None:
        defaults = usable.defaults
        sampling = override_sampling(defaults.sampling, steps=steps)
        try:
            options = SceneOptions("", "", first_frame, width, height, frames, sampling, force=force)
            scene = compose(cast, options, defaults)
            grid = usable.grid(scene.num_frames, scene.height, scene.width)
        except InputError as error:
            return Preflight((*findings, Finding("scene", "error", _short(error))), _draw(cast, faces))
        findings.append(Finding("scene", "ok", f"{scene.width}x{scene.height} pixels, {scene.seconds:.2f} s"))
        findings += [Finding("scene", "warning", notice) for notice in scene.notices if notice not in notices]
        limit = usable.max_characters
        if limit is not None and len(cast) > limit:
            text = f"{len(cast)} characters, but the model was trained with at most {limit}"
            findings.append(Finding("cast", "warning", text))
        if (scene.height, scene.width) != (defaults.height, defaults.width):
            text = f"the model was trained at {defaults.width}x{defaults.height}"
            findings.append(Finding("size", "warning", text))
        if masks is not None:
            findings.append(_check_masks(masks, grid, cast))
        if first_frame is not None:
            findings.append(_check_first_frame(first_frame, cast, meter))
        windows = plan_windows(
            scene.num_frames, scene.windows.frames or defaults.max_frames, scene.windows.overlap, defaults.time_factor
        )
        part = replace(grid, frames=grid.latent_index(windows[0].frames - 1) + 1)
        cost = estimate(usable, part, len(cast), sampling)  # of one window: the windows have nearly the same length
        seconds = cost.seconds * len(windows)
        text = f'about {seconds:.0f} s on this machine with the preset "exact" (within a factor of two)'
        findings.append(Finding("cost", "ok", f"{text}, {cost.gigabytes:.1f} GB"))
    return Preflight(tuple(findings), _draw(cast, faces))


def _short(error: InputError) -> str:
    """An error without the end of its sentence."""
    return f"{error.problem} (expected {error.expected})"


def _check_model(name: str, folder: Path | None) -> tuple[list[Finding], ModelFolder | None]:
    """Findings on model and packages, and the folder of the model if it is on this machine."""
    entry, subject = MODELS.get(name), f"model {name}"
    projects = [package.project for package in missing_packages()]
    packages = [Finding("packages", "error", f"{each} is missing: pip install {each}") for each in projects]
    if folder is not None:
        return [Finding(subject, "ok", str(folder)), *packages], ModelFolder(folder)
    if entry is None:
        return [Finding(subject, "error", f"unknown; available: {', '.join(MODELS)}"), *packages], None
    if entry.available:
        return [Finding(subject, "ok", f"{entry.size}, {entry.license}"), *packages], ModelFolder(entry.path)
    more = len(entry.missing) - 3
    names = ", ".join(entry.missing[:3]) + (f" and {more} more" if more > 0 else "")
    detail = f" (missing: {names})" if names else ""
    text = f"weights not on this machine{detail}; {entry.size}; {entry.how_to_get}"
    return [Finding(subject, "error", text), *packages], None


def _is_portrait(image: Tensor, meter: PixelMeter) -> bool:
    return min(image.shape[1:]) < MIN_FACE or meter.is_portrait(image)  # a tiny image is reported as such


def _faces(image: Tensor, meter: PixelMeter | None) -> list[PixelBox]:
    """Boxes (x0, y0, x1, y1) of the faces in a reference image [3, H, W]; without a meter, in a photo."""
    if min(image.shape[1:]) < MIN_FACE:
        return []
    if meter is not None:
        return [box for box in (meter.face_box(image),) if box is not None]
    boxes = []
    for face in FaceMesh().detect(image):
        x0, y0, x1, y1 = (round(value) for value in face.box)
        boxes.append((max(0, x0), max(0, y0), min(image.shape[2], x1), min(image.shape[1], y1)))
    return boxes


def _area(box: PixelBox) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _check_face(member: CastMember, boxes: Sequence[PixelBox]) -> Finding:
    height, width = member.image.shape[1:]
    if not boxes:
        text = f"no face detected in the reference image of {width}x{height} pixels"
        return Finding(member.name, "error", text)
    share = max(_area(box) for box in boxes) / (height * width)
    if len(boxes) > 1:
        text = f"{len(boxes)} faces detected in the reference image; the largest covers {share:.0%} of it"
        return Finding(member.name, "warning", f"{text}: crop the image to one person")
    x0, y0, x1, y1 = boxes[0]
    if (side := min(x1 - x0, y1 - y0)) < SMALL_FACE:
        text = f"the face has only {x1 - x0}x{y1 - y0} pixels"
        return Finding(member.name, "error" if side < MIN_FACE else "warning", f"{text}: use a larger image")
    return Finding(member.name, "ok", f"the face covers {share:.0%} of the reference image ({width}x{height} pixels)")


def _check_speech(member: CastMember) -> Finding:
    subject, speech = f"speech of {member.name}", member.speech
    if speech is None:
        return Finding(subject, "ok", "none (listener)")
    text = f"{speech.end - speech.offset:.2f} s at {speech.sample_rate} Hz, starts at {speech.offset:.2f} s"
    spans = first_spans(speech, SPEECH_SECONDS)
    part = f" in the first {SPEECH_SECONDS} s" if speech.end - speech.offset > SPEECH_SECONDS else ""
    if not spans:
        return Finding(subject, "warning", f"{text}; no speech detected{part}")
    seconds = sum(end - start for start, end in spans)
    return Finding(subject, "ok", f"{text}; {seconds:.2f} s of speech{part}, from {spans[0][0]:.2f} s on")


def _check_masks(masks: Tensor, grid: TokenGrid, cast: Sequence[CastMember]) -> Finding:
    try:
        tokens = images_to_masks(masks, grid, len(cast))
    except InputError as error:
        return Finding("masks", "error", _short(error))
    empty = [member.name for member, mask in zip(cast, tokens, strict=True) if float(mask.max()) <= 0.5]
    if empty:
        return Finding("masks", "warning", f"empty for {', '.join(empty)}")
    return Finding("masks", "ok", "one for each character")


def _check_first_frame(frame: Tensor, cast: Sequence[CastMember], meter: PixelMeter | None) -> Finding:
    if meter is None:
        count = len(FaceMesh().detect(frame))
        text = f"{count} {'face' if count == 1 else 'faces'} detected for {len(cast)} characters"
        return Finding("first frame", "ok" if count >= len(cast) else "warning", text)
    missing = [cast[n].name for n in meter.missing_characters(frame, [member.image for member in cast])]
    if missing:
        text = f"no region has the colors of {', '.join(missing)}; all characters should be visible"
        return Finding("first frame", "warning", text)
    return Finding("first frame", "ok", "the colors of all characters are visible")


def _draw(cast: Sequence[CastMember], faces: Sequence[PixelBox | None]) -> Image.Image:
    """One column per character: name, reference image with the face framed, and the crop of the face."""
    page = Page(SIDE * max(1, len(cast)), 2 * (SIDE + LINE))
    for column, (member, box) in enumerate(zip(cast, faces, strict=True)):
        left, image = column * SIDE + 4, member.image
        page.text(left, LINE / 2, member.name, 10, TEXT, room=SIDE - 8)
        axes = page.picture(image, left, LINE, SIDE - 8, SIDE - 8)
        if box is None:
            page.text(left, SIDE + 1.5 * LINE, "no face detected", 10, BAD)
            continue
        x0, y0, x1, y1 = box
        axes.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=GOOD, lw=2))
        page.text(left, SIDE + 1.5 * LINE, "face", 10, GOOD)
        page.picture(image[:, y0:y1, x0:x1], left, SIDE + 2 * LINE, SIDE - 8, SIDE - 8)
    return page.image()
