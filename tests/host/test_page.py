"""The pack in ComfyUI's page: loading and running workflows, templates, help.

Screenshots are saved in the folder BYA_SCREENSHOTS, by default in a temporary one.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.host import graphs
from tests.host.page import find_tools, run_steps
from tests.host.server import PACK, Server
from tests.host.setup import ROOT, HostUnavailable

pytestmark = pytest.mark.host
FILES = sorted((ROOT / "workflows").glob("*.json"))

# queues two steps of the toy model, without changing the nodes; a workflow that measures a video keeps its length
SHORT = """(() => {
  const queue = app.api.queuePrompt;
  app.api.queuePrompt = function (number, data, ...rest) {
    const nodes = Object.values(data.output);
    const measured = nodes.some((node) => node.class_type === "BYA_BindingReport");
    const length = measured ? {} : { length: "frames", frames: 9 };
    const scene = { ...length, settings: "custom", width: 96, height: 64, steps: 2 };
    const model = { model: "toy" };
    const values = { BYA_Scene: scene, BYA_Loader: { ...model, dtype: "default" }, BYA_Preflight: model };
    for (const node of nodes) Object.assign(node.inputs, values[node.class_type]);
    return queue.call(this, number, data, ...rest);
  };
})()"""
# boxes with the title bar, as drawn
BOXES = """app.graph.nodes.map((node) => {
  const shown = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
  const { scale } = app.canvas.ds;
  const [width, height] = shown ? [shown.width / scale, shown.height / scale] : [node.size[0], node.size[1] + 30];
  const elements = (node.widgets ?? []).map((one) => one.element).filter((one) => one?.matches(".bya-result"));
  return {
    title: node.title, active: node.mode === 0, box: [node.pos[0], node.pos[1] - 30, width, height],
    result: elements.map((one) => one.textContent).join(),
  };
})"""


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for screenshots; skips without a browser."""
    try:
        find_tools()
    except HostUnavailable as problem:
        pytest.skip(str(problem))
    if given := os.environ.get("BYA_SCREENSHOTS"):
        folder = Path(given).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    return tmp_path_factory.mktemp("screenshots")


def _overlap(one: list[float], other: list[float]) -> bool:
    (x, y, w, h), (a, b, c, d) = one, other
    return x < a + c and a < x + w and y < b + d and b < y + h


def _is_picture(path: Path) -> bool:
    """Whether a screenshot is not empty."""
    pixels = np.asarray(Image.open(path).convert("RGB").resize((64, 64))).reshape(-1, 3)
    return len(np.unique(pixels, axis=0)) > 50


def test_workflows_load(server: Server, shots: Path) -> None:
    """All nodes are known and do not overlap, and the page queues the graph in graphs_api."""
    steps: list[dict[str, Any]] = []
    for path in FILES:
        picture = shots / f"{path.stem}.png"
        steps += [{"do": "load", "workflow": path}, {"do": "prompt"}, {"do": "shot", "file": picture, "fit": True}]
    answers = run_steps(server.url, *steps, viewport=(1900, 1100))
    for index, path in enumerate(FILES):
        nodes, prompt = answers[3 * index], answers[3 * index + 1]
        assert len(nodes) == len(json.loads(path.read_text(encoding="utf-8"))["nodes"])
        assert not [node["type"] for node in nodes if not node["known"]], path.stem
        overlapping = [
            (one["type"], other["type"])
            for number, one in enumerate(nodes)
            for other in nodes[number + 1 :]
            if _overlap(one["box"], other["box"])
        ]
        assert not overlapping, path.stem
        for node in prompt.values():
            node["inputs"].pop("video-preview", None)  # the player that the page adds to Load Video
        queued = {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in prompt.items()}
        assert queued == graphs.load(path.stem), path.stem
        assert _is_picture(shots / f"{path.stem}.png")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_overlap_after_a_run(server: Server, shots: Path, path: Path) -> None:
    """Results have room in the nodes that show them, in classic nodes and in Nodes 2.0."""
    steps: list[dict[str, Any]] = [{"do": "evaluate", "code": SHORT}]
    for modern in (False, True):
        picture = shots / f"{path.stem}-{'nodes2' if modern else 'classic'}.png"
        steps += [{"do": "nodes2", "on": modern}, {"do": "load", "workflow": path}, {"do": "run", "seconds": 1200}]
        steps += [{"do": "shot", "file": picture, "fit": True}, {"do": "evaluate", "code": BOXES}]
    answers = run_steps(server.url, *steps, {"do": "nodes2", "on": False}, viewport=(1900, 1100))
    for ended, _, boxes in (answers[3:6], answers[8:11]):
        assert ended["kind"] == "execution_success", ended
        assert not [node["title"] for node in boxes if node["active"] and "appears here" in node["result"]]
        overlapping = [
            (one["title"], other["title"])
            for number, one in enumerate(boxes)
            for other in boxes[number + 1 :]
            if _overlap(one["box"], other["box"])
        ]
        assert not overlapping


def test_template_browser_lists_the_pack(server: Server, shots: Path) -> None:
    picture = shots / "templates.png"
    thumbnails = [Image.open(path.with_suffix(".jpg")).width for path in FILES]
    step = {"do": "templates", "pack": PACK, "widths": thumbnails, "file": picture}
    (answer,) = run_steps(server.url, step, viewport=(1900, 1800))  # cards out of view load no image
    for path in FILES:
        assert path.stem in answer["text"]
    assert Counter(thumbnails) <= Counter(answer["widths"])
    assert _is_picture(picture)


def test_help_page(server: Server, shots: Path) -> None:
    words = ["Tips", "probe_steps"]
    answer = run_steps(
        server.url,
        {"do": "load", "workflow": FILES[0]},
        {"do": "help", "type": "BYA_EmbeddingRouter", "words": words, "file": shots / "help.png"},
    )[1]
    assert all(word in answer["text"] for word in words)
    assert any(width > 0 for width in answer["pictures"])
