"""Shared command-line behavior of the training scripts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from bya_core.errors import InputError

T = TypeVar("T")

OutputPath = Annotated[Path, tyro.conf.arg(aliases=("-o",))]
"""A required `-o/--output` option."""


@contextmanager
def report_input_errors() -> Iterator[None]:
    """Print an `InputError` as one line and exit with code 2."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run_command(main: Callable[[T], Any], arguments: type[T]) -> None:
    """Parse the command line into `arguments` and call `main`; an integer that it returns is the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with report_input_errors():
        code = main(tyro.cli(arguments))
    sys.exit(code if isinstance(code, int) else 0)
