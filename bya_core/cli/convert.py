"""`bya convert`: convert a model into one file or the released layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from bya_core.cli.common import optional, output


@dataclass(frozen=True)
class Convert:
    """Convert a model or a training run into one safetensors file or the released layout.

    LoRA weights are merged. The file holds the transformer with its audio, face and router modules; text encoder, VAE
    and the other encoders are not included.
    """

    model: Annotated[
        Positional[str],
        arg(help="Model name, folder (released files, `final` of a training run, bundle) or converted file."),
    ]
    output: Annotated[Path, output("File to save (safetensors), or folder with --to released.")]
    to: Annotated[Literal["safetensors", "released"], arg(help="One file, or the released layout.")] = "safetensors"
    precision: Annotated[
        Literal["as-stored", "bf16", "fp16", "fp32", "fp8"],
        arg(help="Dtype of the weights. fp8 is e4m3 with a scale per tensor for matrices and bf16 for the rest."),
    ] = "as-stored"
    encoders: Annotated[
        str | None, optional("Model with its text encoder, VAE and encoders. Default: found by its sizes.", "MODEL")
    ] = None

    def run(self) -> int:
        from bya_core.weights.export import convert, convert_to_released

        if self.to == "released":
            messages = convert_to_released(self.model, self.output, self.precision)
        else:
            messages = convert(self.model, self.output, self.precision, encoders=self.encoders)
        for message in messages:
            print(message)
        return 0
