"""Text encoder of the released model: T5-XXL, 226 tokens, without an attention mask over the padding."""

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
    """`TextEncoder` of the CogVideoX family, transformers' `T5EncoderModel`.

    Weights are loaded on first use; `release` frees the memory (T5-XXL: 9.5 GB in bfloat16).

    Args:
        folder: Folder with `text_encoder/` and `tokenizer/`, as in CogVideoX-5b-I2V.
        tokenizer: Folder of the tokenizer; `None` selects the one in `folder`.
        dtype: Data type of weights and result. float16 overflows in this network.
        device: Device to run on.
        max_tokens: Number of tokens L; longer prompts are truncated with a warning.

    Raises:
        InputError: If a folder is missing.
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
                    "run bya download official",
                )
        self._model: Any = None
        self._tokenizer: Any = None

    @property
    def model(self) -> Any:
        """The `T5EncoderModel`, loaded on first use."""
        if self._model is None:
            from transformers import T5EncoderModel

            model: Any = T5EncoderModel.from_pretrained(
                self.weights_folder, local_files_only=True, **_dtype_argument(self.dtype)
            )
            self._model = model.to(self.device).requires_grad_(False).eval()
        return self._model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded on first use."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True)
            except (ImportError, ValueError) as error:  # either is raised if sentencepiece is missing
                raise InputError(
                    f"the tokenizer in {self.tokenizer_folder} cannot be read ({error})",
                    "spiece.model or tokenizer.json, and the packages sentencepiece and protobuf",
                    "pip install sentencepiece protobuf",
                ) from error
        return self._tokenizer

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Text tokens [B, L, 4096] of B prompts."""
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        # no attention mask, as in the released code
        return self.model(tokens.input_ids.to(self.device))[0]

    def truncation(self, prompt: str) -> str | None:
        """How a prompt is cut; None if it is read completely."""
        return token_truncation(len(self.tokenizer(prompt).input_ids), self.max_tokens)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> T5TextEncoder:
        """Set device and data type, and move the weights if they are loaded; returns `self`."""
        self.device, self.dtype = torch.device(device), dtype or self.dtype
        if self._model is not None:
            self._model.to(self.device, self.dtype)
        return self

    def release(self) -> None:
        """Free the weights; they are loaded again on next use."""
        self._model = None


def _dtype_argument(dtype: torch.dtype) -> dict[str, Any]:
    """The data type argument of `from_pretrained`, which was renamed in transformers 4.56."""
    import transformers
    from packaging.version import Version

    return {"dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype": dtype}


def token_truncation(length: int, limit: int) -> str | None:
    """How a prompt of `length` tokens is cut to `limit`; None if it is not."""
    return f"has {length} tokens, of which the model reads the first {limit}" if length > limit else None


class PrecomputedTextEncoder:
    """Embeddings computed elsewhere, such as by ComfyUI's CLIP loader of type "cogvideox".

    Args:
        embeddings: Embedding [L', dim] or [1, L', dim] of each prompt; "" is the default negative prompt.
        max_tokens: Number of tokens L; longer embeddings are truncated and shorter ones zero-padded, with a warning.
        dim: Width of a token; `None` accepts any.

    Raises:
        InputError: If an embedding has another shape.
    """

    def __init__(self, embeddings: Mapping[str, Tensor], *, max_tokens: int = 226, dim: int | None = 4096) -> None:
        self.max_tokens = max_tokens
        self._lengths = {prompt: embedding.shape[-2] for prompt, embedding in embeddings.items() if embedding.ndim > 1}
        self._embeddings = {prompt: self._fitted(embedding, dim) for prompt, embedding in embeddings.items()}
        if len({embedding.shape for embedding in self._embeddings.values()}) > 1:
            raise InputError("text embeddings of different widths", "one width", "encode all with one text encoder")

    def encode(self, prompts: list[str]) -> Tensor:
        """Text tokens [B, L, dim] of B prompts. Raises `InputError` for an unknown prompt."""
        for prompt in prompts:
            if prompt not in self._embeddings:
                raise InputError(
                    f'no text embedding for the prompt "{prompt[:60]}"',
                    "one for each prompt of the scene, including the negative prompt",
                    "encode it too, or use the text encoder of the model",
                )
        return torch.stack([self._embeddings[prompt] for prompt in prompts])

    def truncation(self, prompt: str) -> str | None:
        """How a prompt is cut; None if it is read completely."""
        return token_truncation(self._lengths.get(prompt, 0), self.max_tokens)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> PrecomputedTextEncoder:
        """Move the embeddings; returns `self`."""
        self._embeddings = {prompt: embedding.to(device, dtype) for prompt, embedding in self._embeddings.items()}
        return self

    def release(self) -> None:
        """No weights to free."""

    def _fitted(self, embedding: Tensor, dim: int | None) -> Tensor:
        """Embedding truncated or padded to [max_tokens, dim]."""
        tokens = embedding[0] if embedding.ndim == 3 and len(embedding) == 1 else embedding
        if tokens.ndim != 2 or (dim is not None and tokens.shape[1] != dim):
            raise InputError(
                f"a text embedding of shape {tuple(embedding.shape)}",
                f"[1, tokens, {dim or 'width'}], as T5-XXL gives it",
                'load the text encoder with type "cogvideox"',
            )
        if len(tokens) != self.max_tokens:
            change = "truncated" if len(tokens) > self.max_tokens else "padded with zeros"
            log.warning("A text embedding has %d tokens instead of %d; it is %s.", len(tokens), self.max_tokens, change)
        return F.pad(tokens, (0, 0, 0, max(0, self.max_tokens - len(tokens))))[: self.max_tokens].detach()
