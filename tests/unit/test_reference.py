"""Generated pages of the documentation are current."""

from __future__ import annotations

import pytest

from tools.reference import pages

PAGES = dict(pages())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_page_is_current(path):
    assert path.read_text(encoding="utf-8") == PAGES[path], "run: python -m tools.reference"
