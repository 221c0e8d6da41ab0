"""Small synthetic puppet videos with ground truth, drawn once for all tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from training.curate import CurateOptions, curate
from training.curation.output import read_index
from training.curation.record import Record
from training.puppets.footage import Shot, Truth, draw_video

RECIPES = Path(__file__).resolve().parents[3] / "training" / "recipes"
HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items):
    """Skip these tests if the packages of the extra "data" are missing."""
    missing = [name for name in ("scenedetect", "cv2", "pyarrow", "pebble", "yaml") if find_spec(name) is None]
    for item in items:
        if missing and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


@dataclass(frozen=True)
class Footage:
    """Folder of videos, a config for them, and the ground truth of each."""

    folder: Path
    config: Path
    truth: dict[str, Truth]


def draw_footage(root: Path, videos: dict[str, list[Shot]], height: int, width: int, **changes: str) -> Footage:
    """Draw videos; `changes` replace texts of the puppet config."""
    (root / "videos").mkdir(parents=True)
    (root / "truth").mkdir()
    truth = {}
    for name, shots in videos.items():
        truth[name] = draw_video(shots, root / "videos" / f"{name}.mp4", height, width)
        truth[name].save(root / "truth" / f"{name}.npz")
    text = (RECIPES / "curation_puppets.yaml").read_text()
    for old, new in {"truth: truth": f"truth: {root / 'truth'}", **changes}.items():
        assert old in text, old
        text = text.replace(old, new)
    (root / "curation.yaml").write_text(text)
    return Footage(root / "videos", root / "curation.yaml", truth)


@pytest.fixture(scope="session")
def footage(tmp_path_factory) -> Footage:
    """Two videos with five shots of 1.4 s; 64x96 clips of 17 or 33 frames; three shots are valid."""
    two = (0.28, 0.72)
    videos = {
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
        "clips_per_shard: 8, reference_size: 96": "clips_per_shard: 2, reference_size: 48",
        "min_face_pixels: 24": "min_face_pixels: 16",
        "min_confidence: 5.0": "min_confidence: 0.5",
    }
    return draw_footage(tmp_path_factory.mktemp("footage"), videos, 160, 240, **changes)


def outcome(folder: Path) -> tuple[dict[str, str], list[dict]]:
    """Hashes of all shards, and the index."""
    shards = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}
    return shards, read_index(folder / "index.parquet")


@pytest.fixture(scope="session")
def reference(footage, tmp_path_factory):
    """An uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("reference") / "out"
    stats = curate(CurateOptions(footage.folder, out, footage.config, workers=0))
    return out, stats, outcome(out)


def clip_at(path: Path, start: int = 25, end: int = 42) -> Record:
    """A clip of 17 frames with two faces."""
    boxes = np.tile(np.array([[[40, 40, 80, 90]], [[150, 40, 190, 90]]], np.float32), (1, end - start + 10, 1))
    data = {
        "context": [start - 5, end + 5], "crop": [0.0, 0.0, 240.0, 160.0], "speaking": [True, True],
        "matrix": [[1, 0], [0, 1]],
    }  # fmt: skip
    record = Record(str(path), path.name, "clip", lineage="t", content="c", start=start, end=end, data=data)
    speeches = np.random.default_rng(0).standard_normal((2, boxes.shape[1] * 640)).astype(np.float32) * 0.1
    return record.with_arrays(boxes=boxes, speeches=speeches)


@pytest.fixture
def clip(footage):
    return clip_at(footage.folder / "a film.mp4")
