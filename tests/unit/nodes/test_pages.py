"""Help pages, translations, and compatibility with saved workflows."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.host.server import Server
from tests.host.setup import ROOT
from tools.workflows import pages

DOCS = sorted(pages.DOCS.glob("*.md"))


def _json(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def _shape(data: Any) -> Any:
    """The keys of nested dictionaries."""
    return {key: _shape(value) for key, value in data.items()} if isinstance(data, dict) else None


def test_languages_have_the_same_keys() -> None:
    for name in ("nodeDefs", "main"):
        english, chinese = _json(f"locales/en/{name}.json"), _json(f"locales/zh/{name}.json")
        assert _shape(english) == _shape(chinese)
    for node in _json("locales/zh/nodeDefs.json").values():
        assert re.search("[\u4e00-\u9fff]", node["display_name"])


def test_help_pages_have_tips_and_pictures() -> None:
    assert {path.stem for path in DOCS} == set(_json("tests/host/frozen_schema.json"))
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# ") and "## Tips" in text, path.name
        shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert shown, path.name
        assert all((pages.DOCS / picture).is_file() for picture in shown), path.name


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_saved_workflows_match_the_frozen_schema(path: Any) -> None:
    frozen = _json("tests/host/frozen_schema.json")
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if not node["type"].startswith("BYA_"):
            continue
        known = frozen[node["type"]]
        for entry in node["inputs"]:
            assert known["inputs"][entry["name"]] == entry["type"]
        assert [[output["name"], output["type"]] for output in node["outputs"]] == known["outputs"]
        assert len(node["widgets_values"]) == sum(1 + control for _, control in known["widgets"])


@pytest.mark.host
def test_schema_is_compatible_with_the_frozen_one(server: Server) -> None:
    """Inputs keep names and types, widgets and outputs their order; new ones are appended."""
    now = pages.frozen_schema(server.get("/object_info"))
    for name, before in _json("tests/host/frozen_schema.json").items():
        assert name in now, name
        assert before["inputs"].items() <= now[name]["inputs"].items(), name
        for kind in ("widgets", "outputs"):
            assert now[name][kind][: len(before[kind])] == before[kind], f"{kind} of {name}"


@pytest.mark.host
def test_generated_pages_are_up_to_date(server: Server) -> None:
    infos = server.get("/object_info")
    assert _json("locales/en/nodeDefs.json") == pages.english_locale(infos), "python -m tools.workflows.pages"
    for name, info in pages.own_nodes(infos).items():
        text = (pages.DOCS / f"{name}.md").read_text(encoding="utf-8")
        assert text == pages.page(text, info), f"{name}: python -m tools.workflows.pages"
