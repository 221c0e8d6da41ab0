"""The text encoder against diffusers' own way of reading prompts, and embeddings that come from elsewhere."""

from __future__ import annotations

import logging
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
    """A narrow T5 of the published kind (v1.1, gated) and a SentencePiece tokenizer, as diffusers lays them out."""
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


def test_prompts_are_read_as_diffusers_reads_them(folder):
    prompts = [WORDS, "", "two puppets"]
    text = T5TextEncoder(folder, dtype=torch.float32)
    assert isinstance(text, TextEncoder)
    made = text.encode(prompts)
    pipeline = types.SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder").float(),
        _execution_device=torch.device("cpu"),
    )
    with torch.no_grad():
        theirs = CogVideoXImageToVideoPipeline._get_t5_prompt_embeds(pipeline, prompts, max_sequence_length=226)
    assert made.shape == (3, 226, 32)
    assert_close(made, theirs, atol=1e-6, rtol=1e-6)
    assert (made[0] - made[1]).abs().max() > 0.1 and bool(made[1].any())  # an empty prompt is not zeros


def test_words_of_a_prompt_reach_padding_too(folder):
    """No mask: what stands behind the words depends on them, as the released model was trained."""
    made = T5TextEncoder(folder, dtype=torch.float32).encode(["two puppets", "two listens"])
    assert (made[0, -1] - made[1, -1]).abs().max() > 1e-4


def test_too_long_prompts_are_cut_and_told(folder, caplog):
    text = T5TextEncoder(folder, dtype=torch.float32, max_tokens=8)
    with caplog.at_level(logging.WARNING):
        made = text.encode([WORDS])
    assert made.shape == (1, 8, 32) and "truncated to 8" in caplog.text


def test_nothing_is_loaded_before_it_is_needed_nor_after_release(folder):
    text = T5TextEncoder(folder, dtype=torch.bfloat16)
    assert text._model is None
    first = text.encode(["two puppets"])
    assert first.dtype == torch.bfloat16
    text.release()
    assert text._model is None
    assert torch.equal(text.encode(["two puppets"]), first)


def test_a_missing_text_encoder_says_what_is_needed(tmp_path):
    with pytest.raises(InputError, match="T5-XXL v1.1, 9.5 GB"):
        T5TextEncoder(tmp_path)


def test_embeddings_from_elsewhere_take_the_encoders_place(folder, caplog):
    own = T5TextEncoder(folder, dtype=torch.float32)
    prompts = ["two puppets", ""]
    encoded = own.encode(prompts)
    given = PrecomputedTextEncoder(
        {prompt: tokens[None] for prompt, tokens in zip(prompts, encoded, strict=True)}, dim=32
    )
    assert isinstance(given, TextEncoder)
    assert torch.equal(given.encode(prompts), encoded) and not caplog.records
    with pytest.raises(InputError, match="no text embedding for the prompt"):
        given.encode(["something else"])


def test_embeddings_of_another_length_are_fitted_and_of_another_width_refused(caplog):
    given = PrecomputedTextEncoder({"a": torch.ones(1, 300, 4096), "b": torch.ones(100, 4096)})
    made = given.encode(["a", "b"])
    assert made.shape == (2, 226, 4096) and made[1, 100:].abs().max() == 0 and made[0].min() == 1
    assert [record.getMessage().split("; ")[1] for record in caplog.records] == [
        "it is truncated.",
        "it is padded with zeros.",
    ]
    with pytest.raises(InputError, match='type "cogvideox"'):
        PrecomputedTextEncoder({"a": torch.ones(1, 77, 768)})
