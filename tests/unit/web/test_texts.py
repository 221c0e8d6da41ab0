"""The texts of the page: each has an entry in every locale, and a Chinese help page exists for each node."""

from __future__ import annotations

import json
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
CALL = re.compile(r"""\b(?:text|t)\(\s*"([\w.]+)",\s*"((?:\\.|[^"])*)\"""")


def _texts() -> dict[str, str]:
    """Key -> English text in the code."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "web" / "js").rglob("*.mjs")):
        for key, english in CALL.findall(path.read_text(encoding="utf-8")):
            assert found.setdefault(key, english) == english, f"{key} has two texts"
    return found


def _locale(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["bindYourAvatar"]


def test_english_texts_are_those_of_the_code() -> None:
    texts, locale = _texts(), _locale("en")
    assert len(texts) > 50
    for key, english in texts.items():
        assert reduce(lambda level, part: level.get(part, {}), key.split("."), locale) == english, key


@pytest.mark.parametrize("language", ["zh"])
def test_placeholders_are_kept(language: str) -> None:
    locale = _locale(language)
    for key, english in _texts().items():
        translated = reduce(lambda level, part: level[part], key.split("."), locale)
        assert set(re.findall(r"\{\w+\}", translated)) == set(re.findall(r"\{\w+\}", english)), key


def test_chinese_help_pages() -> None:
    docs = ROOT / "web" / "docs"
    for page in docs.glob("*.md"):
        text = (docs / page.stem / "zh.md").read_text(encoding="utf-8")
        name = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))[page.stem]
        assert text.startswith(f"# {name['display_name']}\n") and "## 提示" in text, page.stem
        for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
            assert (docs / picture).is_file(), picture
