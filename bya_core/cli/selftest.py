"""`bya selftest`: test this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from bya_core.cli.common import Vram, optional


@dataclass(frozen=True)
class Selftest:
    """Generate a short video with the toy model, or run one denoising step of the released architecture.

    Downloads nothing. The released architecture needs about 24 GB of memory; without a GPU, one block of 42 is run.
    """

    full_size: Annotated[
        bool, arg(help="Run one step of the released architecture (720x480, 49 frames) with random weights.")
    ] = False
    vram: Annotated[Vram, arg(help="VRAM budget in GB. auto is the free memory of the GPU.")] = "auto"
    layers: Annotated[
        int | None, optional("Transformer blocks at full size. Without it 42 on a GPU, else 1.", "INT")
    ] = None

    def run(self) -> int:
        from bya_core.pipelines import selftest
        from bya_core.pipelines.run_report import peak_memory

        result = selftest.check_full_size(self.layers, self.vram) if self.full_size else selftest.check_toy_model()
        for line in result.lines:
            print(line)
        for stage, seconds in result.seconds.items():
            print(f"{stage:<28} {seconds:8.2f} s")
        for kind, gigabytes in peak_memory().items():
            print(f"{f'Peak {kind[:3].upper()}':<28} {gigabytes:8.2f} GB")
        print(f"{'Checksum':<28} {result.checksum}")
        return 0
