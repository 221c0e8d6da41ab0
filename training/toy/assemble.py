r"""Put the trained parts of the toy model into one folder that `bya_core` loads.

    python -m training.toy.assemble --encoders runs/toy --transformer runs/toy/stage3/final \
        --output bya_core/toy/weights
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro

from bya_core.config import SamplingConfig
from bya_core.errors import InputError
from bya_core.toy.bundle import load_toy
from bya_core.weights.bundle import NativeSize

WEIGHTS = "diffusion_pytorch_model.safetensors"
LIMIT = 20_000_000  # bytes that may be shipped


@dataclass(frozen=True)
class Arguments:
    r"""Put the trained parts of the toy model into one folder.

    Args:
        encoders: folder with vae/, face.safetensors and speech.safetensors.
        transformer: folder of the last stage's final weights.
        output: folder to fill; parts that are there already are replaced.
        native: size and length at which scenes are made where they do not say otherwise.
        sampling: settings used where a scene names none.
        max_characters: most characters the weights were trained with.
    """

    encoders: Path
    transformer: Path
    output: Path
    native: NativeSize = field(default_factory=lambda: NativeSize(64, 96, 49))
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(
            steps=24, guidance_scale=2.0, audio_guidance_scale=2.0, drop_identity=True
        )
    )
    max_characters: int = 4


def assemble(arguments: Arguments) -> int:
    """Copy the parts, write bundle.json, load the whole once; returns the bytes of all weights.

    Raises:
        InputError: a part is missing, or all together are too large to be shipped.
    """
    parts = {
        "vae": arguments.encoders / "vae",
        "face.safetensors": arguments.encoders / "face.safetensors",
        "speech.safetensors": arguments.encoders / "speech.safetensors",
        "transformer": arguments.transformer,
    }
    for name, source in parts.items():
        if not source.exists():
            raise InputError(f"no {name} at {source}", "the trained part", "train it first")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, source in parts.items():
        target = arguments.output / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            shutil.copyfile(source / WEIGHTS, target / WEIGHTS)
            config = json.loads((source / "config.json").read_text())
            config.pop("_name_or_path", None)  # where it was trained is nobody's business
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
    if size > LIMIT:
        raise InputError(f"{size / 1e6:.1f} MB of weights", f"at most {LIMIT / 1e6:.0f} MB", "use a smaller recipe")
    load_toy(arguments.output)
    return size


if __name__ == "__main__":
    try:
        arguments = tyro.cli(Arguments)
        print(f"{assemble(arguments) / 1e6:.1f} MB of weights in {arguments.output}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
