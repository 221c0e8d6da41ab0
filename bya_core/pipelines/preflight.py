"""Everything that can be found out about a run before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bya_core.encoders.domains import PixelMeter, load_meter
from bya_core.encoders.vad import speaking_spans
from bya_core.environment import missing_packages
from bya_core.errors import InputError
from bya_core.pipelines.estimate import ModelFolder, estimate
from bya_core.pipelines.interactive import images_to_masks
from bya_core.scene.checks import stream_notices
from bya_core.scene.compose import CastMember, SceneOptions, compose, override_sampling
from bya_core.scene.types import Scene
from bya_core.weights.registry import MODELS

Box = tuple[int, int, int, int]
SIDE, LINE = 256, 22  # pixels of a picture in the report, and of a line of text
COLOURS = {"ok": (90, 200, 120), "warning": (240, 190, 60), "PROBLEM": (240, 90, 90)}


@dataclass(frozen=True)
class Asked:
    """What is asked for beside the cast; 0 = as the model or the speech wants it.

    Args:
        width, height: in pixels.
        frames: video frames.
        steps: denoising steps.
        first_frame: [3, H, W] in 0..1, or None.
        masks: mask pictures [B, H, W], see `bya_core.pipelines.interactive.images_to_masks`; None = none.
    """

    width: int = 0
    height: int = 0
    frames: int = 0
    steps: int = 0
    first_frame: Tensor | None = None
    masks: Tensor | None = None


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    about: str
    state: Literal["ok", "warning", "PROBLEM"]
    text: str


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Args:
        findings: in the order in which they were looked for.
        picture: each reference picture, the face found in it framed, and cut out below.
    """

    findings: tuple[Finding, ...]
    picture: Image.Image

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return all(finding.state != "PROBLEM" for finding in self.findings)

    @property
    def text(self) -> str:
        return "\n".join(f"{finding.state:<8}{finding.about}: {finding.text}" for finding in self.findings)

    def stop_if_problem(self) -> None:
        """Raises InputError with all problems."""
        problems = [f"{found.about}: {found.text}" for found in self.findings if found.state == "PROBLEM"]
        if problems:
            raise InputError(" | ".join(problems).rstrip("."), "a scene without problems", "correct it and run again")


def preflight(cast: Sequence[CastMember], model: tuple[str, Path | None], asked: Asked) -> Preflight:
    """Look at everything.

    Args:
        model: its name, and its folder where it is not one of the registry.
    """
    findings, folder = _model(*model)
    try:
        faces = _faces(cast, _meter(folder))
        findings += [_face(member, box) for member, box in zip(cast, faces, strict=True)]
    except InputError as error:  # nothing here can look for them
        faces = [None] * len(cast)
        findings.append(Finding("faces", "warning", f"not looked for: {error}"))
    findings += [_voice(member) for member in cast]
    voices = stream_notices([m.name for m in cast], [m.speech for m in cast], [None] * len(cast))
    findings += [Finding("voices", "warning", notice) for notice in voices]
    if folder is not None and not _packages():
        findings += _scene(cast, folder, asked, told=voices)
    return Preflight(tuple(findings), _picture(cast, faces))


def _model(name: str, folder: Path | None) -> tuple[list[Finding], ModelFolder | None]:
    about = f"model {name}"
    missing = [Finding("packages", "PROBLEM", f"{p} is missing: pip install {p}") for p in _packages()]
    if folder is not None:
        return [Finding(about, "ok", str(folder)), *missing], ModelFolder(folder)
    entry = MODELS.get(name)
    if entry is None:
        return [Finding(about, "PROBLEM", f"not known; known are {', '.join(MODELS)}"), *missing], None
    if not entry.available:
        gone, more = entry.missing[:3], len(entry.missing) - 3
        told = f" (not there: {', '.join(gone)}{f' and {more} more' if more > 0 else ''})" if gone else ""
        text = f"its weights are not on this machine{told}; {entry.size}; {entry.how_to_get}"
        return [Finding(about, "PROBLEM", text), *missing], None
    return [Finding(about, "ok", f"{entry.size}, {entry.license}"), *missing], ModelFolder(entry.path)


def _meter(folder: ModelFolder | None) -> PixelMeter | None:
    """Pixel meter of the model's domain, if the model is present and can be loaded."""
    return None if folder is None or _packages() else load_meter(folder.domain)


def _packages() -> list[str]:
    """Packages that every model needs and that are not installed."""
    return [package.project for package in missing_packages()]


def _faces(cast: Sequence[CastMember], meter: PixelMeter | None) -> list[Box | None]:
    """Box of the face in each picture, x0, y0, x1, y1 in pixels."""
    find: Callable[[Tensor], Box | None] = _real_face if meter is None else meter.face_box
    return [find(member.image) for member in cast]


def _real_face(image: Tensor) -> Box | None:
    from bya_core.encoders.face.detection import find_detector

    found = find_detector().detect(image)
    if not found:
        return None
    x0, y0, x1, y1 = (round(value) for value in found[0].box)
    return max(0, x0), max(0, y0), min(image.shape[2], x1), min(image.shape[1], y1)


def _face(member: CastMember, box: Box | None) -> Finding:
    if box is None:
        return Finding(member.name, "PROBLEM", "no face was found in its picture")
    height, width = member.image.shape[1:]
    share = (box[2] - box[0]) * (box[3] - box[1]) / (height * width)
    text = f"a face in {100 * share:.0f} % of a picture of {width}x{height} pixels"
    return Finding(member.name, "ok", text)


