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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from bya_core.io.media import load_image
from tests.host import graphs
from tests.host.graphs import Graph
from tests.host.server import Server
from tests.host.setup import ROOT, find_host
from tools.workflows.build import MEASURED, text

WORKFLOWS = ROOT / "workflows"
PICTURES = ROOT / "web" / "docs" / "pictures"
TILE = (384, 256)  # pixels of the animation of one video
BEST_ROUTING = 8  # output of BYA Best Take
EVERY = 2  # frames of the video per frame of a thumbnail
log = logging.getLogger(__name__)


def tile(frame: np.ndarray, size: tuple[int, int] = TILE) -> Image.Image:
    """A frame, cropped and resized to `size`."""
    return ImageOps.fit(Image.fromarray(frame), size, Image.Resampling.BICUBIC, centering=(0.5, 0))


def mosaic(rows: Sequence[Sequence[np.ndarray]], size: tuple[int, int] = TILE) -> Image.Image:
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
    width, height = TILE[0] * 2, TILE[1] * 4
    made = Image.new("RGB", (width, height), "#20242c")
    pen = ImageDraw.Draw(made)
    for center, color, turn in ((width * 0.27, "#f2a65a", 1), (width * 0.73, "#5aa9f2", -1)):
        pen.ellipse((center - 85, 330, center + 85, 530), fill=color)
        pen.pieslice((center - 165, 560, center + 165, 1180), 180, 360, fill=color)
        for ring in range(3):
            x, y, radius = center + turn * 62, 440, 48 + 26 * ring
            start, end = (-40, 40) if turn > 0 else (140, 220)
            pen.arc((x - radius, y - radius, x + radius, y + radius), start, end, fill="white", width=7)
    return made.resize((TILE[0], TILE[1] * 2), Image.Resampling.LANCZOS)


