"""Validated dataclasses: options declared once, read from files, described to users.

A class decorated with `validated` is a frozen pydantic dataclass. Types are strict; NaN, infinity and unknown fields
raise. Every violation is one `InputError`, from the constructor, `dataclasses.replace` and `from_mapping` alike.

    @validated
    class Settings:
        steps: Annotated[int, Field(ge=1, le=1000, description="Number of denoising steps.")] = 50

    settings = from_mapping(Settings, json.load(file), "settings.json")
    option(Settings, "steps").maximum
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import reprlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, cast, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from bya_core.errors import InputError

__all__ = ["Field", "Option", "from_mapping", "option", "options", "parse_json", "validated"]

T = TypeVar("T")
CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=False, serialize_by_alias=True)
MAX_SHOWN = 40  # characters of a value in a message
MAX_DEPTH = 64  # nesting of a file
MAX_DIGITS = 400  # of an integer in a file


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def validated(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose constructor raises `InputError` for values that its annotations do not allow."""
    checked = cast(type[T], pydantic_dataclass(frozen=True, config=CONFIG)(cls))
    construct = checked.__init__

    @functools.wraps(construct)
    def __init__(self: T, *args: Any, **kwargs: Any) -> None:
        named = dict(zip(_fields(checked), args, strict=False))
        if len(named) < len(args) or named.keys() & kwargs.keys():
            raise TypeError(f"{checked.__name__} got too many positional arguments, or one of them twice")
        try:
            construct(self, **named | kwargs)
        except ValidationError as error:
            raise _input_error(error, named | kwargs, "", checked) from None

    setattr(checked, "__init__", __init__)  # noqa: B010
    return checked


