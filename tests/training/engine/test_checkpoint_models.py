"""Checkpoints of a run are models: they load without the training code, with the weights that `final` has."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bya_core.cli import main as cli
from bya_core.errors import InputError
from bya_core.weights.loader import resolve
from bya_core.weights.registry import MODELS
from tests.training import run_parts
from tests.training.run_parts import toy_checkpoint, write_recipe
from training.engine.build import build_model
from training.engine.checkpointing import Checkpoints
from training.engine.lora import load_model as load_trained
from training.engine.recipe import load_recipe
from training.engine.settings import RunSettings
from training.engine.stages import Lora

ROOT = Path(__file__).resolve().parents[3]


def _state(folder: Path) -> dict[str, torch.Tensor]:
    return resolve(folder).transformer.build().state_dict()


def _run(tmp_path: Path, data: Path, init: bool, name: str = "run", number: int = 3) -> Path:
    """Two steps with LoRA and EMA; returns the folder of the run."""
    recipe = load_recipe(write_recipe(tmp_path / "small.yaml", steps=2))
    output = tmp_path / name
    given = {"init": str(tmp_path / "init")} if init else {}
    model = build_model(recipe, number, RunSettings(output, **given))
    run_parts.run(data, recipe.stages[number], output, model, checkpointing_steps=1, **given)
    return output


@pytest.mark.parametrize("init", [True, False])
def test_last_checkpoint_has_the_weights_of_final(data, tmp_path, init):
    output = _run(tmp_path, data, init)
    first, last = Checkpoints(output).all()
    assert (last / "frozen.safetensors").is_file() is not init
    expected, found = _state(output / "final"), _state(last)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    earlier = _state(first)
    assert any(not torch.equal(earlier[name], value) for name, value in found.items())


def test_adapters_of_init_are_continued_or_merged(data, tmp_path):
    first = _run(tmp_path, data, init=True)
    recipe = load_recipe(tmp_path / "small.yaml")
    for name, lora in (("same", recipe.stages[3].lora), ("none", None)):
        output = tmp_path / name
        init = str(first / "final")
        stage = recipe.stages[3]
        object.__setattr__(stage, "lora", lora)
        run_parts.run(data, stage, output, load_trained(Path(init), lora), init=init, checkpointing_steps=1)
        expected, found = _state(output / "final"), _state(Checkpoints(output).all()[-1])
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, msg=f"{name}: {key}")


@pytest.mark.parametrize("ema", [0.9, 0.0])
def test_adapters_alone_are_a_small_final_that_loads_and_continues(data, tmp_path, ema):
    recipe = load_recipe(write_recipe(tmp_path / "small.yaml", steps=2))
    stage = replace(recipe.stages[2], trainable=(), optimizer=replace(recipe.stages[2].optimizer, ema_decay=ema))
    init, finals = str(tmp_path / "init"), []
    for name in ("one", "two"):  # the second continues the adapters of the first
        output = tmp_path / name
        model = load_trained(Path(init), stage.lora)
        run_parts.run(data, stage, output, model, init=init, checkpointing_steps=1)
        final = output / "final"
        assert [path.name for path in final.glob("*.safetensors")] == ["pytorch_lora_weights.safetensors"]
        expected, found = _state(Checkpoints(output).all()[-1]), _state(final)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, msg=f"{name}: {key}")
        for lora in (None, stage.lora, Lora(3, 3)):  # merged, continued, merged with new adapters
            again = load_trained(final, lora)
            assert (lora is not None) == any(".lora_" in key for key in again.state_dict())
            if lora is None:
                for key, value in again.state_dict().items():
                    torch.testing.assert_close(value, found[key], msg=f"{name}: {key}")
        init = str(final)
        finals.append(found)
    assert any(not torch.equal(value, finals[1][key]) for key, value in finals[0].items())
    shutil.rmtree(tmp_path / "init")
    with pytest.raises(InputError, match="is missing"):
        resolve(tmp_path / "one" / "final")


def test_init_that_is_gone_or_changed_is_told(data, tmp_path):
    checkpoint = Checkpoints(_run(tmp_path, data, init=True)).all()[-1]
    weights = next((tmp_path / "init").glob("*.safetensors"))
    content = load_file(weights)
    name = "transformer_blocks.0.attn1.to_v.weight"
    save_file(content | {name: content[name] + 1}, weights)
    with pytest.raises(InputError, match="has changed"):
        resolve(checkpoint)
    shutil.rmtree(tmp_path / "init")
    with pytest.raises(InputError, match="is missing"):
        resolve(checkpoint)


def test_checkpoint_without_a_record_is_told(data, tmp_path):
    output = _run(tmp_path, data, init=True)
    checkpoint = Checkpoints(output).all()[-1]
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    del state["model"]
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="does not record its model"):
        resolve(checkpoint)
    with pytest.raises(InputError, match="use .*final"):
        resolve(output)


@pytest.mark.skipif(not MODELS["toy"].available, reason="toy weights are missing")
def test_checkpoint_of_the_toy_model_generates_and_converts(tmp_path):
    checkpoint = toy_checkpoint(tmp_path / "run")
    assert not (checkpoint / "frozen.safetensors").exists()
    key = "transformer_blocks.0.attn1.to_q.weight"
    toy = _state(MODELS["toy"].path)[key]
    a = load_file(checkpoint / "weights.safetensors")["transformer_blocks.0.attn1.to_q.lora_A.default.weight"]
    torch.testing.assert_close(_state(checkpoint)[key], toy + 2 * torch.full((len(toy), 2), 0.1) @ a)

    video, file = tmp_path / "video.mp4", tmp_path / "model.safetensors"
    scene = str(ROOT / "demo" / "scene.json")
    assert cli.main(["generate", scene, "-o", str(video), "--model", str(checkpoint), "--steps", "1"]) == 0
    assert video.stat().st_size > 0
    assert cli.main(["convert", str(checkpoint), "-o", str(file)]) == 0
    torch.testing.assert_close(_state(file)[key], _state(checkpoint)[key])
