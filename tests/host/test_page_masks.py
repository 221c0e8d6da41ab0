"""Mask viewer and painter in ComfyUI's page, in classic nodes and Nodes 2.0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.host.page import run_steps
from tests.host.server import Server
from tests.host.setup import ROOT
from tests.host.test_page import shots  # noqa: F401  # fixture

pytestmark = pytest.mark.host
WORKFLOW = ROOT / "workflows" / "04 Paint masks.json"
NODES = {node["type"]: str(node["id"]) for node in json.loads(WORKFLOW.read_text(encoding="utf-8"))["nodes"]}
ROUTER, REFINE, SCENE = NODES["BYA_EmbeddingRouter"], NODES["BYA_MaskRefine"], NODES["BYA_Scene"]
VALUE = f"app.graph.getNodeById({REFINE}).widgets.find((one) => one.name === 'painted_masks').value"
LEGEND = (
    "[...document.querySelectorAll('.bya-masks')].map((one) => [one.querySelector('.bya-mask-tools') !== null, "
    "one.querySelector('.bya-mask-time').textContent, ...[...one.querySelectorAll('.bya-chip')].map((chip) => "
    "chip.innerText.replace(/\\s+/g, ' '))])"
)
PAINTER = f"({LEGEND}.find(([tools]) => tools) ?? [true, '', ''])"
TOASTS = "[...document.querySelectorAll('.p-toast-message')].map((one) => one.innerText).join(' ')"
# only the painter and what it needs, at a place where it can be seen
ALONE = f"""(() => {{
  for (const node of app.graph.nodes) if (node.id > {REFINE}) node.mode = 2;
  const [router, refine] = [{ROUTER}, {REFINE}].map((id) => app.graph.getNodeById(id));
  router.pos = [-3000, 0];
  refine.pos = [0, 0];
  refine.setSize([480, 860]);
  Object.assign(app.canvas.ds, {{ scale: 0.9, offset: [300, 90] }});
  app.canvas.setDirty(true, true);
}})()"""


def at(x: float, y: float) -> str:
    """Expression for a point of the painter's picture, from 0 to 1."""
    return (
        "(() => { const box = [...document.querySelectorAll('.bya-masks')].find((one) => "
        "one.querySelector('.bya-mask-tools')).querySelector('.bya-mask-picture').getBoundingClientRect(); "
        f"return [box.x + {x} * box.width, box.y + {y} * box.height]; }})()"
    )


def evaluate(code: str, wait: int = 0) -> dict[str, Any]:
    return {"do": "evaluate", "code": code, "wait": wait}


def until(condition: str, code: str) -> dict[str, Any]:
    """Value of `code` once the condition holds, or after 5 minutes."""
    holds = f"try {{ if ({condition}) break; }} catch {{ }}"  # while nodes are made anew
    pause = "await new Promise((ok) => setTimeout(ok, 100));"
    loop = f"for (let tries = 0; tries < 3000; tries++) {{ {holds} {pause} }}"
    return evaluate(f"(async () => {{ {loop} return {code}; }})()")


def painter(views: list[list[Any]]) -> list[str]:
    """Time and legend of the painter in the answer of `LEGEND`."""
    return next(rest for tools, *rest in views if tools)


@pytest.mark.parametrize("nodes2", [False, True], ids=["classic", "nodes2"])
def test_paint(server: Server, shots: Path, nodes2: bool) -> None:  # noqa: F811
    picture = shots / f"painted-masks-{'nodes2' if nodes2 else 'classic'}.png"
    answers = run_steps(
        server.url,
        {"do": "nodes2", "on": nodes2},
        {"do": "load", "workflow": WORKFLOW},
        {"do": "set", "values": {SCENE: {"frames": 17, "length": "frames"}}},
        evaluate(ALONE, 1500),
        {"do": "run", "seconds": 1200},
        until(f"{LEGEND}.flat().length === 8", f"(window.unpainted = {PAINTER}[2], {LEGEND})"),
        {"do": "drag", "from": at(0.5, 0.2), "to": [at(0.5, 0.5), at(0.5, 0.8)]},
        until(f"{VALUE} !== ''", f"(window.first = {VALUE})"),
        until(f"{PAINTER}[2] !== window.unpainted", f"(sessionStorage.painted = {PAINTER}[2], {LEGEND})"),
        {"do": "press", "key": "ArrowRight"},
        {"do": "press", "key": "2"},
        {"do": "drag", "from": at(0.3, 0.5), "to": [at(0.7, 0.5)]},
        until(f"{VALUE} !== window.first", VALUE),
        {"do": "press", "key": "Control+z"},
        until(f"{VALUE} === window.first && {LEGEND}.flat().length === 8", VALUE),
        until(f"{PAINTER}[1].startsWith('2/5')", LEGEND),
        {"do": "shot", "file": picture},
        {"do": "run", "seconds": 1200},
        {"do": "reload"},
        evaluate(ALONE, 1500),
        evaluate(VALUE),
        until(f"{LEGEND}.flat().length === 8 && {PAINTER}[2] === sessionStorage.painted", LEGEND),
        seconds=5400,
    )
    ran, shown, first, painted, second, undone, restored, again = (answers[k] for k in (4, 5, 7, 8, 12, 14, 15, 17))
    assert ran["kind"] == again["kind"] == "execution_success", (ran, again)
    before, after, back = painter(shown), painter(painted), painter(restored)
    assert before[0].startswith("1/5") and before[1].startswith("puppet A")
    description = json.loads(first)
    assert description["grid"][0] == 5 and description["characters"] == ["puppet A", "puppet B"]
    assert description["file"].startswith("data:image/png;base64,"), "the workflow is complete without other files"
    assert after[1] != before[1], "the stroke adds to puppet A"
    assert second not in (first, "") and undone == first
    assert back[0].startswith("2/5"), "undo keeps the frame"
    assert answers[20] == first and painter(answers[21])[1] == after[1], "loaded again"


def test_failures_are_told(server: Server, shots: Path) -> None:  # noqa: F811
    """The sentence of a rejected value and of a failed run are toasts."""
    name = "strokes.png"
    Image.new("RGBA", (60, 40)).save(server.folder / "input" / name)
    painted = {"grid": [5, 8, 12], "characters": ["puppet A"], "columns": 5}
    gone, other = (json.dumps({"file": f"{file} [input]", **painted}) for file in ("gone.png", name))
    answers = run_steps(
        server.url,
        {"do": "nodes2", "on": False},
        {"do": "load", "workflow": WORKFLOW},
        {"do": "set", "values": {REFINE: {"painted_masks": gone}, SCENE: {"frames": 9, "length": "frames"}}},
        evaluate("app.queuePrompt(0, 1)"),
        until(f"{TOASTS}.includes('is missing')", TOASTS),
        {"do": "set", "values": {REFINE: {"painted_masks": other}}},
        {"do": "run", "seconds": 1200},
        until(f"{TOASTS}.includes('tokens') && !{TOASTS}.includes('is missing')", TOASTS),
    )
    rejected, failed = answers[4], answers[7]
    assert "Paint here" in rejected and "the file gone.png [input] of painted_masks is missing" in rejected
    assert "grid of 5 x 8 x 12 tokens; expected 3 x 8 x 12" in failed and "is missing" not in failed
