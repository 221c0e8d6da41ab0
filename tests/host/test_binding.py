"""Who is driven is decided in the graph: by the matrix, and by masks that were edited in it.

Only puppet A has a voice. Its mouth is watched where puppet A stands (left) and where puppet B stands (right).
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


def movement(server: Server, graph: Graph) -> np.ndarray:
    """How much the mouths on the left and on the right open and close, [2].

    The given first frame shows puppet B with an open mouth, whoever talks afterwards: its moment is left out.
    """
    (sampler,) = graphs.of_class(graph, "BYA_Sampler")
    graph, shown = graphs.added(graph, "PreviewImage", images=[sampler, 0])
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    frames = graphs.pictures(server, run, shown)
    halves = np.zeros((2, *frames.shape[:3]))
    halves[LEFT, :, :, : frames.shape[2] // 2] = 1
    halves[RIGHT, :, :, frames.shape[2] // 2 :] = 1
    return mouth_opening(frames, halves, MOUTH_RGB)[:, 5:].std(axis=1)


@pytest.fixture(scope="module")
def one_talker() -> Graph:
    graph = graphs.quick(graphs.load("06"), frames=33, steps=10)
    return graphs.without(graph, "BYA_BindingReport", "BYA_MaskOverlay")


def test_the_voice_moves_its_own_mouth(one_talker: Graph, server: Server) -> None:
    moved = movement(server, one_talker)
    assert moved[LEFT] > 2 * moved[RIGHT], moved


def test_a_swapped_matrix_moves_the_other_mouth(one_talker: Graph, server: Server) -> None:
    for change in ({"audio_assignment": "swapped"}, {"audio_character_matrix": "0 1; 1 0"}):
        moved = movement(server, graphs.changed(one_talker, "BYA_EmbeddingRouter", **change))
        assert moved[RIGHT] > 2 * moved[LEFT], (change, moved)


def test_masks_edited_in_the_graph_change_who_is_driven(one_talker: Graph, server: Server) -> None:
    """Puppet A's mask is put where puppet B stands, and the other way round, by core nodes and Mask Refine."""
    graph = one_talker
    (router,), (sampler,) = (graphs.of_class(graph, f"BYA_{kind}") for kind in ("EmbeddingRouter", "Sampler"))
    graph, black = graphs.added(graph, "SolidMask", value=0.0, width=96, height=64)
    graph, white = graphs.added(graph, "SolidMask", value=1.0, width=48, height=64)
    routing = [router, 0]
    for name, x in (("puppet A", 48), ("puppet B", 0)):
        graph, half = graphs.added(
            graph, "MaskComposite", destination=[black, 0], source=[white, 0], x=x, y=0, operation="add"
        )
        graph, refined = graphs.added(
            graph, "BYA_MaskRefine", routing=routing, override_mask=[half, 0], character=name, **REFINE
        )
        routing = [refined, 0]
    graph[sampler]["inputs"]["routing"] = routing
    moved = movement(server, graph)
    assert moved[RIGHT] > 1.5 * moved[LEFT], moved
