"""Publication in ComfyUI's registry: metadata, published files, requirements."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from tests.host.setup import ROOT, Host

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _names(requirements: str) -> set[str]:
    lines = [line.partition("#")[0].strip() for line in requirements.splitlines()]
    return {line.split(">")[0].split("[")[0].strip().lower() for line in lines if line}


def test_metadata() -> None:
    comfy = PROJECT["tool"]["comfy"]
    assert comfy["DisplayName"] and comfy["requires-comfyui"].startswith(">=")
    assert "__version__" in (ROOT / comfy["version"]["path"]).read_text(encoding="utf-8")
    assert "comfyui" not in PROJECT["project"]["name"].lower()
    icon = Image.open(ROOT / "docs" / "images" / "icon.png")
    assert icon.size == (400, 400)


def test_published_files() -> None:
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert {"tests/", "training/"} <= set(ignored)
    assert not {"bya_core/", "nodes/", "web/", "locales/", "workflows/", "subgraphs/", "demo/"} & set(ignored)


def test_requirements_do_not_conflict_with_the_host() -> None:
    wanted = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert "==" not in wanted and "<" not in wanted.replace("<!--", "")
    assert not _names(wanted) & {"torchvision", "torchaudio", "xformers", "onnxruntime-gpu", "opencv-python"}
    assert "torch" in wanted.split()  # without a version


@pytest.mark.host
def test_installation_changes_no_package_of_the_host(host: Host, tmp_path: Path) -> None:
    now = host.packages()
    if host.fresh is not None:
        assert {name: now.get(name) for name in host.fresh} == host.fresh
    report = tmp_path / "report.json"
    command = [host.python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
               "--report", report, "-r", ROOT / "requirements.txt"]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    planned = {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text())["install"]}
    assert not planned & set(now)
