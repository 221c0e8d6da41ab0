"""Checks for `validate_inputs`: what can be told from the widgets before anything runs.

ComfyUI shows their sentence on the node. An input that is connected arrives as None, one that is missing keeps the
default of the parameter. ComfyUI itself checks types, and ranges and lists of inputs that `validate_inputs` does not
name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bya_core.environment import missing_packages
from bya_core.errors import InputError
from bya_core.scene.types import check_names
from bya_core.weights.registry import MODELS

from . import host

NOT_CONNECTED = object()


def check_packages() -> None:
    """Raise InputError if packages are missing without which no model runs."""
    if missing := missing_packages():
        projects = " ".join(package.project for package in missing)
        problem = f"Python package{'s' if len(missing) > 1 else ''} missing: {projects.replace(' ', ', ')}"
        hint = f"run pip install {projects} with ComfyUI's Python, then start ComfyUI again"
        raise InputError(problem, "the packages of requirements.txt", hint)


def check_model(name: str | None, download: bool) -> None:
    """Raise InputError for a model that is not on this machine and will not be downloaded; None is connected."""
    if name is None or name in host.local_model_paths():
        return
    if name not in MODELS:
        raise InputError(f'unknown model "{name}"', f"one of {', '.join(host.model_names())}", "choose one of them")
    if not MODELS[name].available and not (download and MODELS[name].components):
        hint = f"turn on download, or run: {MODELS[name].how_to_get}" if MODELS[name].components else "install it again"
        raise InputError(f"the weights of the model {name} are not on this machine", MODELS[name].size, hint)


def check_character(text: str | None) -> None:
    """Raise InputError for a text that cannot be the name of a character; None is connected."""
    if text is not None:
        check_names([text])


def validate(*checks: Callable[[], object]) -> bool | str:
    """For `validate_inputs`: True, or the sentence of the first check that raises InputError."""
    try:
        for check in checks:
            check()
    except InputError as error:
        return str(error)
    return True


def check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    """Raise InputError for a value that a list does not have; None is connected."""
    if value is not None and value not in choices:
        raise InputError(f'{name} is "{value}"', " or ".join(f'"{each}"' for each in choices), "choose one of them")


def check_masks(mode: str | None, masks: Any) -> None:
    """Raise InputError for the manual mode without masks."""
    if mode == "manual" and masks is NOT_CONNECTED:
        raise InputError('router mode "manual" without masks', "a mask for each character", "connect masks")


def check_span(start: float | None, end: float | None) -> None:
    """Raise InputError for values outside 0..1, and for an end that is not after the start; None is connected."""
    for name, value in (("start_percent", start), ("end_percent", end)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name} is {value:g}", "a value from 0 to 1", "correct it")
    if start is not None and end is not None and start >= end:
        raise InputError(f"start_percent is {start:g} and end_percent {end:g}", "start < end", "correct them")
