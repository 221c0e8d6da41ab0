"""The `bya` command: options, dispatch, signals and exit codes."""

from __future__ import annotations

import inspect
import logging
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from bya_core import __version__
from bya_core.cli.convert import Convert
from bya_core.cli.doctor import Doctor
from bya_core.cli.download import Download
from bya_core.cli.dub import Dub
from bya_core.cli.faces import Faces
from bya_core.cli.generate import Generate
from bya_core.cli.guard import BAD_INPUT, FAILED, STOPPED, run_guarded
from bya_core.cli.inspect import Inspect
from bya_core.cli.models import Models
from bya_core.cli.parsing import parse
from bya_core.cli.probe import Probe
from bya_core.cli.processes import world_size
from bya_core.cli.report import Report
from bya_core.cli.script import Script
from bya_core.cli.selftest import Selftest
from bya_core.cli.speakers import Speakers
from bya_core.cli.timeline import Timeline
from bya_core.errors import InputError

__all__ = ["BAD_INPUT", "COMMANDS", "FAILED", "STOPPED", "main"]

GROUPS: dict[str, tuple[type, ...]] = {
    "Generate a video": (Generate, Probe, Dub, Timeline, Script),
    "Check inputs and results": (Report, Speakers, Faces),
    "Manage models": (Models, Download, Inspect, Convert),
    "Check this machine": (Doctor, Selftest),
}
COMMANDS: dict[str, type] = {kind.__name__.lower(): kind for kinds in GROUPS.values() for kind in kinds}
USAGE = """usage: bya COMMAND [OPTIONS]

Generate videos of several talking people (Bind-Your-Avatar).
{commands}
Options:
  -h, --help  show this help message and exit; after a command, its options
  --version   show the version and exit
"""
REDUCE = {
    Generate: 'lower "width", "height" or "windows.frames" of the scene, or --vram on a GPU',
    Probe: 'lower "width", "height" or "windows.frames" of the scene, or --vram on a GPU',
    Dub: 'use a shorter film, lower "windows.frames" of the scene, or --vram on a GPU',
    Timeline: "use shorter recordings or smaller images",
    Script: "use a shorter script",
    Report: "use a shorter or smaller video",
    Speakers: "use a shorter or smaller video",
    Faces: "use smaller images",
}
"""What each command needs less memory with."""


def overview() -> str:
    """The help of `bya`: all commands in groups."""
    lines = []
    for title, kinds in GROUPS.items():
        lines += ["", f"{title}:"]
        for kind in kinds:
            first = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
            name = f"  {kind.__name__.lower():<10}"
            lines.append(textwrap.fill(first, 80, initial_indent=name, subsequent_indent=" " * len(name)))
    return USAGE.format(commands="\n".join([*lines, ""]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 success, 1 failure, 2 invalid input, 130 cancelled; commands may add their own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    kind = COMMANDS.get(words[0]) if words else None
    return run_guarded(lambda: _run(words), REDUCE.get(kind, "use a machine with more memory"))  # type: ignore[arg-type]


def _run(words: list[str]) -> int:
    if words[:1] in (["-h"], ["--help"]):
        print(overview(), end="")
        return 0
    if words == ["--version"]:
        print(f"bya {__version__}")
        return 0
    name = words[0] if words else None
    if name not in COMMANDS:
        problem = "no command" if name is None else f'the unknown command "{name}"'
        raise InputError(problem, ", ".join(COMMANDS), "see bya --help")
    command: Any = parse(COMMANDS[name], words[1:], prog=f"bya {name}")
    if (count := world_size()) > 1 and not isinstance(command, Generate):
        raise InputError(f"{count} processes", "one, except for generate", "start it without torchrun")
    code: int = command.run()
    return code
