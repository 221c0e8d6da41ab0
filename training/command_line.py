"""Shared command-line behavior of the training scripts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import tyro

from bya_core.cli.guard import run_guarded
from bya_core.cli.parsing import parse
from bya_core.errors import InputError
from bya_core.io.inputs import note_input
from bya_core.io.outputs import check_distinct, check_outside_package, missing_folders, resolve_output

T = TypeVar("T")
REDUCE = "lower the batch size, the size or length of the clips, or the number of processes"


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
    """Check the options of a command that are marked as outputs; all other paths are recorded as inputs.

    Raises:
        InputError: an output is an input, inside the package, a device or a pipe, in a folder that is missing, or given
            twice.
    """
    values = list(_values(arguments))
    outputs = [Path(value) for value, is_output in values if is_output]
    for value, is_output in values:
        if not is_output and (isinstance(value, Path) or (isinstance(value, str) and value)):
            note_input(value, ignore=outputs)
    for path in outputs:
        check_outside_package(path)
        if path.is_dir():
            continue
        if path.exists():
            resolve_output(path)
        try:
            missing_folders(path.parent if path.suffix else path)
        except InputError as error:
            raise InputError(f"the output {path}: {error.problem}", error.expected, error.hint) from None
    check_distinct(outputs)


def _values(arguments: Any) -> Iterator[tuple[Any, bool]]:
    """Every value of a dataclass, nested ones included, and whether it is marked as an output."""
    kinds = get_type_hints(type(arguments), include_extras=True)
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        is_output = OUTPUT in getattr(kinds[field.name], "__metadata__", ())
        if is_dataclass(value):
            yield from _values(value)
        elif value is not None:
            yield from ((each, is_output) for each in (value if isinstance(value, tuple | list) else (value,)))


def check_values(arguments: Any) -> None:
    """Check the numbers of a command; nested dataclasses included.

    Integers are at least 0, or at least their default if that is negative; all numbers are finite. Narrower ranges are
    declared with `bya_core.validation.Field`.

    Raises:
        InputError: a number out of range.
    """
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if is_dataclass(value):
            check_values(value)
            continue
        least = min(0, field.default) if isinstance(field.default, (int, float)) else 0
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, (int, float)) and not least <= number < 2**63:  # NaN included
                option = field.name.replace("_", "-")
                raise InputError(f"--{option} is {number}", f"a number of at least {least}", "correct it")


def run_command(main: Callable[[T], Any], arguments: type[T]) -> None:
    """Parse the command line into `arguments` and call `main`; an integer that it returns is the exit code."""

    def run() -> int:
        parsed: Any = parse(arguments)
        check_values(parsed)
        check_outputs(parsed)
        code = main(parsed)
        return code if isinstance(code, int) else 0

    exit_after(run)


def exit_after(action: Callable[[], int | None]) -> NoReturn:
    """Run a command and end the process; every failure is one sentence."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sys.exit(run_guarded(action, REDUCE, "Cancelled"))
