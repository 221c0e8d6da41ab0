"""Encoded clips shared by the tests of the training engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.run_parts import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("clips") / "data")
