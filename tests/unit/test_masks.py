"""Character masks, audio masks and mask control."""

from __future__ import annotations

import pytest
import torch

from bya_core import masks
from bya_core.errors import InputError

GRID = (3, 4, 5)


def random_masks(characters: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, characters, *GRID, generator=torch.Generator().manual_seed(characters))


def test_audio_masks_follow_the_matrix():
    given = random_masks(2)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(2, 2, 2)
    assert torch.equal(masks.audio_masks(given, None, inflate=False), given)
    assert torch.equal(masks.audio_masks(given, swap, inflate=False), given.flip(1))


def test_inflated_masks_exclude_the_other_streams():
    given = random_masks(2)
    assert torch.allclose(masks.audio_masks(given, None, inflate=True), 1 - given.flip(1))
    assert torch.equal(masks.audio_masks(random_masks(1), None, inflate=True), torch.ones(2, 1, *GRID))
    three = random_masks(3)
    got = masks.audio_masks(three, None, inflate=True)
    assert torch.allclose(got[:, 0], (1 - three[:, 1] - three[:, 2]).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("characters", [2, 3])
def test_inflation_matches_released_code(characters):
    """Released code: the masks of the two streams are swapped and subtracted from one."""
    given = random_masks(characters)
    draw = torch.Generator().manual_seed(7)
    for matrix in (torch.rand(2, 2, characters, generator=draw), torch.zeros(2, 2, characters)):
        masks_of_streams = torch.einsum("bmn,bn...->bm...", matrix, given)
        released = (1 - masks_of_streams.flip(1)).clamp(0, 1)
        assert torch.allclose(masks.audio_masks(given, matrix, inflate=True), released, atol=1e-6)


@pytest.mark.parametrize("characters", [1, 2, 3, 4])
def test_inflation_affects_the_background_only(characters):
    owner = torch.randint(-1, characters, (1, *GRID), generator=torch.Generator().manual_seed(3))
    given = torch.stack([(owner == n).float() for n in range(characters)], 1)
    plain, inflated = (masks.audio_masks(given, None, inflate=inflate) for inflate in (False, True))
    background = (owner == -1).unsqueeze(1).expand_as(given)
    assert background.any() and (plain[background] == 0).all() and (inflated[background] == 1).all()
    for audio in (plain, inflated):
        assert torch.equal(audio[~background], given[~background])


def test_boxes():
    given = torch.zeros(2, 3, 4, 5)
    given[0, 0, 1, 1] = given[0, 0, 2, 3] = 0.7
    given[1, 0, 2, 2:] = 0.7
    given[1, 2, 0, 0] = 0.5  # not above one half
    boxes = masks.to_boxes(given)
    assert boxes[0, 0].tolist() == [[0] * 5, [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0] * 5]
    assert boxes[1, 0, 2].tolist() == [0, 0, 1, 1, 1] and boxes[:, 0].sum(0).max() == 2
    assert boxes[:, 1:].sum() == 0 and torch.equal(masks.to_boxes(boxes), boxes)
    assert torch.equal(masks.to_boxes(given[None]), boxes[None])


def test_more_streams_than_characters():
    given, matrix = random_masks(1), torch.tensor([[[1.0], [0.0]]]).expand(2, 2, 1)
    got = masks.audio_masks(given, matrix, inflate=False)
    assert torch.equal(got[:, :1], given) and got[:, 1].abs().max() == 0


def test_blend():
    router, override = random_masks(2), random_masks(2).flip(0)
    assert torch.equal(masks.blend_masks(router, None, 0.5), router)
    assert torch.equal(masks.blend_masks(router, override, None), override)
    assert torch.allclose(masks.blend_masks(router, override, 0.0), router)
    assert torch.allclose(masks.blend_masks(router, override, 1.0), override)
    per_character = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)
    got = masks.blend_masks(router, override, per_character)
    assert torch.allclose(got[:, 0], router[:, 0]) and torch.allclose(got[:, 1], override[:, 1])


def test_time_union():
    given = random_masks(2)
    union = masks.time_union(given)
    assert union.shape == given.shape and (union >= given).all()
    assert torch.equal(union[:, :, 0], union[:, :, -1])


def test_mask_control_range():
    control = masks.MaskControl(random_masks(2)[0], end_percent=torch.tensor([0.5, 1.0]))
    assert control.is_active and control.strength.tolist() == [1, 1] and control.start_percent.tolist() == [0, 0]
    early, late = control.at(0.25), control.at(0.75)
    assert early is not None and early[1] is None
    assert late is not None and late[1].flatten().tolist() == [0, 1]
    off = masks.MaskControl(random_masks(2)[0], torch.tensor(0.0))
    assert not off.is_active and off.at(0.5) is None


def test_mask_control_per_latent_frame():
    control = masks.MaskControl(random_masks(2)[0], torch.tensor([1.0, 0.0, 0.0]).expand(2, 3))
    assert control.at(0.0)[1].shape == (2, 3, 1, 1)
    assert control.latent_frames(slice(1, 3)).at(0.0) is None
    assert control.latent_frames(slice(0, 1)).at(0.0)[1] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"masks": torch.zeros(3, 4, 5)}, "masks of shape"),
        ({"masks": torch.full((2, 3, 4, 5), torch.nan)}, "masks with values outside"),
        ({"strength": torch.ones(3)}, "mask strength of shape"),
        ({"strength": torch.full((2,), -0.1)}, "mask strength with values outside"),
        ({"end_percent": torch.tensor(1.5)}, "mask end_percent with values outside"),
        ({"start_percent": torch.tensor(0.5), "end_percent": torch.tensor(0.5)}, "start_percent < end_percent"),
    ],
)
def test_mask_control_is_validated(values, message):
    with pytest.raises(InputError, match=message):
        masks.MaskControl(**{"masks": torch.zeros(2, 3, 4, 5)} | values)
