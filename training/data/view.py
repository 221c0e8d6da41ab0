"""An HTML sheet of the clips of shards: frames with masks, voices, captions, and what the checker finds.

python -m training.data.view SHARDS -o sheet.html
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.io.overlay import character_color, tint_frame
from training.command_line import OutputPath, run_command
from training.data.check import find_problems
from training.data.clip import ClipSample
from training.data.shards.reader import read_members

FRAMES_PER_CLIP = 3
THUMBNAIL_WIDTH = 240
STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:24px auto;max-width:1180px;color:#1c2430;background:#fff}
h1{font-size:22px}h2{font-size:17px;margin-top:32px}table{border-collapse:collapse}
td,th{padding:3px 10px;text-align:right;border-bottom:1px solid #e4e8ee}td:first-child,th:first-child{text-align:left}
.bar{background:#e4e8ee;width:320px;height:14px}.bar div{background:#3b76c4;height:14px}
.warn{background:#fff1d6;border-left:4px solid #e0a020;padding:8px 12px}
.clip{width:740px;border-bottom:1px solid #e4e8ee;padding-bottom:8px;margin-bottom:18px}
img{display:block;max-width:100%}
.small{color:#5a6676;font-size:12px}
"""


@dataclass(frozen=True)
class Arguments:
    """Show the clips of shards on one self-contained HTML page.

    Args:
        shards: folder of shards, or a single shard.
        output: HTML file.
        clips: number of clips to show, from the beginning.
    """

    shards: tyro.conf.Positional[Path]
    output: OutputPath
    clips: int = 60


def card(sample: ClipSample, details: str) -> str:
    """A clip as HTML: frames with masks, each voice in the color of its character, portraits, caption and details."""
    chosen = np.linspace(0, len(sample.frames) - 1, FRAMES_PER_CLIP).round().astype(int)
    pictures = [tint_frame(sample.frames[k], torch.from_numpy(sample.masks[:, k]), 0.4) for k in chosen]
    height = max(1, round(THUMBNAIL_WIDTH * pictures[0].shape[0] / pictures[0].shape[1]))
    pictures = [np.asarray(Image.fromarray(each).resize((THUMBNAIL_WIDTH, height))) for each in pictures]
    portraits = [np.asarray(Image.fromarray(each).resize((height, height))) for each in sample.portraits]
    rows = [np.concatenate([*pictures, *portraits], axis=1)]
    scale = max(1e-3, float(np.abs(sample.speeches).max(initial=0.0)))
    for m, speech in enumerate(sample.speeches if sample.speeches.shape[1] else ()):
        color = character_color(int(sample.matrix[m].argmax())) if sample.matrix[m].any() else (128, 128, 128)
        rows.append(_envelope(speech / scale, rows[0].shape[1], color))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "JPEG", quality=80)
    text = f'<div>{html.escape(sample.caption)}</div><div class="small">{html.escape(details)}</div>'
    return f'<div class="clip">{embed_image(buffer, "jpeg")}{text}</div>'


def _envelope(speech: np.ndarray, width: int, color: tuple[int, int, int], height: int = 26) -> np.ndarray:
    """Peak envelope of a waveform in -1..1 as uint8 [height, width, 3]."""
    peaks = np.array([np.abs(piece).max(initial=0.0) for piece in np.array_split(speech, width)])
    inside = np.abs(np.arange(height) - (height - 1) / 2)[:, None] <= np.maximum(0.5, peaks * height / 2)
    return np.where(inside[..., None], np.array(color, np.uint8), np.uint8(255))


def embed_image(buffer: io.BytesIO, kind: str = "png") -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="">'


def sheet(source: Path, limit: int) -> str:
    """The page.

    Raises:
        InputError: no shards, or no readable clip.
    """
    broken: list[str] = []
    cards = list(islice(_cards(source, broken), limit))
    if not cards:
        raise InputError(f"no readable clip in {source}", "shards of clips", "run python -m training.data.check")
    lines = [f'<p class="warn">{html.escape(text)}</p>' for text in broken]
    name = html.escape(str(source))
    head = f"<!doctype html><meta charset=utf-8><title>{name}</title><style>{STYLE}</style><h1>{name}</h1>"
    return head + "".join([*lines, *cards])


def _cards(source: Path, broken: list[str]) -> Iterator[str]:
    for sample, members in read_members(source, "skip", broken):
        size = f"{len(sample.frames)} frames of {sample.frames.shape[2]}x{sample.frames.shape[1]} at {sample.fps:g} fps"
        matrix = f"matrix {sample.matrix.astype(int).tolist()}"
        problems = "".join(f'<p class="warn">{html.escape(each.text)}</p>' for each in find_problems(sample, members))
        yield card(sample, f"{sample.key}: {size}, {matrix}") + problems


def main(arguments: Arguments) -> None:
    """Write the page."""
    text = sheet(arguments.shards, arguments.clips)
    with atomic_write(arguments.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    run_command(main, Arguments)
