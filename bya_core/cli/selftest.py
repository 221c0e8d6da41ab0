"""`bya selftest`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from bya_core.cli.common import Vram, optional


@dataclass(frozen=True)
class Selftest:
    """Test this machine with a short video of the toy model.

    Nothing is downloaded. --full-size needs 24 GB of memory, or runs one block of 42 without a GPU.
    """

    full_size: Annotated[
        bool, arg(help="Run one step of the released architecture (720x480, 49 frames) with random weights.")
    ] = False
    vram: Vram = "auto"
    layers: Annotated[
        int | None, optional("Number of transformer blocks at full size. Default: 42 on a GPU, else 1.", "INT")
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
