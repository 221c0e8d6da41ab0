"""Generate the input and output lists of the help pages, the English locale and the frozen schema from the nodes.

    python -m tools.workflows.pages         # needs ComfyUI (tests/host/setup.py)

Only the text between the two marks of web/docs/<node>.md is generated.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.host.server import Server
from tests.host.setup import ROOT, find_host
from tools.workflows.sheet import NodeInfo, described_inputs, is_widget

DOCS = ROOT / "web" / "docs"
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"
FROZEN = ROOT / "tests" / "host" / "frozen_schema.json"
START, END = "<!-- generated from the tooltips -->", "<!-- end -->"


def own_nodes(infos: dict[str, NodeInfo]) -> dict[str, NodeInfo]:
    """This pack's nodes."""
    return {name: info for name, info in sorted(infos.items()) if name.startswith("BYA_")}


def lists(info: NodeInfo) -> str:
    """Inputs and outputs of a node as Markdown lists."""
    optional = info["input_order"].get("optional", [])
    lines = ["## Inputs", ""]
    for name, kind, options in described_inputs(info):
        if is_widget(kind, options):
            note = f" *({_shown(options['default'])})*" if options.get("default", "") != "" else ""
        else:
            note = " *(optional)*" if name in optional else ""
        lines.append(f"- **{name}**{note}: {options['tooltip']}")
    lines += ["", "## Outputs", ""]
    for name, tooltip in zip(info["output_name"], info["output_tooltips"], strict=True):
        lines.append(f"- **{name}**: {tooltip}")
    return "\n".join(lines)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(default)


def page(text: str, info: NodeInfo) -> str:
    """A help page with its generated part replaced."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{lists(info)}\n{END}{after}"


def english_locale(infos: dict[str, NodeInfo]) -> dict[str, Any]:
    """Names and tooltips in ComfyUI's locale format."""
    entries: dict[str, Any] = {}
    for name, info in own_nodes(infos).items():
        inputs = {field: {"name": field, "tooltip": options["tooltip"]} for field, _, options in described_inputs(info)}
        outputs = {
            str(slot): {"name": output, "tooltip": tooltip}
            for slot, (output, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
        }
        entries[name] = {"display_name": info["display_name"], "description": info["description"]}
        entries[name] |= {"inputs": inputs, "outputs": outputs}
    return entries


def frozen_schema(infos: dict[str, NodeInfo]) -> dict[str, Any]:
    """Node properties that saved workflows depend on: ids, inputs with types, order of widgets and outputs."""
    entries: dict[str, Any] = {}
    for name, info in own_nodes(infos).items():
        described = list(described_inputs(info))
        entries[name] = {
            "inputs": {field: kind for field, kind, _ in described},
            "widgets": [
                [field, bool(options.get("control_after_generate"))]
                for field, kind, options in described
                if is_widget(kind, options)
            ],
            "outputs": [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)],
        }
    return entries


def text(data: Any) -> str:
    """JSON in the format of the files."""
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(find_host(), Path(folder)) as server:
        infos = server.get("/object_info")
    for name, info in own_nodes(infos).items():
        path = DOCS / f"{name}.md"
        path.write_text(page(path.read_text(encoding="utf-8"), info), encoding="utf-8")
    ENGLISH.write_text(text(english_locale(infos)), encoding="utf-8")
    FROZEN.write_text(text(frozen_schema(infos)), encoding="utf-8")


if __name__ == "__main__":
    main()
