"""What ComfyUI is told of the nodes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from comfy_api.latest import io

IDS = {
    "Loader", "LoadDemo", "FaceEncode", "AudioEncode", "Cast", "Scene", "EmbeddingRouter", "MaskRefine", "Sampler",
    "MaskOverlay", "SelectCharacterMask", "BindingReport", "Preflight",
}  # fmt: skip


def test_all_nodes_are_there(nodes: dict[str, Any]) -> None:
    assert set(nodes) == IDS


def test_everything_is_explained(nodes: dict[str, Any]) -> None:
    for node in nodes.values():
        schema = node.GET_SCHEMA()
        assert schema.node_id.startswith("BYA_") and schema.category == "BindYourAvatar"
        assert len(schema.description) > 30
        for socket in [*schema.inputs, *schema.outputs]:
            assert socket.tooltip and len(socket.tooltip) > 10, (schema.node_id, socket.id)


def test_numbers_have_ranges_and_the_seed_moves_on(nodes: dict[str, Any]) -> None:
    for node in nodes.values():
        for given in node.GET_SCHEMA().inputs:
            if isinstance(given, io.Int.Input | io.Float.Input):
                assert given.min is not None and given.max is not None and given.min <= given.default <= given.max
            if given.id == "seed":
                assert given.control_after_generate


def test_ids_of_outputs_differ_from_those_of_inputs_but_are_shown_alike(nodes: dict[str, Any]) -> None:
    """Older hosts refuse a node, and with it the whole pack, where they are the same."""
    for node in nodes.values():
        schema = node.GET_SCHEMA()
        assert not {given.id for given in schema.inputs} & {made.id for made in schema.outputs}
    assert nodes["MaskRefine"].GET_NODE_INFO_V1()["output_name"][0] == "routing"


def test_outputs_can_be_cached(nodes: dict[str, Any]) -> None:
    """Nothing says that it changed though its inputs did not."""
    for node in nodes.values():
        assert "fingerprint_inputs" not in vars(node)
        assert node.GET_SCHEMA().not_idempotent is False


def test_names_must_be_written(nodes: dict[str, Any]) -> None:
    assert nodes["FaceEncode"].validate_inputs(name="Ada") is True
    assert "has no name" in nodes["FaceEncode"].validate_inputs(name="  ")


def test_slips_of_the_pen_are_told_before_anything_runs(nodes: dict[str, Any]) -> None:
    router, refine, scene = nodes["EmbeddingRouter"], nodes["MaskRefine"], nodes["Scene"]
    assert router.validate_inputs(audio_character_matrix="1 0; 0 1") is True
    assert router.validate_inputs(audio_character_matrix=None) is True
    assert "write numbers only" in router.validate_inputs(audio_character_matrix="1 o")
    assert "numbers in 0..1" in router.validate_inputs(audio_character_matrix="2 0; 0 1")
    assert refine.validate_inputs(start_percent=0.2, end_percent=0.5) is True
    assert refine.validate_inputs(end_percent=0.5) is True
    assert "expected start < end" in refine.validate_inputs(start_percent=0.5, end_percent=0.5)
    assert scene.validate_inputs(prompt_schedule="") is True
    assert "2.5 - 4: Ada laughs" in scene.validate_inputs(prompt_schedule="later: Ada laughs")


START = """
import os, sys, time
sys.path.insert(0, os.environ["COMFYUI_DIR"])
import comfy.cli_args
comfy.cli_args.args.cpu = True
import nodes, comfy_api.latest, importlib.util, asyncio
{before}
folder = os.environ["BYA_PACK"]
before = time.process_time()
spec = importlib.util.spec_from_file_location("a-pack_x_name", folder + "/__init__.py")
pack = importlib.util.module_from_spec(spec)
sys.modules["a-pack_x_name"] = pack
spec.loader.exec_module(pack)
async def listed():
    return await (await pack.comfy_entrypoint()).get_node_list()
made = asyncio.run(listed())
for node in made:
    node.GET_NODE_INFO_V1()
spent = time.process_time() - before
{after}
"""


def started(before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    """The pack in a fresh process."""
    code = START.format(before=before, after=after)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_import_is_quick_and_stays_at_home() -> None:
    """At most half a second of work beyond ComfyUI itself; nothing heavy, nothing from the network."""
    refuse = (
        "import socket\n"
        "def refused(*given, **named):\n"
        "    raise AssertionError('the network was used')\n"
        "socket.socket.connect = refused"
    )
    heavy = "[name for name in ('diffusers', 'peft', 'accelerate', 'insightface', 'librosa') if name in sys.modules]"
    done = started(refuse, f"print(spent, {heavy}, [path for path in sys.path if path == folder])")
    assert done.returncode == 0, done.stderr
    spent, _, rest = done.stdout.splitlines()[-1].partition(" ")
    assert float(spent) <= 0.5
    assert rest == "[] []"  # and the pack's folder, with its `nodes` and `tests`, is not on the path


MISSING = """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "insightface", "librosa", "accelerate", "timm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_on_an_old_host_without_optional_packages() -> None:
    """All nodes are there but the one whose inputs grow, and what is missing is told when it is needed."""
    after = (
        "try:\n"
        "    made[0].execute(model='toy', dtype='default', memory_mode='auto', vram_gb='auto', download=False)\n"
        "except Exception as error:\n"
        "    print([node.__name__ for node in made], type(error).__name__, error)"
    )
    done = started(f"{MISSING}\nfrom comfy_api.latest import io\ndel io.Autogrow", after)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()[-1]
    names, _, sentence = told.partition("]")
    assert names.count("'") == 2 * (len(IDS) - 1) and "'Cast'" not in names
    assert sentence.strip().startswith("InputError the Python package diffusers is missing")
    assert "pip install diffusers" in sentence


def test_another_core_in_the_way_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "bya_core"
    other.mkdir()
    (other / "__init__.py").write_text("")
    code = (
        "import importlib.util, os, sys\n"
        f"sys.path += [os.environ['COMFYUI_DIR'], {str(tmp_path)!r}]\n"
        "spec = importlib.util.spec_from_file_location('pack', os.environ['BYA_PACK'] + '/__init__.py')\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert f"ImportError: bya_core was found in {other.resolve()}; expected" in done.stderr


def test_an_older_schema_gets_only_what_it_knows(monkeypatch: pytest.MonkeyPatch, nodes: dict[str, Any]) -> None:
    whole = io.Schema

    def older(node_id: str, display_name: str, category: str, description: str, inputs: Any = (), outputs: Any = ()):
        return whole(node_id, display_name, category, list(inputs), list(outputs), description=description)

    monkeypatch.setattr(io, "Schema", older)
    for node in nodes.values():
        node.GET_SCHEMA()


def test_time_is_not_spent_on_every_look(nodes: dict[str, Any]) -> None:
    """ComfyUI asks for all schemas with each page that is loaded."""
    start = time.process_time()
    for node in nodes.values():
        node.GET_NODE_INFO_V1()
    assert time.process_time() - start < 0.1
