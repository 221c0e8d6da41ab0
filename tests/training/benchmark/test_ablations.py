"""Ablations of training stage 3."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from bya_core.errors import InputError
from tests.training.stage_parts import SMALL, small_batch, small_model
from training.benchmark import ablations
from training.benchmark.ablations import (
    BASE,
    VARIANTS,
    AblationOptions,
    ablation_table,
    apply_variant,
    initialize_router,
    main,
    report,
)
from training.data.clip_folder import ClipFolder
from training.engine.recipe import Recipe, load_recipe


def differences(name):
    """Options of stage and model in which a variant differs from the base."""
    recipe = load_recipe("ablation")
    base, other = (apply_variant(recipe, VARIANTS[key]) for key in (BASE, name))
    one, two = base.stages[3], other.stages[3]
    stage = {key for key in vars(one) if getattr(one, key) != getattr(two, key)}
    return stage | {key for key in other.model if base.model.get(key) != other.model[key]}


def test_variants():
    assert {name: differences(name) for name in VARIANTS} == {
        "base": set(),
        "no_smoothness": {"router_weights"},
        "no_layer_loss": {"router_weights"},
        "always_forced": {"scheduled_sampling"},
        "no_teacher": {"scheduled_sampling", "scheduled_sampling_warmup", "router_detach"},
        "no_lora": {"lora"},
        "targets_2d": {"static_masks"},
        "sigmoid": {"router_activation"},
    }
    recipe = load_recipe("ablation")
    assert recipe.stages[3].lora.rank == 8 and recipe.model["num_router_layers"] == 2
    assert apply_variant(recipe, VARIANTS["no_smoothness"]).stages[3].router_weights.layer_variance == 8.0
    assert apply_variant(recipe, VARIANTS["no_layer_loss"]).stages[3].router_weights.smoothness == 0.001


@pytest.fixture
def init(tmp_path):
    small_model(num_router_layers=1).save_pretrained(tmp_path / "init")
    return tmp_path / "init"


def test_initialize_router(init):
    recipe = Recipe("small", SMALL | {"num_router_layers": 2}, load_recipe("ablation").stages)
    given = small_model(num_router_layers=1).state_dict()
    one, again, other = (initialize_router(str(init), recipe, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], value) for name, value in given.items() if not name.startswith("router."))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["router.to_q.0.weight"], other["router.to_q.0.weight"])
    assert not torch.equal(one["router.to_q.0.weight"], given["router.to_q.0.weight"])
    assert "router.to_q.1.weight" in one
    wider = Recipe("small", SMALL | {"audio_dim": 24}, recipe.stages)
    with pytest.raises(InputError, match="no matching audio_model"):
        initialize_router(str(init), wider, 0)


def test_runs_and_resume(init, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    batch = small_batch(6)
    shard = {name: (value * 255).byte() if name in ("masks", "emphasis") else value for name, value in batch.items()}
    save_file(shard | {"seed": torch.arange(6)}, folder / "shard.safetensors")
    recipe = load_recipe("ablation")
    small = Recipe("small", SMALL, {3: replace(recipe.stages[3], lora=None, steps=2, batch_size=2)})
    evaluated = []

    def evaluate(model, held_out, bundle):
        evaluated.append(model.training)
        return {"iou": 0.1 * len(evaluated), "flicker_drawn": 0.01}

    monkeypatch.setattr(ablations, "load_recipe", lambda name: small)
    monkeypatch.setattr(ablations, "load_bundle", lambda name: None)
    monkeypatch.setattr(ablations, "validation_metrics", evaluate)
    options = AblationOptions(
        tmp_path / "out", str(folder), str(init), variants=("base", "no_smoothness"), seeds=(0, 1), precision="no"
    )
    main(options)
    files = sorted(path.name for path in (tmp_path / "out" / "results").iterdir())
    assert files == ["base-0.json", "base-1.json", "no_smoothness-0.json", "no_smoothness-1.json"]
    main(options)
    assert len(evaluated) == 4
    saved = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert saved["variants"]["no_smoothness"]["from_base"]["iou"]["mean"] == pytest.approx(0.1)
    assert saved["runs"][0]["training"]["steps"] == 2 and ClipFolder(folder).clips == 6
    (tmp_path / "out" / "results" / "base-1.json").unlink()
    main(replace(options, variants=("base",), seeds=(1,)))
    assert len(evaluated) == 5

    (tmp_path / "mine.yaml").write_text("description: strong smoothness\nstage: {router_weights: {smoothness: 1e-1}}\n")
    main(replace(options, variants=(str(tmp_path / "mine.yaml"),), seeds=(0,)))
    table = (tmp_path / "out" / "ablations.md").read_text().splitlines()
    assert len(evaluated) == 6 and "strong smoothness" in table[-1] and len(table) == 5
    (tmp_path / "mine.yaml").write_text("description: strong smoothness\nstage: {router_weights: {smoothness: 2e-1}}\n")
    with pytest.raises(InputError, match="mine-0.json was measured with another stage"):
        main(replace(options, variants=(str(tmp_path / "mine.yaml"),), seeds=(0,)))
    for changed, name in (("data", "data"), ("init", "init"), ("model", "model"), ("steps", "stage")):
        other = options
        if changed == "data":
            save_file(
                shard | {"seed": torch.arange(6), "text": shard["text"] + 1}, tmp_path / "data" / "more.safetensors"
            )
        elif changed == "init":
            small_model(num_router_layers=2).save_pretrained(tmp_path / "other")
            other = replace(options, init=str(tmp_path / "other"))
        elif changed == "model":
            small = replace(small, model=SMALL | {"router_dim": 4})
        else:
            other = replace(options, steps=3)
        with pytest.raises(InputError, match=f"measured with another .*{name}"):
            main(other)
    assert len(evaluated) == 6


def result(variant, seed, iou, steps=10):
    figures = {"iou": iou, "flicker": 0.02, "flicker_drawn": 0.004}
    changes = {"description": VARIANTS[variant].description}
    return {"variant": variant, "seed": seed, "figures": figures, "settings": {"steps": steps}, "changes": changes}


def test_report_of_several_seeds():
    runs = [result("base", 0, 0.5), result("base", 1, 0.7), result("sigmoid", 0, 0.4), result("sigmoid", 1, 0.62)]
    summary = report([*runs, result("no_lora", 1, 0.7)])
    sigmoid = summary["variants"]["sigmoid"]
    assert sigmoid["figures"]["iou"] == {"mean": 0.51, "seeds": 2, "deviation": pytest.approx(0.1556, abs=1e-4)}
    assert sigmoid["from_base"]["iou"]["mean"] == pytest.approx(-0.09)
    assert sigmoid["from_base"]["iou"]["deviation"] == pytest.approx(0.0141, abs=1e-4)
    table = ablation_table(summary)
    assert "| 2 | 0.510 ± 0.156 |" in table and "-0.090 ± 0.014 |" in table
    lora = next(line for line in table.splitlines() if "without LoRA" in line)
    assert "| 1 | 0.700 |" in lora and lora.endswith("| +0.000 |")
    with pytest.raises(InputError, match="different settings"):
        report([result("base", 0, 0.5), result("sigmoid", 0, 0.5, steps=20)])


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"variants": ("no_softmax",)}, "no_softmax"), ({}, "no --data"), ({"table": True}, "no finished run")],
)
def test_invalid_options_raise(tmp_path, options, problem):
    with pytest.raises(InputError, match=problem):
        main(AblationOptions(tmp_path, **options))
