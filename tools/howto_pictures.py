"""Pictures of the how-to pages on takes, stereo placement and scripts, drawn from results of the toy model.

    python -m tools.howto_pictures [best-take] [spatial-audio] [script]

The picture of scripts needs the program espeak-ng.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from bya_core.cli.main import main as bya
from bya_core.evaluation.plots import BACKGROUND, MUTED, PANEL, TEXT
from bya_core.grid import TokenGrid
from bya_core.io.overlay import character_color, render_overlay
from bya_core.pipelines.takes import Selection, generate_takes
from bya_core.scene.loader import load_scene
from bya_core.scene.spatial import add_voice, mask_centers
from bya_core.weights.loader import load_bundle
from training.puppets.world import SAMPLE_RATE, make_clip

ROOT = Path(__file__).resolve().parents[1]
DEMO, IMAGES = ROOT / "demo", ROOT / "docs" / "images"
HELP_PAGES = ROOT / "web" / "docs" / "pictures"
TAKES, SEED = 4, 11
SCRIPT = """ADA: Have you seen my umbrella?
BO (quietly): It is raining, isn't it?
(pause 1.5)
ADA: It is. (sighs) And I am late.
(overlap 0.4)
BO: Wait!
"""


def canvas(width: float, height: float) -> Figure:
    """An empty dark figure, in inches at 100 dpi."""
    figure = Figure(figsize=(width, height), dpi=100, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def for_help_page(picture: Path) -> None:
    """A smaller JPEG of a picture, for the help pages in ComfyUI."""
    image = Image.open(picture).convert("RGB")
    image.thumbnail((960, 960), Image.Resampling.LANCZOS)
    image.save(HELP_PAGES / f"{picture.stem}.jpg", quality=85)


def best_take() -> None:
    """All takes of the demo without its first frame, the best first, each with its masks."""
    bundle = load_bundle("toy")
    scene = replace(load_scene(DEMO / "scene.json", bundle.defaults), first_frame=None)
    scene = replace(scene, sampling=replace(scene.sampling, seed=SEED))
    made = generate_takes(scene, bundle, Selection(TAKES, TAKES))
    figure = canvas(9.6, 3.9)
    for place, (take, video) in enumerate(zip(made.rows, made.videos, strict=True)):
        middle = len(video.frames) // 2
        overlay = list(render_overlay(video.frames, video.masks, video.grid))[middle]
        for row, picture in enumerate((video.frames[middle].numpy(), overlay)):
            axes = figure.add_axes((place / TAKES + 0.005, 0.44 - 0.43 * row, 1 / TAKES - 0.01, 0.42))
            axes.imshow(Image.fromarray(picture).resize((384, 256), Image.Resampling.BICUBIC))
            axes.axis("off")
        words = f"{place + 1}. seed {take.seed}\nbound {take.bound:.2f}, margin {take.margin:.2f}"
        figure.text(place / TAKES + 0.015, 0.97, words, color=TEXT, fontsize=10, va="top")
    figure.savefig(IMAGES / "best-take.png")
    for_help_page(IMAGES / "best-take.png")
    print(made.table())


def spatial_audio() -> None:
    """Two people who change places: their masks, and the level of the right over the left channel of each voice."""
    frames, fps = 49, 25.0
    clip = make_clip(2_000_003, 2, num_frames=frames, motion="crossing", talk="overlap")
    grid = TokenGrid.from_pixels(frames, *clip.frames.shape[1:3], space_factor=4)
    masks = grid.pixels_to_tokens(torch.from_numpy(clip.masks))
    centers = mask_centers(masks, grid, frames, fps)
    figure = canvas(9.6, 4.4)
    shown = np.linspace(0, frames - 1, 4).astype(int)
    overlay = list(render_overlay(torch.from_numpy(clip.frames), masks, grid))
    for column, frame in enumerate(shown):
        axes = figure.add_axes((0.08 + 0.227 * column, 0.62, 0.222, 0.36))
        axes.imshow(Image.fromarray(overlay[frame]).resize((384, 256), Image.Resampling.BICUBIC))
        axes.axis("off")
    axes = figure.add_axes((0.08, 0.12, 0.903, 0.46), facecolor=PANEL)
    noise = np.random.default_rng(0).normal(size=round(frames / fps * SAMPLE_RATE))
    for n, center in enumerate(centers):  # noise as a voice, so that the level is defined at every moment
        stereo = np.zeros((2, len(noise)))
        add_voice(stereo, noise, center, SAMPLE_RATE, fps)
        left, right = (stereo.reshape(2, frames, -1) ** 2).mean(axis=2)
        color = np.array(character_color(n)) / 255
        axes.plot(np.arange(frames) / fps, 10 * np.log10(right / left), color=color, lw=2.5)
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set(xlim=(0, (frames - 1) / fps), ylim=(-8.5, 8.5), xlabel="seconds")
    axes.set_ylabel("left      dB      right", color=TEXT)
    axes.xaxis.label.set_color(TEXT)
    axes.tick_params(colors=MUTED)
    figure.savefig(IMAGES / "spatial-audio.png")


def script() -> None:
    """The timeline of the scene of a script."""
    with tempfile.TemporaryDirectory() as folder:
        play, scene = Path(folder) / "play.txt", Path(folder) / "scene.json"
        play.write_text(SCRIPT, encoding="utf-8")
        images = [f"--image={name}={DEMO / f'puppet_{letter}.png'}" for name, letter in (("ADA", "A"), ("BO", "B"))]
        if bya(["script", str(play), "-o", str(scene), *images]):
            raise SystemExit(2)
        bya(["timeline", str(scene), "-o", str(IMAGES / "script.png")])
    for_help_page(IMAGES / "script.png")


PICTURES = {"best-take": best_take, "spatial-audio": spatial_audio, "script": script}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
