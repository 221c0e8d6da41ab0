"""Subgraph blueprints of the pack: groups of nodes that the node search offers as one node.

    python -m tools.workflows.build         # writes subgraphs/*.json

A blueprint file is a workflow with one subgraph node, whose inputs, outputs and widgets are those of nodes inside.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.workflows.graphs import cast, scene_of
from tools.workflows.sheet import Group, Node, NodeInfo, Sheet, Wire

INPUT, OUTPUT, OUTER = -10, -20, 1  # ids of the borders, and of the subgraph node
PREVIEW = "$$canvas-image-preview"  # the page's name for the image that a node shows


@dataclass
class Blueprint:
    """Content of a blueprint.

    Args:
        inputs: Name -> node and its input.
        outputs: Name -> output of a node.
        widgets: Widgets of the nodes that the subgraph node shows, as (node, name of the widget).
        description: For the node search.
        aliases: Further words that find it.
    """

    inputs: dict[str, tuple[Node, str]]
    outputs: dict[str, Wire]
    widgets: Sequence[tuple[Node, str]]
    description: str
    aliases: Sequence[str]


def character(sheet: Sheet) -> Blueprint:
    """Image, recording and name."""
    image = sheet.add("LoadImage", wide=240, image="bya_A.png")
    recording = sheet.add("LoadAudio", wide=240, audio="bya_A.wav")
    voice = sheet.add("BYA_AudioEncode", wide=240, audio=recording["AUDIO"])
    face = sheet.add("BYA_FaceEncode", wide=240, image=image["IMAGE"], speech=voice["speech"], name="character A")
    sheet.arrange([[Group("Character", [[image, recording], [voice, face]], "green")]])
    return Blueprint(
        inputs={"cast": (face, "cast")},
        outputs={"cast": face["cast"]},
        widgets=[(face, "name"), (image, "image"), (recording, "audio"), (voice, "offset"), (image, PREVIEW)],
        description="A character from an image and a recording. Connect cast to the next Character or to Talk.",
        aliases=["BYA", "avatar", "portrait", "voice", "lip sync", "dialogue"],
    )


def talk(sheet: Sheet) -> Blueprint:
    """From the cast to the saved video."""
    model, scene, router, sampler, saved = _video(sheet, "talk")
    sheet.arrange([[Group("Talk", [[model], [scene], [router], [sampler], [saved]], "orange")]])
    return Blueprint(
        inputs={"cast": (scene, "cast"), "first_frame": (scene, "first_frame")},
        outputs=_results(sampler),
        widgets=_settings(model, scene, router, saved),
        description="All characters talk in one video, each with its own voice; the video is saved.",
        aliases=["BYA", "talking video", "lip sync", "dialogue", "multi speaker", "avatar"],
    )


def two_people_talk(sheet: Sheet) -> Blueprint:
    """From two images and two recordings to the saved video."""
    people = cast(sheet, ["bya_A.png", "bya_B.png"], ["bya_A.wav", "bya_B.wav"])
    model, scene, router, sampler, saved = _video(sheet, "two_people_talk", cast=people.out)
    sheet.arrange([
        [people.group], [Group("2 Video", [[model], [scene], [router], [sampler], [saved]], "orange")],
    ])  # fmt: skip
    return Blueprint(
        inputs={"first_frame": (scene, "first_frame")},
        outputs=_results(sampler),
        widgets=[
            *((node, "image" if node.kind == "LoadImage" else "audio") for node in people.files),
            *_settings(model, scene, router, saved),
        ],
        description="Two people talk in one video: two images and two recordings. The video is saved.",
        aliases=["BYA", "talking video", "lip sync", "dialogue", "multi speaker", "avatar"],
    )


def _video(sheet: Sheet, prefix: str, **scene_inputs: Any) -> tuple[Node, Node, Node, Node, Node]:
    """Model, scene, router, sampler and Save Video."""
    model = sheet.add("BYA_Loader", wide=260)
    scene = sheet.add("BYA_Scene", wide=430, model=model["model"], **scene_of("scene"), **scene_inputs)
    router = sheet.add("BYA_EmbeddingRouter", wide=400, scene=scene["scene"])
    sampler = sheet.add("BYA_Sampler", wide=400, routing=router["routing"])
    saved = sheet.add("SaveVideo", wide=300, video=sampler["video"], filename_prefix=f"video/{prefix}")
    return model, scene, router, sampler, saved


def _settings(model: Node, scene: Node, router: Node, saved: Node) -> list[tuple[Node, str]]:
    return [
        (model, "model"),
        (scene, "prompt"),
        (scene, "seed"),
        (router, "audio_assignment"),
        (saved, PREVIEW),
    ]


def _results(sampler: Node) -> dict[str, Wire]:
    return {name: sampler[name] for name in ("video", "frames", "masks")}


BLUEPRINTS: dict[str, Callable[[Sheet], Blueprint]] = {
    "Character": character,
    "Talk": talk,
    "Two people talk": two_people_talk,
}


def draw_blueprint(name: str, infos: dict[str, NodeInfo]) -> dict[str, Any]:
    """One blueprint in ComfyUI's file format."""
    sheet = Sheet(name, infos)
    blueprint = BLUEPRINTS[name](sheet)
    inside = sheet.to_json()
    nodes = {node["id"]: node for node in inside["nodes"]}
    links = [dict(zip(LINK, link, strict=True)) for link in inside["links"]]

    def connect(origin: tuple[int, int], target: tuple[int, int], kind: str) -> int:
        number = len(links) + 1
        links.append(dict(zip(LINK, (number, *origin, *target, kind), strict=True)))
        return number

    right = max(x + width for (x, _), (width, _) in ((node["pos"], node["size"]) for node in nodes.values()))
    inputs, outputs = [], []
    for slot, (label, (node, field)) in enumerate(blueprint.inputs.items()):
        entries = nodes[node.number]["inputs"]
        index = next(k for k, entry in enumerate(entries) if entry["name"] == field)
        kind = entries[index]["type"]
        entries[index]["link"] = connect((INPUT, slot), (node.number, index), kind)
        inputs.append(_border(name, label, kind, entries[index]["link"], (-60, 20 * slot), "in"))
    for slot, (label, wire) in enumerate(blueprint.outputs.items()):
        output = nodes[wire.node.number]["outputs"][wire.slot]
        number = connect((wire.node.number, wire.slot), (OUTPUT, slot), output["type"])
        output["links"] = [*(output["links"] or []), number]
        outputs.append(_border(name, label, output["type"], number, (right + 60, 20 * slot), "out"))
    subgraph = {
        "id": _id(name),
        "version": 1,
        "state": {
            "lastGroupId": len(inside["groups"]),
            "lastNodeId": inside["last_node_id"],
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUT, "bounding": [-160, -20, 120, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUT, "bounding": [right + 40, -20, 120, 40 + 20 * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": inside["nodes"],
        "groups": inside["groups"],
        "links": links,
        "extra": {},
        "category": "BindYourAvatar",
        "description": blueprint.description,
    }
    outer = {
        "id": OUTER,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [320, 420],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [{"name": entry["name"], "type": entry["type"], "link": None} for entry in inputs],
        "outputs": [{"name": entry["name"], "type": entry["type"], "links": []} for entry in outputs],
        "properties": {"proxyWidgets": [[str(node.number), field] for node, field in blueprint.widgets]},
        "widgets_values": [],
        "title": name,
    }
    return {
        "id": _id(f"{name}/file"),
        "revision": 0,
        "last_node_id": OUTER,
        "last_link_id": 0,
        "nodes": [outer],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {
            "BlueprintDescription": blueprint.description,
            "BlueprintSearchAliases": list(blueprint.aliases),
        },
        "version": 0.4,
    }


LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"bind-your-avatar/subgraphs/{name}"))


def _border(name: str, label: str, kind: str, link: int, position: tuple[int, int], side: str) -> dict[str, Any]:
    """An input or output of the subgraph."""
    number = _id(f"{name}/{side}/{label}")
    return {"id": number, "name": label, "type": kind, "linkIds": [link], "label": label, "pos": list(position)}
