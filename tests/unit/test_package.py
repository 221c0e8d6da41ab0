"""The packages as users import them: the public API of `bya_core`, and the node pack outside of ComfyUI."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

import bya_core

ROOT = Path(__file__).resolve().parents[2]


def import_node_pack() -> ModuleType:
    """Import the pack as ComfyUI does: by path, under an arbitrary name."""
    spec = importlib.util.spec_from_file_location("custom-nodes.bind-your-avatar", ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_node_pack_outside_comfyui():
    before = set(sys.modules)
    module = import_node_pack()
    assert module.__all__ == ["WEB_DIRECTORY"] and not hasattr(module, "comfy_entrypoint")
    assert set(sys.modules) == before


def test_node_pack_in_comfyui_without_v3_nodes(tmp_path, monkeypatch, caplog):
    (tmp_path / "comfy_api").mkdir()
    (tmp_path / "comfy_api" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        module = import_node_pack()
    finally:
        sys.modules.pop("comfy_api", None)
    assert not hasattr(module, "comfy_entrypoint")
    (message,) = caplog.messages
    assert f"expected ComfyUI {module.OLDEST_COMFYUI} or newer" in message


def test_public_names():
    assert {"load_model", "load_scene", "generate", "Scene", "Character", "Speech", "Video"} == set(bya_core.__all__)
    assert set(bya_core.__all__) <= set(dir(bya_core))
    for name in bya_core.__all__:
        assert getattr(bya_core, name).__name__ == name
    with pytest.raises(AttributeError, match="load_modle"):
        bya_core.load_modle  # noqa: B018


def test_import_is_fast():
    program = "import sys; before = set(sys.modules); import bya_core; print(len(set(sys.modules) - before))"
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare = time.perf_counter() - start
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
        durations.append(time.perf_counter() - start - bare)
    assert min(durations) < 2 and int(done.stdout) < 20


def test_readme_example(tmp_path, monkeypatch, capsys):
    """The Python example of the README, with 2 steps."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    assert len(example.strip().splitlines()) <= 10
    example = example.replace("demo/scene.json", f"{ROOT}/demo/scene.json")
    example = example.replace("load_scene(", "load_scene(steps=2, path=").replace('json", model', 'json", model=model')
    assert "steps=2" in example
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]
    assert "puppet A covers" in capsys.readouterr().out
