"""ComfyUI's real page in a real browser, driven by tests/host/page.js.

It needs node, npm (once, for playwright-core, which is kept in the cache folder) and Chromium
(`apt-get install chromium`); where one is missing, tests of the page skip and say which.
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

from tests.host.setup import NoHost, cache_folder, locked

DRIVER = Path(__file__).resolve().parent / "page.js"
PLAYWRIGHT = "playwright-core@1"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
Step = Mapping[str, Any]


class PageFailed(Exception):
    """The page did not do what was asked; the message is what the driver said."""


def play(url: str, *steps: Step, seconds: float = 300, viewport: tuple[int, int] = (1600, 900)) -> list[Any]:
    """Open the page and do the steps; returns an answer for each (see `actions` in host_page.js).

    Raises:
        NoHost: no browser, or nothing to drive it with.
        PageFailed: a step failed, or an error was thrown in the page.
    """
    node, browser, modules = tools()
    job = {
        "modules": str(modules),
        "browser": browser,
        "url": url,
        "viewport": list(viewport),
        "steps": [dict(step) for step in steps],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job, default=str), encoding="utf-8")
        done = subprocess.run([node, str(DRIVER), str(path)], capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise PageFailed(done.stderr.strip()[-2000:])
    said = json.loads(done.stdout)
    if said["errors"]:
        raise PageFailed(f"errors in the page: {said['errors'][:3]}")
    return said["answers"]


@cache
def tools() -> tuple[str, str, Path]:
    """node, the browser, and the folder that holds playwright-core. Raises NoHost."""
    node = shutil.which("node")
    if node is None:
        raise NoHost("no node here: the page cannot be driven")
    browser = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise NoHost("no browser here: install Chromium (apt-get install chromium), or name one in BROWSER_PATH")
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
        raise NoHost("no npm here: playwright-core cannot be installed")
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), PLAYWRIGHT]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoHost(f"playwright-core could not be installed: {done.stderr.strip().splitlines()[-1:]}")
