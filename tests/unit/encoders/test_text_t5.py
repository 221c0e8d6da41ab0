"""T5 text encoder against the diffusers pipeline, and precomputed embeddings."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline
from torch.testing import assert_close
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from bya_core.encoders.protocols import TextEncoder
from bya_core.encoders.text_t5 import PrecomputedTextEncoder, T5TextEncoder
from bya_core.errors import InputError

WORDS = "two puppets talk before a wall the left one sings and the right one listens to every word it says"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small T5 v1.1 and a SentencePiece tokenizer in the folder layout of diffusers."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path_factory.mktemp("cogvideox")
    (path / "tokenizer").mkdir()
    (path / "words.txt").write_text("\n".join([WORDS] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(path / "words.txt"),
        model_prefix=str(path / "tokenizer" / "spiece"),
        vocab_size=34,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (path / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    torch.manual_seed(0)
    sizes = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=256)
    T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu")).save_pretrained(path / "text_encoder")
    return path


def test_encode_matches_diffusers(folder):
    prompts = [WORDS, "", "two puppets"]
    text = T5TextEncoder(folder, dtype=torch.float32)
    assert isinstance(text, TextEncoder)
    result = text.encode(prompts)
    pipeline = types.SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder").float(),
        _execution_device=torch.device("cpu"),
    )
    with torch.no_grad():
        expected = CogVideoXImageToVideoPipeline._get_t5_prompt_embeds(pipeline, prompts, max_sequence_length=226)
    assert result.shape == (3, 226, 32)
    assert_close(result, expected, atol=1e-6, rtol=1e-6)
    assert (result[0] - result[1]).abs().max() > 0.1 and bool(result[1].any()), "an empty prompt is not zero"


def test_padding_is_not_masked(folder):
    """Embeddings of padding depend on the prompt, as in the training of the released model."""
    result = T5TextEncoder(folder, dtype=torch.float32).encode(["two puppets", "two listens"])
    assert (result[0, -1] - result[1, -1]).abs().max() > 1e-4


def test_truncation_of_long_prompts_is_told(folder):
    text = T5TextEncoder(folder, dtype=torch.float32, max_tokens=8)
    assert text.encode([WORDS]).shape == (1, 8, 32)
    assert "of which the model reads the first 8" in str(text.truncation(WORDS))
    assert text.truncation("a") is None


def test_model_is_loaded_lazily_and_released(folder):
    text = T5TextEncoder(folder, dtype=torch.bfloat16)
    assert text._model is None
    first = text.encode(["two puppets"])
    assert first.dtype == torch.bfloat16
    text.release()
    assert text._model is None
    assert torch.equal(text.encode(["two puppets"]), first)


def test_missing_text_encoder_raises(tmp_path):
    with pytest.raises(InputError, match="T5-XXL v1.1, 9.5 GB"):
        T5TextEncoder(tmp_path)


def test_precomputed_embeddings(folder, caplog):
    prompts = ["two puppets", ""]
    encoded = T5TextEncoder(folder, dtype=torch.float32).encode(prompts)
    table = {prompt: tokens[None] for prompt, tokens in zip(prompts, encoded, strict=True)}
    text = PrecomputedTextEncoder(table, dim=32)
    assert isinstance(text, TextEncoder)
    assert torch.equal(text.encode(prompts), encoded) and not caplog.records
    with pytest.raises(InputError, match="no text embedding for the prompt"):
        text.encode(["something else"])


def test_precomputed_embeddings_of_other_sizes(caplog):
    text = PrecomputedTextEncoder({"a": torch.ones(1, 300, 4096), "b": torch.ones(100, 4096)})
    result = text.encode(["a", "b"])
    assert result.shape == (2, 226, 4096) and result[1, 100:].abs().max() == 0 and result[0].min() == 1
    assert ["truncated" in caplog.messages[0], "padded" in caplog.messages[1]] == [True, True]
    assert "has 300 tokens" in str(text.truncation("a")) and text.truncation("b") is None
    with pytest.raises(InputError, match='type "cogvideox"'):
        PrecomputedTextEncoder({"a": torch.ones(1, 77, 768)})
