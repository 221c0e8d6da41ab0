"""Toy text encoder: stop words, phrases and similarity of words."""

from __future__ import annotations

import torch

from bya_core.toy.encoders import ToyTextEncoder
from training.puppets.world import make_clip

ENCODER = ToyTextEncoder()


def vectors(prompt: str) -> torch.Tensor:
    """[words, dim]."""
    found = ENCODER.encode([prompt])[0]
    return found[found.any(-1)]


def test_stop_words_and_case_are_ignored():
    assert torch.equal(ENCODER.encode(["A cat and the dog"]), ENCODER.encode(["cat dog"]))
    assert not ENCODER.encode([""]).any()


def test_positions_count_within_a_phrase():
    one, two = vectors("two puppets: a red cat; a blue dog"), vectors("two puppets: a red and green cat; a blue dog")
    assert torch.equal(one[:3], two[:3]) and torch.equal(one[-2:], two[-2:]), "other phrases are unchanged"
    assert not torch.equal(one[3], two[4]), "the position of the cat changed"


def test_equal_words_are_similar_at_any_position():
    red, blue, red_again = vectors("red; blue; red")
    assert torch.cosine_similarity(red, red_again, 0) > torch.cosine_similarity(red, blue, 0) + 0.2
    assert not torch.equal(red, red_again)


def test_prompts_of_four_puppets_fit():
    longer = ToyTextEncoder(max_words=100)
    for seed in range(40):
        prompt = make_clip(seed, 4, draw_video=False).prompt
        words = int(longer.encode([prompt])[0].any(-1).sum())
        assert words - len(vectors(prompt)) <= 2, prompt
