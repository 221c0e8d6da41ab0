"""The pack in a real ComfyUI: what it serves, what it computes twice (nothing), cancelling, errors, memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from tests.host import graphs
from tests.host.server import PACK, Graph, Refused, Run, Server
from tests.host.setup import ROOT

pytestmark = pytest.mark.host
NODES = [
    "AudioEncode", "BindingReport", "Cast", "EmbeddingRouter", "FaceEncode", "LoadDemo", "Loader", "MaskOverlay",
    "MaskRefine", "Preflight", "Sampler", "Scene", "SelectCharacterMask",
]  # fmt: skip


def only_video(graph: Graph) -> Graph:
    """Without what is only looked at."""
    return graphs.without(graph, "BYA_BindingReport", "BYA_MaskOverlay")


def test_nodes_load_quickly(server: Server) -> None:
    infos = server.get("/object_info")
    assert sorted(name for name in infos if name.startswith("BYA_")) == [f"BYA_{name}" for name in NODES]
    log = re.sub(r"\x1b\[[0-9;]*m", "", server.log.read_text())
    taken = re.search(rf"([\d.]+) seconds: .*{PACK}", log)
    assert taken is not None and float(taken[1]) <= 0.5
    assert "IMPORT FAILED: " + PACK not in log


def test_everything_explains_itself(server: Server) -> None:
    """Every input and output has a tooltip; every node has a help page and names in two languages."""
    infos, languages = server.get("/object_info"), server.get("/i18n")
    for name in (f"BYA_{node}" for node in NODES):
        info = infos[name]
        assert info["category"] == "BindYourAvatar" and info["description"]
        for kind, inputs in info["input"].items():
            for field, declared in inputs.items() if kind != "hidden" else ():
                assert len(declared) > 1 and declared[1].get("tooltip"), f"{name}.{field}"
        assert all(info["output_tooltips"]), name
        page = server.fetch(f"/extensions/{PACK}/docs/{name}.md").decode()
        assert page.startswith("# ") and "## Inputs" in page
        for language in ("en", "zh"):
            assert languages[language]["nodeDefs"][name]["display_name"]


def test_templates_are_listed_with_pictures(server: Server) -> None:
    assert sorted(server.get("/workflow_templates")[PACK]) == graphs.NAMES
    for name in graphs.NAMES:
        assert server.get(f"/api/workflow_templates/{PACK}/{name}.json")["nodes"]
        assert server.fetch(f"/api/workflow_templates/{PACK}/{name}.jpg")[:2] == b"\xff\xd8"


def test_nothing_is_computed_twice(server: Server) -> None:
    """Probe and sampler share the steps; another refinement leaves the probe in ComfyUI's cache."""
    steps = 6
    graph = graphs.quick(graphs.load("03"), frames=9, steps=steps, seed=11)
    (router,), (sampler,) = (graphs.of_class(graph, f"BYA_{kind}") for kind in ("EmbeddingRouter", "Sampler"))
    first = server.run(graph)
    assert first.ended == "execution_success", first.error
    probed = max(first.steps(router))
    assert 1 <= probed < steps
    assert min(value for value in first.steps(sampler) if value > 0) == probed + 1
    assert max(first.steps(sampler)) == steps

    again = server.run(graphs.changed(graph, "BYA_MaskRefine", 0, smooth=1.5))
    assert again.ended == "execution_success", again.error
    assert router in again.cached and router not in again.executed and not again.steps(router)
    assert sampler in again.executed and min(v for v in again.steps(sampler) if v > 0) == probed + 1

    untouched = server.run(graphs.changed(graph, "BYA_MaskRefine", 0, smooth=1.5))
    assert sampler not in untouched.executed


def test_grown_cast_is_the_chained_one(server: Server) -> None:
    """Cast joins single characters to what chaining makes: the same frames."""
    chained = only_video(graphs.quick(graphs.load("01"), frames=9, steps=3, seed=5))
    (sampler,) = graphs.of_class(chained, "BYA_Sampler")
    chained, shown = graphs.added(chained, "PreviewImage", images=[sampler, 0])
    faces = graphs.of_class(chained, "BYA_FaceEncode")
    grown, cast = graphs.added(
        chained, "BYA_Cast", **{f"characters.character{i}": [face, 0] for i, face in enumerate(faces)}
    )
    del grown[faces[1]]["inputs"]["cast"]
    grown = graphs.changed(grown, "BYA_Scene", cast=[cast, 0])
    one, other = (server.run(graph) for graph in (chained, grown))
    assert one.ended == other.ended == "execution_success", one.error + other.error
    first, second = (graphs.pictures(server, run, shown) for run in (one, other))
    assert (first == second).all()


def test_previews_show_the_masks(server: Server) -> None:
    graph = only_video(graphs.quick(graphs.load("01"), frames=9, steps=5, seed=21))
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    (sampler,) = graphs.of_class(graph, "BYA_Sampler")
    shown = [preview for preview in run.previews if preview.node == sampler]
    assert len(shown) >= 2
    assert all(preview.picture[:2] == b"\xff\xd8" for preview in shown)


def _reached(node: str, step: float) -> Callable[[Run], bool]:
    return lambda run: any(of == node and value >= step for of, value, _ in run.progress)


