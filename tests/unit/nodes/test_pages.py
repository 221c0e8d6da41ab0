"""Help pages, translations, and the promise that saved workflows keep loading."""

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


def test_languages_say_the_same_things() -> None:
    for name in ("nodeDefs", "main"):
        english, chinese = _json(f"locales/en/{name}.json"), _json(f"locales/zh/{name}.json")
        assert _shape(english) == _shape(chinese)
    words = [node["display_name"] for node in chinese_nodes().values()]
    assert sum(bool(re.search("[\u4e00-\u9fff]", word)) for word in words) == len(words)


def chinese_nodes() -> dict[str, Any]:
    return _json("locales/zh/nodeDefs.json")


def test_every_node_has_a_page_with_a_recipe_and_a_picture_that_is_there() -> None:
    assert {path.stem for path in DOCS} == set(_json("tests/host/frozen_schema.json"))
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# ") and "## Tips" in text, path.name
        shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert shown, f"{path.name} shows nothing"
        assert all((pages.DOCS / picture).is_file() for picture in shown), path.name


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_saved_workflows_use_what_is_frozen(path: Any) -> None:
    """Without ComfyUI: nodes, wires and the number of widget values of every file fit the frozen list."""
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
def test_nothing_frozen_has_changed(server: Server) -> None:
    """Inputs keep names and types, widgets and outputs their order; new ones may only come after the old."""
    now = pages.frozen(server.get("/object_info"))
    for name, before in _json("tests/host/frozen_schema.json").items():
        assert name in now, f"the node {name} is gone"
        assert before["inputs"].items() <= now[name]["inputs"].items(), name
        for kind in ("widgets", "outputs"):
            assert now[name][kind][: len(before[kind])] == before[kind], f"{kind} of {name}"


@pytest.mark.host
def test_pages_and_names_say_what_the_nodes_say(server: Server) -> None:
    infos = server.get("/object_info")
    assert _json("locales/en/nodeDefs.json") == pages.english(infos), "python -m tools.workflows.pages"
    for name, info in pages.ours(infos).items():
        text = (pages.DOCS / f"{name}.md").read_text(encoding="utf-8")
        assert text == pages.page(text, info), f"{name}: python -m tools.workflows.pages"
