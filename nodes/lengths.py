"""Widgets for length, size and sampling, shared by BYA Scene and BYA Preflight."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from bya_core.config import SamplingConfig, WindowConfig
from bya_core.grid import TokenGrid
from bya_core.scene.compose import LENGTHS, video_frames
from bya_core.scene.schema import SceneFile
from bya_core.scene.windows import OVERLAP
from bya_core.weights.components import OFFICIAL_SETTINGS

from . import host
from .schema import made, widget

MODEL_DEFAULTS, CUSTOM = "model defaults", "custom"
CUSTOM_SETTINGS = {
    "width": "width",
    "height": "height",
    "steps": "steps",
    "cfg": "guidance_scale",
    "audio_cfg": "audio_guidance_scale",
    "scheduler": "scheduler",
    "window_frames": "window_frames",
    "window_overlap": "overlap_frames",
}  # widgets -> fields of SceneOptions and SamplingConfig
SIZE_UNIT = 8  # pixels, of every model; some require multiples of 16
NATIVE = OFFICIAL_SETTINGS["native"]


def length_inputs() -> list[Any]:
    """How long the video is."""
    return [
        io.Combo.Input(
            "length",
            options=list(LENGTHS),
            default=LENGTHS[0],
            optional=True,
            tooltip="Length of the video. As long as the speech: until the last voice ends. Longer videos than the "
            "model was trained for are generated in windows.",
        ),
        io.Float.Input(
            "seconds",
            default=2.0,
            min=0.04,
            max=4000.0,
            step=0.04,
            optional=True,
            tooltip="Length in seconds, with length set to seconds. Rounded to the next valid number of frames.",
        ),
        io.Int.Input(
            "frames",
            default=NATIVE["num_frames"],
            min=1,
            max=100_000,
            step=4,
            optional=True,
            tooltip="Number of video frames, with length set to frames. 25 frames are one second. Rounded to a "
            "multiple of 4, plus 1.",
        ),
    ]


def settings_input() -> Any:
    """Choice between the settings of the model and those of the widgets below it."""
    return made(
        io.Combo.Input,
        "settings",
        options=[MODEL_DEFAULTS, CUSTOM],
        default=MODEL_DEFAULTS,
        optional=True,
        tooltip="model defaults: size, steps, guidance and windows that the model was made for. custom: the values "
        "below, which start with those of the model.",
        extra_dict={"model_defaults": host.model_defaults()},
    )


def size_inputs() -> list[Any]:
    """Width, height and steps."""
    pixels: dict[str, Any] = {"min": SIZE_UNIT, "step": SIZE_UNIT, "optional": True}
    return [
        widget(SceneFile, "width", tooltip="Width in pixels.", default=NATIVE["width"], **pixels),
        widget(SceneFile, "height", tooltip="Height in pixels.", default=NATIVE["height"], **pixels),
        widget(SamplingConfig, "steps", optional=True),
    ]


def sampling_inputs() -> list[Any]:
    """Guidance, scheduler and windows."""
    return [
        widget(SamplingConfig, "guidance_scale", "cfg", step=0.1, optional=True),
        widget(
            SamplingConfig,
            "audio_guidance_scale",
            "audio_cfg",
            step=0.1,
            tooltip="Guidance scale for the speech. If it differs from cfg, every step needs one more forward pass.",
            optional=True,
        ),
        widget(SamplingConfig, "scheduler", optional=True, advanced=True),
        widget(
            WindowConfig,
            "frames",
            "window_frames",
            default=NATIVE["num_frames"],
            min=1,
            step=4,
            tooltip="Number of video frames per window of a long video (rounded to a multiple of 4, plus 1).",
            optional=True,
            advanced=True,
        ),
        widget(
            WindowConfig,
            "overlap",
            "window_overlap",
            default=OVERLAP,
            min=1,
            step=4,
            tooltip="Number of video frames that a window shares with the previous one (rounded to a multiple of 4, "
            "plus 1).",
            optional=True,
            advanced=True,
        ),
    ]


def chosen_frames(options: dict[str, Any]) -> int | None:
    """Take the widgets of the length out of `options`; the number of video frames, None as long as the speech."""
    length, seconds = options.pop("length", LENGTHS[0]), options.pop("seconds", 2.0)
    return video_frames(length, seconds, options.pop("frames", NATIVE["num_frames"]))


def chosen_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Take the widgets of the settings out of `options`.

    Returns:
        Fields of SceneOptions and SamplingConfig, empty for the defaults of the model. A setting that is missing, as in
        a prompt made without the page, is left to the model as well.
    """
    values = {field: options.pop(name, None) for name, field in CUSTOM_SETTINGS.items()}
    if options.pop("settings", MODEL_DEFAULTS) != CUSTOM:
        return {}
    return {field: value for field, value in values.items() if value is not None}


def check_settings(
    settings: str | None, width: int | None, height: int | None, frames: int | None = None, overlap: int | None = None
) -> None:
    """Check what needs no model; None is connected, or missing.

    Raises:
        InputError: A size or a window that no model supports.
    """
    if settings == MODEL_DEFAULTS:
        return
    height, width = (SIZE_UNIT if side is None else side for side in (height, width))
    TokenGrid.from_pixels(1, height, width, patch=1, space_factor=SIZE_UNIT)
    WindowConfig(frames, overlap)
