"""Small films of puppets with their truth, drawn once for all tests."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from training.curation.puppet_footage import Shot, Truth, make_film

RECIPES = Path(__file__).resolve().parents[3] / "training" / "recipes"
HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items):
    """Without the packages of the extra "data" there is nothing to test here."""
    missing = [name for name in ("scenedetect", "cv2", "pyarrow", "pebble", "yaml") if find_spec(name) is None]
    for item in items:
        if missing and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


@dataclass(frozen=True)
class Films:
    """Folder of films, a recipe for them, and what is known of each."""

    folder: Path
    config: Path
    truth: dict[str, Truth]


def films_in(place: Path, plans: dict[str, list[Shot]], height: int, width: int, **changes: str) -> Films:
    """Draw films; `changes` replace texts of the puppets' recipe."""
    (place / "films").mkdir(parents=True)
    (place / "truth").mkdir()
    truth = {}
    for name, shots in plans.items():
        truth[name] = make_film(shots, place / "films" / f"{name}.mp4", height, width)
        truth[name].save(place / "truth" / f"{name}.npz")
    text = (RECIPES / "curation_puppets.yaml").read_text()
    for old, new in {"truth: truth": f"truth: {place / 'truth'}", **changes}.items():
        assert old in text, old
        text = text.replace(old, new)
    (place / "curation.yaml").write_text(text)
    return Films(place / "films", place / "curation.yaml", truth)


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Films:
    """Two films with five shots of 1.4 seconds, 64x96 clips of 17 or 33 frames; three shots can be kept."""
    two = (0.28, 0.72)
    plans = {
        "a film": [
            Shot(2_000_100, two, 1.4),
            Shot(2_000_101, (0.5,), 1.4, keep=False),
            Shot(2_000_102, two, 1.4, talk="turns"),
        ],
        "ein zweiter Film äöü": [Shot(2_000_103, two, 1.4), Shot(2_000_105, (0.18, 0.5, 0.82), 1.4, 0.2, keep=False)],
    }
    changes = {
        "size: [128, 192]": "size: [64, 96]",
        "lengths: [25,": "lengths: [17,",
        "per_shard: 8, portrait: 96": "per_shard: 2, portrait: 48",
        "face_pixels: 24": "face_pixels: 16",
        "least: 5.0}": "least: 0.5}",
    }
    return films_in(tmp_path_factory.mktemp("small"), plans, 160, 240, **changes)
