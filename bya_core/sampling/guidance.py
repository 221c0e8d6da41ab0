"""Classifier-free guidance on text and speech, jointly or separately.

There are three branches: "uncond" (negative prompt, no speech), "text" (prompt, no speech) and "full" (prompt and
speech). The guided prediction is

    uncond + s_text (text - uncond) + s_speech (full - text),

a weighted sum of the three with weights 1 - s_text, s_text - s_speech and s_speech. Branches with weight 0 are not
computed: equal scales are the released joint guidance (two branches), and scales of 1 disable guidance (one branch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """One branch of guidance.

    Args:
        prompt: prompt (True) or negative prompt.
        speech: speech (True) or silence.
        weight: weight of its prediction in the guided one.
    """

    prompt: bool
    speech: bool
    weight: float

    @property
    def name(self) -> str:
        """ "uncond", "text" or "full"."""
        return ("full" if self.speech else "text") if self.prompt else "uncond"


def guidance_branches(text_scale: float, audio_scale: float, has_speech: bool = True) -> tuple[Branch, ...]:
    """Branches with a nonzero weight, the fully conditioned one last. Without speech only `text_scale` is used."""
    if not has_speech:
        audio_scale = text_scale
    branches = (
        Branch(False, False, 1.0 - text_scale),
        Branch(True, False, text_scale - audio_scale),
        Branch(True, True, audio_scale),
    )
    needed = tuple(branch for branch in branches if branch.weight != 0.0)
    return needed if needed[-1].speech else (*needed, branches[-1])


def apply_guidance(predictions: Tensor, branches: tuple[Branch, ...]) -> Tensor:
    """Predictions of the branches [K, T, C, H, W] -> guided prediction [1, T, C, H, W], float32."""
    weights = torch.tensor([branch.weight for branch in branches], device=predictions.device)
    return torch.einsum("k,k...->...", weights, predictions.float())[None]
