"""Strict reading of JSON into dataclasses, and their JSON schema: one description of a format serves both."""

from __future__ import annotations

import dataclasses
import difflib
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bya_core.errors import InputError

T = TypeVar("T")


def entry(
    doc: str,
    default: Any = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    least_items: int | None = None,
) -> Any:
    """A dataclass field of a file format: what it means, and the range it must lie in.

    A key that Python keeps for itself ("from") is a field with an underscore behind it.
    """
    limits = {"minimum": minimum, "maximum": maximum, "minItems": least_items}
    metadata = {"doc": doc, "limits": {key: value for key, value in limits.items() if value is not None}}
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read(kind: type[T], data: Any, where: str) -> T:
    """Turn parsed JSON into the dataclass `kind`.

    Args:
        kind: a dataclass whose fields were made with `entry`.
        data: what json.load returned.
        where: names the place in messages, such as "scene.json".

    Raises:
        InputError: unknown or missing key (with the nearest known one), wrong type, out of range.
    """
    return _convert(data, kind, where)


def _convert(value: Any, kind: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _object(value, kind, where)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _either(value, kind, args, where)
    if origin is Literal:
        if value in args and isinstance(value, tuple(type(a) for a in args)):
            return value
        raise InputError(f"{where} is {_show(value)}", _name(kind), "choose one of them")
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{where} is {_show(value)}", _name(kind), "write it in square brackets")
        return [_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value)]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and (whole or isinstance(value, float)):
        return float(value)
    if (kind is int and whole) or (kind in (str, bool) and isinstance(value, kind)):
        return value
    raise InputError(f"{where} is {_show(value)}", _name(kind), "correct that value")


def _either(value: Any, kind: Any, args: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [option for option in args if option is not type(None)]
    alike = [option for option in options if _shape(option) is type(value)]
    options = alike or options
    if len(options) == 1:  # keep the precise message of the only one that can be meant
        return _convert(value, options[0], where)
    for option in options:
        try:
            return _convert(value, option, where)
        except InputError:
            continue
    raise InputError(f"{where} is {_show(value)}", _name(kind), "correct that value")


def _shape(kind: Any) -> type | None:
    """list or dict where JSON would show one for `kind`."""
    if get_origin(kind) is list:
        return list
    return dict if dataclasses.is_dataclass(kind) else None


def _key(spec: dataclasses.Field[Any]) -> str:
    """What a field is called in the file."""
    return spec.name.rstrip("_")


def _object(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {_show(value)}", "an object in curly brackets", "correct that value")
    fields = {_key(spec): spec for spec in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f'write "{near[0]}" if that is what was meant' if near else "remove it"
            raise InputError(f'{where} has the unknown key "{key}"', "one of " + ", ".join(fields), hint)
    hints = get_type_hints(kind)
    result = {}
    for name, spec in fields.items():
        if name in value:
            result[spec.name] = _convert(value[name], hints[spec.name], f"{where}: {name}")
            _within(result[spec.name], spec.metadata["limits"], f"{where}: {name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise InputError(f'{where} has no "{name}"', spec.metadata["doc"], f'add "{name}"')
    return kind(**result)


def _within(value: Any, limits: dict[str, float], where: str) -> None:
    if isinstance(value, list):
        if len(value) < limits.get("minItems", 0):
            raise InputError(
                f"{where} has {len(value)} entries", f"at least {limits['minItems']}", "add what is missing"
            )
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = limits.get("minimum"), limits.get("maximum")
        if not float("-inf") < value < float("inf"):
            raise InputError(f"{where} is {value}", "a finite number", "correct that value")
        if low is not None and value < low:
            raise InputError(f"{where} is {value}", f"at least {low}", "give a larger value")
        if high is not None and value > high:
            raise InputError(f"{where} is {value}", f"at most {high}", "give a smaller value")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _name(kind: Any) -> str:
    """How a person would call the type."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(option) for option in args)
    if origin is Literal:
        return " or ".join(f'"{option}"' for option in args)
    if origin is list:
        return f"a list, each item {_name(args[0])}"
    names = {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
    names[type(None)] = "null"
    return names.get(kind, "an object in curly brackets")


def json_schema(kind: type, title: str) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a dataclass made with `entry`."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return head | _schema(kind)


def _schema(kind: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _object_schema(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(option) for option in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is list:
        return {"type": "array", "items": _schema(args[0])}
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    return {"type": names[kind]}


def _object_schema(kind: type) -> dict[str, Any]:
    hints, properties, required = get_type_hints(kind), {}, []
    for spec in dataclasses.fields(kind):
        described = _schema(hints[spec.name]) | spec.metadata["limits"] | {"description": spec.metadata["doc"]}
        if spec.default is not dataclasses.MISSING:
            described["default"] = spec.default
        elif spec.default_factory is dataclasses.MISSING:
            required.append(_key(spec))
        properties[_key(spec)] = described
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}