def _voice(member: CastMember) -> Finding:
    about = f"voice of {member.name}"
    if member.speech is None:
        return Finding(about, "ok", "none: a silent listener")
    spans = speaking_spans(member.speech)
    heard = sum(end - start for start, end in spans)
    length = member.speech.end - member.speech.offset
    text = f"{length:.2f} s at {member.speech.sample_rate} Hz, from {member.speech.offset:.2f} s on"
    if not spans:
        return Finding(about, "warning", f"{text}; nobody speaks in it")
    first = spans[0][0]
    return Finding(about, "ok", f"{text}; {heard:.2f} s of it are speech, the first word at {first:.2f} s")


def _scene(cast: Sequence[CastMember], model: ModelFolder, asked: Asked, told: Sequence[str]) -> list[Finding]:
    """Sizes, notices but those `told` already, masks, first frame, cost."""
    defaults = model.defaults
    sampling = override_sampling(
        defaults.sampling, steps=asked.steps, guidance_scale=0, audio_guidance_scale=0, scheduler="", seed=0
    )
    wishes = SceneOptions("", "", asked.first_frame, asked.width, asked.height, asked.frames, sampling)
    try:
        scene = compose(cast, wishes, defaults)
        grid = model.grid(scene.num_frames, scene.height, scene.width)
    except InputError as error:
        return [Finding("scene", "PROBLEM", str(error))]
    found = [Finding("scene", "ok", f"{scene.width}x{scene.height} pixels, {scene.seconds:.2f} s")]
    found += [Finding("scene", "warning", notice) for notice in scene.notices if notice not in told]
    most = model.max_characters
    if most is not None and len(cast) > most:
        text = f"{len(cast)} characters, but the model was trained with at most {most}"
        found.append(Finding("cast", "warning", text))
    if (scene.height, scene.width) != (defaults.height, defaults.width):
        found.append(Finding("size", "warning", f"the model was trained at {defaults.width}x{defaults.height}"))
    if asked.masks is not None:
        found.append(_masks(asked.masks, scene, model))
    if asked.first_frame is not None:
        found += _first_frame(asked.first_frame, cast, load_meter(model.domain))
    cost = estimate(model, grid, len(cast), sampling)
    seconds = f"about {cost.seconds:.0f} s on this machine at speed exact (half or double is possible)"
    return [*found, Finding("cost", "ok", f"{seconds}, {cost.gigabytes:.1f} GB")]


def _masks(masks: Tensor, scene: Scene, model: ModelFolder) -> Finding:
    grid = model.grid(scene.num_frames, scene.height, scene.width)
    try:
        tokens = images_to_masks(masks, grid, len(scene.characters), "the masks")
    except InputError as error:
        return Finding("masks", "PROBLEM", str(error))
    empty = [c.name for c, mask in zip(scene.characters, tokens, strict=True) if float(mask.max()) <= 0.5]
    if empty:
        return Finding("masks", "warning", f"those of {', '.join(empty)} claim nothing")
    return Finding("masks", "ok", "one for each character")


def _first_frame(frame: Tensor, cast: Sequence[CastMember], meter: PixelMeter | None) -> list[Finding]:
    """Whether all characters are visible in the first frame; not checked for people in photos."""
    if meter is None:
        return []
    missing = [cast[n].name for n in meter.missing_characters(frame, [member.image for member in cast])]
    if missing:
        text = f"nothing in it has the colors of {', '.join(missing)}; everybody should be in it"
        return [Finding("first frame", "warning", text)]
    return [Finding("first frame", "ok", "everybody's colors are in it")]


def _picture(cast: Sequence[CastMember], faces: Sequence[Box | None]) -> Image.Image:
    """One column a character: the picture with the face framed, the face alone, the name."""
    page = Image.new("RGB", (SIDE * max(1, len(cast)), 2 * SIDE + 2 * LINE), (24, 24, 28))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=LINE * 0.66)
    for column, (member, box) in enumerate(zip(cast, faces, strict=True)):
        whole = Image.fromarray((member.image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
        scale = (SIDE - 8) / max(whole.size)
        left = column * SIDE + 4
        shown = whole.resize((round(whole.width * scale), round(whole.height * scale)), Image.Resampling.LANCZOS)
        page.paste(shown, (left, LINE))
        state = "PROBLEM" if box is None else "ok"
        draw.text((left + 2, LINE / 2), member.name, fill=(235, 235, 235), font=font, anchor="lm")
        text = "no face found" if box is None else "the face"
        draw.text((left + 2, SIDE + 1.5 * LINE), text, fill=COLOURS[state], font=font, anchor="lm")
        if box is not None:
            framed = [left + box[0] * scale, LINE + box[1] * scale, left + box[2] * scale, LINE + box[3] * scale]
            draw.rectangle(framed, outline=COLOURS[state], width=3)
            cut = whole.crop(box)
            fitted = (SIDE - 8) / max(cut.size)
            size = (max(1, round(cut.width * fitted)), max(1, round(cut.height * fitted)))
            page.paste(cut.resize(size, Image.Resampling.LANCZOS), (left, SIDE + 2 * LINE))
    return page
