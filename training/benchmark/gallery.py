"""HTML page with the results table and the videos side by side. It has no scripts and no external resources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bya_core.io.atomic import atomic_write
from bya_core.io.media import write_video
from training.puppets.world import SAMPLE_RATE, PuppetClip

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 96rem; padding: 0 1.5rem;
       background: #18181c; color: #eee }
h1 { font-size: 1.5rem; font-weight: 600 } h2 { font-size: 1.1rem; font-weight: 600; margin: 2.2rem 0 .6rem }
p, li { color: #b8b8c0 } table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #46464e; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { color: #b8b8c0; font-weight: 500 }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
figure { margin: 0; background: #24242a; border-radius: 6px; overflow: hidden; border-top: 4px solid #78787f }
figure.good { border-color: #2ea05e } figure.bad { border-color: #c83e3e }
video { width: 100%; display: block; background: #000 } figcaption { padding: .6rem .8rem .8rem; font-size: .85rem }
figcaption b { font-size: .95rem } figcaption p { margin: .3rem 0 0 } a { color: #7db8ff }
"""

Cell = Mapping[str, Any]
"""A video of the gallery: video, and optionally picture (report), good (True, False or None) and words (lines)."""


@dataclass(frozen=True)
class VideoStore:
    """Saves the videos of a suite of puppet scenes, upscaled, as FOLDER/videos/SEED/NAME.mp4."""

    folder: Path
    scale: int = 4

    def path(self, seed: int, name: str) -> Path:
        return self.folder / "videos" / str(seed) / f"{name.replace('/', '-')}.mp4"

    def save(self, clip: PuppetClip, name: str, frames: np.ndarray) -> None:
        """Save frames uint8 [F, H, W, 3] with the audio of the clip."""
        path = self.path(clip.seed, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        upscaled = frames.repeat(self.scale, axis=1).repeat(self.scale, axis=2)
        write_video(path, upscaled, clip.fps, (torch.from_numpy(clip.mix)[None], SAMPLE_RATE))

    def rows(
        self, seeds: Sequence[int], cells: Mapping[str, Mapping[int, Cell]]
    ) -> Iterator[tuple[str, dict[str, Cell]]]:
        """Rows for `write_gallery`: the saved videos of each seed with their cells (name -> seed -> cell)."""
        for seed in seeds:
            row: dict[str, Cell] = {
                name: {"video": self.path(seed, name), **by_seed.get(seed, {})}
                for name, by_seed in cells.items()
                if self.path(seed, name).is_file()
            }
            if row:
                yield f"scene {seed}", row


def write_gallery(
    path: Path,
    title: str,
    table: str,
    rows: Iterable[tuple[str, Mapping[str, Cell]]],
    description: Iterable[str] = (),
) -> None:
    """Write the page.

    Args:
        path: HTML file; videos are linked relative to its folder.
        title: heading.
        table: Markdown table; other lines become paragraphs.
        rows: (name, column -> cell) of each clip.
        description: lines below the heading, such as model, seeds and versions.
    """
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in description), _table(table)]
    for name, cells in rows:
        body.append(f'<h2>{escape(name)}</h2><div class="row">')
        body += [_figure(column, cell, path.parent) for column, cell in cells.items()]
        body.append("</div>")
    head = f'<!doctype html><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    with atomic_write(path) as temporary:
        temporary.write_text(head + "\n".join(body) + "\n", encoding="utf-8")


def _figure(column: str, cell: Cell, folder: Path) -> str:
    states: dict[bool | None, str] = {True: ' class="good"', False: ' class="bad"'}
    state = states.get(cell.get("good"), "")
    words = "".join(f"<p>{escape(line)}</p>" for line in cell.get("words", ()))
    link = f' · <a href="{_url(cell["picture"], folder)}">report</a>' if cell.get("picture") else ""
    video = f'<video src="{_url(cell["video"], folder)}#t=0.1" controls loop preload="metadata"></video>'
    return f"<figure{state}>{video}<figcaption><b>{escape(column)}</b>{link}{words}</figcaption></figure>"


def _url(file: str | Path, folder: Path) -> str:
    return escape(Path(os.path.relpath(file, folder)).as_posix().replace("%", "%25").replace("#", "%23"), quote=True)


def _table(text: str) -> str:
    """Convert Markdown tables to HTML, and other lines to paragraphs."""
    parts = []
    for is_table, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            cells = [[escape(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
            head, *rows = [row for row in cells if any(set(cell) - set("-: ") for cell in row)]
            parts.append(f"<table><tr><th>{'<th>'.join(head)}")
            parts += [f"<tr><td>{'<td>'.join(row)}" for row in rows]
            parts.append("</table>")
        else:
            parts += [f"<p>{escape(line.removeprefix('- '))}</p>" for line in lines if line.strip()]
    return "".join(parts)
