"""wav2vec2 speech features against transformers, on sample recordings, and for any length."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Model

from bya_core.encoders.protocols import SpeechEncoder
from bya_core.encoders.wav2vec2 import Wav2Vec2SpeechEncoder
from bya_core.errors import InputError
from bya_core.io.media import read_audio, resample_mono

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = Path(os.environ.get("BYA_SAMPLES_DIR", ROOT.parent / "shared" / "samples"))
RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A narrow model of the published architecture with random weights and a CTC head."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=48, num_hidden_layers=12, num_attention_heads=4, intermediate_size=64, conv_dim=[32] * 7)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**sizes, vocab_size=32))
    path = tmp_path_factory.mktemp("wav2vec")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder) -> Wav2Vec2SpeechEncoder:
    return Wav2Vec2SpeechEncoder(folder)


def voice(seconds: float, seed: int = 0) -> Tensor:
    """Noise with pauses."""
    noise = torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    time = torch.arange(len(noise)) / RATE
    return 0.1 * noise * torch.sin(2.3 * time + seed).clamp_min(0.02) ** 2


def reference(folder: Path, waveform: Tensor, frames: int) -> Tensor:
    """Forward pass of transformers with interpolated features: [F, 12, width]."""
    model = Wav2Vec2Model.from_pretrained(folder).eval()
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, sampling_rate=RATE)
    values = extractor(waveform.numpy(), sampling_rate=RATE, return_tensors="pt").input_values

    class Interpolated(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, given: Tensor) -> Tensor:
            return F.interpolate(self.inner(given), size=frames, mode="linear", align_corners=True)

    model.feature_extractor = Interpolated(model.feature_extractor)
    with torch.no_grad():
        hidden = model(values, output_hidden_states=True).hidden_states
    return torch.stack(hidden[1:], dim=2)[0]


@pytest.mark.parametrize("seconds", [0.5, 2.2523, 31.0])
def test_features_match_transformers(folder, encoder, seconds):
    """31 s: the convolutions run in four chunks."""
    waveform = voice(seconds)
    made = encoder.features(waveform)
    assert made.shape == (-(-len(waveform) * 25 // RATE), 12, 48)
    assert_close(made, reference(folder, waveform, len(made)), atol=2e-4, rtol=1e-4)


def test_chunked_features_are_close_to_unchunked_ones(folder):
    waveform = voice(12.0)
    whole = Wav2Vec2SpeechEncoder(folder).features(waveform)
    pieces = Wav2Vec2SpeechEncoder(folder, chunk=150, overlap=50).features(waveform)
    assert pieces.shape == whole.shape and bool(torch.isfinite(pieces).all())
    other = Wav2Vec2SpeechEncoder(folder).features(voice(12.0, seed=1))
    assert (pieces - whole).square().mean() < 0.1 * (other - whole).square().mean()


def test_chunk_limits_the_length(folder):
    seen = []
    encoder = Wav2Vec2SpeechEncoder(folder, chunk=150, overlap=50)
    encoder.model.encoder.layers[0].register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    encoder.features(voice(20.0))
    assert max(seen) == 150 and len(seen) == 5  # 500 frames: from 0, 100, 200, 300, and the last 150


def test_context_frames(encoder):
    assert isinstance(encoder, SpeechEncoder)
    waveform = voice(2.0)
    heard, silence = encoder.features(waveform), encoder.silence()
    inside = encoder.encode(waveform, 41)  # longer than the video
    assert inside.shape == (45, 12, 48)
    assert torch.equal(inside[:2], silence.expand(2, -1, -1)) and torch.equal(inside[2:], heard[:43])
    outside = encoder.encode(waveform, 53)  # shorter than the video
    assert torch.equal(outside[2:52], heard) and torch.equal(outside[52:], silence.expand(5, -1, -1))
    begun = encoder.encode(waveform, 21, lead=2)  # starts before the video
    assert torch.equal(begun, heard[:25])
    assert torch.equal(encoder.encode(waveform, 21, lead=1)[1:], heard[:24])
    assert (heard - silence).square().mean() > 0.01
    assert torch.equal(encoder.encode(torch.zeros(RATE), 9), silence.expand(13, -1, -1))


def test_features_are_invariant_to_loudness(encoder):
    waveform = voice(3.0)
    assert_close(encoder.features(waveform * 0.05), encoder.features(waveform), atol=2e-3, rtol=1e-3)


def test_release_and_dtype(folder):
    encoder = Wav2Vec2SpeechEncoder(folder)
    before = encoder.features(voice(1.0))
    encoder.release()
    assert encoder._model is None
    assert torch.equal(encoder.features(voice(1.0)), before)
    half = encoder.to("cpu", torch.bfloat16).features(voice(1.0))
    assert half.dtype == torch.float32 and (half - before).abs().mean() < 0.1


def test_missing_model_raises(tmp_path):
    with pytest.raises(InputError, match="wav2vec2-base-960h .378 MB"):
        Wav2Vec2SpeechEncoder(tmp_path)


@pytest.mark.parametrize(("sample", "frames"), [("001", 57), ("004", 56), ("014", 53)])
def test_number_of_frames_of_sample_recordings(encoder, sample, frames):
    file = SAMPLES / sample / "mix.wav"
    if not file.is_file():
        pytest.skip("no sample recordings")
    mono = resample_mono(*read_audio(file), RATE)
    made = encoder.features(mono)
    assert len(made) == frames
    if sample == "001":  # the shorter of the two voices that were mixed
        released = load_file(SAMPLES / sample / "speech_features_0.safetensors")["speech_features"]
        assert released.shape == (frames, 12, 768)


def test_number_of_frames_rounds_like_the_released_code(encoder):
    """2.24 s are 56 frames, and 57 in floating point; the released features have 57."""
    assert len(encoder.features(voice(2.24))) == 57
    assert len(encoder.features(voice(2.0))) == 50


def test_released_features_align_with_loudness():
    """The released features predict the loudness of the recording best at second k / 25, without a shift."""
    folder = SAMPLES / "001"
    if not (folder / "speech_features_0.safetensors").is_file():
        pytest.skip("no sample recordings")
    mono = resample_mono(*read_audio(folder / "mix.wav"), RATE)
    streams = [load_file(folder / f"speech_features_{k}.safetensors")["speech_features"].float() for k in (0, 1)]
    both = torch.cat([stream[:57, :4].flatten(1) for stream in streams], dim=1)
    most = torch.linalg.svd(both - both.mean(dim=0), full_matrices=False)[0][4:53, :3]  # principal components
    known = torch.cat([most, torch.ones(49, 1)], dim=1)

    def explained(lag: int) -> float:
        """Explained variance of the log loudness shifted by `lag` frames, in 7-fold cross-validation."""
        middles = [(k + lag) * 640 for k in range(4, 53)]
        loud = torch.stack([mono[m - 320 : m + 320].square().mean().add(1e-8).log() for m in middles])
        rest = torch.zeros(49)
        for stretch in range(7):
            out = torch.arange(49) // 7 == stretch
            weights = torch.linalg.lstsq(known[~out], loud[~out, None]).solution
            rest[out] = loud[out] - (known[out] @ weights)[:, 0]
        return float(1 - rest.square().mean() / loud.var())

    shares = {lag: explained(lag) for lag in range(-2, 3)}
    assert shares[0] > 0.4 and max(shares, key=lambda lag: shares[lag]) == 0, shares


def test_published_configuration(tmp_path):
    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 768
    assert Wav2Vec2SpeechEncoder(tmp_path).encode(voice(0.4), 9).shape == (13, 12, 768)


def test_prepare_uses_the_cut_start_as_context(encoder):
    """1.2 s are cut off; the two frames before are context."""
    from types import SimpleNamespace

    from bya_core.pipelines.prepare import MARGIN, speech_features
    from bya_core.scene.types import Character, Scene, Speech

    waveform = voice(3.0)
    scene = Scene("", [Character("Ada", torch.zeros(3, 8, 8))], [None], 480, 720, 21)
    bundle = SimpleNamespace(speech=encoder, device=torch.device("cpu"), dtype=torch.float32)
    cut = speech_features(Speech(waveform[None], RATE, offset=-1.2), scene, bundle)
    whole = encoder.features(waveform[round(1.12 * RATE) :])
    assert_close(cut, whole[:25])
    plain = speech_features(Speech(waveform[None], RATE), scene, bundle)
    used = waveform[: round((scene.seconds + MARGIN) * RATE)]
    assert torch.equal(plain, encoder.encode(used, 21))
