"""Lets torchvision be imported beside a torch of another build, for tests.

The torchvision wheels of the public index bring operators compiled for CUDA. Beside a CPU-only torch they
cannot be loaded, which torchvision survives, except in one place: it describes two operators (`nms` and its
quantized twin) to torch without asking whether they exist. Declared by hand they do exist, and importing goes
through. Nothing in the tests runs them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import torch

ASIDE = Path(sys.prefix) / "vision"
_DECLARED: list[torch.library.Library] = []


def importable() -> bool:
    """Whether torchvision can be imported, after declaring what it misses if need be.

    `make test` keeps timm and torchvision in a folder of their own beside the environment, so that nothing but the
    tests that need them ever sees a torchvision that cannot be loaded.
    """
    if importlib.util.find_spec("torchvision") is None and ASIDE.is_dir():
        sys.path.append(str(ASIDE))
        importlib.invalidate_caches()
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError as problem:
        if "torchvision::" not in str(problem):
            return False
        _forget()
        _declare()
        importlib.import_module("torchvision")
    return True


def _forget() -> None:
    """Drops what a failed import left behind, so that it can be tried again."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


def _declare() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _DECLARED.append(library)  # declarations live as long as the object
