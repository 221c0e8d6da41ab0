"""Attention of every video token to several characters at once, each weighted by its own mask.

Faces and speech both act through it: sum_n mask_n softmax(q k_n^T) v_n (paper eqs. 7 and 8, taken before the output
projection, which is linear). The query is shared by all characters; one more of them costs only its keys.
"""

from __future__ import annotations

from torch import Tensor


def routed_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """sum_n mask_n softmax(q k_n^T) v_n over N characters.

    Args:
        query: [..., S, d].
        key, value: [..., N, K, d]; keys carry the softmax scale already.
        mask: broadcastable to [..., S, N].

    Returns:
        [..., S, d].
    """
    return plain(query, key, value, mask)


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The reference: two matrix products for all characters together.

    torch's `scaled_dot_product_attention` is no way around the weights [..., S, N K] here. It knows one softmax per
    call, so characters would have to join the batch, and what it gives back, [..., N, S, d], is larger than the
    weights wherever a character has fewer keys than a head has channels (published sizes: 32 keys; 64 channels for
    speech, 128 for faces).
    """
    characters = key.shape[-3]
    scores = query @ key.flatten(-3, -2).transpose(-1, -2)  # [..., S, N*K]
    weights = scores.unflatten(-1, (characters, -1)).softmax(dim=-1) * mask.unsqueeze(-1)
    return weights.flatten(-2) @ value.flatten(-3, -2)
