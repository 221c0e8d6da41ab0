"""Runs a command so that every failure is one sentence and an exit code. The training commands use it as well."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

from bya_core.errors import Cancelled, InputError, Paused, WriteError, one_line, out_of_memory
from bya_core.io.console import console
from bya_core.io.inputs import protect_inputs
from bya_core.io.interrupts import interruptible

SUCCESS, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130
"""Exit codes: done, failed, invalid input, interrupted."""

TRACEBACK = "BYA_TRACEBACK"
"""Environment variable that shows the traceback of every error."""


def run_guarded(
    action: Callable[[], int | None], reduce: str, interrupted: str = "Cancelled; no unfinished files were left"
) -> int:
    """Run a command and report its failure on stderr.

    Args:
        action: The command; None or the exit code.
        reduce: What to change if memory is exhausted, such as "lower the size of the video".
        interrupted: What to say after an interruption.

    Returns:
        The exit code.
    """
    with console(), protect_inputs():
        return _guarded(action, reduce, interrupted)


def _guarded(action: Callable[[], int | None], reduce: str, interrupted: str) -> int:
    try:
        with interruptible():
            _check_folder()
            code = action()
            sys.stdout.flush()
        return code or SUCCESS
    except (Cancelled, KeyboardInterrupt) as stopped:
        _say(f"Cancelled; {one_line(str(stopped))}" if isinstance(stopped, Paused) else interrupted)
        return STOPPED
    except Exception as error:
        return _report(error, reduce)


def _check_folder() -> None:
    """Raise InputError if the working directory was deleted, so that no relative path can be used."""
    try:
        os.getcwd()
    except OSError:
        raise InputError("a working directory that was deleted", "an existing one", "change to another one") from None


def _report(error: Exception, reduce: str) -> int:
    """Print an error; returns its exit code."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    if (exhausted := out_of_memory(error, reduce)) is not None:
        _say(f"error: {exhausted}")
    elif isinstance(error, InputError):
        _say(f"error: {error}")
        return FAILED if isinstance(error, WriteError) else BAD_INPUT
    elif isinstance(error, OSError):  # such as a full disk
        _say(f"error: {one_line(str(error))}")
        return FAILED
    else:
        problem = f"internal error {type(error).__name__} ({error})"
        _say(f"error: {InputError(problem, 'none', f'report it with the output of {TRACEBACK}=1')}")
        return FAILED
    return BAD_INPUT


def _say(text: str) -> None:
    """Print a line to stderr, which may be closed."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
