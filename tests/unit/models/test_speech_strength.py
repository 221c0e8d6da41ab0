"""How strongly speech moves each character: what the transformer does with it, layer by layer and as a whole."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bya_core.grid import TokenGrid
from bya_core.models.conditioning import BlockConditioning
from bya_core.pipelines.generate import generate
from bya_core.toy.mouth import mouth_opening
from bya_core.toy.segmentation import segment_characters
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from tests.fakes import BLOCKS, IDENTITY, SCALES, SOUND, TEXT, VIT, fake_transformer
from tests.unit.routing.puppet_scene import VALIDATION, puppet_scene, two_puppets
from training.puppets.looks import MOUTH_RGB

GRID = TokenGrid(3, 4, 6)
MODEL = fake_transformer()


def inputs(seed: int = 0) -> dict[str, Any]:
    """One forward call with two characters on the left and on the right, each with a voice."""
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    masks = torch.zeros(1, 2, *GRID.shape)
    masks[:, 0, ..., :2] = 1  # two columns for the first, two for nobody, two for the second
    masks[:, 1, ..., 4:] = 1
    return {
        "hidden_states": noise(1, 3, 9, 8, 12),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": noise(1, 5, TEXT),
        "face_tokens": MODEL.encode_faces(noise(1, 2, IDENTITY), noise(1, 2, SCALES, 7, VIT)),
        "audio_tokens": MODEL.encode_speech(noise(1, 2, 9 + 4, BLOCKS, SOUND)),
        "mask_override": masks,
    }


def layer_output(strength: list[float] | None, inflate: bool = True, softness: float = 1.0) -> Tensor:
    """What one speech layer adds to the video: [T, h, w, D]; the masks times `softness`."""
    given = inputs()
    masks = given["mask_override"] * softness
    conditioning = BlockConditioning(
        model=MODEL,
        grid=GRID,
        face_tokens=given["face_tokens"],
        audio_tokens=given["audio_tokens"],
        mask_override=masks,
        speech_strength=None if strength is None else torch.tensor([strength]),
        inflate=inflate,
    )
    hidden = torch.randn(1, GRID.tokens, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        added = conditioning._speech(hidden, 0, masks)
    return added.unflatten(1, GRID.shape)[0]


def test_strength_one_is_none_to_the_bit() -> None:
    for inflate in (True, False):
        assert torch.equal(layer_output([1.0, 1.0], inflate), layer_output(None, inflate))
    given = inputs()
    with torch.no_grad():
        plain = MODEL(**given).sample
        one = MODEL(**given, speech_strength=torch.ones(1, 2)).sample
    assert torch.equal(plain, one)


@pytest.mark.parametrize("inflate", [True, False])
def test_only_the_tokens_of_that_character_change(inflate: bool) -> None:
    plain, less = layer_output(None, inflate), layer_output([0.25, 1.0], inflate)
    assert not torch.equal(plain[..., :2, :], less[..., :2, :])
    assert torch.equal(plain[..., 2:, :], less[..., 2:, :])  # the other, and what is nobody's


def test_strength_zero_adds_nothing_to_that_character() -> None:
    added = layer_output([0.0, 1.0])
    assert added[..., :2, :].abs().max() == 0 < added[..., 4:, :].abs().min(dim=-1).values.max()


def test_what_speech_adds_grows_with_its_strength() -> None:
    plain = layer_output(None)
    for strength in (0.0, 0.5, 1.5, 2.0):
        torch.testing.assert_close(layer_output([1.0, strength])[..., 4:, :], strength * plain[..., 4:, :])
    sizes = [float(layer_output([1.0, s])[..., 4:, :].norm()) for s in (0.0, 0.5, 1.0, 1.5, 2.0)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_at_strength_zero_another_voice_changes_nothing_in_that_character() -> None:
    """In a layer; later blocks of the transformer mix all tokens."""
    given, other = inputs(0), inputs(5)
    with torch.no_grad():
        moved = MODEL(**given).sample - MODEL(**given | {"audio_tokens": other["audio_tokens"]}).sample
        mute = {"speech_strength": torch.zeros(1, 2)}
        still = MODEL(**given, **mute).sample - MODEL(**given | {"audio_tokens": other["audio_tokens"]}, **mute).sample
    inside = torch.zeros(12, dtype=torch.bool)
    inside[:4], inside[8:] = True, True  # latent columns of the two
    assert moved[..., inside].abs().max() > 1e-3
    assert still[..., inside].abs().max() < 0.5 * moved[..., inside].abs().max()


def test_soft_masks_scale_softly() -> None:
    """A token that is one half of a character is scaled half way."""
    plain, none = (layer_output(strength, False, softness=0.5) for strength in (None, [0.0, 1.0]))
    torch.testing.assert_close(none[..., :2, :], 0.5 * plain[..., :2, :])


@pytest.mark.skipif(not MODELS["toy"].available, reason="the toy model's weights are not here")
def test_the_mouth_opens_wider_the_stronger_speech_is() -> None:
    """Two puppets talk; the speech of the first is scaled. Its mouth follows, the other one's moves as before."""
    bundle = load_bundle("toy")
    clip = two_puppets(VALIDATION + 2, num_frames=17)
    scene = puppet_scene(bundle, clip, steps=8)

    def amplitude(strength: float) -> np.ndarray:
        """How much each mouth moves, [N]."""
        wanted = dataclasses.replace(scene, speech_strength=torch.tensor([strength, 1.0]))
        frames = generate(wanted, bundle).frames.numpy()
        regions = segment_characters(frames, clip.portraits, shared_rgb=MOUTH_RGB)
        return mouth_opening(frames, regions, MOUTH_RGB).std(axis=1)

    none, trained, twice = (amplitude(strength) for strength in (0.0, 1.0, 2.0))
    assert none[0] < 0.6 * trained[0] and trained[0] < twice[0]
    assert max(none[1], trained[1], twice[1]) < 1.3 * min(none[1], trained[1], twice[1])
