"""The workflows that come with the pack.

    python -m tools.workflows.build         # writes workflows/*.json, and the graphs they run to tests/host/graphs_api

Shared groups of nodes first, then the workflows. Names of workflows are their titles in the template browser.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.workflows.sheet import COLUMN_GAP, HEIGHTS, Group, Node, NodeInfo, Sheet, Wire

NOTES = Path(__file__).resolve().parent / "notes"
DEMO = Path(__file__).resolve().parents[2] / "demo"
REAL_PROMPT = "Two people sit side by side on a sofa and talk: on the left a woman, on the right a man."
NARROW, WIDE, PANEL, BEST = 240, 430, 380, 590  # widths of the nodes of characters, of the scene, and with results
SLIM, SMALL = 395, 360  # the last two in graphs of four columns


def scene_of(demo: str) -> dict[str, Any]:
    """Prompt and seed of a scene file in the demo folder."""
    scene = json.loads((DEMO / f"{demo}.json").read_text(encoding="utf-8"))
    return {name: scene[name] for name in ("prompt", "seed") if name in scene}


@dataclass
class Cast:
    """Nodes of a cast.

    Args:
        files: Load Image and Load Audio of each character.
        encoders: BYA Audio Encode and BYA Face Encode of each character.
        out: Connection of the whole cast.
    """

    files: list[Node]
    encoders: list[Node]
    out: Wire

    @property
    def group(self) -> Group:
        """The characters, one below the other."""
        return Group("1 Characters", [self.files, self.encoders], "green")


def cast(
    sheet: Sheet, images: Sequence[str], recordings: Sequence[str | None], names: Sequence[str] | None = None
) -> Cast:
    """Characters from files in the input folder, chained in order; None as a recording is a silent listener.

    The same recording twice is loaded once.
    """
    files: list[Node] = []
    encoders: list[Node] = []
    loaded: dict[str, Node] = {}
    previous: Wire | None = None
    for number, (image, recording) in enumerate(zip(images, recordings, strict=True)):
        name = names[number] if names else f"puppet {'ABCDEFGH'[number]}"
        picture = sheet.add("LoadImage", f"Image of {name}", wide=NARROW, image=image)
        files.append(picture)
        inputs: dict[str, Any] = {"image": picture["IMAGE"], "name": name}
        if recording is not None:
            if recording not in loaded:
                title = f"Recording of {'both' if recordings.count(recording) > 1 else name}"
                loaded[recording] = sheet.add("LoadAudio", title, wide=NARROW, audio=recording)
                files.append(loaded[recording])
            voice = sheet.add("BYA_AudioEncode", f"Voice of {name}", wide=NARROW, audio=loaded[recording]["AUDIO"])
            encoders.append(voice)
            inputs["speech"] = voice["speech"]
        if previous is not None:
            inputs["cast"] = previous
        face = sheet.add("BYA_FaceEncode", f"Character {name}", wide=NARROW, **inputs)
        encoders.append(face)
        previous = face["cast"]
    assert previous is not None
    return Cast(files, encoders, previous)


@dataclass
class Start:
    """Nodes that most workflows begin with.

    Args:
        left: Note and model.
        people: The characters.
        scene: BYA Scene.
        first_frame: Load Image of the first frame; None = without.
    """

    left: list[Group]
    people: Cast
    scene: Node
    first_frame: Node | None


def toy_scene(
    sheet: Sheet, demo: str = "scene", files: str = "bya_", voices: Sequence[str | None] | None = None, count: int = 2,
    with_frame: bool = True, above: bool = False, wide: int = WIDE, **scene_inputs: Any,
) -> Start:  # fmt: skip
    """Note, model, characters and scene of a demo of the toy model, with its first frame or without.

    Note and model are left of the characters, or `above` them.
    """
    narrow = NARROW if above else NARROW + 20
    note = sheet.read_me(wide=2 * NARROW + COLUMN_GAP if above else narrow)
    model = sheet.add("BYA_Loader", wide=narrow)
    letters = "ABC"[:count]
    recordings = [f"{files}{letter}.wav" for letter in letters] if voices is None else voices
    people = cast(sheet, [f"{files}{letter}.png" for letter in letters], recordings)
    frame = None
    if with_frame:
        frame = sheet.add("LoadImage", "First frame (optional)", wide=narrow, image=f"{files}first_frame.png")
        scene_inputs["first_frame"] = frame["IMAGE"]
    scene = sheet.add(
        "BYA_Scene",
        wide=wide,
        model=model["model"],
        cast=people.out,
        **scene_of(demo),
        **scene_inputs,
    )
    models = (
        Group("Model", [[model]], "green")
        if frame is None
        else Group("Model and first frame", [[model], [frame]] if above else [[model, frame]], "green")
    )
    left = [Group("Read me", [[note]], "grey"), models]
    return Start(left, people, scene, frame)


def result(sheet: Sheet, routing: Wire, prefix: str, wide: int = PANEL, count: int = 2) -> tuple[Node, Node]:
    """Sampler with the video and the binding of its characters, and Save Video."""
    sampler = sheet.add("BYA_Sampler", wide=wide, high=HEIGHTS["BYA_Sampler"] + 80 * (count - 2), routing=routing)
    saved = sheet.add("SaveVideo", wide=wide, video=sampler["video"], filename_prefix=f"video/{prefix}")
    return sampler, saved


def toy_video(prefix: str, router_inputs: dict[str, Any] | None = None, **start_inputs: Any) -> Callable[[Sheet], None]:
    """A workflow of the toy model from the inputs to the saved video."""

    def build(sheet: Sheet) -> None:
        start = toy_scene(sheet, **start_inputs)
        router = sheet.add("BYA_EmbeddingRouter", wide=WIDE, scene=start.scene["scene"], **(router_inputs or {}))
        sampler, saved = result(sheet, router["routing"], prefix, count=start_inputs.get("count", 2))
        sheet.arrange([
            start.left,
            [start.people.group],
            [Group("2 Scene and masks", [[start.scene, router]], "purple")],
            [Group("3 Video", [[sampler, saved]], "orange")],
        ])  # fmt: skip

    return build


def real_weights(sheet: Sheet) -> None:
    """Two real people, with the released weights."""
    note = sheet.read_me(wide=NARROW + 20)
    model = sheet.add("BYA_Loader", wide=NARROW + 20, model="official", dtype="bfloat16")
    names = ["person A", "person B"]
    people = cast(sheet, ["bya_A.png", "bya_B.png"], ["bya_A.wav", "bya_B.wav"], names)
    check = sheet.add("BYA_Preflight", wide=WIDE, cast=people.out, model="official")
    scene = sheet.add("BYA_Scene", wide=WIDE, model=model["model"], cast=check["cast"], prompt=REAL_PROMPT)
    router = sheet.add("BYA_EmbeddingRouter", wide=PANEL, scene=scene["scene"])
    sampler, saved = result(sheet, router["routing"], "two_people")
    sheet.arrange([
        [Group("Read me", [[note]], "grey"), Group("Model", [[model]], "green")],
        [people.group],
        [Group("2 Check and scene", [[check, scene]], "purple")],
        [Group("3 Masks and video", [[router, sampler, saved]], "orange")],
    ])  # fmt: skip


def look_and_edit_masks(sheet: Sheet) -> None:
    """Look at the masks of the router, change one, resume."""
    start = toy_scene(sheet, above=True, wide=SLIM)
    router = sheet.add("BYA_EmbeddingRouter", wide=SLIM, scene=start.scene["scene"])
    refined = sheet.add("BYA_MaskRefine", "Refine all masks", wide=SMALL, routing=router["routing"])
    picked = sheet.add("BYA_SelectCharacterMask", wide=SMALL, routing=refined["routing"], character="puppet A")
    grown = sheet.add("GrowMask", wide=SMALL, mask=picked["mask"], expand=4)
    edited = sheet.add(
        "BYA_MaskRefine",
        "Override with the grown mask",
        wide=SMALL,
        routing=refined["routing"],
        refine=False,
        override_mask=grown["MASK"],
        character="puppet A",
    )
    sampler, saved = result(sheet, edited["routing"], "edited_masks", SMALL)
    sheet.arrange([
        [*start.left, start.people.group],
        [Group("2 Scene and masks", [[start.scene, router]], "purple")],
        [Group("3 Edit the masks", [[refined, picked, grown, edited]], "blue")],
        [Group("4 Video", [[sampler, saved]], "orange")],
    ])  # fmt: skip


def paint_masks(sheet: Sheet) -> None:
    """Masks painted on the node."""
    start = toy_scene(sheet, above=True, wide=SLIM)
    router = sheet.add("BYA_EmbeddingRouter", wide=SLIM, scene=start.scene["scene"], mode="pre")
    painted = sheet.add("BYA_MaskRefine", "Paint here", wide=SMALL, routing=router["routing"], refine=False)
    sampler, saved = result(sheet, painted["routing"], "painted_masks", SMALL)
    sheet.arrange([
        [*start.left, start.people.group],
        [Group("2 Scene and masks", [[start.scene, router]], "purple")],
        [Group("3 Paint", [[painted]], "blue")],
        [Group("4 Video", [[sampler, saved]], "orange")],
    ])  # fmt: skip


def router_comparison(sheet: Sheet) -> None:
    """The three routers compared, side by side."""
    start = toy_scene(sheet, above=True, wide=2 * NARROW + COLUMN_GAP)
    columns = []
    for mode, color in (("pre", "blue"), ("intra", "purple"), ("post", "orange")):
        scene = start.scene["scene"]
        router = sheet.add("BYA_EmbeddingRouter", f"Router: {mode}", wide=SMALL, scene=scene, mode=mode)
        sampler, saved = result(sheet, router["routing"], f"router_{mode}", SMALL)
        columns.append([Group(mode, [[router, sampler, saved]], color)])
    sheet.arrange([
        [*start.left, start.people.group, Group("2 Scene", [[start.scene]], "green")],
        *columns,
    ])  # fmt: skip


def check_any_video(sheet: Sheet) -> None:
    """Binding report of a video file."""
    start = toy_scene(sheet)
    video = sheet.add("LoadVideo", "Video of the drawn puppets", wide=NARROW + 20, file="bya_video.mp4")
    parts = sheet.add("GetVideoComponents", wide=NARROW + 20, video=video["VIDEO"])
    router = sheet.add("BYA_EmbeddingRouter", wide=WIDE, scene=start.scene["scene"], mode="pre")
    report = sheet.add("BYA_BindingReport", wide=PANEL, routing=router["routing"], frames=parts["images"])
    own = sheet.add("LoadVideo", "Your video of real people", muted=True, wide=NARROW, file="bya_video.mp4")
    voices = [
        sheet.add("LoadAudio", f"Voice {number + 1}", muted=True, wide=NARROW, audio=f"bya_{letter}.wav")
        for number, letter in enumerate("AB")
    ]
    real = sheet.add("BYA_VideoReport", muted=True, wide=PANEL, video=own["VIDEO"], voice_1=voices[0]["AUDIO"],
                     voice_2=voices[1]["AUDIO"])  # fmt: skip
    sheet.arrange([
        [*start.left, Group("Video", [[video, parts]], "blue")],
        [start.people.group],
        [Group("2 Scene and masks", [[start.scene, router]], "purple")],
        [Group("3 Binding report", [[report]], "orange"),
         Group("Real people (muted: select all, Ctrl+M)", [[own, *voices, real]], "grey")],
    ])  # fmt: skip


def dub_a_film(sheet: Sheet) -> None:
    """A new voice for one of two people in a video."""
    start = toy_scene(sheet, voices=["bya_three_B.wav", None], with_frame=False)
    film = sheet.add("LoadVideo", "Film", wide=NARROW + 20, file="bya_video.mp4")
    dub = sheet.add("BYA_Dub", wide=PANEL, scene=start.scene["scene"], film=film["VIDEO"])
    saved = sheet.add("SaveVideo", wide=PANEL, video=dub["video"], filename_prefix="video/dub")
    regions = sheet.add("PreviewImage", "Generated regions", wide=PANEL, images=dub["overlay"])
    sheet.arrange([
        [*start.left, Group("Film", [[film]], "blue")],
        [start.people.group],
        [Group("2 Scene", [[start.scene]], "purple")],
        [Group("3 Dub", [[dub, regions, saved]], "orange")],
    ])  # fmt: skip


def best_of_four(sheet: Sheet) -> None:
    """Four seeds tried, the best two finished, the best one saved."""
    start = toy_scene(sheet, with_frame=False, above=True)
    best = sheet.add("BYA_BestTake", wide=BEST, scene=start.scene["scene"])
    saved = sheet.add("SaveVideo", wide=PANEL, video=best["video"], filename_prefix="video/best_of_four")
    sheet.arrange([
        [*start.left, start.people.group],
        [Group("2 Scene", [[start.scene]], "purple")],
        [Group("3 Best take", [[best, saved]], "orange")],
    ])  # fmt: skip


ONE_RECORDING = json.dumps(
    {
        "version": 1,
        "voices": [
            {"clips": [{"start": start, "from": start, "to": end} for start, end in spans]}
            for spans in (((0.0, 1.48), (2.72, 4.4)), ((1.48, 2.72), (4.4, 5.16)))
        ],
    }
)
"""Edits of BYA Scene: puppet A says the first and third sentence of the recording, puppet B the others."""

WORKFLOWS: dict[str, Callable[[Sheet], None]] = {
    "01 First video": toy_video("first_video"),
    "02 Real people with the released weights": real_weights,
    "03 Look at the masks and edit them": look_and_edit_masks,
    "04 Paint masks": paint_masks,
    "05 Three characters": toy_video(
        "three_characters", {"max_percent": 0.5}, demo="three_puppets", files="bya_three_", count=3
    ),
    "06 One listener": toy_video("one_listener", voices=["bya_A.wav", None]),
    "07 Long dialogue from one recording": toy_video(
        "long_dialogue", demo="dialogue", files="bya_long_", voices=["bya_long_dialogue.wav"] * 2,
        dialogue=ONE_RECORDING,
    ),
    "08 Compare the routers": router_comparison,
    "09 Check any video": check_any_video,
    "10 Dub a film": dub_a_film,
    "11 Best of four": best_of_four,
}  # fmt: skip


def draw(name: str, infos: dict[str, NodeInfo], measured: str = "") -> dict[str, Any]:
    """One workflow in ComfyUI's file format; its note is notes/<name>.md, with what was measured."""
    note = (NOTES / f"{name}.md").read_text(encoding="utf-8")
    sheet = Sheet(name, infos, note.replace("{measured}", measured).strip())
    WORKFLOWS[name](sheet)
    return sheet.to_json()
