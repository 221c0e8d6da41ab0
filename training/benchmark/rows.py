"""Options of the evaluation by the row of the paper's tables that they measure (paper_rows.yaml)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from bya_core.errors import InputError
from bya_core.scene.schema import SceneFile
from bya_core.validation import from_mapping, parse_json
from training.engine.yaml_files import read_yaml

FILE = Path(__file__).with_name("paper_rows.yaml")
Options = TypeVar("Options")


def read_rows() -> dict[str, dict[str, Any]]:
    """Row -> options of `EvaluateOptions` that differ from their defaults."""
    rows = {}
    for name, values in read_yaml(FILE).items():
        rows[name] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        if "scene_options" in values:
            rows[name]["scene_options"] = json.dumps(values["scene_options"])
    return rows


def apply_row(options: Options, name: str) -> Options:
    """Options with the values of a row; options that differ from their defaults are kept.

    Raises:
        InputError: there is no such row.
    """
    rows = read_rows()
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1)
        hint = f"use {near[0]}" if near else "choose one"
        raise InputError(f"--row {name}", ", ".join(rows), hint)
    defaults = {field.name: field.default for field in fields(options)}  # type: ignore[arg-type]
    values = {key: value for key, value in rows[name].items() if getattr(options, key) == defaults[key]}
    return replace(options, **values)  # type: ignore[type-var]


def read_scene_options(text: str) -> dict[str, Any]:
    """Keys of a scene file as JSON, checked.

    Raises:
        InputError: not JSON, or a key or value that scene files do not have.
    """
    found = parse_json(text, "--scene-options")
    if not isinstance(found, Mapping):
        raise InputError(f"--scene-options {text[:40]}", "a JSON object of scene keys", "correct it")
    checked = {"prompt": "", "characters": [{"name": "a", "image": "a.png"}]}
    from_mapping(SceneFile, {**checked, **found}, "--scene-options")
    return dict(found)
