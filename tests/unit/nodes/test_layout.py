"""Rules for the source of the nodes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

NODES = Path(__file__).resolve().parents[3] / "nodes"
FILES = sorted(NODES.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_internals_of_comfyui_are_imported_by_host_files_only(path: Path) -> None:
    for module in _imported(path):
        top = module.partition(".")[0]
        if path.name not in ("host.py", "host_model.py"):
            assert top not in ("comfy", "folder_paths", "server", "execution", "nodes"), module
        assert top not in ("training", "tests"), module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_execute_is_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "execute":
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 26, f"{path.name}:{node.lineno}"


def test_core_does_not_import_comfyui() -> None:
    for path in (NODES.parent / "bya_core").rglob("*.py"):
        tops = {module.partition(".")[0] for module in _imported(path)}
        assert not tops & {"comfy", "comfy_api", "folder_paths", "nodes"}, path


def _imported(path: Path) -> list[str]:
    """Modules imported by absolute name anywhere in a file."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.append(node.module)
    return modules
