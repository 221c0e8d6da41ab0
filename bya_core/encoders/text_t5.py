"""Prompts as the released model reads them: T5-XXL, 226 tokens, padding included and unmasked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


class T5Text:
    """`TextEncoder` of the CogVideoX family: transformers' `T5EncoderModel`.

    Nothing is read before the first prompt; `release` gives the memory back (T5-XXL: 9.5 GB in bfloat16).

    Args:
        folder: holds `text_encoder/` and `tokenizer/` (the layout of CogVideoX-5b-I2V).
        tokenizer: folder of the tokenizer, where that lies elsewhere.
        dtype: of the weights and of the result. float16 overflows in this network.
        device: where it runs; `to` changes it.
        max_tokens: L; longer prompts are cut, with a warning, shorter ones padded.

    Raises:
        InputError: a folder is missing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokenizer: Path | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        max_tokens: int = 226,
    ) -> None:
        raise NotImplementedError

    def encode(self, prompts: list[str]) -> Tensor:
        """B prompts -> [B, L, 4096]."""
        raise NotImplementedError

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> T5Text:
        """Where it runs from now on; moves the weights if they are loaded. Returns itself."""
        raise NotImplementedError

    def release(self) -> None:
        """Forget the weights; the next prompt reads them again."""
        raise NotImplementedError


class GivenText:
    """Prompts that something else has encoded already, such as ComfyUI's CLIP loader of type "cogvideox".

    Args:
        known: prompt -> embedding [L', dim] or [1, L', dim]; "" is the negative prompt where none is given.
        max_tokens: L; longer embeddings are cut, shorter ones padded with zeros.
        dim: width of a token; None = any.

    Raises:
        InputError: an embedding of another shape or width.
    """

    def __init__(self, known: Mapping[str, Tensor], *, max_tokens: int = 226, dim: int | None = 4096) -> None:
        raise NotImplementedError

    def encode(self, prompts: list[str]) -> Tensor:
        """B prompts -> [B, L, dim]. Raises InputError for a prompt that was not given."""
        raise NotImplementedError

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> GivenText:
        """Moves the embeddings; returns itself."""
        raise NotImplementedError

    def release(self) -> None:
        """Nothing to forget."""
