"""Fused Triton kernel for masked attention: sum_n mask_n softmax(q k_n^T) v_n, forward only.

Each program computes a tile of tokens of one head. It reads the query once, streams the keys of one character after the
other through an online softmax, and accumulates the results weighted by the masks in float32. Characters whose mask is
zero in the whole tile are skipped. Queries, keys, values and masks may have any strides.

Importing this module imports Triton. With TRITON_INTERPRET=1 set before, the kernel runs on a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD_DIMS = (16, 32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LEADING = 3  # axes before the tokens, each with its own stride


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
    head = tl.program_id(1).to(tl.int64)  # all leading axes; 64-bit because of their strides
    index_2, rest = head % size_2, head // size_2
    index_1, index_0 = rest % size_1, rest // size_1
    query += index_0 * q0 + index_1 * q1 + index_2 * q2
    key += index_0 * k0 + index_1 * k1 + index_2 * k2
    value += index_0 * v0 + index_1 * v1 + index_2 * v2
    mask += index_0 * m0 + index_1 * m1 + index_2 * m2
    out += index_0 * o0 + index_1 * o1 + index_2 * o2

    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    channel = tl.arange(0, DIM)
    in_range = token < tokens
    q = tl.load(query + token[:, None] * q_token + channel[None, :] * q_channel, mask=in_range[:, None], other=0.0)
    total = tl.zeros([TILE, DIM], dtype=tl.float32)
    for n in range(characters):
        weight = tl.load(mask + token * m_token + n * m_character, mask=in_range, other=0.0).to(tl.float32)
        if tl.sum((weight != 0.0).to(tl.int32), axis=0) > 0:
            running_max = tl.full([TILE], float("-inf"), dtype=tl.float32)
            denominator = tl.zeros([TILE], dtype=tl.float32)
            accumulator = tl.zeros([TILE, DIM], dtype=tl.float32)
            for start in range(0, keys, KEYS):
                index = start + tl.arange(0, KEYS)
                valid = index < keys
                k = tl.load(
                    key + n * k_character + index[None, :] * k_key + channel[:, None] * k_channel,
                    mask=valid[None, :],
                    other=0.0,
                )
                v = tl.load(
                    value + n * v_character + index[:, None] * v_key + channel[None, :] * v_channel,
                    mask=valid[:, None],
                    other=0.0,
                )
                scores = tl.where(valid[None, :], tl.dot(q, k, input_precision=PRECISION), float("-inf"))
                new_max = tl.maximum(running_max, tl.max(scores, axis=1))
                correction = tl.exp(running_max - new_max)
                probability = tl.exp(scores - new_max[:, None])
                denominator = denominator * correction + tl.sum(probability, axis=1)
                accumulator = accumulator * correction[:, None] + tl.dot(
                    probability.to(v.dtype), v, input_precision=PRECISION
                )
                running_max = new_max
            total += accumulator * (weight / denominator)[:, None]
    out_ptrs = out + token[:, None] * o_token + channel[None, :] * o_channel
    tl.store(out_ptrs, total.to(out.dtype.element_ty), mask=in_range[:, None])


INTERPRETED = not isinstance(_kernel, triton.JITFunction)


def is_supported(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel supports these dtypes and shapes."""
    same_dtype = query.dtype == key.dtype == value.dtype and query.dtype in DTYPES
    if INTERPRETED and query.dtype == torch.bfloat16:  # not supported by Triton's interpreter
        return False
    offsets_fit = query.shape[-2] * query.stride(-2) < 2**31  # offsets within a head are 32-bit
    shapes = query.shape[-1] in HEAD_DIMS and query.dim() - 2 <= LEADING and key.shape[:-3] == query.shape[:-2]
    return same_dtype and offsets_fit and shapes


def launch_config(tokens: int, keys: int, dim: int) -> dict[str, int]:
    """Tile sizes and warps of a program: the largest that do not spill registers on compute capability 8.0."""
    largest, warps = (128, 8) if dim <= 64 else (32, 4)
    tile = min(largest, max(16, triton.next_power_of_2(tokens)))
    return {"DIM": dim, "TILE": tile, "KEYS": min(64, max(16, triton.next_power_of_2(keys))), "num_warps": warps}


def triton_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Same as `masked_attention.torch_attention` for supported inputs; not differentiable."""
    *leading, tokens, dim = query.shape
    characters, keys = key.shape[-3:-1]
    mask = mask.expand(*leading, tokens, characters)
    out = torch.empty_like(query)
    missing = (None,) * (LEADING - len(leading))
    q, k, v, m, o = (x[missing] for x in (query, key, value, mask, out))
    size_0, size_1, size_2 = q.shape[:LEADING]
    config = launch_config(tokens, keys, dim)
    _kernel[(triton.cdiv(tokens, config["TILE"]), size_0 * size_1 * size_2)](
        q, k, v, m, o,
        size_1, size_2, tokens, characters, keys,
        *q.stride(), *k.stride(), *v.stride(), *m.stride(), *o.stride(),
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        **config,
    )  # fmt: skip
    return out
