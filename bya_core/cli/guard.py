"""Runs a command so that every failure is one sentence and an exit code. The training commands use it as well."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

from bya_core.errors import Cancelled, InputError, Paused, one_line, out_of_memory

SUCCESS, FAILED, BAD_INPUT, STOPPED, CLOSED = 0, 1, 2, 130, 141
"""Exit codes: done, failed, invalid input, interrupted, and output that nobody reads."""

TRACEBACK = "BYA_TRACEBACK"
"""Environment variable that shows the traceback of an internal error."""


def run_guarded(
    action: Callable[[], int | None], reduce: str, interrupted: str = "Cancelled; nothing was saved"
) -> int:
    """Run a command and report its failure on stderr.

    Args:
        action: The command; None or the exit code.
        reduce: What to change if memory is exhausted, such as "lower the size of the video".
        interrupted: What to say after an interruption.

    Returns:
        The exit code.
    """
    try:
        code = action()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code or SUCCESS
    except BrokenPipeError:
        _discard_output()
        return CLOSED
    except (Cancelled, KeyboardInterrupt) as stopped:
        _say(f"Cancelled; {one_line(str(stopped))}" if isinstance(stopped, Paused) else interrupted)
        return STOPPED
    except Exception as error:
        return _report(error, reduce)


def _report(error: Exception, reduce: str) -> int:
    """Print an error; returns its exit code."""
    if (exhausted := out_of_memory(error, reduce)) is not None:
        _say(f"error: {exhausted}")
    elif isinstance(error, InputError):
        _say(f"error: {error}")
    elif isinstance(error, OSError):  # such as a full disk
        _say(f"error: {one_line(str(error))}")
        return FAILED
    else:
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        problem = f"internal error {type(error).__name__} ({error})"
        _say(f"error: {InputError(problem, 'none', f'report it with the output of {TRACEBACK}=1')}")
        return FAILED
    return BAD_INPUT


def _say(text: str) -> None:
    """Print a line to stderr, which may be closed."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _discard_output() -> None:
    """Redirect stdout, which nobody reads any more, so that Python does not complain when it exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
