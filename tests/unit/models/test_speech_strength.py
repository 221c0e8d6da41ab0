"""`speech_strength`: scale of the speech output per character."""

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
    """Inputs of one call with two characters, left and right, each with a speech stream."""
    draw = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    masks = torch.zeros(1, 2, *GRID.shape)
    masks[:, 0, ..., :2] = 1  # two columns each for the first character, the background and the second one
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
    """Output of one speech layer [T, h, w, D], with masks scaled by `softness`."""
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


@pytest.mark.parametrize("inflate", [True, False])
def test_strength_scales_the_output_of_one_character(inflate: bool) -> None:
    plain = layer_output(None, inflate)
    assert torch.equal(layer_output([1.0, 1.0], inflate), plain)
    for strength in (0.0, 0.25, 1.5, 2.0):
        scaled = layer_output([strength, 1.0], inflate)
        torch.testing.assert_close(scaled[..., :2, :], strength * plain[..., :2, :])
        assert torch.equal(scaled[..., 2:, :], plain[..., 2:, :])  # background and the other character


def test_strength_scales_by_soft_masks() -> None:
    plain, none = (layer_output(strength, False, softness=0.5) for strength in (None, [0.0, 1.0]))
    torch.testing.assert_close(none[..., :2, :], 0.5 * plain[..., :2, :])


@torch.no_grad()
def test_strength_in_the_transformer() -> None:
    given, other = inputs(0), inputs(5)["audio_tokens"]
    assert torch.equal(MODEL(**given).sample, MODEL(**given, speech_strength=torch.ones(1, 2)).sample)
    effects = []
    for strength in (torch.ones(1, 2), torch.zeros(1, 2)):
        plain, changed = (
            MODEL(**call, speech_strength=strength).sample for call in (given, given | {"audio_tokens": other})
        )
        effects.append((plain - changed)[..., [0, 1, 2, 3, 8, 9, 10, 11]].abs().max())  # columns of the characters
    assert effects[0] > 1e-3 and effects[1] < 0.5 * effects[0]  # later blocks mix all tokens


@pytest.mark.skipif(not MODELS["toy"].available, reason="no weights of the toy model")
def test_mouth_motion_follows_strength() -> None:
    """The speech of the first of two talking characters is scaled; the mouth of the other one moves as before."""
    bundle = load_bundle("toy")
    clip = two_puppets(VALIDATION + 2, num_frames=17)
    scene = puppet_scene(bundle, clip, steps=8)

    def amplitude(strength: float) -> np.ndarray:
        """Standard deviation of each mouth's opening, [N]."""
        scaled = dataclasses.replace(scene, speech_strength=torch.tensor([strength, 1.0]))
        frames = generate(scaled, bundle).frames.numpy()
        regions = segment_characters(frames, clip.portraits, shared_rgb=MOUTH_RGB)
        return mouth_opening(frames, regions, MOUTH_RGB).std(axis=1)

    none, trained, twice = (amplitude(strength) for strength in (0.0, 1.0, 2.0))
    assert none[0] < 0.6 * trained[0] and trained[0] < twice[0]
    assert max(none[1], trained[1], twice[1]) < 1.3 * min(none[1], trained[1], twice[1])
