"""Run every workflow once: thumbnails, images of the help pages, CPU time and memory.

python -m tools.workflows.measure [NUMBER ...]      # all workflows, or those whose names start with a number
python -m tools.workflows.build                     # writes the figures into the notes
"""

from __future__ import annotations

import json
import logging
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from bya_core.io.media import load_image
from tests.host import graphs
from tests.host.graphs import Graph
from tests.host.server import Run, Server
from tests.host.setup import ROOT, find_host
from tools.workflows.build import MEASURED, text

WORKFLOWS = ROOT / "workflows"
PICTURES = ROOT / "web" / "docs" / "pictures"
THUMBNAIL, TILE = (512, 513), (256, 171)
log = logging.getLogger(__name__)


def tile(frame: np.ndarray, size: tuple[int, int] = TILE) -> Image.Image:
    """A frame, cropped and resized to `size`."""
    return ImageOps.fit(Image.fromarray(frame), size, Image.Resampling.BICUBIC, centering=(0.5, 0))


def mosaic(rows: list[list[np.ndarray]], size: tuple[int, int] = TILE) -> Image.Image:
    """Frames in rows."""
    made = Image.new("RGB", (size[0] * len(rows[0]), size[1] * len(rows)))
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            made.paste(tile(frame, size), (x * size[0], y * size[1]))
    return made


def spread(frames: np.ndarray, count: int) -> list[np.ndarray]:
    """`count` frames, evenly spaced."""
    return [frames[i] for i in np.linspace(2, len(frames) - 3, count).astype(int)]


def silhouettes() -> Image.Image:
    """Thumbnail of the workflow for the released weights, which has not run: two silhouettes."""
    made = Image.new("RGB", (THUMBNAIL[0] * 2, THUMBNAIL[1] * 2), "#20242c")
    pen = ImageDraw.Draw(made)
    for center, color, turn in ((270, "#f2a65a", 1), (754, "#5aa9f2", -1)):
        pen.ellipse((center - 110, 320, center + 110, 570), fill=color)
        pen.pieslice((center - 215, 600, center + 215, 1240), 180, 360, fill=color)
        for ring in range(3):
            x, y, radius = center + turn * 80, 460, 60 + 34 * ring
            start, end = (-40, 40) if turn > 0 else (140, 220)
            pen.arc((x - radius, y - radius, x + radius, y + radius), start, end, fill="white", width=9)
    return made.resize(THUMBNAIL, Image.Resampling.LANCZOS)


def thumbnail(name: str, server: Server, run: Run, graph: Graph) -> Image.Image:
    """Frames of the video, with the masks between them."""
    if name == graphs.REAL:
        return silhouettes()
    saved = graphs.saved_videos(server, run, graph)
    videos = [video.frames for prefix, video in saved.items() if not prefix.endswith("_overlay")]
    masks = [video.frames for prefix, video in saved.items() if prefix.endswith("_overlay")]
    if len(videos) > 1:  # side by side: one column each
        narrow = (THUMBNAIL[0] // len(videos), THUMBNAIL[0] // len(videos) * 2 // 3)
        moments = [(which, share) for share in (0.3, 0.8) for which in (videos, masks)]
        return mosaic([[frames[int(len(frames) * share)] for frames in row] for row, share in moments], narrow)
    if not masks:
        number = graphs.nodes_of(graph, "PreviewImage")[0]
        masks = [np.repeat(graphs.shown_images(server, run, number), 5, axis=0)]
    seen = spread(videos[0], 4)
    return mosaic([seen[:2], spread(masks[0], 2), seen[2:]])


def save(picture: Image.Image, path: Path) -> None:
    """Save as a small JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").save(path, quality=82, optimize=True)


def help_pictures(name: str, server: Server, run: Run, graph: Graph) -> None:
    """Images of the help pages."""
    videos = graphs.saved_videos(server, run, graph)
    shown = graphs.nodes_of(graph, "PreviewImage")
    wide = (240, 160)
    if name.startswith("01"):
        save(mosaic([spread(videos["two_talkers"].frames, 3)], wide), PICTURES / "scene.jpg")
        save(mosaic([spread(videos["two_talkers_overlay"].frames, 3)], wide), PICTURES / "masks.jpg")
        (number,) = shown
        save(Image.fromarray(graphs.shown_images(server, run, number)[0]), PICTURES / "report.jpg")
    elif name == graphs.REAL:
        checks = graphs.nodes_of(graph, "BYA_Preflight")
        (number,) = [number for number in shown if graph[number]["inputs"]["images"][0] in checks]
        save(Image.fromarray(graphs.shown_images(server, run, number)[0]), PICTURES / "faces.jpg")
    elif name.startswith("03"):
        rows = [graphs.shown_images(server, run, number)[:1] for number in shown]
        save(mosaic([[row[0] for row in rows]], (360, 260)), PICTURES / "refined.jpg")
        (number,) = graphs.nodes_of(graph, "MaskPreview")
        save(mosaic([spread(graphs.shown_images(server, run, number), 3)], wide), PICTURES / "single.jpg")
    elif name.startswith("05"):
        save(mosaic([spread(videos["three_characters_overlay"].frames, 3)], wide), PICTURES / "three.jpg")
    demo = [np.asarray(load_image(graphs.DEMO / f"{part}.png", "the image")) for part in ("puppet_A", "puppet_B")]
    first = np.asarray(load_image(graphs.DEMO / "first_frame.png", "the image"))
    save(mosaic([[*demo, first]], (200, 200)), PICTURES / "demo.jpg")


def main(wanted: list[str]) -> None:
    figures = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    for name in graphs.NAMES:
        if wanted and not name.startswith(tuple(wanted)):
            continue
        with tempfile.TemporaryDirectory() as folder, Server(find_host(), Path(folder)) as server:
            graph = graphs.load_runnable(name, server)
            process, started = Path(f"/proc/{server.process.pid}"), server.cpu_seconds()
            (process / "clear_refs").write_text("5")  # resets the peak memory
            run = server.run(graph, seconds=1200)
            seconds = server.cpu_seconds() - started
            peak = int((process / "status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
            if run.ended != "execution_success":
                raise SystemExit(f"{name}: {run.error}")
            save(thumbnail(name, server, run, graph), WORKFLOWS / f"{name}.jpg")
            help_pictures(name, server, run, graph)
            if name != graphs.REAL:
                frames = len(next(iter(graphs.saved_videos(server, run, graph).values())).frames)
                figures[name] = (
                    f"**Measured** {frames} frames: {seconds:.0f} s of CPU time, {peak:.1f} GB peak memory "
                    "including ComfyUI, without GPU, from loading the model to saving the video "
                    f"({platform.machine()}, ComfyUI 0.30.0)."
                )
            log.info("%s: %.0f s, %.0f s of CPU time, %.2f GB", name, run.seconds, seconds, peak)
        MEASURED.write_text(text(figures), encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
