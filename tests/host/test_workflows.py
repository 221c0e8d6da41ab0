"""The workflow files: consistent with the nodes and their API graphs, and generating videos on a server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bya_core.toy.demo import FILES
from tests.host import graphs
from tests.host.server import Server
from tests.host.setup import ROOT
from tools.workflows import build
from tools.workflows.blueprints import BLUEPRINTS, draw_blueprint
from tools.workflows.convert import to_api
from tools.workflows.graphs import WORKFLOWS

CHECK = "09 Check any video"
WORKFLOW_FILES = sorted((ROOT / "workflows").glob("*.json"))
CORE = {
    "GetVideoComponents", "GrowMask", "LoadAudio", "LoadImage", "LoadVideo", "MarkdownNote", "PreviewImage",
    "SaveVideo",
}  # fmt: skip
WIDEST = 1800  # pixels; readable when opened


def test_workflow_files() -> None:
    names = {path.stem for path in WORKFLOW_FILES}
    assert names == set(WORKFLOWS) == set(graphs.NAMES)
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == names


@pytest.mark.parametrize("path", WORKFLOW_FILES, ids=lambda path: path.stem)
def test_nodes_and_note(path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    kinds = {node["type"] for node in workflow["nodes"]}
    assert {kind for kind in kinds if not kind.startswith("BYA_")} <= CORE
    (note,) = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    text = note["widgets_values"][0]
    assert ("**Model**" in text or "**Weights**" in text) and "easured**" in text and "{measured}" not in text
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    left, right = min(x for x, _, _, _ in boxes), max(x + width for x, _, width, _ in boxes)
    assert right - left <= WIDEST
    for index, one in enumerate(boxes):
        assert not any(_overlap(one, other) for other in boxes[index + 1 :])


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two nodes overlap, including their title bars."""
    (x, y, w, h), (a, b, c, d) = one, other
    return x < a + c and a < x + w and y - 30 < b + d and b - 30 < y + h


@pytest.mark.parametrize("path", WORKFLOW_FILES, ids=lambda path: path.stem)
def test_prompts_and_files_can_be_edited(path: Path) -> None:
    """The prompt is in a widget, and images and recordings are files of the demo that the pack copies."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    scenes = [node for node in workflow["nodes"] if node["type"] == "BYA_Scene"]
    assert scenes and all("prompt" not in {entry["name"] for entry in node["inputs"]} for node in scenes)
    loaded = [node for node in workflow["nodes"] if node["type"] in ("LoadImage", "LoadAudio", "LoadVideo")]
    assert {node["widgets_values"][0] for node in loaded} <= set(FILES)
    assert {"LoadImage", "LoadAudio"} <= {node["type"] for node in loaded}


@pytest.mark.host
@pytest.mark.parametrize("name", graphs.NAMES)
def test_files_are_up_to_date(name: str, server: Server) -> None:
    infos = server.get("/object_info")
    saved = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    workflow, graph = build.build(infos)[name]
    assert saved == workflow, "run python -m tools.workflows.build"
    assert graphs.load(name) == graph == to_api(saved, infos)


@pytest.mark.host
@pytest.mark.parametrize("name", BLUEPRINTS)
def test_blueprints_are_up_to_date(name: str, server: Server) -> None:
    saved = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
    assert saved == draw_blueprint(name, server.get("/object_info")), "run python -m tools.workflows.build"


@pytest.mark.parametrize("path", sorted((ROOT / "subgraphs").glob("*.json")), ids=lambda path: path.stem)
def test_links_of_blueprints(path: Path) -> None:
    """Each link of a blueprint joins an output and an input of the same type, or a border of the subgraph."""
    blueprint = json.loads(path.read_text(encoding="utf-8"))
    (outer,), (inside,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert outer["type"] == inside["id"] and path.stem in BLUEPRINTS
    nodes = {node["id"]: node for node in inside["nodes"]}
    for link in inside["links"]:
        origin, target = nodes.get(link["origin_id"]), nodes.get(link["target_id"])
        assert origin or target
        if origin:
            output = origin["outputs"][link["origin_slot"]]
            assert output["type"] == link["type"] and link["id"] in output["links"]
        else:
            assert link["id"] in inside["inputs"][link["origin_slot"]]["linkIds"]
        if target:
            entry = target["inputs"][link["target_slot"]]
            assert entry["type"] == link["type"] and entry["link"] == link["id"]
        else:
            assert link["id"] in inside["outputs"][link["target_slot"]]["linkIds"]
    for number, _ in outer["properties"]["proxyWidgets"]:
        assert int(number) in nodes


@pytest.mark.host
@pytest.mark.parametrize("name", graphs.NAMES)
def test_workflow_generates_video_with_audio(name: str, server: Server) -> None:
    frames = {"06": 33, "07": 57, "10": 49}.get(name[:2], 17)  # until the only speaker has started; two windows; a film
    graph = graphs.load_runnable(name)
    if name != CHECK:  # whose scene is as long as its video
        graph = graphs.shorten(graph, frames=frames)
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    for video in graphs.saved_videos(server, run, graph).values():
        assert video.fps == 25
        assert len(video.frames) == frames
        assert video.seconds == pytest.approx(frames / 25, abs=0.06)
        assert 0.02 < video.peak <= 1.0
        assert video.frames.shape[1:] == (64, 96, 3)
        assert video.frames.std() > 20
    for sampler in [*graphs.nodes_of(graph, "BYA_Sampler"), *graphs.nodes_of(graph, "BYA_BestTake")]:
        (panel,) = run.outputs[sampler]["bya_binding"]
        assert panel["duration"] == pytest.approx(frames / 25) and not panel["notices"]
        assert [one["name"][-1] for one in panel["characters"]] == list("ABC"[: len(panel["characters"])])
        file = server.folder / "temp" / panel["video"]["subfolder"] / panel["video"]["filename"]
        assert len(graphs.read_video(file).frames) == frames
    for number in graphs.nodes_of(graph, "BYA_BestTake"):
        (table,) = run.outputs[number]["bya_table"]
        assert len(table.splitlines()) == 6  # head, four seeds, cost
    for number in graphs.nodes_of(graph, "BYA_Dub"):
        (text,) = run.outputs[number]["bya_text"]
        assert "New voice: puppet A" in text and "kept: puppet B" in text
    for number in graphs.nodes_of(graph, "BYA_BindingReport"):
        (text,) = run.outputs[number]["bya_text"]
        assert "puppet A follows its own voice" in text


@pytest.mark.host
def test_masks_match_the_positions_of_the_characters(server: Server) -> None:
    """Puppet A is on the left, B on the right, and their masks hardly overlap."""
    graph = graphs.without(graphs.shorten(graphs.load("01"), steps=8), "BYA_BindingReport", "BYA_MaskOverlay")
    (router,) = graphs.nodes_of(graph, "BYA_EmbeddingRouter")
    shown = {}
    for character in ("puppet A", "2"):
        graph, mask = graphs.with_node(
            graph, "BYA_SelectCharacterMask", routing=[router, 0], character=character, frames="video"
        )
        graph, shown[character] = graphs.with_node(graph, "MaskPreview", mask=[mask, 0])
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    a, b = (graphs.shown_images(server, run, number)[..., 0] / 255 for number in shown.values())
    assert a.shape == b.shape == (17, 64, 96)
    columns = np.arange(96)
    for mask in (a, b):
        assert 0.05 < mask.mean() < 0.7
    assert np.average(columns, weights=a.mean((0, 1))) < 45 < 51 < np.average(columns, weights=b.mean((0, 1)))
    assert np.minimum(a, b).mean() < 0.3 * min(a.mean(), b.mean())