def from_mapping(kind: type[T], data: Any, where: str) -> T:
    """Convert parsed JSON, YAML or TOML to a validated class.

    Args:
        kind: A class decorated with `validated`.
        data: A mapping of JSON types.
        where: Start of every message, usually the name of the file.

    Raises:
        InputError: An unknown or missing key, a wrong type, or a value out of range. The message names its path, such
            as `characters[1].gain`.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where} is {_shown(data)}", "an object", "correct the value")
    try:
        text = json.dumps(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} has a value that JSON cannot hold ({error})", "JSON types", "correct it") from None
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise _input_error(error, data, where, kind) from None


def parse_json(text: str, where: str) -> Any:
    """Parse JSON without duplicate keys.

    Raises:
        InputError: Text that is not JSON, a key that occurs twice in one object, excessive nesting or huge numbers.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise InputError(f'{where} has the key "{_cut(key)}" twice in one object', "unique keys", "remove one")
            result[key] = value
        return result

    def integer(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            problem = f"{where} has the number {_cut(digits)} of {len(digits)} digits"
            raise InputError(problem, f"at most {MAX_DIGITS} digits", "correct it")
        return int(digits)

    try:
        data = json.loads(text, object_pairs_hook=unique, parse_int=integer)
        deep = _depth(data) > MAX_DEPTH
    except InputError:
        raise
    except RecursionError:
        deep = True
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON ({_cut(str(error), 120)})", "a JSON file", "correct it") from error
    if deep:
        raise InputError(f"{where} is nested too deeply", f"at most {MAX_DEPTH} levels", "simplify it")
    return data


def _depth(data: Any) -> int:
    level, depth = [data], 0
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


@dataclass(frozen=True)
class Option:
    """What a field accepts: the source of node widgets, command line help and documentation.

    Args:
        name: Name of the field.
        type: Python type without None; for choices, their type.
        default: Default; `dataclasses.MISSING` if it is required.
        optional: Whether None is valid.
        minimum, maximum: Range; None if unlimited.
        choices: Allowed values; empty if free.
        description: Help text.
    """

    name: str
    type: type
    default: Any
    optional: bool
    minimum: float | None
    maximum: float | None
    choices: tuple[Any, ...]
    description: str


@functools.cache
def options(kind: type) -> dict[str, Option]:
    """All fields of a validated class by name."""
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__  # type: ignore[attr-defined]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: _option(name, info, defaults[name]) for name, info in fields.items()}


def option(kind: type, name: str) -> Option:
    """One field of a validated class."""
    return options(kind)[name]


def _option(name: str, info: FieldInfo, default: Any) -> Option:
    metadata, description, parts = list(info.metadata), info.description, list[Any]([info.annotation])
    optional, choices, kinds = False, list[Any](), list[Any]()
    while parts:
        part = parts.pop(0)
        origin, args = get_origin(part), get_args(part)
        if origin in (Union, types.UnionType):
            parts += args
        elif hasattr(part, "__metadata__"):
            nested = [each for each in part.__metadata__ if isinstance(each, FieldInfo)]
            metadata += [constraint for each in nested for constraint in each.metadata]
            description = description or next((each.description for each in nested if each.description), None)
            parts.insert(0, args[0])
        elif part is type(None):
            optional = True
        elif origin is Literal:
            choices += args
        else:
            kinds.append(origin or part)
    limits = {key: getattr(each, key) for each in metadata for key in ("ge", "gt", "le", "lt") if hasattr(each, key)}
    return Option(
        name=name,
        type=kinds[0] if kinds else type(choices[0]),
        default=default,
        optional=optional,
        minimum=limits.get("ge", limits.get("gt")),
        maximum=limits.get("le", limits.get("lt")),
        choices=tuple(choices),
        description=description or "",
    )


TYPES = {
    "string_type": "a string", "int_type": "an integer", "int_from_float": "an integer",
    "int_parsing_size": "a smaller integer", "float_type": "a number", "bool_type": "true or false",
    "list_type": "a list", "tuple_type": "a list", "dict_type": "an object", "path_type": "a path",
    "none_required": "null", "dataclass_type": "an object", "dataclass_exact_type": "an object",
}  # fmt: skip
RANGES = {
    "greater_than_equal": ("at least {ge}", "use a larger value"),
    "greater_than": ("more than {gt}", "use a larger value"),
    "less_than_equal": ("at most {le}", "use a smaller value"),
    "less_than": ("less than {lt}", "use a smaller value"),
    "finite_number": ("a finite number", "correct the value"),
}


def _input_error(error: ValidationError, data: Any, where: str, kind: type) -> InputError:
    """The most specific of the violations, as one sentence."""
    found = [(_path(each["loc"], data, each["type"]), each) for each in error.errors(include_url=False)]
    unknown = [each for each in found if each[1]["type"] == "unexpected_keyword_argument"]
    start = (unknown or found)[0][0]
    # the branches of a union report one violation each: the deepest one fits the value best
    related = [each for each in unknown or found if each[0][: len(start)] == start]
    path = max((each[0] for each in related), key=len)
    chosen = [each for at, each in related if at == path]
    place = _join(where, path)
    precise = next((each for each in chosen if each["type"] not in (*TYPES, "literal_error")), None)
    if precise is None:
        parts = [TYPES.get(each["type"]) or each["ctx"]["expected"].replace(", ", " or ") for each in chosen]
        expected = " or ".join(dict.fromkeys(parts)).replace("'", '"')
        return InputError(f"{place} is {_shown(chosen[0]['input'])}", expected, "correct the value")
    return _describe(precise, place, _join(where, path[:-1]), path, kind)


def _describe(error: Any, place: str, parent: str, path: tuple[Any, ...], kind: type) -> InputError:
    name, context, value = error["type"], error.get("ctx", {}), error["input"]
    if isinstance(cause := context.get("error"), InputError):
        return InputError(f"{parent}: {cause.problem}" if parent else cause.problem, cause.expected, cause.hint)
    parent = parent or kind.__name__
    if name == "unexpected_keyword_argument":
        known = _known_keys(kind, path[:-1])
        near = difflib.get_close_matches(str(path[-1])[:100], known, n=3)
        hint = "use " + " or ".join(f'"{each}"' for each in near) if near else "remove it"
        return InputError(f'{parent} has the unknown key "{_cut(str(path[-1]))}"', f"one of {', '.join(known)}", hint)
    if name == "missing" and isinstance(error["loc"][-1], int):  # of a list of fixed length
        return InputError(f"{place} has {len(value)} entries", "more of them", "add the missing entries")
    if name == "missing":
        return InputError(f'{parent} has no "{path[-1]}"', "a value for it", f'add "{path[-1]}"')
    if name == "too_short":
        count, least = context["actual_length"], context["min_length"]
        return InputError(f"{place} has {count} entries", f"at least {least}", "add the missing entries")
    if name == "too_long":  # the length of an iterator is unknown
        count = context["actual_length"] or "too many"
        return InputError(f"{place} has {count} entries", f"at most {context['max_length']}", "remove some")
    if name == "string_too_short":
        return InputError(f"{place} is empty", "a text", "fill it in, or remove it")
    if name == "string_too_long":
        problem = f"{place} is {_shown(value)} of {len(value)} characters"
        return InputError(problem, f"at most {context['max_length']} characters", "shorten it")
    if name == "json_invalid":  # lone surrogates; all else has been parsed before
        return InputError(f"{place} has half of a surrogate pair (\\ud800 to \\udfff)", "Unicode text", "correct it")
    if name in RANGES:
        expected, hint = RANGES[name]
        limits = {key: _number(limit) for key, limit in context.items()}
        return InputError(f"{place} is {_shown(value)}", expected.format(**limits), hint)
    return InputError(f"{place} is {_shown(value)}", f"a valid value ({error['msg']})", "correct the value")


def _path(location: Sequence[Any], data: Any, kind: str) -> tuple[Any, ...]:
    """The keys and indices of a pydantic location; the labels of union branches are left out."""
    path: list[Any] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if dataclasses.is_dataclass(data):
            data = vars(data)
        if isinstance(data, Mapping):
            inside = part in data or (last and kind in ("missing", "unexpected_keyword_argument"))
        else:
            inside = isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data)
        if inside:
            path.append(part)
            data = data.get(part) if isinstance(data, Mapping) else data[part]
    return tuple(path)


