"""The base dependencies suffice for the toy model, and every listed package is used."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bya_core.cli.report import INCONCLUSIVE

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {  # distribution -> top-level modules, where they differ
    "huggingface-hub": "huggingface_hub",
    "import-linter": "importlinter",
    "mkdocs-material": "mkdocs",
    "mkdocstrings": "mkdocstrings",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "silero-vad": "silero_vad",
}
NOT_IMPORTED = {
    "accelerate": "diffusers and transformers need it to load weights without a copy",
    "tensorboard": "accelerate's tracker imports it",
    "sentencepiece": "the tokenizer of T5 imports it",
}


def name_of(requirement: str) -> str:
    """The distribution name of a requirement."""
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower()


def imported_modules(*folders: str) -> set[str]:
    """Top-level modules that the product code imports, at any level of a file."""
    found = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.split(".")[0])
                elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                    "import_module",
                    "find_spec",
                ):
                    found |= {str(arg.value).split(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def test_requirements_equal_the_base_dependencies():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(line for line in lines if line and not line.startswith("#")) == sorted(PROJECT["dependencies"])


@pytest.mark.parametrize("group", [None, *sorted(set(PROJECT["optional-dependencies"]) - {"dev", "docs"})])
def test_every_listed_package_is_imported(group):
    requirements = PROJECT["dependencies"] if group is None else PROJECT["optional-dependencies"][group]
    imported = imported_modules("bya_core", "nodes", *(("training",) if group else ()))
    for requirement in requirements:
        name = name_of(requirement)
        assert MODULES.get(name, name.replace("-", "_")) in imported or name in NOT_IMPORTED, name


@pytest.fixture(scope="module")
def base_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the base dependencies alone."""
    folder = tmp_path_factory.mktemp("base")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    done = subprocess.run([*pip, ROOT], capture_output=True, text=True, cwd=folder)
    if done.returncode and "NewConnectionError" in done.stderr:
        pytest.skip("no package index")
    assert done.returncode == 0, done.stderr
    return python


@pytest.mark.slow
def test_base_install_runs_the_toy_model(base_python, tmp_path):
    bya = base_python.with_name("bya")
    scene = json.loads((ROOT / "demo" / "scene.json").read_text(encoding="utf-8")) | {"length": 9, "steps": 4}
    for entry in scene["characters"]:
        entry |= {key: str(ROOT / "demo" / entry[key]) for key in ("image", "speech")}
    scene.pop("$schema", None)
    scene["first_frame"] = str(ROOT / "demo" / scene["first_frame"])
    (tmp_path / "scene.json").write_text(json.dumps(scene), encoding="utf-8")
    video, report = tmp_path / "talk.mp4", tmp_path / "report.png"
    for arguments in (
        ["doctor"],
        ["generate", "scene.json", "-o", video],
        ["report", video, "--scene", "scene.json", "-o", report],
    ):
        done = subprocess.run([bya, *arguments], capture_output=True, text=True, cwd=tmp_path)
        expected = INCONCLUSIVE if arguments[0] == "report" else 0  # 9 frames are too short to be measured
        assert done.returncode == expected, done.stderr
    assert video.stat().st_size and report.stat().st_size
    installed = subprocess.run([base_python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True)
    assert not {"peft", "onnxruntime", "opencv-python", "webdataset"} & {
        entry["name"].lower() for entry in json.loads(installed.stdout)
    }


@pytest.mark.slow
@pytest.mark.parametrize("group", ["official", "train", "data", "eval"])
def test_every_group_resolves(base_python, group):
    """With the base dependencies and the pinned versions; nothing is installed."""
    pip = [base_python, "-m", "pip", "install", "--dry-run", "--quiet", "-c", ROOT / "constraints.txt"]
    done = subprocess.run([*pip, f"{ROOT}[{group}]"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
