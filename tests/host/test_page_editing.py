"""Editing a graph with the nodes of the pack in the page: collapse, copy, mute, bypass, rename."""

from __future__ import annotations

from typing import Any

import pytest

from tests.host.server import Server
from tests.host.test_timeline import SAVE, SCENE, drag, run, values_when

pytestmark = pytest.mark.host
HEIGHT = f"{SCENE}.byaTimeline.canvas.getBoundingClientRect().height"
SCENES = """app.graph.nodes.filter((node) => node.type === "BYA_Scene")
  .map((node) => node.widgets.find((one) => one.name === "dialogue").value)"""
LANES = f"""(() => {{
  const {{ cast }} = {SCENE}.byaTimeline;
  return {SCENE}.byaTimeline.lanes().map((lane) => [cast[lane.voice].name, lane.source !== null]);
}})()"""
PASTE = (
    f"(() => {{ app.canvas.selectNodes([{SCENE}]); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard(); }})()"
)


def second(kind: str, change: str) -> dict[str, Any]:
    """A step that changes the second node of a class."""
    find = f'app.graph.nodes.filter((one) => one.type === "{kind}")[1]'
    return {"do": "evaluate", "code": f"(() => {{ const node = {find}; {change}; {SAVE}; }})()", "wait": 500}


def heard(prompt: dict[str, Any]) -> list[bool]:
    """Whether each character of an API graph has speech."""
    return ["speech" in node["inputs"] for node in prompt.values() if node["class_type"] == "BYA_FaceEncode"]


@pytest.mark.parametrize("mode", [False, True], ids=["classic", "nodes2"])
def test_timeline_follows_edits_of_the_graph(server: Server, mode: bool) -> None:
    lanes = {"do": "evaluate", "code": LANES}
    answers = run(
        server,
        mode,
        drag(0, 0.6, 1.4),
        values_when("!== ''"),
        {"do": "evaluate", "code": f"{SCENE}.collapse()", "wait": 500},
        {"do": "evaluate", "code": HEIGHT},
        {"do": "evaluate", "code": f"{SCENE}.collapse()", "wait": 500},
        {"do": "wait", "code": f"{HEIGHT} > 100"},
        second("BYA_AudioEncode", "node.mode = 2"),
        lanes,
        {"do": "prompt"},
        second("BYA_AudioEncode", "node.mode = 4"),
        lanes,
        {"do": "prompt"},
        second("BYA_AudioEncode", "node.mode = 0"),
        second("BYA_FaceEncode", "node.widgets.find((one) => one.name === 'name').value = 'Zoe'"),
        lanes,
        {"do": "prompt"},
        {"do": "evaluate", "code": PASTE, "wait": 800},
        {"do": "evaluate", "code": SCENES},
    )
    collapsed, muted, bypassed, renamed = (answers[k] for k in (3, 7, 10, 14))
    assert collapsed == 0
    assert muted == bypassed == [["Person A", True], ["Person B", False]]
    assert heard(answers[8]) == heard(answers[11]) == [True, False]
    assert renamed == [["Person A", True], ["Zoe", True]]
    assert heard(answers[15]) == [True, True]
    copies = answers[17]
    assert len(copies) == 2 and copies[0] == copies[1] == answers[1]["dialogue"]
