"""Stages 10 and 11: speech features and captions (sec. 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bya_core.encoders.protocols import SpeechEncoder
from training.curation.crops import boxes_in, clip_frames, work_size
from training.curation.models import Captioner, ModelChoice, model_of
from training.curation.record import Record
from training.curation.stage import Resources
from training.data.cache import version_of


@dataclass(frozen=True)
class FeatureSettings:
    """What hears the voices.

    Args:
        speech: the speech encoder; "none" leaves features to training.
    """

    speech: ModelChoice = ModelChoice("none")


class Features:
    """Speech features [M, F+4, blocks, channels]; beyond the clip they hear its real surroundings where it has some."""

    name = "features"
    version = 2

    def __init__(self, settings: FeatureSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources
        self._heard_by: str | None = None

    def prepare(self) -> None:
        """Build the model. Raises InputError where it cannot be."""
        model_of("speech", self.settings.speech)

    def __call__(self, record: Record) -> list[Record]:
        encoder: SpeechEncoder | None = model_of("speech", self.settings.speech)
        if encoder is None:
            return [record]
        lead = record.start - record.data["context"][0]
        with torch.no_grad():
            heard = [
                encoder.encode(torch.from_numpy(speech), lead + record.frames).float().cpu().numpy()[lead:]
                for speech in record.array("speeches")
            ]
        if self._heard_by is None:  # training takes the features if its encoder is the same (docs/reference/shards.md)
            self._heard_by = version_of(encoder)
        made = record.with_arrays(features=np.stack(heard).astype(np.float16))
        return [made.with_data(speech_encoder=self._heard_by)]


@dataclass(frozen=True)
class CaptionSettings:
    """What describes clips.

    Args:
        captioner: the model.
        frames: pictures it sees, evenly over the clip.
        longest: pixels of their longer side.
        least_words, most_words: shorter captions say nothing; longer ones are cut by the text encoder.
    """

    captioner: ModelChoice = ModelChoice("qwen2vl")
    frames: int = 8
    longest: int = 720
    least_words: int = 5
    most_words: int = 160


class Captions:
    """A description of each clip: who is where and does what."""

    name = "captions"
    version = 1

    def __init__(self, settings: CaptionSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources

    def prepare(self) -> None:
        """Build the model. Raises InputError where it cannot be."""
        model_of("captioner", self.settings.captioner)

    def __call__(self, record: Record) -> list[Record]:
        captioner: Captioner = model_of("captioner", self.settings.captioner)
        size = work_size(record, self.settings.longest)
        chosen = np.linspace(0, record.frames - 1, min(self.settings.frames, record.frames)).round().astype(int)
        frames, boxes = clip_frames(record, size)[chosen], boxes_in(record, size)[:, chosen].swapaxes(0, 1)
        matrix, speaks = np.array(record.data["matrix"]), np.array(record.data["speaks"])
        caption = " ".join(captioner.caption(frames, boxes, ((matrix.T @ speaks) > 0).tolist()).split())
        words = len(caption.split())
        seen = record.with_data(caption=caption, caption_words=words)
        if not self.settings.least_words <= words <= self.settings.most_words:
            return [seen.reject(f"a caption of {words} words")]
        return [seen]