@pytest.mark.parametrize("place", ["probe", "sampling", "decode"])
def test_cancel_and_go_on(place: str, server: Server) -> None:
    """Cancel is answered within two seconds, and the next run is a good one."""
    seed = 100 + len(place)
    graph = only_video(graphs.quick(graphs.load("01"), frames=49, steps=8, seed=seed))
    graph = graphs.changed(graph, "BYA_EmbeddingRouter", probe_steps=3)
    if place == "decode":  # large, so that decoding takes a while
        graph = graphs.changed(graph, "BYA_Scene", width=192, height=128, steps=4)
    (router,), (sampler,) = (graphs.of_class(graph, f"BYA_{kind}") for kind in ("EmbeddingRouter", "Sampler"))
    ready = {
        "probe": _reached(router, 1),
        "sampling": _reached(sampler, 5),
        "decode": _reached(sampler, 4),
    }[place]
    asked: list[float] = []

    def heard(of: Server, run: Run) -> None:
        if not asked and ready(run):
            asked.append(time.monotonic())
            of.interrupt()

    run = server.run(graph, heard=heard)
    answered = time.monotonic() - asked[0]
    assert run.ended == "execution_interrupted", run.ended
    assert run.end["node_id"] == (router if place == "probe" else sampler)
    assert answered < 2.0, f"{answered:.1f} s"
    good = server.run(graphs.quick(graph, frames=9, steps=2, seed=seed))
    assert good.ended == "execution_success", good.error


def _one_sentence(text: str) -> bool:
    # a missing part names its files, purpose, size, licence and source in one sentence
    return 20 < len(text) < 800 and "\n" not in text.strip() and "Traceback" not in text


def _bad(change: str, graph: Graph) -> Graph:
    if change == "no face":
        graph, blank = graphs.added(graph, "EmptyImage", width=48, height=48, batch_size=1, color=0xFFFFFF)
        return graphs.changed(graph, "BYA_FaceEncode", 0, image=[blank, 0])
    if change == "two pictures":
        graph, blank = graphs.added(graph, "EmptyImage", width=48, height=48, batch_size=2, color=0xFFFFFF)
        return graphs.changed(graph, "BYA_FaceEncode", 0, image=[blank, 0])
    if change == "one mask for two":
        graph, mask = graphs.added(graph, "SolidMask", value=1.0, width=96, height=64)
        return graphs.changed(graph, "BYA_EmbeddingRouter", mode="manual", masks=[mask, 0])
    if change == "no mask":
        return graphs.changed(graph, "BYA_EmbeddingRouter", mode="manual")
    if change == "same name":
        return graphs.changed(graph, "BYA_FaceEncode", name="twin")
    if change == "matrix":
        return graphs.changed(graph, "BYA_EmbeddingRouter", audio_character_matrix="1 0 0; 0 1 0")
    if change == "size":
        return graphs.changed(graph, "BYA_Scene", width=4096, height=4096, frames=49)
    if change == "model":
        return graphs.changed(graph, "BYA_Loader", model="official")
    raise AssertionError(change)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("no face", "portrait"),
        ("two pictures", "puppet A"),
        ("one mask for two", "mask"),
        ("no mask", "mask"),
        ("same name", "twin"),
        ("matrix", "matrix"),
        ("size", "4096"),
        ("model", "official"),
    ],
)
def test_wrong_inputs_are_told_in_one_sentence(change: str, names: str, server: Server) -> None:
    graph = _bad(change, only_video(graphs.quick(graphs.load("01"), frames=5, steps=1, seed=1)))
    run = server.run(graph)
    assert run.ended == "execution_error"
    assert _one_sentence(run.error), run.error
    assert names in run.error


def test_what_can_be_seen_before_running_is_refused(server: Server) -> None:
    """A recording that is not there, an empty name, a length out of range: nothing is queued."""
    real = graphs.load("02")
    with pytest.raises(Refused) as refused:
        server.run(graphs.changed(real, "LoadAudio", audio="nowhere.wav"))
    assert "nowhere.wav" in refused.value.of_node(graphs.of_class(real, "LoadAudio")[0])
    toy = graphs.load("01")
    with pytest.raises(Refused) as refused:
        server.run(graphs.changed(toy, "BYA_FaceEncode", 0, name="  "))
    assert "name" in refused.value.of_node(graphs.of_class(toy, "BYA_FaceEncode")[0])
    with pytest.raises(Refused):
        server.run(graphs.changed(toy, "BYA_Scene", frames=10**9))


@pytest.mark.slow
def test_thirty_runs_keep_memory_flat(server: Server) -> None:
    """Thirty runs queued at once; nothing but the cache of the last one stays."""
    graph = only_video(graphs.quick(graphs.load("01"), frames=5, steps=2))
    held = []
    for start in (0, 10, 20):
        queued = [server.queue(graphs.changed(graph, "BYA_Scene", seed=1000 + start + n)) for n in range(10)]
        _wait(server, queued)
        held.append(server.memory())
    assert held[2] - held[0] < 40e6, [f"{bytes_ / 1e6:.0f} MB" for bytes_ in held]


def _wait(server: Server, runs: list[Run], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while server.get("/prompt")["exec_info"]["queue_remaining"] and time.monotonic() < until:
        time.sleep(0.5)
    for run in runs:
        status = server.get(f"/history/{run.id}")[run.id]["status"]
        assert status["status_str"] == "success", status["messages"][-1]


def test_repository_stays_clean(server: Server) -> None:
    """Running writes into ComfyUI's folders alone."""
    assert not any((ROOT / name).exists() for name in ("output", "temp", "user", "models"))
