"""A session in ComfyUI's page, in classic nodes and Nodes 2.0.

A workflow is dropped, gets other files, runs, and runs again from its saved video.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.host.graphs import DEMO
from tests.host.page import find_tools, run_steps
from tests.host.server import Server
from tests.host.setup import ROOT, HostUnavailable

pytestmark = pytest.mark.host
WORKFLOW = ROOT / "workflows" / "01 First video.json"
FRAMES = 29  # of the video; at least 25 are measured
NODES = """(() => {
  const numbers = (type) => app.graph.nodes.filter((node) => node.type === type).map((node) => String(node.id));
  return {
    images: numbers("LoadImage"), recordings: numbers("LoadAudio"), scenes: numbers("BYA_Scene"),
    titles: app.graph.nodes.map((node) => node.title),
  };
})()"""
LOADED = "window.app.graph.nodes.length === {count} && !window.app.configuringGraph"
ROWS = "document.querySelectorAll('.bya-binding-row').length === 2"
VIDEO = "document.querySelector('.bya-binding video')"
PANEL = f"""(() => ({{
  rows: [...document.querySelectorAll('.bya-binding-row')]
    .map((row) => [...row.children].map((cell) => cell.textContent)),
  seconds: {VIDEO}.duration,
  time: {VIDEO}.currentTime,
}}))()"""
FILES = """app.graph.nodes.filter((node) => node.type === "LoadImage" || node.type === "LoadAudio")
  .map((node) => node.widgets[0].value)"""
FOCUS = """(() => {
  const node = app.graph.nodes.find((one) => one.type === "BYA_Sampler");
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [200 - node.pos[0], 120 - node.pos[1]];
  app.canvas.setDirty(true, true);
})()"""
COUNT = 15  # nodes of the workflow


@pytest.mark.parametrize("modern", [False, True], ids=["classic", "nodes2"])
def test_session(server: Server, tmp_path: Path, modern: bool) -> None:
    try:
        find_tools()
    except HostUnavailable as problem:
        pytest.skip(str(problem))
    image, recording = tmp_path / f"my_puppet_{modern}.png", tmp_path / f"my_voice_{modern}.wav"
    shutil.copyfile(DEMO / "long" / "puppet_B.png", image)
    shutil.copyfile(DEMO / "three" / "puppet_C.wav", recording)
    drop = {"do": "drop", "file": WORKFLOW, "type": "application/json"}
    wait = {"do": "wait", "code": LOADED.format(count=COUNT)}
    dropped = run_steps(server.url, drop, wait, {"do": "evaluate", "code": NODES})[-1]
    scene = {dropped["scenes"][0]: {"length": "frames", "frames": FRAMES, "seed": int(modern)}}
    picture = Path(os.environ.get("BYA_SCREENSHOTS", tmp_path)) / f"session-{'nodes2' if modern else 'classic'}.png"
    answers = run_steps(
        server.url,
        {"do": "nodes2", "on": modern},
        drop,
        wait,
        {"do": "upload", "node": dropped["images"][1], "name": "image", "file": image},
        {"do": "upload", "node": dropped["recordings"][1], "name": "audio", "file": recording},
        {"do": "set", "values": scene},
        {"do": "run", "seconds": 1200},
        {"do": "evaluate", "code": FOCUS},
        {"do": "wait", "code": f"{ROWS} && {VIDEO}.readyState >= 1"},
        {"do": "evaluate", "code": PANEL},
        {"do": "click", "selector": ".bya-binding canvas", "x": 0.75, "y": 0.3},
        {"do": "wait", "code": f"{VIDEO}.currentTime > 0.5 && !{VIDEO}.seeking"},
        {"do": "evaluate", "code": PANEL},
        {"do": "shot", "file": picture},
        {"do": "reload"},
        {"do": "wait", "code": LOADED.format(count=COUNT)},
        {"do": "evaluate", "code": FILES},
        {"do": "run", "seconds": 1200},
        {"do": "evaluate", "code": FOCUS},
        {"do": "wait", "code": ROWS},
        seconds=5400,
        viewport=(1600, 1000),
    )
    ended, panel, clicked, files, again = (answers[index] for index in (6, 9, 12, 16, 17))
    assert ended["kind"] == "execution_success", ended
    assert panel["seconds"] == pytest.approx(FRAMES / 25, abs=0.1)
    for row, name in zip(panel["rows"], ("puppet A", "puppet B"), strict=True):
        assert name in row[0] and len(row) == 6 and row[5].endswith("%"), row
    assert clicked["time"] == pytest.approx(0.75 * FRAMES / 25, abs=0.08)
    assert {image.name, recording.name} <= {Path(file).name for file in files}
    assert again["kind"] == "execution_success", again

    saved = max((server.folder / "output" / "video").glob("first_video_*.mp4"), key=lambda path: path.stat().st_mtime)
    answers = run_steps(
        server.url,
        {"do": "drop", "file": saved, "type": "video/mp4"},
        {
            "do": "wait",
            "code": f"{LOADED.format(count=COUNT)} && {FILES}.some((file) => file.includes('{image.stem}'))",
        },
        {"do": "run", "seconds": 1200},
        seconds=2700,
    )
    assert answers[-1]["kind"] == "execution_success", answers[-1]


def test_blueprints(server: Server) -> None:
    """The server offers the blueprints, and each becomes one node that the page can queue."""
    try:
        find_tools()
    except HostUnavailable as problem:
        pytest.skip(str(problem))
    for path in sorted((ROOT / "subgraphs").glob("*.json")):
        offered = [entry for entry in server.get("/global_subgraphs").values() if entry["name"] == path.stem]
        assert offered, path.stem
        steps: list[dict[str, Any]] = [
            {"do": "load", "workflow": path},
            {"do": "evaluate", "code": "app.graph.nodes[0].widgets.map((one) => one.name)"},
            {"do": "prompt"},
        ]
        nodes, widgets, prompt = run_steps(server.url, *steps)
        assert len(nodes) == 1 and nodes[0]["known"]
        kinds = {node["class_type"] for node in prompt.values()}
        if path.stem == "Character":
            assert {"name", "image", "audio"} <= set(widgets) and {"LoadImage", "BYA_FaceEncode"} <= kinds
        else:
            assert {"model", "prompt"} <= set(widgets) and {"BYA_Sampler", "SaveVideo"} <= kinds