def thumbnail(videos: Sequence[np.ndarray], overlays: Sequence[np.ndarray]) -> list[Image.Image]:
    """Frames of an animation: each video with its masks, below it or, for several videos, beside it."""
    length = min(len(frames) for frames in (*videos, *overlays))
    if len(videos) == 1:
        return [mosaic([[videos[0][f]], [overlays[0][f]]]) for f in range(0, length, EVERY)]
    small = (TILE[0] // 2, TILE[1] // 2)
    rows = list(zip(videos, overlays, strict=True))
    return [mosaic([[video[f], masks[f]] for video, masks in rows], small) for f in range(0, length, EVERY)]


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Save as animated WebP. The page asks for .jpg; browsers go by the content of the file."""
    with path.open("wb") as file:
        frames[0].save(
            file, "WEBP", save_all=True, append_images=frames[1:], duration=round(1000 * EVERY / 25), loop=0,
            quality=70, method=4,
        )  # fmt: skip


def save(picture: Image.Image, path: Path) -> None:
    """Save as a small JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").save(path, quality=82, optimize=True)


def with_views(graph: Graph) -> tuple[Graph, dict[str, list[str]]]:
    """A copy that also shows what the help pages and thumbnails need; node ids by kind of picture."""
    views: dict[str, list[str]] = {"frames": [], "overlay": [], "report": [], "faces": [], "refined": [], "single": []}

    def show(name: str, source: str, slot: int = 0) -> None:
        nonlocal graph
        graph, number = graphs.with_node(graph, "PreviewImage", images=[source, slot])
        views[name].append(number)

    for picture in graphs.nodes_of(graph, "BYA_BindingReport"):
        show("report", picture)
    for sampler in [*graphs.nodes_of(graph, "BYA_Sampler"), *graphs.nodes_of(graph, "BYA_BestTake")]:
        routing = graph[sampler]["inputs"].get("routing", [sampler, BEST_ROUTING])
        inputs = {"routing": routing, "masks": [sampler, 3]}
        graph, overlay = graphs.with_node(
            graph, "BYA_MaskOverlay", **inputs, images=[sampler, 0], opacity=0.5, legend=False
        )
        graph, report = graphs.with_node(graph, "BYA_BindingReport", **inputs, frames=[sampler, 0])
        show("frames", sampler)
        show("overlay", overlay)
        show("report", report)
    for dub in graphs.nodes_of(graph, "BYA_Dub"):
        show("frames", dub, 1)
        show("overlay", dub, 4)
    for check in graphs.nodes_of(graph, "BYA_Preflight"):
        show("faces", check, 1)
    for routed in [*graphs.nodes_of(graph, "BYA_EmbeddingRouter"), *graphs.nodes_of(graph, "BYA_MaskRefine")]:
        graph, overlay = graphs.with_node(graph, "BYA_MaskOverlay", routing=[routed, 0], opacity=0.5, legend=True)
        show("refined", overlay)
    for mask in graphs.nodes_of(graph, "GrowMask"):
        graph, picture = graphs.with_node(graph, "MaskToImage", mask=[mask, 0])
        show("single", picture)
    return graph, {name: numbers for name, numbers in views.items() if numbers}


def help_pictures(name: str, seen: dict[str, list[np.ndarray]]) -> None:
    """Images of the help pages."""
    wide = (240, 160)
    if name.startswith("01"):
        save(mosaic([spread(seen["frames"][0], 3)], wide), PICTURES / "scene.jpg")
        save(mosaic([spread(seen["overlay"][0], 3)], wide), PICTURES / "masks.jpg")
        save(Image.fromarray(seen["report"][0][0]), PICTURES / "report.jpg")
    elif name == graphs.REAL:
        save(Image.fromarray(seen["faces"][0][0]), PICTURES / "faces.jpg")
    elif name.startswith("03"):
        save(mosaic([[frames[24] for frames in (seen["refined"][0], seen["refined"][-1])]], (360, 260)),
             PICTURES / "refined.jpg")  # fmt: skip
        save(mosaic([spread(seen["single"][0], 3)], wide), PICTURES / "single.jpg")
    elif name.startswith("05"):
        save(mosaic([spread(seen["overlay"][0], 3)], wide), PICTURES / "three.jpg")
    demo = [np.asarray(load_image(graphs.DEMO / f"{part}.png", "the image")) for part in ("puppet_A", "puppet_B")]
    first = np.asarray(load_image(graphs.DEMO / "first_frame.png", "the image"))
    save(mosaic([[*demo, first]], (200, 200)), PICTURES / "demo.jpg")


def main(wanted: list[str]) -> None:
    figures = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    for name in graphs.NAMES:
        if wanted and not name.startswith(tuple(wanted)):
            continue
        with tempfile.TemporaryDirectory() as folder, Server(find_host(), Path(folder)) as server:
            graph = graphs.load_runnable(name)
            process, started = Path(f"/proc/{server.process.pid}"), server.cpu_seconds()
            (process / "clear_refs").write_text("5")  # resets the peak memory
            run = server.run(graph, seconds=1200)
            seconds = server.cpu_seconds() - started
            peak = int((process / "status").read_text().partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
            if run.ended != "execution_success":
                raise SystemExit(f"{name}: {run.error}")
            shown, views = with_views(graph)  # only the new nodes run
            again = server.run(shown, seconds=600)
            if again.ended != "execution_success":
                raise SystemExit(f"{name}: {again.error}")
            seen = {
                kind: [graphs.shown_images(server, again, number) for number in numbers]
                for kind, numbers in views.items()
            }
        target = WORKFLOWS / f"{name}.jpg"
        frames = 0
        if name == graphs.REAL:
            save(silhouettes(), target)
        elif "frames" not in seen:  # nothing is sampled
            video = graphs.read_video(graphs.DEMO / "two_puppets.mp4").frames
            shown = Image.fromarray(seen["report"][0][0]) if "report" in seen else Image.fromarray(video[0])
            report = np.asarray(ImageOps.pad(shown, TILE, Image.Resampling.LANCZOS, color="#14171c"))
            save_animation(thumbnail([video], [np.repeat(report[None], len(video), axis=0)]), target)
            frames = len(video)
        else:
            save_animation(thumbnail(seen["frames"], seen["overlay"]), target)
            frames = len(seen["frames"][0])
        help_pictures(name, seen)
        if frames:
            figures[name] = (
                f"**Measured** {frames} frames: {seconds:.0f} s of CPU time, {peak:.1f} GB peak memory "
                "including ComfyUI, without GPU, from loading the model to the last node "
                f"({platform.machine()}, ComfyUI 0.30.0)."
            )
        log.info("%s: %.0f s, %.0f s of CPU time, %.2f GB", name, run.seconds, seconds, peak)
        MEASURED.write_text(text({key: figures[key] for key in sorted(figures) if key in graphs.NAMES}), "utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
