"""Fixtures of the parity tests: our modules against recorded outputs of the released ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.parity import weight_rule


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder of the recorded outputs; skips if it does not exist."""
    path = weight_rule.folder()
    if not path.is_dir():
        pytest.skip(f"no parity fixtures in {path}; check BYA_PARITY_DIR")
    return path


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    """Names and shapes of the parameters in the released files."""
    path = Path(os.environ.get("BYA_MANIFEST") or weight_rule.FIXTURES / "state_dict_manifest.json")
    if not path.is_file():
        pytest.skip(f"no manifest of the released files at {path}; check BYA_MANIFEST")
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def tensors(parity_dir: Path) -> Callable[[str], dict[str, Tensor]]:
    """Loads `<name>.safetensors`."""
    return lambda name: load_file(parity_dir / f"{name}.safetensors")


@pytest.fixture(scope="session")
def settings(parity_dir: Path) -> Callable[[str], dict[str, Any]]:
    """Loads `<name>.json`."""
    return lambda name: json.loads((parity_dir / f"{name}.json").read_text())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Report skipped parity tests in one visible line: a skip there means that parity was not checked."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "tests/parity/" in report.nodeid]
    if skipped:
        terminalreporter.section("PARITY NOT CHECKED", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} parity tests were skipped: fixtures are missing, see BYA_PARITY_DIR.")
