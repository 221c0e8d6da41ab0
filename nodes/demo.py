"""Load Demo: the pack's own pictures and voices, so that every workflow runs at once."""

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
            who = f"of character {number}; nothing where the demo has fewer"
            slots.append(io.Image.Output(f"image_{number}", tooltip=f"Reference picture {who}."))
            slots.append(io.Audio.Output(f"audio_{number}", tooltip=f"Voice {who} or a silent listener."))
        return schema(
            "LoadDemo",
            "Load Demo",
            "Pictures, voices, first frame and prompt of a drawn scene that comes with the pack, made for the model "
            "'toy'.",
            search_aliases=["example", "puppets"],
            inputs=[
                io.Combo.Input(
                    "demo",
                    options=demo_names(),
                    default=demo_names()[0],
                    tooltip="Which scene of the pack's demo folder.",
                )
            ],
            outputs=[
                io.String.Output("prompt", tooltip="What is seen, for Scene."),
                io.Image.Output("first_frame", tooltip="The picture the video starts from, for Scene."),
                io.Int.Output("frames", tooltip="Length of the demo's video in frames, for Scene."),
                *slots,
            ],
        )

    @classmethod
    @host.told_plainly
    def execute(cls, demo: str) -> io.NodeOutput:
        from bya_core.toy.demo import load_demo

        scene = load_demo(demo)
        slots: list[object] = []
        for picture, voice in scene.characters:
            slots += [convert.image(picture), None if voice is None else convert.audio(voice, 0.0)]
        slots += [None] * (6 - len(slots))
        frame = None if scene.first_frame is None else convert.image(scene.first_frame)
        return io.NodeOutput(scene.prompt, frame, scene.frames, *slots[:6])
