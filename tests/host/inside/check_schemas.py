"""Node schemas, and importing the pack in ComfyUI."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from comfy_api.latest import io

IDS = {
    "Loader", "LoadLora", "LoadDemo", "FaceEncode", "AudioEncode", "Cast", "Scene", "EmbeddingRouter", "MaskRefine",
    "Sampler", "MaskOverlay", "SelectCharacterMask", "BindingReport", "VideoReport", "Preflight",
    "BestTake", "Dub", "Script", "ScriptLines",
}  # fmt: skip


PAINTED = '{"file": "%s", "grid": [1, 1, 1], "characters": ["Ada"], "columns": 1}'
CATEGORIES = {f"BindYourAvatar/{folder}" for folder in ("characters", "video", "masks", "checks")}


def test_descriptions_and_tooltips(nodes: dict[str, Any]) -> None:
    assert set(nodes) == IDS
    for node in nodes.values():
        schema = node.GET_SCHEMA()
        assert schema.node_id.startswith("BYA_") and schema.category in CATEGORIES
        assert len(schema.description) > 30
        for socket in [*schema.inputs, *schema.outputs]:
            assert socket.tooltip and len(socket.tooltip) > 10, (schema.node_id, socket.id)


def test_numeric_inputs_have_ranges(nodes: dict[str, Any]) -> None:
    for entry in (entry for node in nodes.values() for entry in node.GET_SCHEMA().inputs):
        if isinstance(entry, io.Int.Input | io.Float.Input):
            assert entry.min is not None and entry.max is not None and entry.min <= entry.default <= entry.max
        if entry.id == "seed":
            assert entry.control_after_generate


def test_output_ids_differ_from_input_ids(nodes: dict[str, Any]) -> None:
    """Older versions of ComfyUI reject the whole pack otherwise. The displayed names may be equal."""
    for node in nodes.values():
        schema = node.GET_SCHEMA()
        assert not {entry.id for entry in schema.inputs} & {output.id for output in schema.outputs}
    assert nodes["MaskRefine"].GET_NODE_INFO_V1()["output_name"][0] == "routing"


def test_outputs_can_be_cached(nodes: dict[str, Any]) -> None:
    for node in nodes.values():
        if "fingerprint_inputs" in vars(node):
            assert node.fingerprint_inputs() == node.fingerprint_inputs()
        assert node.GET_SCHEMA().not_idempotent is False


@pytest.mark.parametrize(
    ("node", "inputs", "error"),
    [
        ("FaceEncode", {"name": "Ada"}, None),
        ("FaceEncode", {"name": "  "}, "an empty name"),
        ("FaceEncode", {"name": "a\nb"}, "without line breaks"),
        ("EmbeddingRouter", {"audio_assignment": "matrix", "audio_character_matrix": "1 0; 0 1"}, None),
        ("EmbeddingRouter", {"audio_assignment": "matrix", "audio_character_matrix": None}, None),
        ("EmbeddingRouter", {"audio_assignment": "matrix", "audio_character_matrix": "1 o"}, "numbers in 0..1"),
        ("EmbeddingRouter", {"audio_assignment": "matrix", "audio_character_matrix": "2 0; 0 1"}, "numbers in 0..1"),
        ("EmbeddingRouter", {"audio_assignment": "given", "audio_character_matrix": "1 o"}, None),  # not used
        ("EmbeddingRouter", {"audio_assignment": "random"}, '"given" or "swapped"'),
        ("EmbeddingRouter", {"mode": "manual"}, "connect masks"),
        ("EmbeddingRouter", {"mode": "manual", "masks": None}, None),  # connected
        ("EmbeddingRouter", {"mode": "magic"}, '"intra" or "pre"'),
        ("SelectCharacterMask", {"character": "Ada"}, None),
        ("SelectCharacterMask", {"character": " "}, "an empty name"),
        ("MaskRefine", {"character": "2"}, None),
        ("MaskRefine", {"start_percent": -0.1}, "from 0 to 1"),
        ("Loader", {"model": "toy", "download": False}, None),
        ("Loader", {"model": "official", "download": False}, "turn on download"),
        ("Loader", {"model": "official", "download": True}, None),
        ("Loader", {"model": "unofficial"}, "one of toy, official"),
        ("Preflight", {"settings": "custom", "width": 100, "height": 64}, "a multiple of 8"),
        ("Scene", {"settings": "custom", "width": 100, "height": 64}, "a multiple of 8"),
        ("Scene", {"settings": "custom", "width": 0, "height": 64}, "a multiple of 8"),
        ("Scene", {"settings": "model defaults", "width": 100}, None),  # not used
        ("Scene", {"settings": "custom", "window_frames": 9, "window_overlap": 13}, "an overlap shorter"),
        ("Scene", {"settings": "custom", "window_frames": 0}, "at least 1"),
        ("MaskRefine", {"start_percent": 0.2, "end_percent": 0.5}, None),
        ("MaskRefine", {"end_percent": 0.5}, None),
        ("MaskRefine", {"painted_masks": PAINTED % "../a.png"}, "is outside of"),
        ("MaskRefine", {"painted_masks": PAINTED % "a\\u0000.png"}, "contains a character"),
        ("MaskRefine", {"start_percent": 0.5, "end_percent": 0.5}, "start < end"),
        ("Scene", {"prompt_schedule": ""}, None),
        ("Dub", {}, None),
        ("Dub", {"timeline": "SPEAKER film 1 0.5 1.0 <NA> <NA> Ada <NA> <NA>"}, None),
        ("Dub", {"timeline": "Ada speaks first"}, "no turns"),
        ("Dub", {"timeline": "00:01 --> later\nAda: Hello"}, "00:00:01,000 --> 00:00:02,500"),
        ("Scene", {"prompt_schedule": "later: Ada laughs"}, "2.5 - 4: Ada laughs"),
    ],
)
def test_inputs_are_validated_before_execution(
    nodes: dict[str, Any], node: str, inputs: dict[str, Any], error: str | None
) -> None:
    answer = nodes[node].validate_inputs(**inputs)
    assert answer is True if error is None else error in answer


START = """
import os, sys, time
sys.path.insert(0, os.environ["COMFYUI_DIR"])
import comfy.cli_args
comfy.cli_args.args.cpu = True
import nodes, comfy_api.latest, importlib.util, asyncio
import pydantic.dataclasses, pydantic.type_adapter  # ComfyUI requires pydantic
{before}
folder = os.environ["BYA_PACK"]
before = time.process_time()
spec = importlib.util.spec_from_file_location("a-pack_x_name", folder + "/__init__.py")
pack = importlib.util.module_from_spec(spec)
sys.modules["a-pack_x_name"] = pack
spec.loader.exec_module(pack)
async def node_list():
    return await (await pack.comfy_entrypoint()).get_node_list()
