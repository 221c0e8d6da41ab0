"""Registry of models."""

from __future__ import annotations

from importlib import import_module

import pytest

from bya_core.errors import InputError
from training.curation.models import MODELS, ModelChoice, load_curation_model, release_models


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


@pytest.mark.parametrize(
    ("task", "choice", "problem"),
    [
        ("extractor", ModelChoice("clearvoice"), "lacks the options python and checkpoints"),
        ("captioner", ModelChoice("qwen2vl", {"device": "cpu"}), "lacks the option weights"),
        ("detector", ModelChoice("blazeface", {"color": "red"}), "no option color"),
        ("detector", ModelChoice("blazeface", {"min_score": "high"}), "min_score"),
    ],
)
def test_invalid_options_are_one_sentence(task, choice, problem):
    with pytest.raises(InputError) as error:
        load_curation_model(task, choice)
    assert problem in error.value.problem and "__init__" not in str(error.value)


def test_models_are_released():
    first = load_curation_model("captioner", ModelChoice("template"))
    assert load_curation_model("captioner", ModelChoice("template")) is first
    release_models()
    assert load_curation_model("captioner", ModelChoice("template")) is not first
