"""Runs the checks in `inside/` with ComfyUI's own Python, in one process with ComfyUI.

They are pytest files of another name, so that they are not collected here. The host's environment stays as it is:
pytest is lent to it for the run.
"""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.host.setup import ROOT, Host

INSIDE = Path(__file__).resolve().parent / "inside"
LENT = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")


@pytest.mark.host
@pytest.mark.parametrize("name", sorted(path.name for path in INSIDE.glob("check_*.py")))
def test_inside_comfyui(host: Host, name: str, tmp_path: Path) -> None:
    lent = tmp_path / "lent"
    lent.mkdir()
    for package in LENT:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            place = Path(spec.origin)
            place = place.parent if place.name == "__init__.py" else place
            (lent / place.name).symlink_to(place, target_is_directory=place.is_dir())
    environment = {
        **os.environ,
        "PYTHONPATH": str(lent),
        "COMFYUI_DIR": str(host.root),
        "BYA_PACK": str(ROOT),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    options = ["-c", os.devnull, "-p", "no:cacheprovider", "--import-mode=importlib", "--confcutdir", INSIDE]
    options += ["--rootdir", INSIDE, "-o", "python_files=check_*.py", "-q", "--basetemp", tmp_path / "inside"]
    command = [str(part) for part in (host.python, "-m", "pytest", *options, INSIDE / name)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        pytest.fail(f"{done.stdout[-12000:]}\n{done.stderr[-4000:]}", pytrace=False)
    assert " passed" in done.stdout