node_types = asyncio.run(node_list())
for node in node_types:
    node.GET_NODE_INFO_V1()
spent = time.process_time() - before
{after}
"""


def import_pack(before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    """Import the pack in a new process."""
    code = START.format(before=before, after=after)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)


def test_import_time() -> None:
    """Little CPU time besides ComfyUI and its packages, without heavy packages and network access."""
    refuse = (
        "import socket\n"
        "def refused(*args, **kwargs):\n"
        "    raise AssertionError('the network was used')\n"
        "socket.socket.connect = refused"
    )
    heavy = "[name for name in ('diffusers', 'peft', 'accelerate', 'insightface', 'librosa') if name in sys.modules]"
    done = import_pack(refuse, f"print(spent, {heavy}, [path for path in sys.path if path == folder])")
    assert done.returncode == 0, done.stderr
    spent, _, rest = done.stdout.splitlines()[-1].partition(" ")
    assert float(spent) <= 3
    assert rest == "[] []"  # the pack is not on sys.path, where its `nodes` would hide those of ComfyUI


MISSING = """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "insightface", "librosa", "accelerate", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_without_autogrow_and_optional_packages() -> None:
    """All nodes except Cast are available; missing packages are reported when a node needs them."""
    after = (
        "try:\n"
        "    node_types[0].execute(model='toy', dtype='default', memory_mode='auto', vram_gb='auto', download=False)\n"
        "except Exception as error:\n"
        "    print([node.__name__ for node in node_types], type(error).__name__, error)"
    )
    done = import_pack(f"{MISSING}\nfrom comfy_api.latest import io\ndel io.Autogrow", after)
    assert done.returncode == 0, done.stderr
    names, _, error = done.stdout.splitlines()[-1].partition("]")
    assert names.count("'") == 2 * (len(IDS) - 1) and "'Cast'" not in names
    assert error.strip().startswith("InputError the Python package diffusers is missing")
    assert "pip install diffusers" in error


def test_conflicting_bya_core_raises(tmp_path: Path) -> None:
    other = tmp_path / "bya_core"
    other.mkdir()
    (other / "__init__.py").write_text("")
    code = (
        "import importlib.util, os, sys\n"
        f"sys.path += [os.environ['COMFYUI_DIR'], {str(tmp_path)!r}]\n"
        "spec = importlib.util.spec_from_file_location('pack', os.environ['BYA_PACK'] + '/__init__.py')\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.returncode != 0
    assert f"ImportError: bya_core was found in {other.resolve()}; expected" in done.stderr


def test_unknown_schema_keywords_are_dropped(monkeypatch: pytest.MonkeyPatch, nodes: dict[str, Any]) -> None:
    schema = io.Schema

    def older(node_id: str, display_name: str, category: str, description: str, inputs: Any = (), outputs: Any = ()):
        return schema(node_id, display_name, category, list(inputs), list(outputs), description=description)

    monkeypatch.setattr(io, "Schema", older)
    for node in nodes.values():
        node.GET_SCHEMA()


def test_schema_time(nodes: dict[str, Any]) -> None:
    """ComfyUI builds all schemas whenever its page is loaded."""
    start = time.process_time()
    for node in nodes.values():
        node.GET_NODE_INFO_V1()
    assert time.process_time() - start < 1
