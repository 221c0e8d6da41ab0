"""The picture of a dubbed film: the part that the model sees, soft regions, and the composition with the film."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bya_core.config import DubConfig
from bya_core.pipelines.dub.people import People
from bya_core.pipelines.dub.picture import Box, Regions, choose_box, compose, scaled

SIZE = (60, 90)


def people(
    *centers: tuple[float, float], side: float = 20.0, frames: int = 9, masks: np.ndarray | None = None
) -> People:
    """People with faces of `side` pixels around centers (x, y)."""
    boxes = np.array([[[x, y - side / 2, side, side]] * frames for x, y in centers])
    if masks is None:
        masks = np.zeros((len(centers), frames, *SIZE), dtype=bool)
    return People(boxes, np.zeros(boxes.shape[:2]), masks)


def regions(found: People, dubbed: tuple[int, ...] = (0,), **config: object) -> Regions:
    return Regions(found, dubbed, DubConfig(**config), SIZE)  # type: ignore[arg-type]


def test_mouth_is_in_the_lower_half_of_the_face() -> None:
    alpha = regions(people((30, 30)), feather=0).alpha(0)
    rows, columns = np.nonzero(alpha)
    assert set(np.unique(alpha)) == {0.0, 1.0}
    assert rows.min() >= 29 and 34 < rows.mean() < 38 and abs(columns.mean() + 0.5 - 30) < 0.6


def test_feather_widens_the_region_by_its_pixels() -> None:
    hard, soft = (regions(people((45, 30)), feather=width).alpha(0) for width in (0, 5))
    assert (soft[hard > 0] == 1).all()
    near = np.hypot(*np.meshgrid(np.arange(-9, 10), np.arange(-9, 10)))
    for y, x in zip(*np.nonzero((soft > 0) & (hard == 0)), strict=True):
        around = hard[y - 9 : y + 10, x - 9 : x + 10]
        distance = near[: around.shape[0], : around.shape[1]][around > 0].min()
        assert distance < 6 and soft[y, x] == pytest.approx(1 - distance / 6, abs=1e-5)


def test_head_contains_the_mouth_and_a_turned_head_moves_it() -> None:
    found = people((45, 30))
    mouth, head = (regions(found, region=name, feather=0).alpha(0) > 0 for name in ("mouth", "head"))
    assert head.sum() > 2 * mouth.sum() and (head & mouth).sum() > 0.9 * mouth.sum()
    turned = People(found.boxes, found.roll + 0.5, found.masks)
    columns = np.nonzero(regions(turned, feather=0).alpha(0))[1]
    assert columns.mean() < np.nonzero(mouth)[1].mean() - 1, "clockwise: the chin moves to the left"


def test_people_who_keep_their_voice_are_never_in_the_region() -> None:
    masks = np.zeros((2, 9, *SIZE), dtype=bool)
    masks[1, :, :, 32:] = True
    alpha = regions(people((30, 30), (50, 30), masks=masks)).alpha(0)
    assert alpha[:, :32].any() and not alpha[:, 32:].any()


def test_given_masks_are_the_region() -> None:
    masks = np.zeros((1, 9, *SIZE), dtype=bool)
    masks[0, :, 10:20, 5:9] = True
    alpha = regions(people((30, 30), masks=masks), region="given", feather=0).alpha(3)
    assert np.array_equal(alpha > 0, masks[0, 3])


def test_nothing_is_generated_where_a_face_is_not_visible() -> None:
    found = people((30, 30))
    found.boxes[0, 4] = np.nan
    assert not regions(found).alpha(4).any() and regions(found).alpha(3).any()


@pytest.mark.parametrize("fps", [25.0, 24.0, 50.0])
def test_pixels_outside_are_those_of_the_film(fps: float) -> None:
    film = np.random.default_rng(0).integers(0, 256, (16, *SIZE, 3), dtype=np.uint8)
    made = torch.zeros(17, *SIZE, 3, dtype=torch.uint8)
    soft = regions(people((30, 30), frames=17))
    done = list(compose(film, fps, made, 25.0, Box(0, 0, 90, 60), soft))
    assert len(done) == 16
    for source, (frame, weight) in zip(film, done, strict=True):
        assert frame.dtype == np.uint8 and np.array_equal(frame[weight == 0], source[weight == 0])
        assert not frame[weight == 1].any(), "inside are the generated pixels"
        assert (frame[weight > 0] <= source[weight > 0]).all()


def test_frames_between_two_generated_ones_are_mixed() -> None:
    made = torch.stack([torch.full((*SIZE, 3), value, dtype=torch.uint8) for value in (0, 100, 200)])
    film = np.zeros((5, *SIZE, 3), np.uint8)
    done = list(compose(film, 50.0, made, 25.0, Box(0, 0, 90, 60), regions(people((30, 30), frames=3))))
    assert [int(frame[weight == 1].mean()) for frame, weight in done] == [0, 50, 100, 150, 200]


def test_generated_part_is_put_back_where_it_was_cut() -> None:
    film = np.zeros((1, *SIZE, 3), np.uint8)
    film[0, 38, 30] = 255
    box = Box(12, 20, 36, 24)
    model = torch.from_numpy(scaled(box.cut(film[0]), (48, 72))).to(torch.uint8)
    frame, _ = next(compose(film, 25.0, [model], 25.0, box, regions(people((30, 30)))))
    y, x = np.unravel_index(frame[..., 0].argmax(), SIZE)
    assert (y, x) == (38, 30)


def test_model_sees_the_whole_film_or_the_part_around_the_people() -> None:
    everyone = choose_box(people((20, 30), (70, 30)), SIZE, (64, 96))
    assert everyone == Box(0, 0, 90, 60)
    large = choose_box(people((300, 300), side=60), (720, 1280), (64, 96))
    assert large.width / large.height == pytest.approx(1.5, rel=0.02) and large.inside((720, 1280))
    assert large.left < 250 and large.left + large.width > 350 and large.width < 500


def test_film_of_another_shape_is_padded_if_the_people_need_it() -> None:
    box = choose_box(people((10, 400), (290, 60), side=40), (480, 300), (64, 96))
    assert box.height >= 400 and not box.inside((480, 300))
    frame = np.arange(480 * 300, dtype=np.float32).reshape(480, 300)
    assert box.cut(frame).shape == (box.height, box.width)
