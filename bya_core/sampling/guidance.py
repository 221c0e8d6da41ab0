"""Classifier-free guidance on text and speech, together or apart.

Three versions of the video can be asked for: "free" (negative prompt, no speech), "text" (prompt, no speech)
and "full" (prompt and speech). The guided prediction is

    free + s_text (text - free) + s_speech (full - text),

a sum of the three with the weights 1 - s_text, s_text - s_speech and s_speech. A version whose weight is 0 is
not
computed: equal scales are the released joint guidance (two versions), 1 and 1 is no guidance (one version).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """One version of the video that takes part in guidance.

    Args:
        prompt: with the prompt (True) or the negative prompt.
        speech: with the speech (True) or silence.
        weight: share of its prediction in the guided one.
    """

    prompt: bool
    speech: bool
    weight: float

    @property
    def name(self) -> str:
        """As above: "free", "text" or "full"."""
        return ("full" if self.speech else "text") if self.prompt else "free"


def branches(text_scale: float, speech_scale: float, has_speech: bool = True) -> tuple[Branch, ...]:
    """The branches that are needed, the fullest one last. Without speech only the text scale counts."""
    if not has_speech:
        speech_scale = text_scale
    every = (
        Branch(False, False, 1.0 - text_scale),
        Branch(True, False, text_scale - speech_scale),
        Branch(True, True, speech_scale),
    )
    needed = tuple(branch for branch in every if branch.weight != 0.0)
    return needed if needed[-1].speech else (*needed, every[-1])


def combine(predictions: Tensor, used: tuple[Branch, ...]) -> Tensor:
    """[branches, T, C, H, W] -> guided prediction [1, T, C, H, W], float32."""
    weights = torch.tensor([branch.weight for branch in used], device=predictions.device)
    return torch.einsum("k,k...->...", weights, predictions.float())[None]
