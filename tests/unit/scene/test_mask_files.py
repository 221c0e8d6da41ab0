"""Masks of files: matched by name, told what is missing, and asked about where a shape has two meanings."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bya_core.errors import InputError
from bya_core.io.arrays import MAX_BYTES
from bya_core.scene.loader import load_scene
from bya_core.scene.types import Scene, SceneDefaults

DEFAULTS = SceneDefaults(height=64, width=96, max_frames=9, size_unit=16, time_factor=4)
T, F = 3, 9
LEFT = np.zeros((4, 6), np.float32)
LEFT[:, :3] = 1
BOTH = np.stack([np.stack([LEFT] * T), np.stack([1 - LEFT] * T)])  # Ada on the left, Bo on the right


@pytest.fixture
def load(make_scene: Any, tmp_path: Path) -> Any:
    """Loads a scene of 9 frames whose router.masks, or the mask of Ada, is an npz file with the given arrays."""

    def read(own: bool = False, length: int = F, **arrays: Any) -> Scene:
        np.savez(tmp_path / "scene" / "given.npz", **arrays)
        return read_file(own, length)

    def read_file(own: bool = False, length: int = F) -> Scene:
        cast = [{"name": name, "image": f"{name.lower()}.png"} for name in ("Ada", "Bo")]
        if own:
            cast[0]["mask"] = "given.npz"
            return load_scene(make_scene(characters=cast, length=length), DEFAULTS)
        router = {"mode": "intra", "masks": "given.npz"}
        return load_scene(make_scene(characters=cast, length=length, router=router), DEFAULTS)

    read.file = read_file
    return read


def masks_of(scene: Scene) -> torch.Tensor:
    assert scene.mask_control is not None
    return scene.mask_control.masks


@pytest.mark.parametrize("kind", [np.str_, np.bytes_])
@pytest.mark.parametrize("names", [["Bo", "Ada"], [" bo", "ADA "]])
@pytest.mark.parametrize("static", [False, True])
def test_router_masks_are_matched_by_name(names: list[str], kind: Any, static: bool, load: Any) -> None:
    stored = BOTH[::-1, 0] if static else BOTH[::-1]
    scene = load(masks=stored, names=np.array(names, dtype=kind))
    torch.testing.assert_close(masks_of(scene), torch.from_numpy(BOTH))
    assert not scene.notices


def test_order_is_told_without_names(load: Any) -> None:
    scene = load(masks=BOTH)
    torch.testing.assert_close(masks_of(scene), torch.from_numpy(BOTH))
    (notice,) = scene.notices
    assert "no names" in notice and 'order "Ada", "Bo"' in notice


def test_further_characters_are_told(load: Any) -> None:
    scene = load(masks=np.concatenate([BOTH, BOTH[:1]]), names=["Bo", "Cy", "Ada"])
    assert torch.equal(masks_of(scene)[0], torch.from_numpy(BOTH[0]))
    assert '"Cy"' in scene.notices[0] and "not used" in scene.notices[0]


def test_names_that_differ_by_case_are_not_confused(make_scene: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "scene" / "given.npz", masks=BOTH, names=["ada", "Ada"])
    cast = [{"name": name, "image": "ada.png"} for name in ("Ada", "ada")]
    scene = load_scene(make_scene(characters=cast, length=F, router={"masks": "given.npz"}), DEFAULTS)
    assert torch.equal(masks_of(scene)[1], torch.from_numpy(BOTH[0]))


def test_one_empty_mask_is_told_and_all_are_refused(load: Any) -> None:
    scene = load(masks=BOTH * np.array([1, 0]).reshape(2, 1, 1, 1), names=["Ada", "Bo"])
    assert any("of Bo is empty" in notice for notice in scene.notices)
    with pytest.raises(InputError, match='of "Ada", "Bo" is empty'):
        load(masks=0 * BOTH, names=["Ada", "Bo"])


@pytest.mark.parametrize(("key", "shape"), [("masks", (2, 4, 6)), ("masks", (2, 64, 96))])
def test_two_meanings_are_asked_about(key: str, shape: tuple[int, ...], load: Any) -> None:
    """A video of 5 frames has 2 latent frames, and the scene 2 characters."""
    halves = np.zeros(shape, np.float32)
    halves[0, :, : shape[2] // 2] = halves[1, :, shape[2] // 2 :] = 1
    with pytest.raises(InputError, match=r'2 frames or 2 characters.*"mask".*"names"'):
        load(own=True, length=5, **{key: halves})
    frames = masks_of(load(own=True, length=5, mask=halves))[0]
    assert torch.equal(frames, torch.from_numpy(np.stack([LEFT, 1 - LEFT])))
    named = masks_of(load(own=True, length=5, masks=halves, names=["Ada", "Bo"]))[0]
    assert torch.equal(named, torch.from_numpy(np.stack([LEFT, LEFT])))
    ordered = load(own=True, length=F, **{key: halves})  # 3 latent frames: only one meaning
    assert torch.equal(masks_of(ordered)[0], torch.from_numpy(BOTH[0])) and "no names" in ordered.notices[0]
    with pytest.raises(InputError, match="2 frames or 2 characters"):
        load(length=5, mask=halves)


def test_masks_of_one_window(load: Any) -> None:
    """They act in their latent frames only."""
    scene = load(length=33, masks=BOTH[:, :2], names=["Ada", "Bo"], start=4)
    control = scene.mask_control
    assert control is not None and control.strength.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0, 0]] * 2
    assert control.latent_frames(slice(0, 3)).is_active is False and control.latent_frames(slice(4, 6)).is_active
    with pytest.raises(InputError, match="latent frames 8 to 10"):
        load(length=33, masks=BOTH[:, :2], names=["Ada", "Bo"], start=8)


NAN = np.where(LEFT > 0, np.nan, 0)
DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({"masks": BOTH, "names": ["Ada", "Cy"]}, '"Ada", "Cy"; expected a mask of "Ada", "Bo"'),
    ({"masks": BOTH[:1], "names": ["Ada"]}, 'is of "Ada"; expected a mask of "Ada", "Bo"'),
    ({"masks": BOTH, "names": ["Ada", "Ada"]}, '"Ada" twice'),
    ({"masks": BOTH, "names": ["Ada", "Bo", "Cy"]}, "with 3 names"),
    ({"masks": BOTH, "names": np.array([["Ada"], ["Bo"]])}, "one text per mask"),
    ({"masks": BOTH, "names": np.array([1.5, 2.5])}, "one text per mask"),
    ({"masks": BOTH, "names": np.array(["Ada", None], dtype=object)}, "Python objects"),
    ({"masks": np.array([1, "x"], dtype=object)}, "Python objects"),
    ({"masks": np.full((2, 4, 6), "1")}, "of type"),
    ({"masks": BOTH.astype(np.complex64)}, "of type complex64"),
    ({"masks": np.stack([NAN, NAN])}, "NaN"),
    ({"masks": BOTH * 255}, "divide them by 255"),
    ({"masks": BOTH - 0.5}, "outside 0..1"),
    ({"masks": np.zeros((0, 4, 6))}, "0 x 4 x 6"),
    ({"masks": np.zeros((2, 3, 0, 6))}, "2 x 3 x 0 x 6"),
    ({"masks": np.float32(1)}, "a single number"),
    ({"masks": LEFT}, "1 x 4 x 6|4 x 6"),
    ({"masks": np.concatenate([BOTH, BOTH])}, "2 along the first axis"),
    ({"masks": BOTH.swapaxes(0, 1)}, "swap the first two axes"),
    ({"masks": np.moveaxis(BOTH[:, 0], 0, 2)}, "move the last axis to the front"),
    ({"masks": BOTH[:, :2]}, "with 2 frames"),
    ({"masks": BOTH[None]}, "1 x 2 x 3 x 4 x 6"),
    ({"other": BOTH}, "cannot be read"),
    ({"masks": BOTH, "names": ["Ada", "Bo"], "start": [0, 1]}, "one latent frame"),
]


@pytest.mark.parametrize(("arrays", "problem"), DAMAGED)
def test_invalid_files_are_one_sentence(arrays: dict[str, Any], problem: str, load: Any) -> None:
    for own in (False, True):
        if own and arrays.get("names") is not None and "Ada" in list(np.asarray(arrays["names"]).flat):
            continue  # Ada's mask is in the file
        if own and "masks" in arrays and np.asarray(arrays["masks"]).shape == (4, 6):
            continue  # a valid mask of one character
        with pytest.raises(InputError) as raised:
            load(own=own, **arrays)
        assert "\n" not in str(raised.value)
        if not own:
            assert raised.match(problem)


def header(shape: str) -> bytes:
    out = io.BytesIO()
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (117 - len(text)) + "\n"
    out.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    return out.getvalue()


@pytest.mark.parametrize("shape", ["(2, 3, 99999999, 99999999)", "(2, 3, 64, 96)", "(-1, 3, 4)", "('a',)", "(2,"])
def test_lying_headers(shape: str, load: Any, tmp_path: Path) -> None:
    path = tmp_path / "scene" / "given.npz"
    for own in (False, True):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("masks.npy", header(shape) + b"\0" * 100)
        with pytest.raises(InputError):
            load.file(own)


def test_size_is_bounded(load: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scene" / "given.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("masks.npy", header(f"(2, 1, {MAX_BYTES // 8 + 1}, 1)"))
    with pytest.raises(InputError, match="at most 537 MB"):
        load.file()


def test_folders_and_pictures(make_scene: Any, tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    (folder / "frames").mkdir()
    Image.new("L", (8, 8)).save(folder / "frames" / "1.png")
    for router in ({"masks": "frames"}, {"masks": "ada.png"}, {"masks": "missing.npz"}):
        with pytest.raises(InputError):
            load_scene(make_scene(length=F, router=router), DEFAULTS)
