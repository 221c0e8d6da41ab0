"""Encoders on a GPU match those on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import Wav2Vec2Config, Wav2Vec2Model

from bya_core.encoders.face.parsing import BiSeNet, FaceParser
from bya_core.encoders.face.retinaface import RetinaFace, RetinaFaceDetector
from bya_core.encoders.wav2vec2 import Wav2Vec2SpeechEncoder
from tests.unit.encoders.networks import drawn, image

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_speech(tmp_path) -> None:
    Wav2Vec2Model(Wav2Vec2Config(num_hidden_layers=2)).save_pretrained(tmp_path)
    encoder = Wav2Vec2SpeechEncoder(tmp_path)
    waveform = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    here = encoder.encode(waveform, 25)
    there = encoder.to("cuda").encode(waveform.cuda(), 25)
    assert there.device.type == "cpu"
    assert_close(there, here, atol=2e-2, rtol=1e-2)


def test_face_detector_and_parser() -> None:
    photo = image(150, 200)
    detector, parser = RetinaFace(), BiSeNet()
    detector.load_state_dict(drawn(detector))
    parser.load_state_dict(drawn(parser))
    finder, labels = RetinaFaceDetector(detector, min_score=0.55), FaceParser(parser)
    here, parsed = finder.detect(photo), labels.parse(photo)
    there = finder.to("cuda").detect(photo.cuda())
    assert abs(len(here) - len(there)) <= 1
    assert_close(torch.tensor(there[0].box), torch.tensor(here[0].box), atol=0.5, rtol=0)
    assert (labels.to("cuda").parse(photo.cuda()).cpu() == parsed).float().mean() > 0.98
