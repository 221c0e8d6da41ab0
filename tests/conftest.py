"""Shared fixtures: fixed seeds, the ComfyUI installation and a server."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests import torchvision_shim
from tests.host.server import Server
from tests.host.setup import Host, HostUnavailable, find_host

torchvision_shim.importable()  # before libraries check for torchvision


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Each test draws the same random numbers in every run and in any order."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def host() -> Host:
    """A ComfyUI installation, see tests/host/setup.py; skips if there is none."""
    try:
        return find_host()
    except HostUnavailable as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with this pack."""
    with Server(host, tmp_path_factory.mktemp("comfyui")) as running:
        yield running
