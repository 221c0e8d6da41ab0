"""API graphs of the workflows: changing them and reading their results."""

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
MODEL_SETTINGS = ("width", "height", "cfg", "audio_cfg", "scheduler", "window_frames", "window_overlap")
REAL = "02 Real people with the released weights"


def load(name: str) -> Graph:
    """Graph of a workflow, by name or leading number."""
    (path,) = GRAPHS.glob(f"{name}*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def nodes_of(graph: Graph, kind: str) -> list[str]:
    """Ids of the nodes of a class."""
    return [number for number, node in graph.items() if node["class_type"] == kind]


def with_inputs(graph: Graph, kind: str, index: int | None = None, **inputs: Any) -> Graph:
    """A copy with other inputs of the nodes of a class: all of them, or the one with that index."""
    graph = copy.deepcopy(graph)
    numbers = nodes_of(graph, kind)
    for number in numbers if index is None else [numbers[index]]:
        graph[number]["inputs"].update(inputs)
    return graph


def shorten(graph: Graph, frames: int = 17, steps: int = 6, seed: int = 0) -> Graph:
    """A copy with fewer frames and steps; all other settings are those of the model."""
    values = {"length": "frames", "frames": frames, "settings": "custom", "steps": steps, "seed": seed}
    graph = with_inputs(graph, "BYA_Scene", **values)
    for number in nodes_of(graph, "BYA_Scene"):
        for name in MODEL_SETTINGS:
            graph[number]["inputs"].pop(name, None)
    return graph


def without(graph: Graph, *kinds: str) -> Graph:
    """A copy without the nodes of these classes and all nodes that depend on them."""
    graph = {number: node for number, node in copy.deepcopy(graph).items() if node["class_type"] not in kinds}

    def is_missing(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and str(value[0]) not in graph

    while broken := [number for number, node in graph.items() if any(map(is_missing, node["inputs"].values()))]:
        for number in broken:
            del graph[number]
    return graph


def with_node(graph: Graph, kind: str, **inputs: Any) -> tuple[Graph, str]:
    """A copy with another node, and its id."""
    graph = copy.deepcopy(graph)
    number = str(max(map(int, graph)) + 1)
    graph[number] = {"class_type": kind, "inputs": inputs}
    return graph, number


def load_runnable(name: str) -> Graph:
    """Graph of a workflow; the one for the released weights runs the toy model instead."""
    graph = load(name)
    if name == REAL:
        graph = with_inputs(graph, "BYA_Loader", model="toy", dtype="default")
        graph = with_inputs(graph, "BYA_Preflight", model="toy")
    return graph


@dataclass(frozen=True)
class SavedVideo:
    """A saved video.

    Args:
        frames: uint8 [F, H, W, 3].
        fps: Frames per second.
        seconds: Duration of the audio; 0 without audio.
        peak: Peak of the audio.
    """

    frames: np.ndarray
    fps: float
    seconds: float
    peak: float


def read_video(path: Path) -> SavedVideo:
    """Read a video file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        fps, has_audio = float(stream.average_rate or 0), bool(container.streams.audio)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    if not has_audio:
        return SavedVideo(frames, fps, 0.0, 0.0)
    audio, rate = read_audio(path)
    return SavedVideo(frames, fps, audio.shape[1] / rate, float(audio.abs().max()))


def saved_videos(server: Server, run: Run, graph: Graph) -> dict[str, SavedVideo]:
    """Videos saved by a run, by file name prefix."""
    videos = {}
    for number in nodes_of(graph, "SaveVideo"):
        prefix = Path(graph[number]["inputs"]["filename_prefix"]).name
        (path,) = server.files(run, number)
        videos[prefix] = read_video(path)
    return videos


def shown_images(server: Server, run: Run, number: str) -> np.ndarray:
    """Images [B, H, W, 3] (uint8) shown by a node."""
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in server.files(run, number)])
