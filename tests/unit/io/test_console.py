"""Commands print to streams of any encoding, to closed pipes and to streams that do not exist."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
logging.basicConfig()  # keeps a reference to stderr
from bya_core.io.console import console
with console():
    print("caf\\u00e9 \\u2502 \\udcff", flush=True)
    for _ in range(20000):
        print("line")
    print("done", file=sys.stderr)
    logging.warning("logged")
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16"])
def test_any_encoding(encoding: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}
    )
    first = run.stdout.decode(encoding).splitlines()[0]
    escaped = {"ascii": r"caf\xe9 \u2502 \udcff", "latin-1": r"café \u2502 \udcff"}
    assert run.returncode == 0 and first == escaped.get(encoding, r"café │ \udcff")


@pytest.mark.skipif(os.name == "nt", reason="pipes")
@pytest.mark.parametrize("redirection", ["| head -1", ">&-", "2>&-", ">&- 2>&-", "</dev/null | true"])
def test_closed_streams(redirection: str) -> None:
    command = f'"$0" -c "$1" {redirection}; echo "code ${{PIPESTATUS[0]}}" >&3'
    read, write = os.pipe()
    shell = f"exec 3>&{write}; {command}"
    run = subprocess.run(
        ["bash", "-c", shell, sys.executable, PROGRAM], capture_output=True, pass_fds=[write], timeout=60
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read().strip() == "code 0"
    assert run.stderr.decode().strip() in ("done\nWARNING:root:logged", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
def test_a_full_disk_is_reported_once() -> None:
    run = subprocess.run(["bash", "-c", '"$0" -m bya_core models > /dev/full', sys.executable], capture_output=True)
    assert run.returncode == 1 and run.stderr.decode().startswith("error: ") and run.stderr.count(b"\n") == 1


def test_logging_that_was_configured_before() -> None:
    program = (
        "import logging; from bya_core.io.console import console\n"
        "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "with console(): logging.getLogger('x').info('kept')\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert run.stderr.decode().strip() == "kept"
