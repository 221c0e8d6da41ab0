"""BYA Scene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from bya_core.config import SamplingConfig, WindowConfig
from bya_core.scene.schema import SceneFile

from . import convert, host, types
from .schema import schema, widget

if TYPE_CHECKING:
    from bya_core.scene.types import Scene as CoreScene
    from bya_core.scene.types import SceneDefaults

MODEL_DEFAULT = "model default"
SAMPLING = {
    "steps": "steps",
    "cfg": "guidance_scale",
    "audio_cfg": "audio_guidance_scale",
    "scheduler": "scheduler",
    "seed": "seed",
}  # widgets -> fields of SamplingConfig


def size_inputs() -> list[Any]:
    """Width, height, frames and steps; 0 is the default of the model or of the speech."""
    pixels: dict[str, Any] = {"default": 0, "min": 0, "step": 8}
    return [
        widget(SceneFile, "width", tooltip="Width in pixels. 0 uses the model's width.", **pixels),
        widget(SceneFile, "height", tooltip="Height in pixels. 0 uses the model's height.", **pixels),
        io.Int.Input(
            "frames",
            default=0,
            min=0,
            max=100_000,
            tooltip="Number of video frames (rounded to a multiple of 4, plus 1), 25 per second. 0 fits the longest "
            "speech. Longer videos than the model was trained for are generated in windows.",
        ),
        widget(SamplingConfig, "steps", default=0, min=0, hint="0 uses the model's default."),
    ]


def timeline_entry(cast: Any, scene: CoreScene, defaults: SceneDefaults) -> dict[str, Any]:
    """What the timeline on the node shows: length and windows of the video, and the recordings before their edits."""
    from bya_core.scene.windows import plan_windows

    windows = plan_windows(
        scene.num_frames, scene.windows.frames or defaults.max_frames, scene.windows.overlap, defaults.time_factor
    )
    voices = []
    for member in cast:
        entry: dict[str, Any] = {"name": member.name, "file": None}
        if (speech := member.speech) is not None:
            sound = convert.audio((speech.waveform.mean(0, keepdim=True), speech.sample_rate), 0.0)
            seconds = speech.waveform.shape[-1] / speech.sample_rate + speech.unread
            entry |= {"offset": speech.offset, "gain": speech.gain, "seconds": seconds}
            entry["file"] = dict(ui.PreviewAudio(sound).as_dict()["audio"][0])
        voices.append(entry)
    spans = [[window.start / scene.fps, window.stop / scene.fps] for window in windows]
    return {"frames": scene.num_frames, "windows": spans, "voices": voices}


class Scene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        window: dict[str, Any] = {"default": 0, "min": 0}
        return schema(
            "Scene",
            "BYA Scene",
            "What the video shows: prompt, cast, first frame, size, length and sampling settings. Router and sampler "
            "both use it. Always 25 frames per second.",
            has_intermediate_output=True,  # a later run sends the recordings of the timeline again
            search_aliases=["prompt", "settings", "dialogue", "talking"],
            inputs=[
                types.Model.Input("model", tooltip="From BYA Load Model."),
                types.Cast.Input("cast", tooltip="The characters, from BYA Face Encode or BYA Cast."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="Description of the video. Name positions (left, right): it helps the router.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default="",
                    tooltip="What the video should not contain. Has an effect only with cfg above 1.",
                ),
                *size_inputs(),
                widget(
                    SamplingConfig,
                    "guidance_scale",
                    "cfg",
                    default=0.0,
                    step=0.1,
                    hint="0 uses the model's default.",
                ),
                widget(
                    SamplingConfig,
                    "audio_guidance_scale",
                    "audio_cfg",
                    default=0.0,
                    step=0.1,
                    tooltip="Guidance scale for the speech. 0 uses the model's default. If it differs from cfg, every "
                    "step needs one more forward pass.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=[MODEL_DEFAULT, "dpm", "ddim"],
                    default=MODEL_DEFAULT,
                    tooltip="Scheduler, one of the CogVideoX schedulers of diffusers.",
                ),
                widget(SamplingConfig, "seed", control_after_generate=True),
                io.String.Input(
                    "prompt_schedule",
                    multiline=True,
                    default="",
                    tooltip="Prompts for parts of a long video, one per line in seconds, such as 2.5 - 4: Ada laughs. "
                    "Each window uses the prompt that covers most of it.",
                ),
                widget(
                    WindowConfig,
                    "frames",
                    "window_frames",
                    tooltip="Number of video frames per window (rounded to a multiple of 4, plus 1). 0 uses the "
                    "model's length.",
                    **window,
                ),
                widget(
                    WindowConfig,
                    "overlap",
                    "window_overlap",
                    tooltip="Number of video frames that a window shares with the previous one (rounded to a multiple "
                    "of 4, plus 1). 0 is automatic: 9, or fewer in short windows.",
                    **window,
                ),
                widget(SceneFile, "first_frame_fit"),
                io.Image.Input(
                    "first_frame",
                    optional=True,
                    tooltip="Image that fixes the first frame. Not connected: the model generates it.",
                ),
                io.String.Input(
                    "dialogue",
                    optional=True,
                    default="",
                    socketless=True,
                    extra_dict={"hidden": True},  # edited by the timeline on the node
                    tooltip="Edits of the recordings, as JSON: clips, muted voices, and the voice of each character.",
                ),
            ],
            outputs=[
                types.Scene.Output("scene", tooltip="Connect to BYA Embedding Router."),
                io.String.Output("info", tooltip="Size, length, sampling settings and notices, one per line."),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt_schedule: str | None = None, dialogue: str | None = None) -> bool | str:
        from bya_core.scene.compose import parse_prompts
        from bya_core.scene.dialogue import parse_dialogue

        checks = (host.validate(parse_prompts, prompt_schedule), host.validate(parse_dialogue, dialogue))
        return next((found for found in checks if found is not True), True)

    @classmethod
    @host.plain_errors
    def execute(cls, model: host.HostModel, cast: Any, first_frame: Any = None, **options: Any) -> io.NodeOutput:
        from bya_core.scene.compose import SceneOptions, compose, override_sampling, summary

        sampling_options = {field: options.pop(name) for name, field in SAMPLING.items()}
        sampling = override_sampling(model.bundle.sampling, **sampling_options)
        frame = None if first_frame is None else convert.one_image(first_frame, "the first frame")
        options["timed_prompts"] = options.pop("prompt_schedule")
        options["overlap_frames"] = options.pop("window_overlap")
        scene = compose(cast, SceneOptions(**options, first_frame=frame, sampling=sampling), model.bundle.defaults)
        host.show_notices(scene.notices)
        shown = {"bya_dialogue": [timeline_entry(cast, scene, model.bundle.defaults)]}
        return io.NodeOutput(types.SceneValue(model, scene), summary(scene), ui=shown)
