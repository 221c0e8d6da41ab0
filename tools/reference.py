"""Generate the reference pages of the documentation from the code.

python -m tools.reference            # write docs/reference/{options,cli,nodes}.md and the tables of scene.md
python -m tools.reference --check    # fail if a page is stale
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bya_core import config
from bya_core.scene import schema
from bya_core.validation import Option, options

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
COMMANDS = (
    "generate",
    "probe",
    "dub",
    "timeline",
    "script",
    "report",
    "speakers",
    "faces",
    "models",
    "download",
    "inspect",
    "convert",
    "doctor",
    "selftest",
)
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(kind: type) -> str:
    """The fields of a validated class as a markdown table."""
    rows = ["| key | type | default | description |", "|---|---|---|---|"]
    for name, option in options(kind).items():
        alias = kind.__pydantic_fields__[name].validation_alias or name  # type: ignore[attr-defined]
        rows.append(f"| `{alias}` | {_type(option)} | {_default(option)} | {_escaped(option.description)} |")
    return "\n".join(rows) + "\n"


TYPES = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "string",
    list: "list",
    tuple: "list",
}


def _type(option: Option) -> str:
    kinds = [f"`{json.dumps(choice)}`" for choice in option.choices]
    if not option.choices or not isinstance(option.choices[0], option.type):
        kinds.append("object" if dataclasses.is_dataclass(option.type) else TYPES[option.type])
    text = " or ".join(kinds)
    low, high = option.minimum, option.maximum
    if low is not None and high is not None:
        text += f", {low:g} to {high:g}" if high < 1e6 else f", {low:g} or more"
    return text


def _default(option: Option) -> str:
    if option.default is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(option.default):
        return "see below"
    return f"`{json.dumps(option.default)}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def options_page() -> str:
    """docs/reference/options.md."""
    parts = [
        "# Options",
        "",
        "Every option is declared once, in `bya_core/config.py`. Scene files, the command line and the nodes use these",
        "names, types, ranges and defaults; a model may override the defaults of the sampling options.",
        "",
    ]
    kinds = [kind for kind in vars(config).values() if isinstance(kind, type) and kind.__module__ == config.__name__]
    for kind in kinds:
        parts += [f"## {kind.__name__}", "", (kind.__doc__ or "").strip(), "", table(kind)]
    return "\n".join(parts)


def scene_page(text: str) -> str:
    """docs/reference/scene.md with its tables replaced."""
    return TABLE.sub(
        lambda found: found[1] + table(getattr(schema, found[2], None) or getattr(config, found[2])) + found[3], text
    )


def cli_page() -> str:
    """docs/reference/cli.md: the help of every command."""
    parts = ["# Command line", "", "Exit codes: 0 done, 1 failed, 2 invalid input, 130 interrupted.", ""]
    for command in ("", *COMMANDS):
        title = f"bya {command}".strip()
        parts += [f"## {title}", "", "```text", _help(command), "```", ""]
    return "\n".join(parts)


def _help(command: str) -> str:
    from bya_core.cli.main import main

    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*([command] if command else []), "--help"])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip()


def nodes_page() -> str:
    """docs/reference/nodes.md from the English names and tooltips of the nodes."""
    nodes: dict[str, Any] = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    parts = [
        "# Nodes",
        "",
        "Names and tooltips as ComfyUI shows them. Each node also has a help page in `web/docs`.",
        "",
    ]
    for node_id, node in nodes.items():
        parts += [f"## {node['display_name']}", "", f"`{node_id}`. {node['description']}", ""]
        for kind in ("inputs", "outputs"):
            entries = node.get(kind) or {}
            if entries:
                parts += [f"| {kind[:-1]} | description |", "|---|---|"]
                parts += [
                    f"| {each.get('name', key)} | {_escaped(each.get('tooltip', ''))} |"
                    for key, each in entries.items()
                ]
                parts += [""]
    return "\n".join(parts)


def pages() -> Iterator[tuple[Path, str]]:
    """Every generated page and its text."""
    yield REFERENCE / "options.md", options_page()
    yield REFERENCE / "cli.md", cli_page()
    yield REFERENCE / "nodes.md", nodes_page()
    yield REFERENCE / "scene.md", scene_page((REFERENCE / "scene.md").read_text(encoding="utf-8"))
    yield schema.SCHEMA_FILE, schema.schema_text()


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a page is stale")
    check = parser.parse_args().check
    stale = []
    for path, text in pages():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(text, encoding="utf-8")
    print(f"{'stale' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
