"""Inputs and results of the nodes in ComfyUI's page: what is hidden, what is filled in, what a failed check shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.host import graphs
from tests.host.page import find_tools, run_steps
from tests.host.server import Server
from tests.host.setup import HostUnavailable

pytestmark = pytest.mark.host
WIDGETS = (
    "(() => Object.fromEntries(window.app.graph.nodes.map((node) => [node.comfyClass, Object.fromEntries("
    "(node.widgets ?? []).filter((one) => !one.hidden).map((one) => [one.name, one.value]))])))()"
)
RESULT = "[...document.querySelectorAll('.bya-result')].map((one) => one.textContent).join(' | ')"


@pytest.fixture(autouse=True)
def _browser() -> None:
    try:
        find_tools()
    except HostUnavailable as problem:
        pytest.skip(str(problem))


def choose(kind: str, name: str, value: Any) -> dict[str, Any]:
    """A step that sets a widget as a user does."""
    code = (
        f"(() => {{ const node = window.app.graph.nodes.find((one) => one.comfyClass === {json.dumps(kind)});"
        f"const widget = node.widgets.find((one) => one.name === {json.dumps(name)});"
        f"widget.value = {json.dumps(value)}; widget.callback?.(widget.value, window.app.canvas, node); }})()"
    )
    return {"do": "evaluate", "code": code, "wait": 300}


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes 2.0"])
def test_hidden_inputs_and_settings_of_the_model(server: Server, nodes2: bool) -> None:
    answers = run_steps(
        server.url,
        {"do": "nodes2", "on": nodes2},
        {"do": "load", "workflow": graphs_file("01")},
        {"do": "evaluate", "code": WIDGETS},
        choose("BYA_Scene", "settings", "custom"),
        choose("BYA_Scene", "length", "seconds"),
        choose("BYA_EmbeddingRouter", "mode", "pre"),
        {"do": "evaluate", "code": WIDGETS},
        {"do": "nodes2", "on": False},
    )
    before, after = answers[2], answers[6]
    assert not {"width", "steps", "cfg", "seconds", "frames"} & set(before["BYA_Scene"])
    assert "probe" in before["BYA_EmbeddingRouter"] and "region" not in before["BYA_EmbeddingRouter"]
    scene = after["BYA_Scene"]
    assert (scene["width"], scene["height"], scene["steps"], scene["cfg"]) == (96, 64, 24, 2)  # those of the toy model
    assert "seconds" in scene and "frames" not in scene
    assert "region" in after["BYA_EmbeddingRouter"] and "probe" not in after["BYA_EmbeddingRouter"]
    assert ("scheduler" in scene) is nodes2  # Nodes 2.0 folds rare inputs itself
    assert ("bya_advanced" in scene) is not nodes2


def test_characters_of_the_cast_are_listed(server: Server) -> None:
    code = (
        "(async () => { const node = LiteGraph.createNode('BYA_SelectCharacterMask'); window.app.graph.add(node);"
        "const router = window.app.graph.nodes.find((one) => one.comfyClass === 'BYA_EmbeddingRouter');"
        "router.connect(0, node, 0); await new Promise((done) => setTimeout(done, 300));"
        "return node.widgets.find((one) => one.name === 'character').options.values; })()"
    )
    answers = run_steps(server.url, {"do": "load", "workflow": graphs_file("01")}, {"do": "evaluate", "code": code})
    names = [node["inputs"]["name"] for node in graphs.load("01").values() if node["class_type"] == "BYA_FaceEncode"]
    assert answers[1] == [*names, "1"]


def test_preflight_that_stops_the_run_shows_its_findings(server: Server, tmp_path: Path) -> None:
    """A white image is no character: the finding is on the node, with the crops, though the run fails."""
    white = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 16777215}}
    graph = {
        "1": white,
        "2": {"class_type": "BYA_FaceEncode", "inputs": {"image": ["1", 0], "name": "Ada"}},
        "3": {"class_type": "BYA_Preflight", "inputs": {"cast": ["2", 0], "model": "toy", "length": "frames"}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 1]}},
    }
    answers = run_steps(
        server.url,
        {"do": "evaluate", "code": f"window.app.loadApiJson({json.dumps(graph)}, 'check')", "wait": 1000},
        {"do": "run", "seconds": 900},
        {"do": "wait", "code": f"{RESULT}.includes('Ada: no face detected') && {RESULT}"},
    )
    assert answers[1]["kind"] == "execution_error"
    assert "Ada: no face detected" in answers[2]


def graphs_file(number: str) -> Path:
    """A workflow file by its leading number."""
    (path,) = (graphs.ROOT / "workflows").glob(f"{number}*.json")
    return path
