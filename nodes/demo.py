"""BYA Load Demo: images and voices that come with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from . import convert, host
from .schema import schema


class LoadDemo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from bya_core.toy.demo import demo_names

        slots = []
        for number in (1, 2, 3):
            whose = f"of character {number}; None if the demo has fewer"
            slots.append(io.Image.Output(f"image_{number}", tooltip=f"Reference image {whose}."))
            slots.append(io.Audio.Output(f"audio_{number}", tooltip=f"Voice {whose}, or for a silent listener."))
        return schema(
            "LoadDemo",
            "BYA Load Demo",
            "Images, voices, first frame and prompt of a drawn scene that comes with the pack, for the toy model.",
            folder="characters",
            search_aliases=["example", "puppets", "talking", "dialogue"],
            inputs=[
                io.Combo.Input("demo", options=demo_names(), default=demo_names()[0], tooltip="Name of the demo scene.")
            ],
            outputs=[
                io.String.Output("prompt", tooltip="Prompt, for BYA Scene."),
                io.Image.Output("first_frame", tooltip="First frame, for BYA Scene."),
                io.Int.Output("frames", tooltip="Number of video frames, for BYA Scene."),
                *slots,
            ],
        )

    @classmethod
    @host.plain_errors
    def execute(cls, demo: str) -> io.NodeOutput:
        from bya_core.toy.demo import load_demo

        scene = load_demo(demo)
        slots: list[object] = []
        for picture, voice in scene.characters:
            slots += [convert.image(picture), None if voice is None else convert.audio(voice, 0.0)]
        slots += [None] * (6 - len(slots))
        frame = None if scene.first_frame is None else convert.image(scene.first_frame)
        return io.NodeOutput(scene.prompt, frame, scene.frames, *slots[:6])
