"""What all tests share: torchvision where there is one, the host, and one server for all tests in a real ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import torchvision_shim
from tests.host.server import Server
from tests.host.setup import Host, NoHost, find_host

torchvision_shim.importable()  # before anything else: libraries look once whether it is there


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shared out among processes (pytest -n), a file stays whole, and so do all tests in the host (one server)."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "host" if item.get_closest_marker("host") else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def host() -> Host:
    """A ComfyUI (see tests/host/setup.py); skips and says why where there is none."""
    try:
        return find_host()
    except NoHost as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with this pack, shared by all tests of a session."""
    with Server(host, tmp_path_factory.mktemp("comfyui")) as running:
        yield running
