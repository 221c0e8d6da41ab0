"""`bya convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from bya_core.cli.common import Lora, optional, output
from bya_core.errors import InputError


@dataclass(frozen=True)
class Convert:
    """Convert a model into one safetensors file or the released layout.

    LoRA weights are merged. Text encoder, VAE and the other encoders are not included.
    """

    model: Annotated[
        Positional[str],
        arg(
            help="Model name, folder (released files, `final` or checkpoint of a run, bundle) or converted file.",
            metavar="MODEL",
        ),
    ]
    output: Annotated[Path, output("File to save (safetensors), or folder with --to released.")]
    to: Annotated[Literal["safetensors", "released"], arg(help="One file, or the released layout.")] = "safetensors"
    precision: Annotated[
        Literal["as-stored", "bf16", "fp16", "fp32", "fp8"],
        arg(help="Dtype of the weights. fp8 is e4m3 with one scale per matrix, and bf16 for the rest."),
    ] = "as-stored"
    encoders: Annotated[
        str | None, optional("Model that provides the encoders. Default: selected by tensor sizes.", "MODEL")
    ] = None

    lora: Lora = ()

    def run(self) -> int:
        from bya_core.weights.export import convert, convert_to_released

        if self.to == "released":
            if self.encoders is not None:
                raise InputError("--encoders with --to released", "--encoders with one file", "remove one of them")
            messages = convert_to_released(self.model, self.output, self.precision, lora=self.lora)
        else:
            messages = convert(self.model, self.output, self.precision, encoders=self.encoders, lora=self.lora)
        print("\n".join(messages))
        return 0
