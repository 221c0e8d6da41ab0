"""The dialogue timeline of BYA Scene in the page, in classic nodes and in Nodes 2.0."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.host.page import find_tools, run_steps
from tests.host.server import Server
from tests.host.setup import HostUnavailable

pytestmark = pytest.mark.host

# a graph with two characters, whose last node shows the text of BYA Scene
BUILD = """(async () => {
  const empty = { id: "%s", version: 0.4, nodes: [], links: [], groups: [], config: {}, extra: {} };
  await app.loadGraphData(empty);
  const add = (type, x, y, values = {}) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find((one) => one.name === name).value = value;
    return node;
  };
  const link = (from, output, to, input) =>
    from.connect(from.findOutputSlot(output), to, to.inputs.findIndex((one) => one.name === input));
  const scene = add("BYA_Scene", 900, 0, { prompt: "two puppets" });
  const faces = ["A", "B"].map((letter, index) => {
    const y = 700 * index;
    const face = add("BYA_FaceEncode", 500, y, { name: `Person ${letter}` });
    const voice = add("BYA_AudioEncode", 250, y);
    link(add("LoadImage", -50, y, { image: `bya_${letter}.png` }), "IMAGE", face, "image");
    link(add("LoadAudio", -50, y + 400, { audio: `bya_${letter}.wav` }), "AUDIO", voice, "audio");
    link(voice, "speech", face, "speech");
    return face;
  });
  link(faces[0], "cast", faces[1], "cast");
  link(faces[1], "cast", scene, "cast");
  link(add("BYA_Loader", 500, 1200, { model: "toy" }), "model", scene, "model");
  link(scene, "info", add("PreviewAny", 1600, 0), "source");
  scene.setSize([640, scene.computeSize()[1]]);
})()"""
SCENE = """(() => {
  const all = (graph) => graph.nodes.flatMap((node) => (node.subgraph ? [node, ...all(node.subgraph)] : [node]));
  return all(app.rootGraph).find((node) => node.type === "BYA_Scene");
})()"""
LOOK = f"""(async () => {{
  const scene = {SCENE};
  const {{ ds }} = app.canvas;
  ds.scale = 1.2;
  ds.offset = [120 - scene.pos[0], 760 / 1.2 - scene.pos[1] - scene.size[1]];
  app.canvas.setDirty(true, true);
}})()"""
SAVE = "app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"
MINUTES = f"""(() => {{
  const value = (name) => {SCENE}.widgets.find((one) => one.name === name);
  value("length").value = "seconds";
  value("seconds").value = 600;
}})()"""
VALUES = f"""(() => {{
  const scene = {SCENE};
  const value = (name) => scene.widgets.find((one) => one.name === name).value;
  const timeline = scene.byaTimeline;
  return {{
    dialogue: value("dialogue"),
    prompts: value("prompt_schedule"),
    lanes: timeline.lanes().map((lane) => ({{ voice: lane.voice, seconds: lane.source?.seconds }})),
    undo: app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length,
  }};
}})()"""


def point(seconds: float, lane: int) -> str:
    """Expression with the page coordinates of a time in a lane; lane 2 is that of the prompts."""
    return f"""(() => {{
      const timeline = {SCENE}.byaTimeline;
      const box = timeline.canvas.getBoundingClientRect();
      const zoom = box.width / timeline.canvas.clientWidth;
      const lane = timeline.headers.rows[0].root.clientHeight;
      const y = 20 + ({lane} < 2 ? ({lane} + 0.6) * lane : 2 * lane + 12);
      return [box.left + ({seconds} - timeline.view.start) * timeline.view.scale * zoom, box.top + y * zoom];
    }})()"""


def drag(lane: int, start: float, end: float) -> dict[str, Any]:
    return {"do": "drag", "from": point(start, lane), "to": [point((start + end) / 2, lane), point(end, lane)]}


def command(code: str) -> dict[str, Any]:
    return {"do": "evaluate", "code": f"{SCENE}.byaTimeline.{code}", "wait": 200}


def run(server: Server, mode: bool, *steps: dict[str, Any], picture: str = "") -> list[Any]:
    """Run steps on a new graph; returns the answers."""
    try:
        find_tools()
    except HostUnavailable as problem:
        pytest.skip(str(problem))
    first = (
        {"do": "nodes2", "on": mode},
        {"do": "evaluate", "code": BUILD % uuid.uuid4(), "wait": 1500},
        {"do": "evaluate", "code": LOOK, "wait": 1500},
        DRAWN,
        {"do": "evaluate", "code": SAVE},  # nodes with a picture have grown
    )
    shots = os.environ.get("BYA_SCREENSHOTS")
    last = ({"do": "shot", "file": Path(shots) / f"{picture}.png"},) if shots and picture else ()
    return run_steps(server.url, *first, *steps, *last, seconds=5400, viewport=(1400, 850))[len(first) :]


VALUES_STEP = {"do": "evaluate", "code": VALUES}
# both recordings are read, and the lanes are drawn
DRAWN = {
    "do": "wait",
    "code": f"!app.configuringGraph && {SCENE}.byaTimeline.view"
    f" && {VALUES}.lanes.filter((lane) => lane.seconds > 0).length === 2",
}


def values_when(condition: str) -> dict[str, Any]:
    """A step that waits until a condition holds for the text of the dialogue, and returns the values."""
    return {"do": "wait", "code": f"!app.configuringGraph && {VALUES}.dialogue {condition} && {VALUES}"}


@pytest.mark.parametrize("mode", [False, True], ids=["classic", "nodes2"])
def test_edit_undo_reload_queue(server: Server, mode: bool) -> None:
    """A dragged clip is one step of the undo history, survives a reload, and reaches the scene."""
    answers = run(
        server,
        mode,
        VALUES_STEP,
        drag(0, 0.6, 1.4),
        VALUES_STEP,
        {"do": "press", "key": "Control+z"},
        values_when("=== ''"),
        {"do": "press", "key": "Control+y"},
        values_when("!== ''"),
        {"do": "reload"},
        {"do": "evaluate", "code": LOOK, "wait": 1500},
        DRAWN,
        VALUES_STEP,
        command("swap(0, 1)"),
        drag(1, 2.75, 2.0),
        VALUES_STEP,
        {"do": "prompt"},
        {"do": "run", "seconds": 1200},
        {"do": "wait", "code": f"{SCENE}.byaTimeline.run"},
        picture=f"timeline-{'nodes2' if mode else 'classic'}",
    )
    before, dragged, undone, redone = (answers[index] for index in (0, 2, 4, 6))
    assert [lane["voice"] for lane in before["lanes"]] == [0, 1]
    seconds = before["lanes"][0]["seconds"]
    assert before["dialogue"] == "" and seconds > 1.5
    (voice,) = json.loads(dragged["dialogue"])["voices"]
    assert voice["clips"] == [{"start": pytest.approx(0.8, abs=0.06)}]
    assert dragged["undo"] == before["undo"] + 1
    assert undone["dialogue"] == "" and redone["dialogue"] == dragged["dialogue"]
    reloaded, edited, prompt, ended, shown = (answers[index] for index in (10, 13, 14, 15, 16))
    assert reloaded["dialogue"] == dragged["dialogue"] and len(reloaded["lanes"]) == 2
    assert reloaded["lanes"][0]["seconds"] == seconds
    final = json.loads(edited["dialogue"])
    assert final["characters"] == [1, 0] and [lane["voice"] for lane in edited["lanes"]] == [1, 0]
    (clip,) = final["voices"][0]["clips"]
    assert clip["start"] == voice["clips"][0]["start"] and clip["to"] < seconds - 0.5, "trimmed in the lane of Person B"
    (queued,) = [node for node in prompt.values() if node["class_type"] == "BYA_Scene"]
    assert queued["inputs"]["dialogue"] == edited["dialogue"]
    assert ended["kind"] == "execution_success", ended
    assert [voice["name"] for voice in shown["voices"]] == ["Person A", "Person B"]
    assert shown["frames"] / 25 == pytest.approx(max(2.0, clip["start"] + clip["to"]), abs=0.2)


@pytest.mark.parametrize("mode", [False, True], ids=["classic", "nodes2"])
def test_prompts_keys_and_playback(server: Server, mode: bool) -> None:
    """Keys edit the selected clip, prompts are written to prompt_schedule, and the playback advances."""
    focus = command("canvas.focus()")
    answers = run(
        server,
        mode,
        focus,
        {"do": "press", "key": "ArrowDown"},
        {"do": "press", "key": "Shift+ArrowRight"},
        {"do": "press", "key": "m"},
        VALUES_STEP,
        command("addPrompt(0.4)"),
        drag(2, 0.5, 1.1),
        VALUES_STEP,
        focus,
        command("seek(0)"),
        {"do": "evaluate", "code": MINUTES, "wait": 200},  # so that the playback does not end by itself
        focus,
        {"do": "press", "key": "Space"},
        {"do": "wait", "code": f"{SCENE}.byaTimeline.state.playhead > 0"},
        {"do": "press", "key": "Space"},
        {"do": "evaluate", "code": f"!{SCENE}.byaTimeline.position"},
        picture=f"timeline-prompts-{'nodes2' if mode else 'classic'}",
    )
    edited, prompted = answers[4], answers[7]
    assert json.loads(edited["dialogue"])["voices"] == [{"clips": [{"start": 0.4}], "mute": True}]
    start, _, rest = prompted["prompts"].partition(" - ")
    assert float(start) == pytest.approx(1.0, abs=0.06) and rest.endswith(": two puppets")
    assert answers[13] is True and answers[15] is True


@pytest.mark.parametrize("mode", [False, True], ids=["classic", "nodes2"])
def test_inside_a_subgraph(server: Server, mode: bool) -> None:
    """The cast is found beyond the border of a subgraph, and its value is queued."""
    enclose = f"""(() => {{
      app.graph.convertToSubgraph(new Set([{SCENE}]));
      app.canvas.openSubgraph(app.rootGraph.nodes.find((node) => node.subgraph).subgraph);
    }})()"""
    answers = run(
        server,
        mode,
        {"do": "evaluate", "code": enclose, "wait": 1500},
        {"do": "evaluate", "code": LOOK, "wait": 1500},
        DRAWN,
        drag(1, 0.6, 1.2),
        VALUES_STEP,
        {"do": "prompt"},
        picture=f"timeline-subgraph-{'nodes2' if mode else 'classic'}",
    )
    values, prompt = answers[4], answers[5]
    assert [lane["voice"] for lane in values["lanes"]] == [0, 1] and values["lanes"][1]["seconds"] > 1
    assert "clips" in json.loads(values["dialogue"])["voices"][1]
    (queued,) = [node for number, node in prompt.items() if node["class_type"] == "BYA_Scene" and ":" in number]
    assert queued["inputs"]["dialogue"] == values["dialogue"]


def test_socket_colors(server: Server) -> None:
    """Every type of the pack has its own color, which stays when the user chooses another color palette."""
    colors = """(() => {
      const found = {};
      for (const type of ["BYA_MODEL", "BYA_CAST", "BYA_SPEECH", "BYA_SCENE", "BYA_ROUTING"]) {
        found[type] = [
          app.canvas.default_connection_color_byType[type],
          app.canvas.constructor.link_type_colors[type],
          document.documentElement.style.getPropertyValue(`--color-datatype-${type}`),
        ];
      }
      return found;
    })()"""
    palette = 'app.extensionManager.setting.set("Comfy.ColorPalette", "{}")'
    answers = run(
        server,
        False,
        {"do": "evaluate", "code": colors},
        {"do": "evaluate", "code": palette.format("light"), "wait": 3000},
        {"do": "evaluate", "code": colors},
        {"do": "evaluate", "code": palette.format("dark"), "wait": 3000},
        {"do": "evaluate", "code": colors},
    )
    before, light, dark = answers[0], answers[2], answers[4]
    assert before == light == dark
    assert all(len(set(each)) == 1 for each in before.values()), before
    assert len({each[0] for each in before.values()}) == len(before)
