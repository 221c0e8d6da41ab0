"""The animation of the README: the frames of the demo next to the same frames with their masks.

make demo && .venv/bin/python tools/demo_picture.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from bya_core.io.media import read_video

ROOT = Path(__file__).resolve().parents[1]
WIDTH, FPS = 400, 25


def frames(path: Path) -> list[Image.Image]:
    """All frames of a video, `WIDTH` pixels wide."""
    images = [Image.fromarray(frame.numpy()) for frame in read_video(path)[0]]
    height = round(images[0].height * WIDTH / images[0].width)
    return [image.resize((WIDTH, height), Image.Resampling.BICUBIC) for image in images]


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two images side by side, top-aligned."""
    joined = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "#18181c")
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width, 0))
    return joined


if __name__ == "__main__":
    video, masks = (frames(ROOT / "demo" / name) for name in ("talk.mp4", "masks.mp4"))
    first, *rest = [beside(*pair) for pair in zip(video, masks, strict=True)]
    target = ROOT / "docs" / "images" / "demo.webp"
    first.save(target, save_all=True, append_images=rest, duration=1000 // FPS, loop=0, quality=70, method=4)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1e6:.2f} MB")
