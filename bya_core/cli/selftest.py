"""The command `selftest`, and the choice of memory that other commands offer too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Vram = Literal["auto", "8", "12", "16", "24", "48", "80"]
"""GB of the card to make do with; auto = what is free on it now."""


@dataclass(frozen=True)
class Selftest:
    """Try out this machine: the toy model from a drawing to a video, or one step at the size of the released model.

    Neither downloads anything. Full size needs about 24 GB of memory; without a GPU it takes one block of 42 only.

    Args:
        full_size: one denoising step of the released architecture at 720x480, 49 frames, with random weights.
        vram: GB of the card to make do with; auto = what is free on it now.
        layers: blocks of the transformer at full size; None = all 42 on a GPU, 1 without.
    """

    full_size: bool = False
    vram: Vram = "auto"
    layers: int | None = None

    def run(self) -> int:
        from bya_core.pipelines import selftest
        from bya_core.pipelines.run_report import peak_memory

        made = selftest.full_size(self.layers, self.vram) if self.full_size else selftest.toy()
        for line in made.lines:
            print(line)
        for part, seconds in made.seconds.items():
            print(f"{part:<28} {seconds:8.2f} s")
        for kind, gigabytes in peak_memory().items():
            print(f"{f'most {kind[:3].upper()} memory held':<28} {gigabytes:8.2f} GB")
        print(f"{'checksum':<28} {made.checksum}")
        return 0
