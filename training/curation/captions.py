"""Stages "features" and "captions": speech features and text prompts (paper sec. 4.2)."""

from __future__ import annotations

import numpy as np
import torch

from bya_core.encoders.protocols import SpeechEncoder
from bya_core.validation import validated
from training.curation.footage import clip_boxes, clip_frames, model_size
from training.curation.models import Captioner, ModelChoice, ModelOption
from training.curation.record import Record
from training.curation.stage import Resources, Stage
from training.data.cache import encoder_version


@validated
class FeatureSettings:
    """Options of speech features.

    Args:
        speech: speech encoder; "none" leaves the features to training.
    """

    speech: ModelOption = ModelChoice("none")


class Features(Stage):
    """Speech features [M, F+4, blocks, channels], computed with the audio context of the clip where available."""

    name = "features"
    version = 2
    models = {"speech": "speech"}

    def __init__(self, settings: FeatureSettings, resources: Resources | None = None) -> None:
        super().__init__(settings, resources)
        self._encoder_version: str | None = None

    def __call__(self, record: Record) -> list[Record]:
        encoder: SpeechEncoder | None = self.model("speech")
        if encoder is None:
            return [record]
        offset = record.start - record.data["context"][0]
        with torch.no_grad():
            features = [
                encoder.encode(torch.from_numpy(speech), offset + record.num_frames).float().cpu().numpy()[offset:]
                for speech in record.array("speeches")
            ]
        if self._encoder_version is None:  # training reuses features of an equal encoder (docs/reference/shards.md)
            self._encoder_version = encoder_version(encoder)
        record = record.with_arrays(features=np.stack(features).astype(np.float16))
        return [record.with_data(speech_encoder=self._encoder_version)]


@validated
class CaptionSettings:
    """Options of captioning.

    Args:
        captioner: captioning model; "none" leaves captions empty.
        frames: number of frames passed to the model, evenly spaced.
        max_side: longer side of these frames in pixels.
        min_words, max_words: range of accepted caption lengths; longer ones would be truncated by the text encoder.
    """

    captioner: ModelOption = ModelChoice("qwen2vl")
    frames: int = 8
    max_side: int = 720
    min_words: int = 5
    max_words: int = 160


class Captions(Stage):
    """Generates a caption of each clip."""

    name = "captions"
    models = {"captioner": "captioner"}

    def __call__(self, record: Record) -> list[Record]:
        settings: CaptionSettings = self.settings
        captioner: Captioner | None = self.model("captioner")
        if captioner is None:
            return [record.with_data(caption="", caption_words=0)]
        size = model_size(record, settings.max_side)
        indices = np.linspace(0, record.num_frames - 1, min(settings.frames, record.num_frames)).round().astype(int)
        boxes = clip_boxes(record, size)[:, indices].swapaxes(0, 1)
        seen = getattr(captioner, "uses_frames", True)
        frames = clip_frames(record, size)[indices] if seen else np.zeros((len(indices), *size, 3), np.uint8)
        speaking = np.array(record.data["matrix"]).T @ np.array(record.data["speaking"]) > 0
        caption = " ".join(captioner.caption(frames, boxes, speaking.tolist()).split())
        words = len(caption.split())
        record = record.with_data(caption=caption, caption_words=words)
        if not settings.min_words <= words <= settings.max_words:
            return [record.reject(f"caption of {words} words")]
        return [record]
