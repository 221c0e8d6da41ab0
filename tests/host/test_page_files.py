"""Images and recordings of several characters in one step: dropped on the canvas, on a node, on a blueprint,
or chosen in the menu of a node."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.host.graphs import DEMO
from tests.host.page import find_tools, run_steps
from tests.host.server import Server
from tests.host.setup import ROOT, HostUnavailable

pytestmark = pytest.mark.host
IMAGE, AUDIO = "image/png", "audio/wav"
PEOPLE = [
    {"file": DEMO / "three" / "puppet_C.wav", "type": AUDIO},
    {"file": DEMO / "long" / "puppet_B.png", "type": IMAGE},
    {"file": DEMO / "puppet_A.wav", "type": AUDIO},
    {"file": DEMO / "long" / "puppet_A.png", "type": IMAGE},
]  # in the order of a file manager that sorts by date
DEMO_FILES = {"image": ["bya_A.png", "bya_B.png"], "audio": ["bya_A.wav", "bya_B.wav"]}


@pytest.fixture(autouse=True)
def _browser() -> None:
    try:
        find_tools()
    except HostUnavailable as problem:
        pytest.skip(str(problem))


def scene_of(prompt: dict[str, Any]) -> dict[str, Any]:
    """BYA Scene of an API graph."""
    (scene,) = (node for node in prompt.values() if node["class_type"] == "BYA_Scene")
    return scene


def files(prompt: dict[str, Any]) -> dict[str, list[str]]:
    """Files that the characters of an API graph come from, in order."""
    found: dict[str, list[str]] = {"image": [], "audio": []}
    face = scene_of(prompt)["inputs"].get("cast")
    while face is not None:
        character = prompt[face[0]]["inputs"]
        found["image"].insert(0, prompt[character["image"][0]]["inputs"]["image"])
        voice = prompt[character["speech"][0]]["inputs"]["audio"]
        found["audio"].insert(0, prompt[voice[0]]["inputs"]["audio"])
        face = character.get("cast")
    return found


LOADED = "app.graph.nodes.some((node) => (node.widgets ?? []).some((one) => String(one.value).startsWith('puppet_C')))"


def stems(prompt: dict[str, Any]) -> dict[str, list[str]]:
    """The same without endings, and the number that the server adds to another file of the same name."""
    return {kind: [re.split(r"\.| \(", name)[0] for name in names] for kind, names in files(prompt).items()}


OWN_FILES = {"image": ["puppet_A", "puppet_B"], "audio": ["puppet_A", "puppet_C"]}


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes 2.0"])
def test_drop_on_the_canvas_and_on_one_character(server: Server, nodes2: bool) -> None:
    second = "app.graph.nodes.filter((one) => one.type === 'BYA_FaceEncode').map((one) => String(one.id))[1]"
    answers = run_steps(
        server.url,
        {"do": "nodes2", "on": nodes2},
        {"do": "load", "workflow": ROOT / "workflows" / "01 First video.json"},
        {"do": "evaluate", "code": second},
        {"do": "drop", "files": PEOPLE},
        {"do": "wait", "code": LOADED},
        {"do": "evaluate", "code": "app.graph.nodes.length", "wait": 500},
        {"do": "prompt"},
        {"do": "press", "key": "Control+z"},
        {"do": "prompt"},
    )
    nodes, number, count, dropped, undone = (answers[index] for index in (1, 2, 5, 6, 8))
    assert count == len(nodes)  # no node was added
    assert stems(dropped) == OWN_FILES
    assert "first_frame" not in scene_of(dropped)["inputs"]  # it shows the characters of the demo
    assert files(undone) == DEMO_FILES and "first_frame" in scene_of(undone)["inputs"]

    prompt = run_steps(
        server.url,
        {"do": "load", "workflow": ROOT / "workflows" / "01 First video.json"},
        {"do": "drop", "node": number, "files": PEOPLE[:2]},
        {"do": "wait", "code": LOADED},
        {"do": "prompt"},
        {"do": "nodes2", "on": False},
    )[3]
    assert stems(prompt) == {"image": ["bya_A", "puppet_B"], "audio": ["bya_A", "puppet_C"]}


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes 2.0"])
def test_choose_in_the_menu_of_a_node(server: Server, nodes2: bool) -> None:
    workflow = ROOT / "workflows" / "01 First video.json"
    nodes = json.loads(workflow.read_text(encoding="utf-8"))["nodes"]
    (scene,) = (node["id"] for node in nodes if node["type"] == "BYA_Scene")
    paths = [person["file"] for person in PEOPLE]
    answers = run_steps(
        server.url,
        {"do": "nodes2", "on": nodes2},
        {"do": "load", "workflow": workflow},
        {"do": "chooseByMenu", "node": scene, "entry": "Load images and recordings…", "files": paths},
        {"do": "wait", "code": LOADED},
        {"do": "prompt"},
        {"do": "press", "key": "Control+z"},
        {"do": "prompt"},
        {"do": "nodes2", "on": False},
    )
    assert stems(answers[4]) == OWN_FILES
    assert files(answers[6]) == DEMO_FILES


def test_drop_on_a_blueprint(server: Server) -> None:
    """The files are shown by the subgraph node, which has the loaders inside."""
    prompt = run_steps(
        server.url,
        {"do": "load", "workflow": ROOT / "subgraphs" / "Two people talk.json"},
        {"do": "drop", "files": PEOPLE},
        {"do": "wait", "code": LOADED},
        {"do": "prompt"},
    )[3]
    assert stems(prompt) == OWN_FILES


def test_two_characters_of_the_blueprint_have_different_names(server: Server) -> None:
    blueprint = json.loads((ROOT / "subgraphs" / "Character.json").read_text(encoding="utf-8"))
    items = json.dumps({"nodes": blueprint["nodes"], "subgraphs": blueprint["definitions"]["subgraphs"]})
    add = f"app.canvas._deserializeItems({items}, {{ position: [0, 0] }})"
    steps = [{"do": "evaluate", "code": f"(() => {{ {add}; }})()", "wait": 300} for _ in range(2)]
    prompt = run_steps(server.url, {"do": "evaluate", "code": "app.graph.clear()"}, *steps, {"do": "prompt"})[-1]
    names = [node["inputs"]["name"] for node in prompt.values() if node["class_type"] == "BYA_FaceEncode"]
    assert names == ["character A", "character B"]
