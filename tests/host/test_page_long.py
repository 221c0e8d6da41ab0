"""A long session in ComfyUI's page without errors in its console.

The session repeats what artists do, in classic nodes and Nodes 2.0, for the minutes in BYA_SESSION_MINUTES (2).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.host.page import find_tools, run_steps
from tests.host.server import Server
from tests.host.setup import ROOT, HostUnavailable
from tests.host.test_page_files import LOADED, PEOPLE
from tests.host.test_page_masks import ALONE, LEGEND, PAINTER, VALUE, at, evaluate, until
from tests.host.test_timeline import DRAWN, LOOK, drag

pytestmark = [pytest.mark.host, pytest.mark.slow]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
SHORT = """(() => {
  for (const node of app.graph.nodes.filter((one) => one.type === "BYA_Scene")) {
    const values = { length: "frames", frames: 9, settings: "custom", width: 96, height: 64, steps: 2 };
    for (const one of node.widgets) if (one.name in values) one.value = values[one.name];
  }
})()"""
RUN = {"do": "run", "seconds": 1200}


def session(modern: bool) -> Iterator[dict[str, Any]]:
    """Open every workflow; own files, timeline, run; paint, undo, run; reload, run."""
    yield {"do": "nodes2", "on": modern}
    for workflow in WORKFLOWS:
        yield {"do": "load", "workflow": workflow}
        yield evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')", 300)
    yield {"do": "load", "workflow": ROOT / "workflows" / "01 First video.json"}
    yield {"do": "drop", "files": PEOPLE}
    yield {"do": "wait", "code": LOADED}
    yield evaluate(SHORT)
    yield evaluate(LOOK, 500)
    yield DRAWN
    yield drag(0, 0.6, 0.9)
    yield RUN
    yield {"do": "load", "workflow": ROOT / "workflows" / "04 Paint masks.json"}
    yield evaluate(SHORT)
    yield evaluate(ALONE, 500)
    yield RUN
    yield until(f"{LEGEND}.flat().length === 8 && {PAINTER}[2]", "1")
    yield {"do": "drag", "from": at(0.5, 0.2), "to": [at(0.5, 0.5), at(0.5, 0.8)]}
    yield until(f"{VALUE} !== ''", "1")
    yield {"do": "press", "key": "Control+z"}
    yield {"do": "press", "key": "Control+y"}
    yield {"do": "nodes2", "on": not modern}
    yield RUN
    yield {"do": "reload"}
    yield RUN


def test_session_without_errors(server: Server) -> None:
    try:
        find_tools()
    except HostUnavailable as problem:
        pytest.skip(str(problem))
    before = len(server.tail(10**7))  # other tests cause errors on the same server
    minutes = float(os.environ.get("BYA_SESSION_MINUTES", "2"))
    steps = [*session(False), *session(True)]
    (rounds,) = run_steps(
        server.url, {"do": "repeat", "minutes": minutes, "steps": steps}, seconds=5400 + 60 * minutes, strict=True
    )
    assert rounds >= 1
    log = server.tail(10**7)[before:]
    _, _, failed = log.partition("!!! Exception during processing")  # ComfyUI's words
    assert "Prompt executed" in log
    assert not failed, failed[:4000]
