"""The workflows that come with the pack.

    python -m tools.workflows.build         # writes workflows/*.json, and the graphs they run to tests/host/graphs_api

Shared groups of nodes first, then the workflows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.workflows.sheet import Group, Node, NodeInfo, Sheet, Wire

LETTERS = "ABCDEFGH"
NOTES = Path(__file__).resolve().parent / "notes"


@dataclass
class Cast:
    """Nodes of a cast.

    Args:
        faces, voices: Nodes of the characters.
        out: Connection of the whole cast.
    """

    faces: list[Node]
    voices: list[Node]
    out: Wire


def cast(sheet: Sheet, pictures: Sequence[Wire], voices: Sequence[Wire | None], names: Sequence[str]) -> Cast:
    """Characters, chained in order; None as a voice is a silent listener."""
    faces: list[Node] = []
    speeches: list[Node] = []
    for picture, voice, name in zip(pictures, voices, names, strict=True):
        inputs: dict[str, Any] = {"image": picture, "name": name}
        if voice is not None:
            speeches.append(sheet.add("BYA_AudioEncode", f"Voice of {name}", audio=voice))
            inputs["speech"] = speeches[-1]["speech"]
        if faces:
            inputs["cast"] = faces[-1]["cast"]
        faces.append(sheet.add("BYA_FaceEncode", f"Face of {name}", **inputs))
    return Cast(faces, speeches, faces[-1]["cast"])


def puppets(sheet: Sheet, demo: Node, count: int, silent: Sequence[int] = ()) -> Cast:
    """The first characters of a demo; those in `silent` get no voice."""
    numbers = range(1, count + 1)
    return cast(
        sheet,
        [demo[f"image_{number}"] for number in numbers],
        [None if number in silent else demo[f"audio_{number}"] for number in numbers],
        [f"puppet {LETTERS[number - 1]}" for number in numbers],
    )


def result(sheet: Sheet, routing: Wire, prefix: str) -> tuple[Node, list[Node]]:
    """Sampler and Save Video; returns the sampler and both."""
    sampler = sheet.add("BYA_Sampler", routing=routing)
    saved = sheet.add("SaveVideo", wide=360, video=sampler["video"], filename_prefix=f"video/{prefix}")
    return sampler, [sampler, saved]


def preview_masks(sheet: Sheet, routing: Wire, title: str) -> list[Node]:
    """Masks over the first frame, before anything is sampled."""
    overlay = sheet.add("BYA_MaskOverlay", routing=routing)
    one = sheet.add("ImageFromBatch", "One frame", image=overlay["images"], batch_index=24)
    return [overlay, one, sheet.add("PreviewImage", title, wide=360, high=300, images=one["IMAGE"])]


def used_masks(sheet: Sheet, routing: Wire, sampler: Node, prefix: str) -> list[Node]:
    """The video with the masks that were used, saved."""
    overlay = sheet.add("BYA_MaskOverlay", routing=routing, images=sampler["frames"], masks=sampler["masks"])
    joined = sheet.add("CreateVideo", images=overlay["images"], fps=sampler["fps"], audio=sampler["audio"])
    saved = sheet.add("SaveVideo", "Masks", wide=360, video=joined["VIDEO"], filename_prefix=f"video/{prefix}_overlay")
    return [overlay, joined, saved]


def report(sheet: Sheet, routing: Wire, sampler: Node) -> Group:
    """Binding report with its image and text."""
    binding = sheet.add("BYA_BindingReport", routing=routing, frames=sampler["frames"], masks=sampler["masks"])
    picture = sheet.add("PreviewImage", "Binding report", wide=480, high=330, images=binding["image"])
    text = sheet.add("PreviewAny", "Report text", wide=480, high=260, source=binding["report"])
    return Group("Check", [[binding], [picture], [text]], "grey")


def box(
    sheet: Sheet, size: tuple[int, int], position: tuple[int, int], inside: tuple[int, int]
) -> tuple[Node, list[Node]]:
    """A mask [size] with a white box [inside] at `position`; returns its last node and all nodes."""
    black = sheet.add("SolidMask", "Black", wide=240, value=0.0, width=size[0], height=size[1])
    white = sheet.add("SolidMask", "White box", wide=240, value=1.0, width=inside[0], height=inside[1])
    mask = sheet.add(
        "MaskComposite", "Box", wide=260, destination=black["MASK"], source=white["MASK"], x=position[0], y=position[1],
        operation="add",
    )  # fmt: skip
    return mask, [black, white, mask]


@dataclass
class ToyScene:
    """Nodes that all workflows of the toy model begin with."""

    note: Node
    inputs: Group
    people: Cast
    scene: Node


def toy_scene(sheet: Sheet, count: int = 2, silent: Sequence[int] = (), **demo_inputs: Any) -> ToyScene:
    """Note, model, demo, cast and scene."""
    note = sheet.read_me()
    model = sheet.add("BYA_Loader")
    demo = sheet.add("BYA_LoadDemo", **demo_inputs)
    people = puppets(sheet, demo, count, silent)
    scene = sheet.add(
        "BYA_Scene",
        model=model["model"],
        cast=people.out,
        prompt=demo["prompt"],
        first_frame=demo["first_frame"],
    )
    return ToyScene(note, Group("1 Model and inputs", [[model, demo]], "green"), people, scene)


def toy_video(
    prefix: str, count: int = 2, silent: Sequence[int] = (), demo: str | None = None, **router_inputs: Any
) -> Callable[[Sheet], None]:
    """A workflow of the toy model from the inputs to the saved video."""

    def build(sheet: Sheet) -> None:
        start = toy_scene(sheet, count, silent, **({} if demo is None else {"demo": demo}))
        router = sheet.add("BYA_EmbeddingRouter", scene=start.scene["scene"], **router_inputs)
        sampler, saved = result(sheet, router["routing"], prefix)
        masks = used_masks(sheet, router["routing"], sampler, prefix)
        sheet.arrange([
            [Group("Read me", [[start.note]], "grey"), start.inputs],
            [Group("2 Characters", [start.people.voices, start.people.faces], "green")],
            [Group("3 Scene and router", [[start.scene], [router]], "purple")],
            [Group("4 Video", [saved, masks], "orange"), report(sheet, router["routing"], sampler)],
        ])  # fmt: skip

    return build


def two_talkers_real_weights(sheet: Sheet) -> None:
    """Two characters of your own, with the released weights."""
    note = sheet.read_me(wide=520)
    pictures = [sheet.add("LoadImage", f"Image of person {letter}", image=f"person_{letter}.png") for letter in "AB"]
    sounds = [sheet.add("LoadAudio", f"Recording of person {letter}", audio=f"person_{letter}.wav") for letter in "AB"]
    people = cast(
        sheet,
        [picture["IMAGE"] for picture in pictures],
        [sound["AUDIO"] for sound in sounds],
        ["person A", "person B"],
    )
    check = sheet.add("BYA_Preflight", cast=people.out, model="official")
    faces = sheet.add("PreviewImage", "Faces found", wide=360, images=check["faces"])
    text = sheet.add("PreviewAny", "Findings", wide=360, source=check["report"])
    model = sheet.add("BYA_Loader", model="official", dtype="bfloat16")
    prompt = "Two people sit side by side on a sofa and talk: on the left a woman, on the right a man."
    scene = sheet.add("BYA_Scene", model=model["model"], cast=check["cast"], prompt=prompt)
    router = sheet.add("BYA_EmbeddingRouter", scene=scene["scene"])
    sampler, saved = result(sheet, router["routing"], "two_people")
    masks = used_masks(sheet, router["routing"], sampler, "two_people")
    sheet.arrange([
        [Group("Read me", [[note]], "grey")],
        [Group("1 Your inputs", [pictures, sounds], "green"),
         Group("2 Characters", [people.voices, people.faces], "green")],
        [Group("3 Check", [[check], [faces, text]], "blue"),
         Group("4 Scene and router", [[model, scene], [router]], "purple")],
        [Group("5 Video", [saved, masks], "orange"), report(sheet, router["routing"], sampler)],
    ])  # fmt: skip


def mask_preview_and_edit(sheet: Sheet) -> None:
    """Preview the masks, edit one, resume."""
    start = toy_scene(sheet)
    router = sheet.add("BYA_EmbeddingRouter", scene=start.scene["scene"])
    predicted = preview_masks(sheet, router["routing"], "Router masks")
    refined = sheet.add("BYA_MaskRefine", "Refine all masks", routing=router["routing"])
    picked = sheet.add("BYA_SelectCharacterMask", routing=refined["routing"], character="puppet A")
    grown = sheet.add("GrowMask", mask=picked["mask"], expand=4)
    shown = sheet.add("MaskPreview", "Edited mask of puppet A", wide=320, mask=grown["MASK"])
    edited = sheet.add(
        "BYA_MaskRefine",
        "Override with the edited mask",
        routing=refined["routing"],
        refine=False,
        override_mask=grown["MASK"],
        character="puppet A",
    )
    after = preview_masks(sheet, edited["routing"], "Edited masks")
    sampler, saved = result(sheet, edited["routing"], "edited_masks")
    used = used_masks(sheet, edited["routing"], sampler, "edited_masks")
    sheet.arrange([
        [Group("Read me", [[start.note]], "grey"), start.inputs],
        [Group("1 Characters", [start.people.voices, start.people.faces], "green"),
         Group("1 Scene", [[start.scene]], "green")],
        [Group("2 Probe", [[router], predicted], "purple")],
        [Group("3 Edit", [[refined, picked, grown], [shown], [edited], after], "blue"),
         Group("4 Video", [saved, used], "orange")],
    ])  # fmt: skip


def hand_painted_masks(sheet: Sheet) -> None:
    """Masks from the user only."""
    start = toy_scene(sheet)
    left, left_nodes = box(sheet, (96, 64), (0, 4), (44, 60))
    right, right_nodes = box(sheet, (96, 64), (52, 4), (44, 60))
    pictures = [sheet.add("MaskToImage", "Mask to image", wide=220, mask=mask["MASK"]) for mask in (left, right)]
    both = sheet.add("ImageBatch", "Both, in cast order", wide=260, image1=pictures[0]["IMAGE"],
                     image2=pictures[1]["IMAGE"])  # fmt: skip
    masks = sheet.add("ImageToMask", "As masks", wide=260, image=both["IMAGE"], channel="red")
    painted = [
        sheet.add("LoadImage", f"Paint here: puppet {letter}", image="example.png", muted=True, wide=240)
        for letter in "AB"
    ]
    router = sheet.add("BYA_EmbeddingRouter", scene=start.scene["scene"], mode="manual", masks=masks["MASK"])
    given = preview_masks(sheet, router["routing"], "Given masks")
    sampler, saved = result(sheet, router["routing"], "painted_masks")
    sheet.arrange([
        [Group("Read me", [[start.note]], "grey"), start.inputs],
        [Group("2 Characters and scene", [start.people.voices, start.people.faces, [start.scene]], "green"),
         Group("Paint instead of boxes (muted)", [[painted[0]], [painted[1]]], "grey")],
        [Group("3 Masks", [left_nodes, right_nodes, [*pictures, both, masks]], "blue")],
        [Group("4 Router and video", [[router], given, saved], "orange"), report(sheet, router["routing"], sampler)],
    ])  # fmt: skip


def pre_intra_post(sheet: Sheet) -> None:
    """The three routers compared."""
    start = toy_scene(sheet)
    rows = []
    for mode, color in (("pre", "blue"), ("intra", "purple"), ("post", "orange")):
        router = sheet.add("BYA_EmbeddingRouter", f"Router: {mode}", scene=start.scene["scene"], mode=mode)
        sampler, saved = result(sheet, router["routing"], f"router_{mode}")
        masks = used_masks(sheet, router["routing"], sampler, f"router_{mode}")
        rows.append(Group(mode, [[router], saved, masks], color))
    sheet.arrange([
        [Group("Read me", [[start.note]], "grey"), start.inputs],
        [Group("2 Characters and scene", [start.people.voices, start.people.faces, [start.scene]], "green")],
        rows,
    ])  # fmt: skip


WORKFLOWS: dict[str, Callable[[Sheet], None]] = {
    "01-two-talkers-toy": toy_video("two_talkers"),
    "02-two-talkers-real-weights": two_talkers_real_weights,
    "03-mask-preview-and-edit": mask_preview_and_edit,
    "04-hand-painted-masks": hand_painted_masks,
    "05-three-characters": toy_video("three_characters", count=3, demo="three puppets", max_percent=0.5),
    "06-one-talker-one-listener": toy_video("one_talker", silent=(2,)),
    "07-long-dialogue": toy_video("long_dialogue", demo="dialogue"),
    "08-pre-intra-post": pre_intra_post,
}


def draw(name: str, infos: dict[str, NodeInfo], measured: str = "") -> dict[str, Any]:
    """One workflow in ComfyUI's file format; its note is notes/<name>.md, with what was measured."""
    note = (NOTES / f"{name}.md").read_text(encoding="utf-8")
    sheet = Sheet(name, infos, note.replace("{measured}", measured).strip())
    WORKFLOWS[name](sheet)
    return sheet.to_json()
