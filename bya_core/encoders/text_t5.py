"""Prompts as the released model reads them: T5-XXL, 226 tokens, padding included and unmasked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.errors import InputError

log = logging.getLogger(__name__)


class T5TextEncoder:
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
        self.weights_folder = Path(folder) / "text_encoder"
        self.tokenizer_folder = Path(tokenizer or Path(folder) / "tokenizer")
        self.dtype, self.device, self.max_tokens = dtype, torch.device(device), max_tokens
        for path in (self.weights_folder / "config.json", self.tokenizer_folder):
            if not path.exists():
                raise InputError(
                    f"no {path}",
                    "text_encoder/ and tokenizer/ of THUDM/CogVideoX-5b-I2V (T5-XXL v1.1, 9.5 GB, Apache-2.0)",
                    "python -m bya_core download official fetches them",
                )
        self._model: Any = None
        self._tokenizer: Any = None

    @property
    def model(self) -> Any:
        """transformers' T5EncoderModel, read on first use."""
        if self._model is None:
            from transformers import T5EncoderModel

            model: Any = T5EncoderModel.from_pretrained(self.weights_folder, local_files_only=True, **_in(self.dtype))
            self._model = model.to(self.device).requires_grad_(False).eval()
        return self._model

    @property
    def tokenizer(self) -> Any:
        """transformers' T5 tokenizer, read on first use."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True)
            except (ImportError, ValueError) as error:  # transformers says either where sentencepiece is missing
                raise InputError(
                    f"the tokenizer in {self.tokenizer_folder} cannot be read ({error})",
                    "spiece.model or tokenizer.json, and the packages sentencepiece and protobuf",
                    "pip install sentencepiece protobuf",
                ) from error
        return self._tokenizer

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """B prompts -> [B, L, 4096]."""
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        for prompt in prompts:
            length = len(self.tokenizer(prompt).input_ids)
            if length > self.max_tokens:
                log.warning("The prompt has %d tokens; those after %d are cut.", length, self.max_tokens)
        # as released: no mask, so padding is read like words
        return self.model(tokens.input_ids.to(self.device))[0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> T5TextEncoder:
        """Where it runs from now on; moves the weights if they are loaded. Returns itself."""
        self.device, self.dtype = torch.device(device), dtype or self.dtype
        if self._model is not None:
            self._model.to(self.device, self.dtype)
        return self

    def release(self) -> None:
        """Forget the weights; the next prompt reads them again."""
        self._model = None


def _in(dtype: torch.dtype) -> dict[str, Any]:
    """The argument of `from_pretrained` that says so; it was renamed in transformers 4.56."""
    import transformers
    from packaging.version import Version

    return {"dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype": dtype}


class PrecomputedTextEncoder:
    """Prompts that something else has encoded already, such as ComfyUI's CLIP loader of type "cogvideox".

    Args:
        known: prompt -> embedding [L', dim] or [1, L', dim]; "" is the negative prompt where none is given.
        max_tokens: L; longer embeddings are cut, shorter ones padded with zeros, both with a warning.
        dim: width of a token; None = any.

    Raises:
        InputError: an embedding of another shape or width.
    """

    def __init__(self, known: Mapping[str, Tensor], *, max_tokens: int = 226, dim: int | None = 4096) -> None:
        self.max_tokens = max_tokens
        self._known = {prompt: self._fitted(prompt, embedding, dim) for prompt, embedding in known.items()}
        if len({embedding.shape for embedding in self._known.values()}) > 1:
            raise InputError("text embeddings of different width", "one width", "encode all with one text encoder")

    def encode(self, prompts: list[str]) -> Tensor:
        """B prompts -> [B, L, dim]. Raises InputError for a prompt that was not given."""
        for prompt in prompts:
            if prompt not in self._known:
                raise InputError(
                    f'no text embedding for the prompt "{prompt[:60]}"',
                    "one for every prompt of the scene, the negative one included",
                    "encode it too, or use the model's own text encoder",
                )
        return torch.stack([self._known[prompt] for prompt in prompts])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PrecomputedTextEncoder:
        """Moves the embeddings; returns itself."""
        self._known = {prompt: embedding.to(device, dtype) for prompt, embedding in self._known.items()}
        return self

    def release(self) -> None:
        """Nothing to forget."""

    def _fitted(self, prompt: str, embedding: Tensor, dim: int | None) -> Tensor:
        """[max_tokens, dim]"""
        tokens = embedding[0] if embedding.ndim == 3 and len(embedding) == 1 else embedding
        if tokens.ndim != 2 or (dim is not None and tokens.shape[1] != dim):
            raise InputError(
                f"a text embedding of shape {tuple(embedding.shape)}",
                f"[1, tokens, {dim or 'width'}], as T5-XXL gives it",
                'load the text encoder with type "cogvideox"',
            )
        if len(tokens) != self.max_tokens:
            done = "the rest is cut" if len(tokens) > self.max_tokens else "the rest is filled with zeros"
            log.warning("A text embedding has %d tokens, not %d; %s.", len(tokens), self.max_tokens, done)
        return F.pad(tokens, (0, 0, 0, max(0, self.max_tokens - len(tokens))))[: self.max_tokens].detach()
