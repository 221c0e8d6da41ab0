"""Every suite evaluates checkpoints and the result of a run, with a LoRA, and results are those of the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bya_core.errors import InputError
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from tests.training.run_parts import toy_checkpoint
from training.benchmark import suites
from training.benchmark.targets import weights_hash
from training.engine.lora import write_model
from training.evaluate import EvaluateOptions, main

pytestmark = pytest.mark.skipif(not MODELS["toy"].available, reason="toy weights are missing")
MODULE = "transformer_blocks.0.attn1.to_k"
QUICK = {
    "puppets": {"generate": False},
    "pictures": {"lengths": (1,)},
    "routers": {"variants": ("drawn truth",)},
    "baselines": {"variants": ("drawn truth",)},
    "refinement": {},
    "long": {},
    "takes": {},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = toy_checkpoint(folder / "run")
    model = load_bundle(checkpoint).transformer
    final = folder / "run" / "final"
    write_model(final, model, model.state_dict(), None, {})
    shape = model.state_dict()[f"{MODULE}.weight"].shape
    pair = {"lora_A": torch.ones(1, shape[1]), "lora_B": torch.ones(shape[0], 1)}
    save_file({f"transformer.{MODULE}.{side}.weight": half for side, half in pair.items()}, folder / "one.safetensors")
    return {"checkpoint": checkpoint, "final": final, "lora": folder / "one.safetensors"}


@pytest.mark.parametrize("kind", ["checkpoint", "final"])
@pytest.mark.parametrize("suite", QUICK)
def test_suites_load_trained_models(trained, tmp_path, monkeypatch, suite, kind):
    loaded = []

    def load(*arguments, **keywords):
        loaded.append(load_bundle(*arguments, **keywords))
        raise KeyboardInterrupt  # what follows is tested for each suite with a random model

    monkeypatch.setattr(suites, "load_bundle", load)
    with pytest.raises(KeyboardInterrupt):
        main(EvaluateOptions(suite=suite, model=str(trained[kind]), scenes=1, steps=1, **QUICK[suite]))
    assert weights_hash(loaded[0].transformer) != weights_hash(load_bundle("toy").transformer)


def test_report_names_the_lora_and_has_its_weights(trained, tmp_path):
    lora = f"{trained['lora']}:0.5"
    options = {"suite": "routers", "variants": ("drawn truth",), "scenes": 1, "frames": 5, "steps": 1}
    path = tmp_path / "routers.json"
    reports = []
    for loras in ((), (lora,)):
        main(EvaluateOptions(model=str(trained["final"]), lora=loras, json=path, **options))
        reports.append(json.loads(path.read_text()))
    plain, merged = reports
    assert merged["model"] == f"{trained['final']} + one.safetensors:0.5"
    assert plain["settings"].pop("transformer_sha256") != merged["settings"].pop("transformer_sha256")
    assert plain["settings"] == merged["settings"]
    assert weights_hash(load_bundle(trained["final"], lora=[lora]).transformer) != weights_hash(
        load_bundle(trained["checkpoint"]).transformer
    )


def test_ground_truth_takes_no_lora(trained):
    with pytest.raises(InputError, match="--lora with --model truth"):
        main(EvaluateOptions(model="truth", lora=(str(trained["lora"]),), scenes=1))
