"""The toy model's text encoder: what makes two prompts equal, near or different."""

from __future__ import annotations

import torch

from bya_core.toy.encoders import ToyTextEncoder
from training.puppets.world import make_clip

ENCODER = ToyTextEncoder()


def vectors(prompt: str) -> torch.Tensor:
    """[words, dim]."""
    found = ENCODER.encode([prompt])[0]
    return found[found.any(-1)]


def test_stop_words_and_capitals_say_nothing():
    assert torch.equal(ENCODER.encode(["A cat and the dog"]), ENCODER.encode(["cat dog"]))
    assert not ENCODER.encode([""]).any()


def test_a_phrase_leaves_the_words_of_the_others_as_they_are():
    one, two = vectors("two puppets: a red cat; a blue dog"), vectors("two puppets: a red and green cat; a blue dog")
    assert torch.equal(one[:3], two[:3]) and torch.equal(one[-2:], two[-2:]), "places count within the phrase"
    assert not torch.equal(one[3], two[4]), "the cat has moved on by a word"


def test_the_same_word_is_near_itself_wherever_it_stands():
    red, blue, red_again = vectors("red; blue; red")
    assert torch.cosine_similarity(red, red_again, 0) > torch.cosine_similarity(red, blue, 0) + 0.2
    assert not torch.equal(red, red_again)


def test_four_described_puppets_fit_but_for_a_word_or_two():
    longer = ToyTextEncoder(max_words=100)
    for seed in range(40):
        prompt = make_clip(seed, 4, draw_video=False).prompt
        words = int(longer.encode([prompt])[0].any(-1).sum())
        assert words - len(vectors(prompt)) <= 2, prompt
