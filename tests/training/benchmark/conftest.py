"""A random model for the suites."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bya_core.config import SamplingConfig
from bya_core.weights.bundle import ModelBundle, NativeSize
from tests.fakes import FakeCodec, FakeFace, FakeSpeech, FakeText, fake_transformer


@pytest.fixture(scope="session")
def random_bundle() -> Callable[[int], ModelBundle]:
    """A function that builds a random model with a number of steps."""

    def build(steps: int) -> ModelBundle:
        return ModelBundle(
            "random", fake_transformer(), FakeText(), FakeFace(), FakeSpeech(), FakeCodec(), {},
            NativeSize(64, 96, 9), SamplingConfig(steps=steps, guidance_scale=2.0, audio_guidance_scale=2.0),
        )  # fmt: skip

    return build
