"""Generate the lists of inputs and outputs of the help pages, the English locale and the frozen schema from the nodes.

    python -m tools.workflows.pages         # needs ComfyUI (tests/host/setup.py)

Only the text between the two marks of web/docs/<node>.md and web/docs/<node>/zh.md is generated; the Chinese one from
locales/zh/nodeDefs.json.
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
CHINESE = ROOT / "locales" / "zh" / "nodeDefs.json"
FROZEN = ROOT / "tests" / "host" / "frozen_schema.json"
START, END = "<!-- generated from the tooltips -->", "<!-- end -->"


def own_nodes(infos: dict[str, NodeInfo]) -> dict[str, NodeInfo]:
    """This pack's nodes."""
    return {name: info for name, info in sorted(infos.items()) if name.startswith("BYA_")}


WORDS = {
    "en": ("## Inputs", "## Outputs", "optional", "on", "off"),
    "zh": ("## 输入", "## 输出", "可选", "开", "关"),
}


def lists(info: NodeInfo, translated: dict[str, Any] | None = None) -> str:
    """Inputs and outputs of a node as Markdown lists; `translated` is its entry of a locale, None for English."""
    heading_in, heading_out, optional, on, off = WORDS["en" if translated is None else "zh"]
    free = info["input_order"].get("optional", [])
    lines = [heading_in, ""]
    for name, kind, options in described_inputs(info):
        if is_widget(kind, options):
            note = f" *({_shown(options['default'], on, off)})*" if options.get("default", "") != "" else ""
        else:
            note = f" *({optional})*" if name in free else ""
        entry = {} if translated is None else translated["inputs"].get(name, {})
        label = f" {entry['name']}" if "name" in entry else ""
        lines.append(f"- **{name}**{label}{note}: {entry.get('tooltip', options['tooltip'])}")
    lines += ["", heading_out, ""]
    for slot, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True)):
        entry = {} if translated is None else translated["outputs"].get(str(slot), {})
        label = f" {entry['name']}" if "name" in entry else ""
        lines.append(f"- **{name}**{label}: {entry.get('tooltip', tooltip)}")
    return "\n".join(lines)


def _shown(default: Any, on: str, off: str) -> str:
    if isinstance(default, bool):
        return on if default else off
    return str(default)


def page(text: str, info: NodeInfo, translated: dict[str, Any] | None = None) -> str:
    """A help page with its generated part replaced."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{lists(info, translated)}\n{END}{after}"


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
    chinese = json.loads(CHINESE.read_text(encoding="utf-8"))
    for name, info in own_nodes(infos).items():
        path = DOCS / f"{name}.md"
        path.write_text(page(path.read_text(encoding="utf-8"), info), encoding="utf-8")
        path = DOCS / name / "zh.md"
        path.write_text(page(path.read_text(encoding="utf-8"), info, chinese[name]), encoding="utf-8")
    ENGLISH.write_text(text(english_locale(infos)), encoding="utf-8")
    FROZEN.write_text(text(frozen_schema(infos)), encoding="utf-8")


if __name__ == "__main__":
    main()
