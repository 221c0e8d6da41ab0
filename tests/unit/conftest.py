"""A scene on disk and a small model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import bya_core.pipelines.dub.dub as dubbing
import bya_core.weights.registry as registry
from bya_core.pipelines.dub.people import People
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle
from tests.fakes import fake_bundle, tone, write_picture, write_wav


@pytest.fixture(scope="session")
def bundle() -> ModelBundle:
    return fake_bundle()


@pytest.fixture
def registered(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`--model toy` loads the fake bundle."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "weights").touch()
    entry = dataclasses.replace(
        registry.MODELS["toy"], folder=folder, loader=lambda _: bundle, required_files=("weights",)
    )
    monkeypatch.setitem(registry.MODELS, "toy", entry)
    return registry


SceneMaker = Callable[..., Path]


@pytest.fixture
def make_scene(tmp_path: Path) -> SceneMaker:
    """Write a scene of two characters to tmp_path/scene; keyword arguments are keys of the scene file."""
    folder = tmp_path / "scene"
    folder.mkdir()
    for index, name in enumerate(("ada", "bo")):
        write_picture(folder / f"{name}.png", seed=index)
        write_wav(folder / f"{name}.wav", tone(0.3, 200.0 + 100 * index))

    def make(**given: Any) -> Path:
        scene = {
            "prompt": "Ada on the left talks to Bo on the right",
            "characters": [
                {"name": "Ada", "image": "ada.png", "speech": "ada.wav"},
                {"name": "Bo", "image": "bo.png", "speech": "bo.wav"},
            ],
        }
        path = folder / "scene.json"
        path.write_text(json.dumps(scene | given), encoding="utf-8")
        return path

    return make


@pytest.fixture
def found_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two characters are found on the left and on the right of every film that is dubbed."""

    def find(frames: torch.Tensor, scene: Scene, model: ModelBundle, masks: np.ndarray | None) -> People:
        length, height, width = frames.shape[:3]
        side = height / 3
        boxes = np.array([[[x * width, height / 3, side, side]] * length for x in (0.25, 0.75)])
        own = np.zeros((2, length, height, width), dtype=bool)
        own[0, :, :, : width // 2], own[1, :, :, width // 2 :] = True, True
        return People(boxes, np.zeros((2, length)), own if masks is None else masks)

    monkeypatch.setattr(dubbing, "find_people", find)
