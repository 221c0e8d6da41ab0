r"""Assemble the trained components of the toy model into a folder that `bya_core` loads.

    python -m training.toy.assemble --encoders runs/toy --transformer runs/toy/stage3/final \
        --output bya_core/toy/weights
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bya_core.config import SamplingConfig
from bya_core.errors import InputError
from bya_core.io.atomic import atomic_contents
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.toy.bundle import load_toy
from bya_core.weights.bundle import NativeSize
from training.command_line import OutputPath, run_command
from training.engine.recipe import Recipe, load_recipe

WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_BYTES = 40_000_000  # of the shipped weights


@dataclass(frozen=True)
class Arguments:
    r"""Assemble the trained components of the toy model into a folder.

    Args:
        encoders: folder with vae/, face.safetensors and speech.safetensors.
        transformer: `final` folder of the last stage, or output folder of a run in progress (see `load_latest`).
        output: output folder; existing components are replaced.
        native: default size and length of scenes.
        sampling: default sampling settings.
        max_characters: maximum number of characters in the training data.
        recipe: recipe of the transformer, for its noise schedule and text encoder.
    """

    encoders: Path
    transformer: Path
    output: OutputPath
    native: NativeSize = field(default_factory=lambda: NativeSize(64, 96, 49))
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(
            steps=24, guidance_scale=2.0, audio_guidance_scale=2.0, drop_identity=True
        )
    )
    max_characters: int = 4
    recipe: str = "toy"


def assemble(arguments: Arguments) -> int:
    """Copy the components, write bundle.json, and test that the model loads; returns the size of the weights in bytes.

    Raises:
        InputError: a component is missing, or the weights are too large to ship.
    """
    components = {
        "vae": arguments.encoders / "vae",
        "face.safetensors": arguments.encoders / "face.safetensors",
        "speech.safetensors": arguments.encoders / "speech.safetensors",
        "transformer": arguments.transformer,
    }
    recipe = load_recipe(arguments.recipe)
    for name, source in components.items():
        if not source.exists():
            raise InputError(f"no {name} at {source}", "the trained component", "train it first")
    with atomic_contents(arguments.output) as folder:
        return _assemble(arguments, components, recipe, folder)


def _assemble(arguments: Arguments, components: dict[str, Path], recipe: Recipe, folder: Path) -> int:
    for name, source in components.items():
        target = folder / name
        if source.is_dir():
            target.mkdir()
            if (source / "checkpoints").is_dir():
                load_latest(source, recipe.model)[0].save_pretrained(target)
                continue
            shutil.copyfile(source / WEIGHTS, target / WEIGHTS)
            config = json.loads((source / "config.json").read_text())
            config.pop("_name_or_path", None)  # a local path
            (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        else:
            shutil.copyfile(source, target)
    sampling = {k: v for k, v in asdict(arguments.sampling).items() if k != "seed"}
    settings = {
        "native": asdict(arguments.native),
        "sampling": sampling,
        "max_characters": arguments.max_characters,
        "domain": "puppets",
        **recipe.bundle_settings,
    }
    (folder / "bundle.json").write_text(json.dumps(settings, indent=2) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if size > MAX_BYTES:
        raise InputError(f"{size / 1e6:.1f} MB of weights", f"at most {MAX_BYTES / 1e6:.0f} MB", "use a smaller recipe")
    load_toy(folder)
    return size


def load_latest(run: Path, config: dict[str, Any]) -> tuple[BindYourAvatarTransformer3DModel, int]:
    """The final weights of a run, or the averaged weights of its latest checkpoint; and the number of steps.

    Parts of the model that the stage does not train, such as the router in stages 1 and 2, keep their initialization.

    Args:
        run: output folder of a stage.
        config: arguments of the model, for a run in progress.

    Raises:
        InputError: the run has neither.
    """
    if (run / "final/config.json").is_file():
        steps = json.loads((run / "final/run.json").read_text())["steps"]
        return BindYourAvatarTransformer3DModel.from_pretrained(run / "final").eval(), steps
    checkpoints = sorted((run / "checkpoints").glob("step-" + "[0-9]" * 8))
    if not checkpoints:
        raise InputError(f"no checkpoint in {run}", "the output folder of a stage", "wait for the first checkpoint")
    torch.manual_seed(0)
    model = BindYourAvatarTransformer3DModel(**config)
    unknown = model.load_state_dict(load_file(checkpoints[-1] / "ema.safetensors"), strict=False).unexpected_keys
    if unknown:
        raise InputError(f"weights {unknown[0]!r} in {run}", "those of the model", "use the recipe of the run")
    return model.eval(), int(checkpoints[-1].name.removeprefix("step-"))


def main(arguments: Arguments) -> None:
    """Assemble and print the size."""
    print(f"{assemble(arguments) / 1e6:.1f} MB of weights in {arguments.output}")


if __name__ == "__main__":
    run_command(main, Arguments)
