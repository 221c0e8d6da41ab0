"""Fused kernel for NVIDIA GPUs: sum_n mask_n softmax(q k_n^T) v_n without its weights in memory, forward only.

One program computes a tile of tokens of one head: the query is read once, and the keys of one character after the
other pass through a running softmax; each character's result is weighted by its mask and added up in float32. A
character whose mask is zero in the whole tile costs that tile one look at the mask. Queries, keys, values and masks
may have any strides.

Importing this module imports triton. With TRITON_INTERPRET=1 set before, the kernel runs on a processor.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD_DIMS = (16, 32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LEADING = 3  # axes before the tokens, each with a stride of its own


@triton.jit
def _kernel(
    query, key, value, mask, out,
    size_1, size_2, tokens, characters, keys,
    q0, q1, q2, q_token, q_channel,
    k0, k1, k2, k_character, k_key, k_channel,
    v0, v1, v2, v_character, v_key, v_channel,
    m0, m1, m2, m_token, m_character,
    o0, o1, o2, o_token, o_channel,
    DIM: tl.constexpr, TILE: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)  # all leading axes in one, which may be many numbers apart
    at_2, rest = head % size_2, head // size_2
    at_1, at_0 = rest % size_1, rest // size_1
    query += at_0 * q0 + at_1 * q1 + at_2 * q2
    key += at_0 * k0 + at_1 * k1 + at_2 * k2
    value += at_0 * v0 + at_1 * v1 + at_2 * v2
    mask += at_0 * m0 + at_1 * m1 + at_2 * m2
    out += at_0 * o0 + at_1 * o1 + at_2 * o2

    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    channel = tl.arange(0, DIM)
    inside = token < tokens
    q = tl.load(query + token[:, None] * q_token + channel[None, :] * q_channel, mask=inside[:, None], other=0.0)
    total = tl.zeros([TILE, DIM], dtype=tl.float32)
    for n in range(characters):
        weight = tl.load(mask + token * m_token + n * m_character, mask=inside, other=0.0).to(tl.float32)
        if tl.sum((weight != 0.0).to(tl.int32), axis=0) > 0:
            highest = tl.full([TILE], float("-inf"), dtype=tl.float32)
            mass = tl.zeros([TILE], dtype=tl.float32)
            read = tl.zeros([TILE, DIM], dtype=tl.float32)
            for start in range(0, keys, KEYS):
                at = start + tl.arange(0, KEYS)
                there = at < keys
                k = tl.load(
                    key + n * k_character + at[None, :] * k_key + channel[:, None] * k_channel,
                    mask=there[None, :],
                    other=0.0,
                )
                v = tl.load(
                    value + n * v_character + at[:, None] * v_key + channel[None, :] * v_channel,
                    mask=there[:, None],
                    other=0.0,
                )
                scores = tl.where(there[None, :], tl.dot(q, k, input_precision=PRECISION), float("-inf"))
                above = tl.maximum(highest, tl.max(scores, axis=1))
                before = tl.exp(highest - above)
                share = tl.exp(scores - above[:, None])
                mass = mass * before + tl.sum(share, axis=1)
                read = read * before[:, None] + tl.dot(share.to(v.dtype), v, input_precision=PRECISION)
                highest = above
            total += read * (weight / mass)[:, None]
    place = out + token[:, None] * o_token + channel[None, :] * o_channel
    tl.store(place, total.to(out.dtype.element_ty), mask=inside[:, None])


INTERPRETED = not isinstance(_kernel, triton.JITFunction)


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel is made for these."""
    alike = query.dtype == key.dtype == value.dtype and query.dtype in DTYPES
    if INTERPRETED and query.dtype == torch.bfloat16:  # triton's interpreter cannot multiply them
        return False
    near = query.shape[-2] * query.stride(-2) < 2**31  # within a head, places are 32-bit numbers
    shapes = query.shape[-1] in HEAD_DIMS and query.dim() - 2 <= LEADING and key.shape[:-3] == query.shape[:-2]
    return alike and near and shapes


def sizes(tokens: int, keys: int, dim: int) -> dict[str, int]:
    """Of a program: what fits into its registers without spilling, as ptxas counts them for capability 8.0."""
    largest, warps = (128, 8) if dim <= 64 else (32, 4)
    tile = min(largest, max(16, triton.next_power_of_2(tokens)))
    return {"DIM": dim, "TILE": tile, "KEYS": min(64, max(16, triton.next_power_of_2(keys))), "num_warps": warps}


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """As `masked_attention.plain`, for what `fits`; not differentiable."""
    *leading, tokens, dim = query.shape
    characters, keys = key.shape[-3:-1]
    mask = mask.expand(*leading, tokens, characters)
    out = torch.empty_like(query)
    more = (None,) * (LEADING - len(leading))  # missing leading axes have one entry
    q, k, v, m, o = (x[more] for x in (query, key, value, mask, out))
    size_0, size_1, size_2 = q.shape[:LEADING]
    size = sizes(tokens, keys, dim)
    _kernel[(triton.cdiv(tokens, size["TILE"]), size_0 * size_1 * size_2)](
        q, k, v, m, o,
        size_1, size_2, tokens, characters, keys,
        *q.stride(), *k.stride(), *v.stride(), *m.stride(), *o.stride(),
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        **size,
    )  # fmt: skip
    return out
