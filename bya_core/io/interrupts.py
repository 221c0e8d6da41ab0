"""Interrupting signals of a command, and parts of the code that they do not interrupt."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_deferring = 0
_received: int | None = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT, SIGTERM and SIGHUP, so that cleanup runs. Ignored signals stay ignored.

    A second signal ends the process at once, unless it arrives in `deferred_interrupts`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, previous = os.getpid(), {}

    def handle(number: int, frame: FrameType | None) -> None:
        global _received
        if os.getpid() != owner:  # a forked worker: as without a handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif _deferring:
            _received = number
        else:
            raise KeyboardInterrupt(number)

    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Defer the signals of `interruptible` to the end of a short block."""
    global _deferring, _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
        if not _deferring and _received is not None:
            number, _received = _received, None
            raise KeyboardInterrupt(number)
