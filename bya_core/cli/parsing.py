"""Parses command lines with tyro; invalid ones raise `InputError`. The training commands use it as well."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import types
from collections.abc import Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.conf import FlagCreatePairsOff
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from bya_core.errors import InputError

T = TypeVar("T")
REGISTRY = ConstructorRegistry()
NUMBERS = {int: ("INT", "an integer"), float: ("FLOAT", "a number")}


@REGISTRY.primitive_rule
def _number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Numbers, with a message of ours."""
    kind: Any = info.type
    if kind not in NUMBERS:
        return None
    metavar, expected = NUMBERS[kind]

    def parse(words: list[str]) -> Any:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"{words[0][:40]!r} is not {expected}") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, (int, kind)) and not isinstance(value, bool),
        str_from_instance=lambda value: [f"{value:g}" if kind is float else str(value)],
    )


@REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """`X | None` is shown as X: None is the default, and cannot be given."""
    kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
    if get_origin(info.type) not in (Union, types.UnionType) or len(kinds) != 1 or len(get_args(info.type)) != 2:
        return None
    inner: Any = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
    if not isinstance(inner, PrimitiveConstructorSpec):
        return None
    return dataclasses.replace(
        inner,
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: ["none"] if value is None else inner.str_from_instance(value),
    )


def parse(
    kind: type[T] | Any,
    arguments: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
    unknown: list[str] | None = None,
) -> T:
    """Parse a command line.

    Args:
        kind: Dataclass of the options.
        arguments: The words; None for those of this process.
        prog: Name of the command in its help.
        description: Text of its help; None for the docstring of `kind`.
        unknown: Receives the words of unknown options; None = they are an error.

    Raises:
        InputError: Unknown, missing or invalid options.
        SystemExit: The help was asked for and printed.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), REGISTRY:
            options: dict[str, Any] = {"prog": prog, "description": description, "config": (FlagCreatePairsOff,)}
            if unknown is None:
                return tyro.cli(kind, args=arguments, **options)
            parsed, words = tyro.cli(kind, args=arguments, return_unknown_args=True, **options)
            unknown += words
            return parsed
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
    raise _usage_error(printed.getvalue(), prog)


def _usage_error(box: str, prog: str | None) -> InputError:
    """One sentence from the framed text that tyro prints; the frame has no sides where stdout is not UTF-8."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯").rstrip() for line in box.splitlines()]
    framed = box.lstrip().startswith("╭")
    inside = [line[1:] for line in lines[1:]] if framed else [line[2:] for line in lines[2:]]
    body = inside[: next((k for k, line in enumerate(inside) if line.strip() and not line.strip(" ─-")), None)]
    text = " ".join(" ".join(body).split())
    hint = f"see {prog} --help" if prog else "see --help"
    if "Missing from" in text:
        names = [line.strip() for line in body if re.match(r"    \S", line)]
        missing = " and ".join(f"no {_long_name(name)}" for name in names)
        return InputError(missing or "missing options", "a value for each", hint)
    if found := re.search(r"Unrecognized options: (.*)", text):
        near = next((line.split()[0] for line in inside if line.startswith("    --")), None)
        problem = f"the unknown option or value {found[1].split(',')[0]}"
        return InputError(problem, "options of the command", f"use {near}, or {hint}" if near else hint)
    if found := re.search(r"Missing value for argument '([^']*)'", text):
        return InputError(f"{_long_name(found[1])} without a value", "a value", hint)
    if found := re.search(r"invalid choice '(.*)' for argument '([^']*)'\. Expected one of \((.*?),?\)\.", text):
        choices = [each.strip(" '") for each in found[3].split(",")]
        expected = " or ".join(sorted(each for each in choices if each != "None"))
        return InputError(f'{_long_name(found[2])} is "{found[1]}"', expected, hint)
    if found := re.search(r"Error parsing ([^:]*): '(.*)' is not (an? \w+)", text):
        return InputError(f'{_long_name(found[1])} is "{found[2]}"', found[3], hint)
    if found := re.search(r"Error parsing [^:]*: (.*); expected (.*?); (.*)\.", text):  # an InputError of `kind` itself
        return InputError(*found.groups())
    return InputError(text or "an invalid command line", "valid options", hint)


def _long_name(names: str) -> str:
    """--output of "-o PATH, --output PATH" or "-o/--output"."""
    return next((word for word in re.split(r"[\s,/]+", names) if word.startswith("--")), names)
