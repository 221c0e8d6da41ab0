"""Registry of models."""

from __future__ import annotations

from importlib import import_module

import pytest

from bya_core.errors import InputError
from training.curation.models import MODELS, ModelChoice, load_curation_model


def test_model_registry():
    for models in MODELS.values():
        for name, entry in models.items():
            module, _, factory = entry.factory.partition(":")
            assert callable(getattr(import_module(module), factory))
            assert entry.puppet_only == (name == "puppet")
    with pytest.raises(InputError, match="unknown sync 'sing'"):
        load_curation_model("sync", ModelChoice("sing"))
    with pytest.raises(InputError, match="options"):
        load_curation_model("detector", ModelChoice("puppet", {"color": "red"}))
