r"""Assemble the trained components of the toy model into a folder that `bya_core` loads.

    python -m training.toy.assemble --encoders runs/toy --transformer runs/toy/stage3/final \
        --output bya_core/toy/weights
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bya_core.config import SamplingConfig
from bya_core.errors import InputError
from bya_core.toy.bundle import load_toy
from bya_core.weights.bundle import NativeSize
from training.command_line import OutputPath, run_command

WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_BYTES = 20_000_000  # of the shipped weights


@dataclass(frozen=True)
class Arguments:
    r"""Assemble the trained components of the toy model into a folder.

    Args:
        encoders: folder with vae/, face.safetensors and speech.safetensors.
        transformer: `final` folder of the last stage.
        output: output folder; existing components are replaced.
        native: default size and length of scenes.
        sampling: default sampling settings.
        max_characters: maximum number of characters in the training data.
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
    for name, source in components.items():
        if not source.exists():
            raise InputError(f"no {name} at {source}", "the trained component", "train it first")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, source in components.items():
        target = arguments.output / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
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
    }
    (arguments.output / "bundle.json").write_text(json.dumps(settings, indent=2) + "\n")
    size = sum(path.stat().st_size for path in arguments.output.rglob("*.safetensors"))
    if size > MAX_BYTES:
        raise InputError(f"{size / 1e6:.1f} MB of weights", f"at most {MAX_BYTES / 1e6:.0f} MB", "use a smaller recipe")
    load_toy(arguments.output)
    return size


def main(arguments: Arguments) -> None:
    """Assemble and print the size."""
    print(f"{assemble(arguments) / 1e6:.1f} MB of weights in {arguments.output}")


if __name__ == "__main__":
    run_command(main, Arguments)
