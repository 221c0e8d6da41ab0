"""YAML as people write it: `1e-4` is a number, duplicate keys are errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from bya_core.errors import InputError

MAX_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """The safe loader with the numbers of YAML 1.2, which need neither a point nor a sign in the exponent."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        names = [str(key) for key in keys]
        for key in keys:
            if not isinstance(key, str | int):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not a name", node.start_mark)
            if names.count(str(key)) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if entry[0] not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF|nan|NaN|NAN))$")


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which also quotes text that `_Loader` would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read a mapping from a file.

    Raises:
        InputError: it cannot be read, is not YAML, or is not a mapping.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than 1 MB", "a small file", "check the path")
        content = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})", "a YAML file in UTF-8", "check the path") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path.name} is {_described(content)}", "a mapping of keys to values", "write `key: value` lines"
        )
    return content


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML. Raises InputError."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a subclass of the safe loader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{where} is not valid YAML ({reason})", "YAML with unique keys", "correct it") from error


def parse_assignment(text: str) -> tuple[list[Any], Any]:
    """The keys and the value of "KEY.KEY=VALUE".

    Raises:
        InputError: no key, no "=", or a value that is not YAML.
    """
    name, equals, value = text.partition("=")
    keys: list[Any] = [key.strip() for key in name.split(".")]
    if not equals or not all(keys):
        problem = f"--set {text[:80]!r}"
        raise InputError(problem, "KEY=VALUE such as stage.3.optimizer.lr=1e-4", "correct the option")
    return keys, parse_yaml(value, f"--set {name}")


def merge(base: dict[Any, Any], changes: dict[Any, Any]) -> dict[Any, Any]:
    """Merge nested mappings; `changes` take precedence."""
    nested = {
        key: merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in changes.items()
    }
    return {**base, **nested}


def dump_yaml(content: Any) -> str:
    """Plain YAML in the order of the keys; the inverse of `parse_yaml` for JSON types."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _described(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"
