"""Audio assignment and edited masks select the mouth that moves.

Only puppet A, on the left, has a voice; puppet B is on the right.
"""

from __future__ import annotations

import numpy as np
import pytest

from bya_core.toy.mouth import mouth_opening
from tests.host import graphs
from tests.host.graphs import Graph
from tests.host.server import Server
from training.puppets.looks import MOUTH_RGB

pytestmark = pytest.mark.host
LEFT, RIGHT = 0, 1
REFINE = {
    "refine": False, "threshold": 0.6, "propagate": True, "max_regions": 1, "fill_holes": True, "smoothing": 0.7,
    "exclusive": True, "grow": 0, "restart": True, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0,
}  # fmt: skip


def mouth_movement(server: Server, graph: Graph) -> np.ndarray:
    """Standard deviation of the mouth opening on the left and on the right.

    The first frames are skipped, since the given first frame shows puppet B with an open mouth.
    """
    (sampler,) = graphs.nodes_of(graph, "BYA_Sampler")
    graph, shown = graphs.with_node(graph, "PreviewImage", images=[sampler, 0])
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    frames = graphs.shown_images(server, run, shown)
    halves = np.zeros((2, *frames.shape[:3]))
    halves[LEFT, :, :, : frames.shape[2] // 2] = 1
    halves[RIGHT, :, :, frames.shape[2] // 2 :] = 1
    return mouth_opening(frames, halves, MOUTH_RGB)[:, 5:].std(axis=1)


@pytest.fixture(scope="module")
def one_speaker() -> Graph:
    graph = graphs.shorten(graphs.load("06"), frames=33, steps=10)
    return graphs.without(graph, "BYA_BindingReport", "BYA_MaskOverlay")


def test_own_voice(one_speaker: Graph, server: Server) -> None:
    moved = mouth_movement(server, one_speaker)
    assert moved[LEFT] > 2 * moved[RIGHT], moved


def test_swapped_matrix(one_speaker: Graph, server: Server) -> None:
    for change in (
        {"audio_assignment": "swapped"},
        {"audio_assignment": "matrix", "audio_character_matrix": "0 1; 1 0"},
    ):
        moved = mouth_movement(server, graphs.with_inputs(one_speaker, "BYA_EmbeddingRouter", **change))
        assert moved[RIGHT] > 2 * moved[LEFT], (change, moved)


def test_swapped_masks(one_speaker: Graph, server: Server) -> None:
    """Masks made with nodes of ComfyUI are exchanged between the puppets with BYA Mask Refine."""
    graph = one_speaker
    (router,), (sampler,) = (graphs.nodes_of(graph, f"BYA_{kind}") for kind in ("EmbeddingRouter", "Sampler"))
    graph, black = graphs.with_node(graph, "SolidMask", value=0.0, width=96, height=64)
    graph, white = graphs.with_node(graph, "SolidMask", value=1.0, width=48, height=64)
    routing = [router, 0]
    for name, x in (("puppet A", 48), ("puppet B", 0)):
        graph, half = graphs.with_node(
            graph, "MaskComposite", destination=[black, 0], source=[white, 0], x=x, y=0, operation="add"
        )
        graph, refined = graphs.with_node(
            graph, "BYA_MaskRefine", routing=routing, override_mask=[half, 0], character=name, **REFINE
        )
        routing = [refined, 0]
    graph[sampler]["inputs"]["routing"] = routing
    moved = mouth_movement(server, graph)
    assert moved[RIGHT] > 1.5 * moved[LEFT], moved
