"""The pack's workflows as graphs for the server, changed a little, and what came of them read back."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from bya_core.io.media import read_audio
from tests.host.server import Graph, Run, Server
from tests.host.setup import ROOT

GRAPHS = ROOT / "tests" / "host" / "graphs_api"
DEMO = ROOT / "demo"
NAMES = sorted(path.stem for path in GRAPHS.glob("*.json"))
REAL = "02-two-talkers-real-weights"


def load(name: str) -> Graph:
    """A workflow's graph, by its name or the number it starts with."""
    (path,) = GRAPHS.glob(f"{name}*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def of_class(graph: Graph, kind: str) -> list[str]:
    """Ids of the nodes of a class, in order."""
    return [number for number, node in graph.items() if node["class_type"] == kind]


def changed(graph: Graph, kind: str, index: int | None = None, **inputs: Any) -> Graph:
    """A copy in which nodes of a class have other inputs: all of them, or the one with that index."""
    graph = copy.deepcopy(graph)
    numbers = of_class(graph, kind)
    for number in numbers if index is None else [numbers[index]]:
        graph[number]["inputs"].update(inputs)
    return graph


def quick(graph: Graph, frames: int = 17, steps: int = 6, seed: int = 0) -> Graph:
    """A copy that takes seconds."""
    return changed(graph, "BYA_Scene", frames=frames, steps=steps, seed=seed)


def without(graph: Graph, *kinds: str) -> Graph:
    """A copy without the nodes of these classes, and without what hangs on them."""
    graph = {number: node for number, node in copy.deepcopy(graph).items() if node["class_type"] not in kinds}
    while lost := [number for number, node in graph.items() if any(_gone(v, graph) for v in node["inputs"].values())]:
        for number in lost:
            del graph[number]
    return graph


def _gone(value: Any, graph: Graph) -> bool:
    return isinstance(value, list) and len(value) == 2 and str(value[0]) not in graph


def added(graph: Graph, kind: str, **inputs: Any) -> tuple[Graph, str]:
    """A copy with one node more, and its id."""
    graph = copy.deepcopy(graph)
    number = str(max(map(int, graph)) + 1)
    graph[number] = {"class_type": kind, "inputs": inputs}
    return graph, number


def bring_own_inputs(server: Server) -> None:
    """Pictures and recordings under the names that the workflow for real people asks for."""
    for letter in "AB":
        for kind in ("png", "wav"):
            target = server.folder / "input" / f"person_{letter}.{kind}"
            target.write_bytes((DEMO / f"puppet_{letter}.{kind}").read_bytes())


@dataclass(frozen=True)
class Film:
    """A saved video.

    Args:
        frames: uint8 [F, H, W, 3].
        fps: frames a second.
        seconds: of its sound, 0 where it has none.
        peak: of its sound.
    """

    frames: np.ndarray
    fps: float
    seconds: float
    peak: float


def read_film(path: Path) -> Film:
    """A video file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        fps, heard = float(stream.average_rate or 0), bool(container.streams.audio)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    if not heard:
        return Film(frames, fps, 0.0, 0.0)
    sound, rate = read_audio(path)
    return Film(frames, fps, sound.shape[1] / rate, float(sound.abs().max()))


def films(server: Server, run: Run, graph: Graph) -> dict[str, Film]:
    """Every video a run saved, by the prefix of its name."""
    found = {}
    for number in of_class(graph, "SaveVideo"):
        prefix = Path(graph[number]["inputs"]["filename_prefix"]).name
        (path,) = server.files(run, number)
        found[prefix] = read_film(path)
    return found


def pictures(server: Server, run: Run, number: str) -> np.ndarray:
    """uint8 [B, H, W, 3] that a node shows."""
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in server.files(run, number)])
