"""Write the workflows and blueprints of the pack, for the page and as API graphs for the server tests.

    python -m tools.workflows.build

Needs ComfyUI (tests/host/setup.py) for the node definitions. Measured figures come from tools/workflows/measured.json,
which `python -m tools.workflows.measure` writes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.host.server import Server
from tests.host.setup import ROOT, find_host
from tools.workflows.blueprints import BLUEPRINTS, draw_blueprint
from tools.workflows.convert import to_api
from tools.workflows.graphs import WORKFLOWS, draw

FOLDER = ROOT / "workflows"
SUBGRAPHS = ROOT / "subgraphs"
GRAPHS = ROOT / "tests" / "host" / "graphs_api"
MEASURED = ROOT / "tools" / "workflows" / "measured.json"


def measured(name: str) -> str:
    """The measured figures of a workflow as a sentence."""
    figures = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    return figures.get(name, "**Not measured** yet.")


def build(infos: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name -> (workflow file, API graph)."""
    drawn = {name: draw(name, infos, measured(name)) for name in WORKFLOWS}
    return {name: (workflow, to_api(workflow, infos)) for name, workflow in drawn.items()}


def text(data: Any) -> str:
    """JSON in the format of the files."""
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as base, Server(find_host(), Path(base)) as server:
        infos = server.get("/object_info")
    for folder in (FOLDER, GRAPHS, SUBGRAPHS):
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.json"):
            old.unlink()
    for name, (workflow, graph) in build(infos).items():
        (FOLDER / f"{name}.json").write_text(text(workflow), encoding="utf-8")
        (GRAPHS / f"{name}.json").write_text(text(graph), encoding="utf-8")
    for name in BLUEPRINTS:
        (SUBGRAPHS / f"{name}.json").write_text(text(draw_blueprint(name, infos)), encoding="utf-8")


if __name__ == "__main__":
    main()
