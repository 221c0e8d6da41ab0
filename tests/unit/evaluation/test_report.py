"""Binding report of drawn puppets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.evaluation.report import BindingReport, binding_report
from bya_core.scene.types import Speech
from bya_core.toy.meter import PuppetMeter
from tests.fakes import RATE
from training.puppets import make_clip

Clip = tuple[Tensor, Tensor, list[Speech | None]]


def report(clip: Clip, **options: object) -> BindingReport:
    return binding_report(*clip, 25.0, ["Ada", "Bo"], **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Frames, true masks and speech of two drawn talkers."""
    drawn = make_clip(2_000_100, n=2, num_frames=49, motion="still", talk="overlap")
    speeches = [Speech(torch.from_numpy(wave)[None], RATE) for wave in drawn.speeches]
    return torch.from_numpy(drawn.frames), torch.from_numpy(drawn.masks).float(), speeches


def test_own_and_swapped_speech(clip: Clip) -> None:
    frames, masks, speeches = clip
    swapped = frames, masks, speeches[::-1]
    own, wrong = report(clip, meter=PuppetMeter()), report(swapped, meter=PuppetMeter())
    assert own.metrics["verdicts"] == ["own", "own"] and "Ada follows its own voice" in own.text
    assert wrong.metrics["verdicts"] == ["wrong", "wrong"], wrong.text
    assigned = report(swapped, matrix=torch.eye(2).flip(0), meter=PuppetMeter())
    assert assigned.metrics["verdicts"] == ["own", "own"]
    assert own.picture.size == wrong.picture.size and own.picture.tobytes() != wrong.picture.tobytes()


def test_listeners(clip: Clip) -> None:
    frames, masks, (speech, _) = clip
    talking = report((frames, masks, [speech, None]), meter=PuppetMeter())
    assert talking.metrics["verdicts"][1] == "moves"
    still = torch.where(masks[1][..., None] > 0.5, frames[:1], frames)
    silent = report((still, masks, [speech, None]), meter=PuppetMeter())
    assert silent.metrics["verdicts"][1] == "still" and "keeps still" in silent.text


def test_what_is_not_measured_is_gray(clip: Clip) -> None:
    """A short video, an invisible character, a silent voice: no number and no red cell."""
    frames, masks, speeches = clip
    red, gray = (200, 62, 62), (74, 77, 90)

    def colors(result: BindingReport) -> set[tuple[int, ...]]:
        table = result.picture.crop((196, 122, 500, 238))
        return {color for count, color in table.getcolors(1 << 20) if count > 500}

    short = report((frames[:9], masks[:, :9], speeches), meter=PuppetMeter())
    assert short.metrics["score"] == [[None, None], [None, None]]
    assert gray in colors(short) and red not in colors(short)
    absent = report((frames, masks * torch.tensor([0.0, 1]).view(2, 1, 1, 1), speeches), meter=PuppetMeter())
    assert absent.metrics["score"][0] == [None, None] and None not in absent.metrics["score"][1]
    one = report((frames, masks, [speeches[0], None]), meter=PuppetMeter())
    assert [row[1] for row in one.metrics["score"]] == [None, None] and one.metrics["score"][0][0] > 0.5
    assert gray in colors(one)
    assert gray not in colors(report(clip, meter=PuppetMeter()))


def test_inconclusive_cases(clip: Clip) -> None:
    frames, masks, speeches = clip
    short = report((frames[:9], masks[:, :9], speeches), meter=PuppetMeter())
    assert set(short.metrics["verdicts"]) <= {"unclear", "still", "moves"}
    absent = report((frames, masks * torch.tensor([0.0, 1]).view(2, 1, 1, 1), speeches), meter=PuppetMeter())
    assert absent.metrics["verdicts"][0] == "unclear" and "is not visible" in absent.text
    assert report((frames, masks, [None, None]), meter=PuppetMeter()).metrics["verdicts"] == ["unclear", "unclear"]
    with pytest.raises(InputError, match="masks of 1 characters"):
        report((frames, masks[:1], speeches))
