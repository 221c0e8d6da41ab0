"""Standard streams of a command: any encoding, closed pipes, missing streams."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def console() -> Iterator[None]:
    """Make `sys.stdout` and `sys.stderr` safe to print to. Streams that a caller has replaced are left as they are.

    Characters that the encoding lacks are escaped, and a closed pipe is ignored, so that the command goes on.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            _make_safe(stream)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError):  # closed
                stream.flush()


def _make_safe(stream: Any) -> None:
    """Change a stream in place, because loggers keep references to it."""
    if isinstance(stream.flush, functools.partial):
        return
    stream.reconfigure(errors="backslashreplace")
    stream.write = functools.partial(_handled, stream, stream.write)
    stream.flush = functools.partial(_handled, stream, stream.flush)


def _handled(stream: Any, method: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return method(*arguments)
    except BrokenPipeError:  # such as `bya models | head -1`
        _redirect(stream)
        return len(arguments[0]) if arguments else None
    except OSError:  # such as a full disk: reported once, not again when the interpreter exits
        _redirect(stream)
        raise


def _redirect(stream: Any) -> None:
    """Send the rest of a stream nowhere."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
