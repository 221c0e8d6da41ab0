"""A long scene for the small random model: 45 frames in windows of 17 that overlap by 5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bya_core.config import WindowConfig
from bya_core.scene.types import Character, Scene, Speech
from bya_core.weights.bundle import ModelBundle
from tests.fakes import RATE, fake_bundle, tone

LongScene = Callable[..., Scene]


@pytest.fixture(scope="session")
def bundle() -> ModelBundle:
    return fake_bundle()


@pytest.fixture(scope="session")
def long_scene(bundle: ModelBundle) -> LongScene:
    """Builds the scene; keyword arguments replace its fields."""

    def make(**fields: Any) -> Scene:
        pictures = torch.rand(3, 3, 40, 32, generator=torch.Generator().manual_seed(1))
        scene = Scene(
            prompt="Ada talks to Bo",
            characters=[Character("Ada", pictures[0]), Character("Bo", pictures[1])],
            speeches=[Speech(torch.from_numpy(tone(1.8, hertz)).float()[None], RATE) for hertz in (200.0, 300.0)],
            height=64,
            width=96,
            num_frames=45,
            first_frame=pictures[2],
            sampling=replace(bundle.sampling, seed=5),
            windows=WindowConfig(17, 5),
        )
        return replace(scene, **fields)

    return make
