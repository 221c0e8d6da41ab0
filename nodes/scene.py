"""Scene: what is asked for, in one place, so that router and sampler cannot disagree."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import convert, host, types
from .schema import schema

MAX_SEED = 2**63 - 1


class Scene(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Scene",
            "Scene",
            "What the video shows: prompt, cast, first frame, size, length and how it is denoised. Router and sampler "
            "both work from it. 25 frames a second, always.",
            search_aliases=["prompt", "settings"],
            inputs=[
                types.Model.Input("model", tooltip="From Load Bind-Your-Avatar."),
                types.Cast.Input("cast", tooltip="The characters, from Face Encode or Cast."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What is seen: who is where and does what. Name places (left, right): it helps the router.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default="",
                    tooltip="What should not be seen. Acts only with guidance_text above 1.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Pixels; 0 = as the model was trained (toy: 96). Other sizes work, with less quality.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Pixels; 0 = as the model was trained (toy: 64). Other sizes work, with less quality.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Video frames, 1 + a multiple of 4, 25 a second; 0 = as long as the longest speech. Beyond "
                    "what the model was trained for (toy: 49) the video is made in windows.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Denoising steps; 0 = what suits the model (toy: 24). Time grows with it; half is a "
                    "sketch.",
                ),
                io.Float.Input(
                    "guidance_text",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How closely the prompt is followed; 0 = what suits the model, 1 = off. Safe: 1 to 8.",
                ),
                io.Float.Input(
                    "guidance_speech",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How closely mouths follow speech; 0 = what suits the model. Different from guidance_text "
                    "it costs one more pass a step. Safe: 1 to 8.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=["as the model", "dpm", "ddim"],
                    default="as the model",
                    tooltip="How a step is made: dpm needs fewer steps, ddim is plainer. 'as the model' = what suits "
                    "it.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="Of all random numbers: the same seed and settings give the same video.",
                ),
                io.String.Input(
                    "timed_prompts",
                    multiline=True,
                    default="",
                    tooltip="Other prompts for parts of a video made in windows, one a line in seconds, such as "
                    "2.5 - 4: Ada laughs. Each window takes the prompt that covers most of it. Empty: prompt holds all "
                    "the time.",
                ),
                io.Int.Input(
                    "window_frames",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Frames of one window of a long video, 1 + a multiple of 4; 0 = as the model was trained. "
                    "Shorter windows need less memory.",
                ),
                io.Int.Input(
                    "overlap_frames",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Frames that a window shares with the one before it, 1 + a multiple of 4; 0 = what "
                    "suits. 5 to 17 is safe: more joins motion better and takes longer.",
                ),
                io.Combo.Input(
                    "first_frame_fit",
                    options=["crop", "pad", "stretch"],
                    default="crop",
                    tooltip="How first_frame gets the size of the video. crop: covers it, edges are lost. pad: all of "
                    "it between black bars. stretch: pulled to the size; released weights only.",
                ),
                io.Image.Input(
                    "first_frame",
                    optional=True,
                    tooltip="A picture that fixes the start, brought to the size of the video by first_frame_fit. Left "
                    "open: the model invents it.",
                ),
            ],
            outputs=[
                types.Scenery.Output("scene", tooltip="Feeds Embedding Router."),
                io.String.Output("info", tooltip="Size, length and what to know before sampling, one line each."),
            ],
        )

    @classmethod
    def validate_inputs(cls, timed_prompts: str | None = None) -> bool | str:
        from bya_core.scene.compose import parse_prompts

        return host.valid(parse_prompts, timed_prompts)

    @classmethod
    @host.told_plainly
    def execute(cls, model: host.HostModel, cast: Any, first_frame: Any = None, **given: Any) -> io.NodeOutput:
        from bya_core.scene.compose import Wishes, chosen_sampling, compose, summary

        chosen = {SAMPLING_FIELDS.get(key, key): given.pop(key) for key in SAMPLING}
        sampling = chosen_sampling(model.bundle.sampling, **chosen)
        frame = None if first_frame is None else convert.one_picture(first_frame, "the first frame")
        scene = compose(cast, Wishes(**given, first_frame=frame, sampling=sampling), model.bundle.defaults)
        return io.NodeOutput(types.SceneValue(model, scene), summary(scene))


SAMPLING = ("steps", "guidance_text", "guidance_speech", "scheduler", "seed")
SAMPLING_FIELDS = {"guidance_text": "guidance_scale", "guidance_speech": "audio_guidance_scale"}
