"""ComfyUI's page in Chromium, controlled by tests/host/page.js.

Requires node, npm (to install playwright-core into the cache folder) and Chromium; otherwise the tests of the page are
skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.host.setup import HostUnavailable, cache_folder, locked

DRIVER = Path(__file__).resolve().parent / "page.js"
PLAYWRIGHT = "playwright-core@1"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
Step = Mapping[str, Any]


class PageError(Exception):
    """A step failed, or the page raised errors."""


def run_steps(
    url: str, *steps: Step, seconds: float = 1800, viewport: tuple[int, int] = (1600, 900), strict: bool = False
) -> list[Any]:
    """Open the page and run steps; returns the answer of each, see `actions` in page.js.

    Errors of the page are exceptions and what the extension of the pack logs; with `strict`, all errors in the console.

    Raises:
        HostUnavailable: The browser or node is missing.
        PageError: A step failed, or the page raised errors.
    """
    node, browser, modules = find_tools()
    job = {
        "modules": str(modules),
        "browser": browser,
        "url": url,
        "viewport": list(viewport),
        "strict": strict,
        "steps": [dict(step) for step in steps],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job, default=str), encoding="utf-8")
        done = subprocess.run([node, str(DRIVER), str(path)], capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise PageError(done.stderr.strip()[-2000:])
    result = json.loads(done.stdout)
    if result["errors"]:
        raise PageError(f"errors in the page: {result['errors'][:5]}")
    return result["answers"]


@cache
def find_tools() -> tuple[str, str, Path]:
    """Paths of node, the browser and the folder with playwright-core. Raises HostUnavailable."""
    node = shutil.which("node")
    if node is None:
        raise HostUnavailable("node is not installed")
    browser = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise HostUnavailable("no browser found: install chromium, or set BROWSER_PATH")
    folder = cache_folder() / "page"
    folder.mkdir(parents=True, exist_ok=True)
    modules = folder / "node_modules"
    with locked(folder / "lock"):
        if not (modules / "playwright-core" / "package.json").is_file():
            _install(folder)
    return node, browser, modules


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise HostUnavailable("npm is not installed, which is needed to install playwright-core")
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), PLAYWRIGHT]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise HostUnavailable(f"playwright-core could not be installed: {done.stderr.strip().splitlines()[-1:]}")
