"""Videos made of one photograph (see `record_faces.py`): a face and its tinted mirror image as a second person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

RECORDED = load_file(Path(__file__).parent / "faces.safetensors")
FACE = (51, 40, 145, 146)
"""Rough box of the face in the photograph, 192 x 192 pixels."""
TINT = np.array([0.6, 0.9, 0.75])


def person(size: int, other: bool = False) -> np.ndarray:
    """The photograph uint8 [size, size, 3]; `other`: mirrored and tinted. The face is half as wide."""
    photo = RECORDED["photo"].permute(2, 0, 1)[None].float()
    small = F.interpolate(photo, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    return (small[:, ::-1] * TINT if other else small).round().astype(np.uint8)


def scene(frames: int, height: int = 240, width: int = 320) -> np.ndarray:
    """A smooth background uint8 [F, H, W, 3]."""
    noise = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(3)) * 255
    image = F.interpolate(noise, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    return image.round().byte().expand(frames, -1, -1, -1).numpy().copy()


def put(frame: np.ndarray, image: np.ndarray, x: int, y: int) -> None:
    """Draw an image with its upper left corner at (x, y); parts outside the frame are cut."""
    height, width = frame.shape[:2]
    left, top = max(0, x), max(0, y)
    right, bottom = min(width, x + image.shape[1]), min(height, y + image.shape[0])
    if right > left and bottom > top:
        frame[top:bottom, left:right] = image[top - y : bottom - y, left - x : right - x]
