"""Speech features and captions."""

from __future__ import annotations

import numpy as np
import torch

from training.curation.captions import Features, FeatureSettings
from training.curation.models import ModelChoice, load_curation_model


def test_wav2vec2_features_use_the_context(tmp_path, clip):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(16,) * 7
    )
    Wav2Vec2Model(config).save_pretrained(tmp_path)
    choice = ModelChoice("wav2vec", {"folder": str(tmp_path)})
    (result,) = Features(FeatureSettings(choice))(clip)
    features = result.array("features")
    assert features.shape == (2, 17 + 4, 2, 32)
    encoder = load_curation_model("speech", choice)
    full = encoder.encode(torch.from_numpy(clip.array("speeches")[0]), 27)  # frame k at k + 2
    np.testing.assert_allclose(features[0], full[5 : 5 + 21].numpy(), atol=2e-3)
