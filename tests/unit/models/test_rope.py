"""Rotary position embedding."""

from __future__ import annotations

import pytest
import torch

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.models.rope import apply_rotary, rotary_embedding


@pytest.mark.parametrize("head_dim", [4, 8, 10, 16, 24, 32, 64])
def test_products_depend_on_distances_only(head_dim):
    grid = TokenGrid(4, 3, 5)
    table = rotary_embedding(grid, head_dim)
    assert [part.shape for part in table] == [(grid.tokens, head_dim)] * 2
    vector = torch.randn(head_dim, generator=torch.Generator().manual_seed(0))
    rotated = apply_rotary(vector.expand(1, grid.tokens, 1, head_dim), table)[0, :, 0]
    assert torch.allclose(rotated.norm(dim=1), vector.norm(), atol=1e-4)
    field = rotated.view(*grid.shape, head_dim)
    assert torch.allclose(field[0, 0, 1] @ field[1, 2, 3], field[2, 0, 0] @ field[3, 2, 2], atol=1e-4)


def test_matches_diffusers():
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    for rows, columns, base in ((6, 9, (6, 9)), (5, 8, (30, 45)), (9, 4, (30, 45))):
        crop = get_resize_crop_region_for_grid((rows, columns), base[1], base[0])
        expected = get_3d_rotary_pos_embed(32, crop, (rows, columns), 3)
        got = rotary_embedding(TokenGrid(3, rows, columns), 32, base)
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_odd_head_dim_raises():
    with pytest.raises(InputError, match="head_dim"):
        rotary_embedding(TokenGrid(1, 2, 2), 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_complex_and_real_forms_are_equal(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = TokenGrid(2, 3, 3)
    table = rotary_embedding(grid, 10)
    joint = torch.randn(2, 3 + grid.tokens, 2, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    joint.requires_grad_()
    results = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        rotated = apply_rotary(joint[:, 3:], table)  # a view, as in the blocks
        (gradient,) = torch.autograd.grad(rotated.float().square().sum() + rotated.float().sum(), joint)
        results.append((rotated, gradient))
    assert results[0][0].dtype == dtype
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
