"""Shared command-line behavior of the training scripts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from bya_core.errors import InputError

T = TypeVar("T")

OutputPath = Annotated[Path, tyro.conf.arg(aliases=("-o",))]
"""A required `-o/--output` option."""


def run_command(main: Callable[[T], Any], arguments: type[T]) -> None:
    """Parse the command line into `arguments` and call `main`.

    An `InputError` is printed as one line and exits with code 2; an integer returned by `main` is the exit code.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        code = main(tyro.cli(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)
