"""BYA Script in the page: its speech is in the dialogue timeline of BYA Scene, and can be edited there."""

from __future__ import annotations

import json

import pytest

from tests.host.server import Server
from tests.host.test_timeline import LOOK, SCENE, VALUES_STEP, drag, run, values_when

pytestmark = pytest.mark.host
LINES = "PERSON A: What is this?\nPERSON B: A recording."
# between the characters and the scene: a script with a line of two characters each, and a listener
INSERT = f"""(async () => {{
  const scene = {SCENE};
  const find = (type) => app.graph.nodes.filter((node) => node.type === type);
  const input = (node, name) => node.inputs.findIndex((one) => one.name === name);
  const add = (type, x, y, values) => {{
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find((one) => one.name === name).value = value;
    return node;
  }};
  scene.widgets.find((one) => one.name === "control_after_generate").value = "fixed"; // a run changes nothing
  const [first, second] = find("BYA_FaceEncode");
  for (const face of [first, second]) face.disconnectInput(input(face, "speech"));
  const third = add("BYA_FaceEncode", 500, 1500, {{ name: "Person C" }});
  find("LoadImage")[0].connect(0, third, input(third, "image"));
  second.connect(0, third, input(third, "cast"));
  const script = add("BYA_Script", 500, 1800, {{ script: {json.dumps(LINES)} }});
  third.connect(0, script, input(script, "cast"));
  script.connect(0, scene, input(scene, "cast"));
  find("LoadAudio").forEach((voice, index) => voice.connect(0, script, input(script, `recordings_${{index + 1}}`)));
}})()"""
LANES = f"""{SCENE}.byaTimeline.lanes().map((lane) => lane.source?.seconds ?? lane.note)"""
WAVES = f"{SCENE}.byaTimeline.lanes().filter((lane) => lane.source?.peaks).length === 2"
INFO = "app.nodeOutputs[app.graph.nodes.find((node) => node.type === 'PreviewAny').id].text[0]"


@pytest.mark.parametrize("mode", [False, True], ids=["classic", "nodes2"])
def test_speech_of_a_script_in_the_timeline(server: Server, mode: bool) -> None:
    """After the first run its waveforms are shown; a dragged clip changes the next run, and undo takes it back."""
    answers = run(
        server,
        mode,
        {"do": "evaluate", "code": INSERT, "wait": 800},
        {"do": "evaluate", "code": LANES},
        {"do": "run", "seconds": 600},
        {"do": "evaluate", "code": LOOK, "wait": 500},
        {"do": "wait", "code": WAVES},
        {"do": "evaluate", "code": LANES},
        {"do": "evaluate", "code": INFO},
        drag(0, 0.6, 2.6),
        values_when("!== ''"),
        {"do": "run", "seconds": 600},
        {"do": "evaluate", "code": INFO},
        {"do": "press", "key": "Control+z"},
        values_when("=== ''"),
        {"do": "wait", "code": WAVES},
        VALUES_STEP,
        picture=f"script-{'nodes2' if mode else 'classic'}",
    )
    before, ended, lanes, info, moved, again, longer, undone = (answers[k] for k in (1, 2, 5, 6, 8, 9, 10, 14))
    assert before == ["Waveform after the first run"] * 3
    assert ended["kind"] == again["kind"] == "execution_success", (ended, again)
    assert all(isinstance(seconds, float) and seconds > 1 for seconds in lanes[:2])
    assert lanes[2].startswith("Silent listener")
    (voice,) = json.loads(moved["dialogue"])["voices"]
    assert voice["clips"] == [{"start": pytest.approx(2.0, abs=0.2)}]
    assert "3 characters" in info and longer != info
    assert [lane["seconds"] for lane in undone["lanes"][:2]] == lanes[:2]
