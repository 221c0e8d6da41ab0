"""Picture of the how-to page of dubbing: frames of a film, of the dubbed film, and the generated regions.

python -m tools.dub_picture
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from bya_core.pipelines.dub.dub import dub_film
from bya_core.pipelines.dub.film import open_film
from bya_core.pipelines.load import load_model
from bya_core.scene.loader import load_scene
from tools.howto_pictures import for_help_page

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "dub.png"
EVERY, SCALE = 8, 2


def main() -> None:
    """Dub the demo film and save the picture."""
    model, film = load_model("toy"), open_film(ROOT / "demo" / "two_puppets.mp4")
    done = dub_film(film, load_scene(ROOT / "demo" / "dub" / "scene.json", model), model)
    rows = [np.concatenate(list(frames)[::EVERY], axis=1) for frames in (film.frames(), done.frames, done.overlay)]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width * SCALE, sheet.height * SCALE), Image.Resampling.LANCZOS).save(PICTURE, optimize=True)
    for_help_page(PICTURE)
    print(f"Saved {PICTURE}")


if __name__ == "__main__":
    main()
