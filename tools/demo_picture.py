"""The picture in the README: a few frames of the demo, above them as they are, below with the masks that acted.

make demo && .venv/bin/python tools/demo_picture.py
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 5


def frames(path: Path) -> list[Image.Image]:
    """All frames of a video."""
    with av.open(str(path)) as video:
        return [frame.to_image() for frame in video.decode(video=0)]


def strip(pictures: list[Image.Image], width: int) -> np.ndarray:
    """`COLUMNS` frames, evenly spread over the video, side by side and each `width` pixels wide."""
    chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, COLUMNS).astype(int)]
    height = round(chosen[0].height * width / chosen[0].width)
    return np.concatenate([np.asarray(p.resize((width, height), Image.Resampling.NEAREST)) for p in chosen], axis=1)


if __name__ == "__main__":
    rows = [strip(frames(ROOT / "demo" / name), 240) for name in ("talk.mp4", "masks.mp4")]
    Image.fromarray(np.concatenate(rows)).save(ROOT / "docs" / "images" / "demo.png", optimize=True)
