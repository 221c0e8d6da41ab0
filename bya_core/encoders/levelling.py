"""Recordings whose loudness wanders brought to one level, slowly, so that words keep their shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HOP = 0.1  # seconds of one loudness value
SPAN = 3.0  # seconds over which the level is taken
GATE = 0.01  # share of the loudest value below which nobody speaks (-40 dB)
MOST = 4.0  # largest change, up or down (12 dB)


def even_loudness(waveform: Tensor, sample_rate: int) -> Tensor:
    """[S] mono -> [S], soft passages raised and loud ones lowered to the level of most of the speech.

    A gain for the whole recording would change nothing: the first normalisation of wav2vec2 takes it out again. What
    this takes out is a speaker who moves away from the microphone. Pauses do not count as soft.
    """
    hop = max(1, round(HOP * sample_rate))
    count = -(-len(waveform) // hop)
    if count < 2:
        return waveform
    power = F.pad(waveform.double().square(), (0, count * hop - len(waveform))).view(count, hop).mean(dim=1)
    speaks = (power > GATE**2 * power.max()).double()
    if not bool(speaks.any()):
        return waveform
    reach = min(round(SPAN / HOP / 2), count - 1)
    window = torch.ones(1, 1, 2 * reach + 1, dtype=torch.float64, device=waveform.device)
    around = F.conv1d(torch.stack([power * speaks, speaks])[:, None], window, padding=reach)[:, 0]
    level = (around[0] / around[1].clamp_min(1.0)).sqrt()
    usual = level[speaks > 0].median()
    gain = torch.where(around[1] > 0, usual / level.clamp_min(1e-12), torch.ones_like(level)).clamp(1 / MOST, MOST)
    smooth = F.interpolate(gain[None, None], size=count * hop, mode="linear", align_corners=False)[0, 0]
    return waveform * smooth[: len(waveform)].to(waveform)
