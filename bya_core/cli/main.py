"""The `bya` command: options, dispatch, signals and exit codes."""

from __future__ import annotations

import inspect
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, Union

import tyro
from tyro.conf import FlagCreatePairsOff, subcommand

from bya_core import __version__
from bya_core.cli.convert import Convert
from bya_core.cli.doctor import Doctor
from bya_core.cli.download import Download
from bya_core.cli.faces import Faces
from bya_core.cli.generate import Generate
from bya_core.cli.inspect import Inspect
from bya_core.cli.models import Models
from bya_core.cli.probe import Probe
from bya_core.cli.processes import world_size
from bya_core.cli.report import Report
from bya_core.cli.selftest import Selftest
from bya_core.cli.timeline import Timeline
from bya_core.errors import Cancelled, InputError, Paused

FAILED, BAD_INPUT, STOPPED = 1, 2, 130
DESCRIPTION = """Generate videos of several talking people (Bind-Your-Avatar).

Run `bya COMMAND --help` for the options of a command, and `bya --version` for the version."""
COMMANDS = (Generate, Probe, Timeline, Report, Faces, Models, Download, Inspect, Convert, Doctor, Selftest)


def _commands(short: bool) -> Any:
    """The type of all commands for tyro; `short` leaves only the first paragraph of their descriptions."""
    described = (
        Annotated[kind, subcommand(kind.__name__.lower(), description=text.split("\n\n")[0] if short else text)]
        for kind, text in ((kind, inspect.getdoc(kind) or "") for kind in COMMANDS)
    )
    return Union[tuple(described)]  # noqa: UP007


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 success, 1 failure, 2 invalid input, 130 cancelled; commands may add their own.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"bya {__version__}")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    commands = _commands(short=not arguments or arguments[0].startswith("-"))
    command = tyro.cli(commands, prog="bya", description=DESCRIPTION, args=arguments, config=(FlagCreatePairsOff,))
    previous = signal.signal(signal.SIGTERM, _cancel)
    try:
        if (count := world_size()) > 1 and not isinstance(command, Generate):
            raise InputError(f"{count} processes", "one, except for generate", "start it without torchrun")
        return command.run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # such as a full disk
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except Paused as paused:
        print(f"Cancelled; {paused}", file=sys.stderr)
        return STOPPED
    except (Cancelled, KeyboardInterrupt):
        print("Cancelled; nothing was saved", file=sys.stderr)
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, previous)


def _cancel(number: int, frame: FrameType | None) -> None:
    raise Cancelled(f"signal {number}")
