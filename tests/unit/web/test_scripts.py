"""The JavaScript of the pack: its colors, and the tests in tests/web."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from bya_core.io.overlay import character_color

ROOT = Path(__file__).resolve().parents[3]
LIBRARY = ROOT / "web" / "js" / "lib"
TESTS = sorted((ROOT / "tests" / "web").glob("*.test.mjs"))


def node(*arguments: str | Path) -> str:
    """Output of node; skips without it, or with a version without --test."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    if int(version.lstrip("v").split(".")[0]) < 20:
        pytest.skip(f"node {version.strip()}; the tests need 20")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.parametrize("test", TESTS, ids=lambda path: path.stem)
def test_web(test: Path):
    node("--test", test)


def test_only_the_extension_is_loaded_by_the_page():
    """The page imports every .js file below web; modules end in .mjs."""
    assert [path.name for path in (ROOT / "web").rglob("*.js")] == ["bind_your_avatar.js"]


def test_character_colors():
    """The colors of the widgets are those of the mask overlays."""
    program = (
        f"import {{ characterRgb }} from {json.dumps((LIBRARY / 'palette.mjs').as_uri())};"
        "console.log(JSON.stringify([...Array(12).keys()].map(characterRgb)))"
    )
    colors = json.loads(node("--input-type=module", "-e", program))
    assert [tuple(color) for color in colors] == [character_color(index) for index in range(12)]
