"""Fixtures that tests "ours against theirs" share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.parity import weight_rule


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder of the fixtures; skips where it is absent."""
    path = weight_rule.folder()
    if not path.is_dir():
        pytest.skip(f"no parity fixtures in {path} (set BYA_PARITY_DIR)")
    return path


@pytest.fixture(scope="session")
def tensors(parity_dir: Path) -> Callable[[str], dict[str, Tensor]]:
    """Loads `<name>.safetensors`."""
    return lambda name: load_file(parity_dir / f"{name}.safetensors")


@pytest.fixture(scope="session")
def settings(parity_dir: Path) -> Callable[[str], dict[str, Any]]:
    """Loads `<name>.json`."""
    return lambda name: json.loads((parity_dir / f"{name}.json").read_text())
