"""Domains: what the characters of a model are, and how they are measured in each.

Characters in photos are measured with neural networks (face detection, face recognition, lip sync). The drawn puppets
of the toy model are measured by a `PixelMeter`, which knows their colors and needs no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

Domain = Literal["puppets", "photos"]
CanvasLayout = Literal["row", "released"]
PixelBox = tuple[int, int, int, int]

_METERS: dict[Domain, str] = {"puppets": "bya_core.toy.meter:PuppetMeter"}


@runtime_checkable
class PixelMeter(Protocol):
    """Measures characters from pixels alone.

    N characters, F video frames, H x W pixels; images are float tensors in [0, 1], frames are uint8.
    """

    def is_portrait(self, image: Tensor) -> bool:
        """Whether an image [3, h, w] looks like a reference image of this domain."""
        ...

    def face_box(self, image: Tensor) -> PixelBox | None:
        """Box (x0, y0, x1, y1) of the character in a reference image [3, h, w], or `None` if there is none."""
        ...

    def segment(self, frames: Tensor, portraits: Sequence[Tensor]) -> Tensor:
        """Masks of the characters in a video.

        Args:
            frames: uint8 [F, H, W, 3].
            portraits: N reference images [3, h, w].

        Returns:
            Float masks [N, F, H, W] with values 0 and 1, at most one character per pixel.
        """
        ...

    def missing_characters(self, frame: Tensor, portraits: Sequence[Tensor]) -> list[int]:
        """Indices of the reference images [3, h, w] whose character is not visible in `frame` [3, H, W]."""
        ...

    def mouth_opening(self, frames: np.ndarray, regions: np.ndarray) -> np.ndarray:
        """How far each mouth is open, [N, F]; only changes over time are meaningful.

        Args:
            frames: uint8 [F, H, W, 3].
            regions: bool [N, F, H, W].
        """
        ...

    def likeness(self, frames: np.ndarray, regions: np.ndarray, portraits: Sequence[Tensor]) -> np.ndarray:
        """Similarity in [0, 1] of each character in each frame to each reference image, [N, F, N].

        Entries are NaN in frames where the region of the character is empty. Arguments as for `mouth_opening`;
        `portraits` holds N reference images [3, h, w].
        """
        ...

    def eye_likeness(self, frames: Tensor, regions: Tensor, portraits: Sequence[Tensor]) -> Tensor:
        """Correlation of the eyes of each reference image with the best place in its region, [N, F] in [0, 1].

        Args:
            frames: uint8 [F, H, W, 3].
            regions: bool [N, F, H, W].
            portraits: N reference images [3, h, w].
        """
        ...


def load_meter(domain: Domain) -> PixelMeter | None:
    """The pixel meter of a domain, or `None` if the domain is measured with neural networks."""
    if domain not in _METERS:
        return None
    module, name = _METERS[domain].split(":")
    return getattr(import_module(module), name)()


def guess_domain(portraits: Sequence[Tensor]) -> Domain:
    """Domain of reference images [3, h, w] of unknown origin: "photos" unless all fit another domain."""
    for domain in _METERS:
        meter = load_meter(domain)
        if meter is not None and portraits and all(meter.is_portrait(portrait) for portrait in portraits):
            return domain
    return "photos"


def canvas_layout(flavor: str) -> CanvasLayout:
    """Canvas layout that models of a router flavor ("official" or "paper") are trained with."""
    return "released" if flavor == "official" else "row"
