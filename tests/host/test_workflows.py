"""Every workflow of the pack fits the nodes, its files agree with each other, and it makes a video on the server."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.host import graphs
from tests.host.server import Server
from tests.host.setup import ROOT
from tools.workflows import build
from tools.workflows.convert import to_api
from tools.workflows.graphs import WORKFLOWS

WORKFLOW_FILES = sorted((ROOT / "workflows").glob("*.json"))
CORE = {
    "CreateVideo", "GrowMask", "ImageBatch", "ImageFromBatch", "ImageToMask", "LoadAudio", "LoadImage", "MarkdownNote",
    "MaskComposite", "MaskPreview", "MaskToImage", "PreviewAny", "PreviewImage", "SaveVideo", "SolidMask",
}  # fmt: skip


def test_every_workflow_is_there_with_a_picture_and_a_graph() -> None:
    names = {path.stem for path in WORKFLOW_FILES}
    assert names == set(WORKFLOWS) == set(graphs.NAMES)
    assert {path.stem for path in (ROOT / "workflows").glob("*.jpg")} == names


@pytest.mark.parametrize("path", WORKFLOW_FILES, ids=lambda path: path.stem)
def test_only_our_nodes_and_core_ones_and_a_note_that_says_what_it_costs(path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    kinds = {node["type"] for node in workflow["nodes"]}
    assert {kind for kind in kinds if not kind.startswith("BYA_")} <= CORE
    (note,) = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    text = note["widgets_values"][0]
    assert "**Model" in text and "**Measured**" in text and "{measured}" not in text
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            assert not _overlap(one, other)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two nodes lie over each other, their title bars included."""
    (x, y, w, h), (a, b, c, d) = one, other
    return x < a + c and a < x + w and y - 30 < b + d and b - 30 < y + h


@pytest.mark.host
@pytest.mark.parametrize("name", graphs.NAMES)
def test_files_fit_the_nodes_and_each_other(name: str, server: Server) -> None:
    """As drawn now from what the server says; and what the page would queue is what the server tests run."""
    infos = server.get("/object_info")
    lying = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    workflow, graph = build.built(infos)[name]
    assert lying == workflow, "nodes or notes changed: python -m tools.workflows.build"
    assert graphs.load(name) == graph == to_api(lying, infos)


@pytest.mark.host
@pytest.mark.parametrize("name", graphs.NAMES)
def test_makes_a_video_with_sound(name: str, server: Server) -> None:
    graph = graphs.load(name)
    if name == graphs.REAL:
        graphs.bring_own_inputs(server)
        graph = graphs.changed(graph, "BYA_Loader", model="toy", dtype="as stored")
        graph = graphs.changed(graph, "BYA_Preflight", model="toy")
    frames = {"06": 33, "07": 57}.get(name[:2], 17)  # puppet A speaks late; a long one has two windows
    graph = graphs.quick(graph, frames=frames)
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    for prefix, film in graphs.films(server, run, graph).items():
        assert film.fps == 25
        assert len(film.frames) == frames
        assert film.seconds == pytest.approx(frames / 25, abs=0.06)
        assert 0.02 < film.peak <= 1.0, "the voices can be heard"
        if not prefix.endswith("_overlay"):
            assert film.frames.shape[1:] == (64, 96, 3)
            assert film.frames.std() > 20, "more than one colour"
    for number in graphs.of_class(graph, "PreviewAny"):
        (text,) = run.outputs[number]["text"]
        assert "puppet A" in text or "person A" in text


@pytest.mark.host
def test_masks_of_each_character_lie_where_it_stands(server: Server) -> None:
    """Puppet A stands on the left, B on the right; both masks hold something, and little of it is the same."""
    graph = graphs.without(graphs.quick(graphs.load("01"), steps=8), "BYA_BindingReport", "BYA_MaskOverlay")
    (router,) = graphs.of_class(graph, "BYA_EmbeddingRouter")
    shown = {}
    for character in ("puppet A", "2"):
        graph, picked = graphs.added(
            graph, "BYA_SelectCharacterMask", routing=[router, 0], character=character, frames="video"
        )
        graph, shown[character] = graphs.added(graph, "MaskPreview", mask=[picked, 0])
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    a, b = (graphs.pictures(server, run, number)[..., 0] / 255 for number in shown.values())
    assert a.shape == b.shape == (17, 64, 96)
    columns = np.arange(96)
    for mask in (a, b):
        assert 0.05 < mask.mean() < 0.7
    assert np.average(columns, weights=a.mean((0, 1))) < 45 < 51 < np.average(columns, weights=b.mean((0, 1)))
    assert np.minimum(a, b).mean() < 0.3 * min(a.mean(), b.mean())
