"""Errors of damaged model files, as one sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from bya_core.errors import Cancelled, InputError, out_of_memory

T = TypeVar("T")


@contextmanager
def model_errors(what: str) -> Iterator[None]:
    """Convert every error of reading a model to an `InputError`; missing packages and exhausted memory are neither.

    Args:
        what: Names the model in messages.
    """
    try:
        yield
    except (InputError, ImportError, Cancelled, MemoryError):
        raise
    except Exception as error:  # the libraries raise anything for files that are not as expected
        if out_of_memory(error, "") is not None:
            raise
        reason = (str(error).strip().splitlines() or [""])[0][:150]
        problem = f"{what} cannot be loaded ({type(error).__name__}: {reason})"
        raise InputError(problem, "the complete files of one model", "see bya inspect, and copy them again") from error


def named_model(load: Callable[..., T]) -> Callable[..., T]:
    """Decorator for functions of a model name or path, see `model_errors`."""

    @functools.wraps(load)
    def checked(name_or_path: Any, *args: Any, **kwargs: Any) -> T:
        with model_errors(f"the model {name_or_path}"):
            return load(name_or_path, *args, **kwargs)

    return checked
