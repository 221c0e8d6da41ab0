"""Shared command-line behavior of the training scripts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from bya_core.errors import InputError
from bya_core.io.atomic import check_outside_package

T = TypeVar("T")


class Output:
    """Marks an option as a file or folder that the command writes; see `check_outputs`."""


OUTPUT = Output()
OutputPath = Annotated[Path, tyro.conf.arg(aliases=("-o",)), OUTPUT]
"""A required `-o/--output` option."""
OptionalOutput = Annotated[Path | None, tyro.conf.arg(aliases=("-o",)), OUTPUT]
"""An optional `-o/--output` option."""
OutputFile = Annotated[Path | None, OUTPUT]
"""Another file or folder that is written if it is named."""


def check_outputs(arguments: Any) -> None:
    """Check the options of a command that are marked as outputs; nested dataclasses included.

    Raises:
        InputError: an output is inside the package.
    """
    kinds = get_type_hints(type(arguments), include_extras=True)
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if is_dataclass(value):
            check_outputs(value)
        elif value is not None and OUTPUT in getattr(kinds[field.name], "__metadata__", ()):
            check_outside_package(value)


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
        parsed = tyro.cli(arguments)
        check_outputs(parsed)
        code = main(parsed)
    sys.exit(code if isinstance(code, int) else 0)
