"""What tests in a real ComfyUI share: the host, and one server for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host_server import Server
from tests.host_setup import Host, NoHost, find_host


@pytest.fixture(scope="session")
def host() -> Host:
    """A ComfyUI (see tests/host_setup.py); skips and says why where there is none."""
    try:
        return find_host()
    except NoHost as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with this pack, shared by all tests of a session."""
    with Server(host, tmp_path_factory.mktemp("comfyui")) as running:
        yield running
