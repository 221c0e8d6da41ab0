"""The pack in a ComfyUI server: node definitions, caching, cancellation, errors, memory."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import pytest

from tests.host import graphs
from tests.host.server import PACK, Graph, PromptRejected, Run, Server
from tests.host.setup import ROOT

pytestmark = pytest.mark.host
NODES = [
    "AudioEncode", "BestTake", "BindingReport", "Cast", "Dub", "EmbeddingRouter", "FaceEncode", "LoadDemo", "LoadLora",
    "Loader", "MaskOverlay", "MaskRefine", "Preflight", "Sampler", "Scene", "Script", "ScriptLines",
    "SelectCharacterMask", "VideoReport",
]  # fmt: skip


def without_checks(graph: Graph) -> Graph:
    """Without report and overlay."""
    return graphs.without(graph, "BYA_BindingReport", "BYA_MaskOverlay")


def test_nodes_are_loaded(server: Server) -> None:
    infos = server.get("/object_info")
    assert sorted(name for name in infos if name.startswith("BYA_")) == [f"BYA_{name}" for name in NODES]
    assert "(IMPORT FAILED)" not in server.log.read_text()  # in brackets: a custom node pack


def test_documentation_of_nodes(server: Server) -> None:
    """Tooltips of all inputs and outputs, help pages, and two languages."""
    infos, languages = server.get("/object_info"), server.get("/i18n")
    for name in (f"BYA_{node}" for node in NODES):
        info = infos[name]
        assert info["category"].startswith("BindYourAvatar/") and info["description"]
        for kind, inputs in info["input"].items():
            for field, declared in inputs.items() if kind != "hidden" else ():
                assert len(declared) > 1 and declared[1].get("tooltip"), f"{name}.{field}"
        assert all(info["output_tooltips"]), name
        page = server.fetch(f"/extensions/{PACK}/docs/{name}.md").decode()
        assert page.startswith("# ") and "## Inputs" in page
        for language in ("en", "zh"):
            assert languages[language]["nodeDefs"][name]["display_name"]


def test_workflow_templates(server: Server) -> None:
    assert sorted(server.get("/workflow_templates")[PACK]) == graphs.NAMES
    for name in graphs.NAMES:
        address = f"/api/workflow_templates/{PACK}/{quote(name)}"
        assert server.get(f"{address}.json")["nodes"]
        assert server.fetch(f"{address}.jpg")[:2] in (b"\xff\xd8", b"RI")  # JPEG or WebP


def test_steps_are_not_repeated(server: Server) -> None:
    """The sampler resumes after the steps of the router, whose output stays cached when masks are edited."""
    steps = 6
    graph = graphs.shorten(graphs.load("03"), frames=9, steps=steps, seed=11)
    (router,), (sampler,) = (graphs.nodes_of(graph, f"BYA_{kind}") for kind in ("EmbeddingRouter", "Sampler"))
    first = server.run(graph)
    assert first.ended == "execution_success", first.error
    router_steps = max(first.steps(router))
    assert 1 <= router_steps < steps
    assert min(value for value in first.steps(sampler) if value > 0) == router_steps + 1
    assert max(first.steps(sampler)) == steps

    again = server.run(graphs.with_inputs(graph, "BYA_MaskRefine", 0, smoothing=1.5))
    assert again.ended == "execution_success", again.error
    assert router in again.cached and router not in again.executed and not again.steps(router)
    assert sampler in again.executed and min(v for v in again.steps(sampler) if v > 0) == router_steps + 1

    unchanged = server.run(graphs.with_inputs(graph, "BYA_MaskRefine", 0, smoothing=1.5))
    assert sampler not in unchanged.executed


def test_cast_is_equivalent_to_chaining(server: Server) -> None:
    chained = without_checks(graphs.shorten(graphs.load("01"), frames=9, steps=3, seed=5))
    (sampler,) = graphs.nodes_of(chained, "BYA_Sampler")
    chained, shown = graphs.with_node(chained, "PreviewImage", images=[sampler, 0])
    faces = graphs.nodes_of(chained, "BYA_FaceEncode")
    joined, cast = graphs.with_node(
        chained, "BYA_Cast", **{f"characters.character{i}": [face, 0] for i, face in enumerate(faces)}
    )
    del joined[faces[1]]["inputs"]["cast"]
    joined = graphs.with_inputs(joined, "BYA_Scene", cast=[cast, 0])
    one, other = (server.run(graph) for graph in (chained, joined))
    assert one.ended == other.ended == "execution_success", one.error + other.error
    first, second = (graphs.shown_images(server, run, shown) for run in (one, other))
    assert (first == second).all()


def test_previews(server: Server) -> None:
    graph = without_checks(graphs.shorten(graphs.load("01"), frames=9, steps=5, seed=21))
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    (sampler,) = graphs.nodes_of(graph, "BYA_Sampler")
    previews = [preview.picture for preview in run.previews if preview.node == sampler]
    assert len(previews) >= 2 and all(picture[:2] == b"\xff\xd8" for picture in previews)


@pytest.mark.parametrize(
    ("node", "step", "size"),
    [
        ("BYA_EmbeddingRouter", 1, {}),
        ("BYA_Sampler", 5, {}),
        ("BYA_Sampler", 4, {"width": 192, "height": 128, "steps": 4}),  # while decoding
    ],
)
def test_cancel(node: str, step: int, size: dict[str, int], server: Server) -> None:
    """Cancellation takes at most a few seconds, and the next run succeeds."""
    seed = 100 + step
    graph = without_checks(graphs.shorten(graphs.load("01"), frames=49, steps=8, seed=seed))
    graph = graphs.with_inputs(graph, "BYA_EmbeddingRouter", probe="fixed number of steps", probe_steps=3)
    graph = graphs.with_inputs(graph, "BYA_Scene", **size)
    (number,) = graphs.nodes_of(graph, node)
    interrupted: list[tuple[float, float]] = []

    def interrupt(server: Server, run: Run) -> None:
        if not interrupted and max(run.steps(number), default=0) >= step:
            interrupted.append((time.monotonic(), server.cpu_seconds()))
            server.interrupt()

    run = server.run(graph, callback=interrupt)
    wall, cpu = time.monotonic() - interrupted[0][0], server.cpu_seconds() - interrupted[0][1]
    assert run.ended == "execution_interrupted" and run.end["node_id"] == number
    assert min(wall, cpu) < 10.0  # the machine may be busy
    following = server.run(graphs.shorten(graph, frames=9, steps=2, seed=seed))
    assert following.ended == "execution_success", following.error


@pytest.mark.parametrize(
    ("node", "inputs", "match"),
    [
        ("BYA_FaceEncode", {"name": "twin"}, "twin"),
        ("BYA_Scene", {"width": 4096, "height": 4096, "frames": 49}, "4096"),
    ],
)
def test_invalid_inputs_stop_the_prompt(node: str, inputs: dict[str, Any], match: str, server: Server) -> None:
    """All cases are tested in inside/check_running.py; here, how ComfyUI reports them."""
    graph = without_checks(graphs.shorten(graphs.load("01"), frames=5, steps=1, seed=1))
    run = server.run(graphs.with_inputs(graph, node, **inputs))
    assert run.ended == "execution_error" and match in run.error
    assert 20 < len(run.error) < 800 and "\n" not in run.error and "Traceback" not in run.error


@pytest.mark.parametrize(
    ("name", "node", "inputs"),
    [
        ("02", "LoadAudio", {"audio": "missing.wav"}),
        ("01", "BYA_FaceEncode", {"name": "  "}),
        ("01", "BYA_EmbeddingRouter", {"mode": "manual"}),
        ("01", "BYA_Loader", {"model": "official"}),
        ("01", "BYA_Scene", {"frames": 10**9}),
        ("01", "BYA_Scene", {"dialogue": '{"voices": [{"clips": [{"gain": 99}]}]}'}),
    ],
)
def test_prompts_are_validated(name: str, node: str, inputs: dict[str, Any], server: Server) -> None:
    """Errors that are visible before execution prevent queueing."""
    graph = graphs.load(name)
    with pytest.raises(PromptRejected) as rejected:
        server.run(graphs.with_inputs(graph, node, **inputs))
    assert next(iter(inputs)) in rejected.value.errors_of(graphs.nodes_of(graph, node)[0])


@pytest.mark.slow
def test_memory_of_thirty_runs(server: Server) -> None:
    graph = without_checks(graphs.shorten(graphs.load("01"), frames=5, steps=2))
    memory = []
    for start in (0, 10, 20):
        queued = [server.queue(graphs.with_inputs(graph, "BYA_Scene", seed=1000 + start + n)) for n in range(10)]
        _wait(server, queued)
        memory.append(server.memory())
    assert memory[2] - memory[0] < 40e6, [f"{size / 1e6:.0f} MB" for size in memory]


def _wait(server: Server, runs: list[Run], seconds: float = 1800) -> None:
    end = time.monotonic() + seconds
    while server.get("/prompt")["exec_info"]["queue_remaining"] and time.monotonic() < end:
        time.sleep(0.5)
    for run in runs:
        status = server.get(f"/history/{run.id}")[run.id]["status"]
        assert status["status_str"] == "success", status["messages"][-1]


def test_no_files_in_the_repository(server: Server) -> None:
    assert not any((ROOT / name).exists() for name in ("output", "temp", "user", "models"))
