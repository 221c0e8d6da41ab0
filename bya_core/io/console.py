"""Standard streams of a command: any encoding, closed pipes, missing streams."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class _Stream(io.TextIOWrapper):
    """A text stream that escapes what its encoding lacks and ignores a closed pipe, so that the command goes on."""

    def write(self, text: str) -> int:
        with self._handled():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._handled():
            super().flush()

    @contextmanager
    def _handled(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # such as `bya models | head -1`
            _redirect(self)
        except OSError:  # such as a full disk: reported once, not again when the interpreter exits
            _redirect(self)
            raise


@contextmanager
def console() -> Iterator[None]:
    """Make `sys.stdout` and `sys.stderr` safe to print to. Streams that a caller has replaced are left as they are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            options = {"encoding": stream.encoding, "line_buffering": stream.line_buffering}
            with suppress(OSError):
                stream.flush()
            replaced = _Stream(stream.detach(), errors="backslashreplace", **options)  # type: ignore[arg-type]
            setattr(sys, name, replaced)
            setattr(sys, f"__{name}__", replaced)
            for handler in logging.getLogger().handlers:  # configured before: they hold the detached stream
                if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                    handler.stream = replaced
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(ValueError):  # closed
                stream.flush()


def _redirect(stream: io.TextIOWrapper) -> None:
    """Send the rest of a stream nowhere."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
