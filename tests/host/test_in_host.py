"""Runs the pytest files in `inside/` with ComfyUI's Python, with pytest on PYTHONPATH instead of installed."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.host.setup import ROOT, Host

INSIDE = Path(__file__).resolve().parent / "inside"
PYTEST_PACKAGES = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")


@pytest.mark.host
@pytest.mark.parametrize("name", sorted(path.name for path in INSIDE.glob("check_*.py")))
def test_inside_comfyui(host: Host, name: str, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for package in PYTEST_PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin)
            path = path.parent if path.name == "__init__.py" else path
            (packages / path.name).symlink_to(path, target_is_directory=path.is_dir())
    environment = {
        **os.environ,
        "PYTHONPATH": str(packages),
        "COMFYUI_DIR": str(host.root),
        "BYA_PACK": str(ROOT),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    options = ["-c", os.devnull, "-p", "no:cacheprovider", "--import-mode=importlib", "--confcutdir", INSIDE]
    options += ["--rootdir", INSIDE, "-o", "python_files=check_*.py", "-q", "--basetemp", tmp_path / "inside"]
    command = [str(part) for part in (host.python, "-m", "pytest", *options, INSIDE / name)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600)
    if done.returncode != 0:
        pytest.fail(f"{done.stdout[-12000:]}\n{done.stderr[-4000:]}", pytrace=False)
    assert " passed" in done.stdout
