"""BYA Scene."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from bya_core.config import SamplingConfig
from bya_core.scene.schema import SceneFile

from . import checks, convert, host, lengths, results, types
from .schema import made, schema, widget

if TYPE_CHECKING:
    from bya_core.scene.types import Scene as CoreScene
    from bya_core.scene.types import SceneDefaults

MAX_HEARD = 600.0  # seconds of a recording that is sent to the page
SAMPLING = ("steps", "guidance_scale", "audio_guidance_scale", "scheduler")


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
            seconds = speech.end - speech.offset
            entry |= {"offset": speech.offset, "gain": speech.gain, "seconds": seconds}
            if seconds <= MAX_HEARD:
                sound = convert.audio((speech.waveform.mean(0, keepdim=True), speech.sample_rate), 0.0)
                entry["file"] = dict(ui.PreviewAudio(sound).as_dict()["audio"][0])
        voices.append(entry)
    spans = [[window.start / scene.fps, window.stop / scene.fps] for window in windows]
    return {"frames": scene.num_frames, "windows": spans, "voices": voices}


class Scene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        text: dict[str, Any] = {"multiline": True, "default": ""}
        return schema(
            "Scene",
            "BYA Scene",
            "What the video shows: prompt, cast, first frame, length and settings. Router and sampler both use it. "
            "Always 25 frames per second.",
            folder="video",
            search_aliases=["prompt", "settings", "dialogue", "talking", "lip sync", "multi speaker", "avatar"],
            has_intermediate_output=True,
            inputs=[
                types.Model.Input("model", tooltip="From BYA Load Model."),
                types.Cast.Input("cast", tooltip="The characters, from BYA Face Encode or BYA Cast."),
                io.String.Input(
                    "prompt",
                    tooltip="Description of the video. Name positions (left, right): it helps the router.",
                    **text,
                ),
                io.Image.Input(
                    "first_frame",
                    optional=True,
                    tooltip="Image that fixes the first frame. Not connected: the model generates it.",
                ),
                *lengths.length_inputs(),
                widget(SamplingConfig, "seed", control_after_generate=True, optional=True),
                lengths.settings_input(),
                *lengths.size_inputs(),
                *lengths.sampling_inputs(),
                made(
                    io.String.Input,
                    "negative_prompt",
                    optional=True,
                    advanced=True,
                    tooltip="What the video should not contain. Has an effect only with cfg above 1.",
                    **text,
                ),
                made(
                    io.String.Input,
                    "prompt_schedule",
                    optional=True,
                    advanced=True,
                    tooltip="Prompts for parts of a long video, one per line in seconds, such as 2.5 - 4: Ada laughs. "
                    "Each window uses the prompt that covers most of it.",
                    **text,
                ),
                widget(SceneFile, "first_frame_fit", optional=True, advanced=True),
                widget(SceneFile, "force", optional=True, advanced=True),
                made(
                    io.String.Input,
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
    def validate_inputs(
        cls,
        prompt_schedule: str | None = None,
        settings: str | None = lengths.MODEL_DEFAULTS,
        width: int | None = None,
        height: int | None = None,
        window_frames: int | None = None,
        window_overlap: int | None = None,
        dialogue: str | None = None,
    ) -> bool | str:
        from bya_core.scene.compose import parse_prompts
        from bya_core.scene.dialogue import parse_dialogue

        return checks.validate(
            lambda: parse_prompts(prompt_schedule or ""),
            lambda: parse_dialogue(dialogue or ""),
            lambda: lengths.check_settings(settings, width, height, window_frames, window_overlap),
        )

    @classmethod
    @host.plain_errors
    def execute(
        cls, model: host.HostModel, cast: Any, prompt: str, first_frame: Any = None, seed: int = 0, **options: Any
    ) -> io.NodeOutput:
        from bya_core.scene.compose import SceneOptions, compose, override_sampling, summary

        frames, settings = lengths.chosen_frames(options), lengths.chosen_settings(options)
        changes = {name: settings.pop(name) for name in SAMPLING if name in settings}
        sampling = override_sampling(model.bundle.sampling, seed=seed, **changes)
        frame = None if first_frame is None else convert.one_image(first_frame, "the first frame")
        options |= settings | {"frames": frames, "timed_prompts": options.pop("prompt_schedule", "")}
        scene = compose(
            cast, SceneOptions(prompt, first_frame=frame, sampling=sampling, **options), model.bundle.defaults
        )
        info = summary(scene)
        shown = {
            "bya_dialogue": [timeline_entry(cast, scene, model.bundle.defaults)],
            **results.text(info),
            **results.notices(scene.notices),
        }
        return io.NodeOutput(types.SceneValue(model, scene), info, ui=shown)