def _known_keys(kind: Any, path: tuple[Any, ...]) -> list[str]:
    """The keys of the object at `path`."""
    kinds = _dataclasses_in([kind])
    for part in path:
        if isinstance(part, str):
            annotations = [_fields(each)[part].annotation for each in kinds if part in _fields(each)]
            kinds = _dataclasses_in(annotations)
    return list(dict.fromkeys(key for each in kinds for key in _fields(each)))


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """Fields of a class, by the key they have in a file."""
    fields: dict[str, FieldInfo] = getattr(kind, "__pydantic_fields__", {})
    return {str(info.validation_alias or name): info for name, info in fields.items()}


def _dataclasses_in(kinds: list[Any]) -> list[Any]:
    """Validated classes inside annotations such as `list[Entry] | None`."""
    found, parts = [], list(kinds)
    while parts:
        part = parts.pop(0)
        if _fields(part):
            found.append(part)
        parts += get_args(part)
    return found


def _join(where: str, path: Sequence[Any]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return f"{where}: {text}" if where and text else where or text


def _number(value: Any) -> str:
    """A limit without needless digits; integers are exact."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shown(value: Any) -> str:
    """A value as JSON, cut; collections by their beginning."""
    if isinstance(value, str):
        return _cut(json.dumps(value[: 2 * MAX_SHOWN], ensure_ascii=False))
    if isinstance(value, int) and abs(value) >= 10**MAX_SHOWN:
        return f"an integer of more than {MAX_SHOWN} digits"
    if isinstance(value, (bool, type(None))):
        return json.dumps(value)
    return _cut(reprlib.repr(value))


def _cut(text: str, length: int = MAX_SHOWN) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
