"""Assignment of speech to characters: given, or by matching voices to faces."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bya_core.encoders.vad import LoudnessActivity
from bya_core.encoders.voice_face import VoiceFace, VoiceFaceMatcher, VoiceFaceNetwork
from bya_core.errors import InputError
from bya_core.evaluation.binding import listener_opening_ratio
from bya_core.routing.audio_assignment import (
    CONFIDENCE_THRESHOLD,
    MAX_SEGMENT_SECONDS,
    assign_audio,
    match_voices,
    matrix_text,
    pair_confidence,
    split_spans,
    voice_scores,
)
from bya_core.scene.types import Character, Scene, Speech
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from tests.fakes import RATE, fake_bundle
from training.benchmark import listeners
from training.run_voice_face import SHIPPED_WEIGHTS, Arguments, evaluate, evaluate_scene, main

VALIDATION = 2_000_000
needs_matcher = pytest.mark.skipif(not SHIPPED_WEIGHTS.is_file(), reason="no weights of the voice-face matcher")


class PitchFace:
    """Matches pitch to brightness; `scale` of the log odds."""

    sample_rate = RATE

    def __init__(self, scale: float = 20.0) -> None:
        self.scale, self.calls = scale, 0

    def scores(self, waveforms, images):
        self.calls += len(waveforms)
        pitch = [float(torch.fft.rfft(w).abs().argmax()) * RATE / len(w) / 1000 for w in waveforms]
        bright = [float(image.mean()) for image in images]
        return torch.tensor([[-self.scale * abs(p - b) for b in bright] for p in pitch])


def speech_at(hertz: float, seconds: float = 1.0) -> Speech:
    time = torch.arange(round(seconds * RATE)) / RATE
    return Speech(0.3 * torch.sin(2 * math.pi * hertz * time)[None], RATE)


def face(brightness: float) -> torch.Tensor:
    return torch.full((3, 8, 8), brightness)


def scene_of(speeches, faces=(0.2, 0.5, 0.8), bind="auto", **rest) -> Scene:
    names = ("Anna", "Ben", "Cleo", "Dan")
    characters = [Character(name, face(value)) for name, value in zip(names, faces, strict=False)]
    return Scene("talk", characters, speeches, 64, 96, 9, bind=bind, **rest)


def bundle_with(voice_face):
    return replace(fake_bundle(), voice_face=voice_face)


def test_given_matrix_is_used():
    matrix = torch.tensor([[0.0, 1.0], [0.7, 0.0]])
    scene = scene_of([speech_at(200), None], (0.2, 0.8), bind="given", audio_character_matrix=matrix)
    matcher = PitchFace()
    found = assign_audio(scene, bundle_with(matcher))
    assert found.matrix is matrix and found.notices == () and matcher.calls == 0


def test_voices_are_matched_to_faces():
    speeches = [speech_at(800), speech_at(200), speech_at(500)]
    found = assign_audio(scene_of(speeches), bundle_with(PitchFace()))
    assert found.matrix.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert found.scores.shape == (3, 3) and bool((found.confidence > CONFIDENCE_THRESHOLD).all())
    assert "speech 1 -> Cleo" in found.notices[0] and not any("Low" in text for text in found.notices)


def test_assignment_maximizes_the_total_score():
    """Both voices match the same face best."""
    found = match_voices([speech_at(500), speech_at(600)], [face(0.55), face(0.9)], PitchFace(), LoudnessActivity())
    assert found.scores.argmax(1).tolist() == [0, 0]
    assert found.matrix.tolist() == [[1, 0], [0, 1]]


def test_low_confidence_gives_a_notice():
    found = assign_audio(scene_of([speech_at(500), speech_at(505)], (0.2, 0.8)), bundle_with(PitchFace()))
    assert float(found.confidence.max()) < 0.6
    assert any(
        "Low confidence" in text and matrix_text(found.matrix, ["Anna", "Ben"]) in text for text in found.notices
    )


def test_silent_streams_get_the_remaining_characters():
    silent = Speech(torch.zeros(1, RATE), RATE)
    found = assign_audio(scene_of([None, speech_at(200), silent]), bundle_with(PitchFace()))
    assert found.matrix.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert found.confidence.tolist()[0] == 1.0 and found.scores[0].abs().sum() == 0
    assert any("No voice was assigned to Ben, Cleo" in text for text in found.notices)


def test_listeners_give_a_notice():
    speeches = [speech_at(800), speech_at(200)]
    scene = scene_of(speeches, audio_character_matrix=torch.zeros(2, 3))
    found = assign_audio(scene, bundle_with(PitchFace()))
    assert found.matrix.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert any("No voice was assigned to Ben:" in text for text in found.notices)


def test_more_voices_than_faces_raise():
    speeches = [speech_at(200), None, speech_at(800), speech_at(500)]
    scene = scene_of(speeches, (0.2, 0.8), audio_character_matrix=torch.zeros(4, 2))
    with pytest.raises(InputError, match=r"3 voices \(speech 1, speech 3, speech 4\)"):
        assign_audio(scene, bundle_with(PitchFace()))


def test_model_without_matcher_raises():
    with pytest.raises(InputError, match="cannot match voices to faces"):
        assign_audio(scene_of([speech_at(200)] * 3), fake_bundle())


def test_scores_are_weighted_by_length():
    """1.5 s at 800 Hz and 0.5 s at 200 Hz: the bright face has the higher score."""
    high, low, pause = speech_at(800, 1.5).waveform, speech_at(200, 0.5).waveform, torch.zeros(1, RATE // 2)
    speech = Speech(torch.cat([high, pause, low], 1), RATE)
    matcher = PitchFace()
    scores = voice_scores(speech, [face(0.2), face(0.8)], matcher, LoudnessActivity())
    assert matcher.calls == 2 and scores[1] > scores[0]


def test_long_speech_is_matched_in_pieces():
    pieces = split_spans([(0.0, 5.0), (6.0, 7.0)])
    assert [round(end - start, 6) for start, end in pieces] == [round(5 / 3, 6)] * 3 + [1.0]
    assert max(end - start for start, end in pieces) <= MAX_SEGMENT_SECONDS


def test_pair_confidence():
    scores = np.array([[2.0, 0.5], [1.0, 1.5]])
    expected = 1 / (1 + math.exp(-((2.0 + 1.5) - (0.5 + 1.0))))
    np.testing.assert_allclose(pair_confidence(scores), expected)
    assert pair_confidence(np.zeros((2, 2))).tolist() == [0.5, 0.5]
    assert pair_confidence(np.array([[-3.0]])).tolist() == [1.0]
    one_voice = pair_confidence(np.array([[1.0, 0.0, -5.0]]))
    np.testing.assert_allclose(one_voice, 1 / (1 + math.exp(-1.0)))


def test_matcher_takes_any_size_and_length(tmp_path):
    torch.manual_seed(0)
    matcher = VoiceFaceMatcher(VoiceFaceNetwork())
    assert isinstance(matcher, VoiceFace)
    sounds = [speech_at(200, 0.02).waveform[0], speech_at(300, 1.3).waveform[0]]
    scores = matcher.scores(sounds, [torch.rand(3, 48, 48), torch.rand(3, 120, 90), torch.rand(3, 30, 30)])
    assert scores.shape == (2, 3) and bool(torch.isfinite(scores).all())
    louder = matcher.scores([0.1 * sounds[1]], [torch.full((3, 48, 48), 0.5)])
    same = matcher.scores([sounds[1]], [torch.full((3, 48, 48), 0.5)])
    torch.testing.assert_close(louder, same, atol=0.05, rtol=0.0)


def test_training_writes_a_checkpoint_that_loads(tmp_path):
    path = tmp_path / "matcher.safetensors"
    main(Arguments(path, puppets=24, steps=2, batch_size=8))
    matcher = VoiceFaceMatcher.load(path)
    result = evaluate_scene(matcher, VALIDATION, 2, 25, "overlap", "loudness")
    assert 0.5 <= result.confidence <= 1.0
    assert [entry.name for entry in tmp_path.iterdir()] == ["matcher.safetensors"]
    with pytest.raises(InputError, match="higher seeds are for evaluation"):
        main(Arguments(path, seed=1_000_000))


@needs_matcher
def test_shipped_matcher():
    """12 scenes of validation seeds; docs/explanation/audio-assignment.md has results on 200 held-out scenes."""
    matcher = VoiceFaceMatcher.load(SHIPPED_WEIGHTS)
    results = [evaluate_scene(matcher, VALIDATION + 100 + k, 2, 49, "overlap", "loudness") for k in range(12)]
    assert sum(result.correct for result in results) >= 10
    assert SHIPPED_WEIGHTS.stat().st_size < 1_000_000


@needs_matcher
@pytest.mark.slow
def test_accuracy_of_the_shipped_matcher():
    report = evaluate(Arguments(scenes=100, seed_base=VALIDATION), VoiceFaceMatcher.load(SHIPPED_WEIGHTS))
    assert next(row["accuracy"] for row in report["rows"] if row["characters"] == 2) >= 0.9


@needs_matcher
@pytest.mark.skipif(not MODELS["toy"].available, reason="no weights of the toy model")
def test_toy_model_has_a_matcher():
    assert isinstance(load_bundle("toy").voice_face, VoiceFaceMatcher)


def test_listener_opening_ratio():
    speaking = np.zeros((2, 20), bool)
    speaking[0, :10] = True
    opening = np.where(speaking, 0.10, 0.01)
    opening[0, 10:12] = 0.08  # closing
    assert listener_opening_ratio(opening, speaking) == pytest.approx(0.1)
    assert listener_opening_ratio(opening, speaking, border=0) > 0.1
    assert listener_opening_ratio(np.full((2, 20), 0.1), speaking) == pytest.approx(1.0)  # always open
    assert math.isnan(listener_opening_ratio(opening, np.zeros_like(speaking)))


@pytest.mark.slow
@pytest.mark.skipif(not MODELS["toy"].available, reason="no weights of the toy model")
def test_mouths_of_listeners_stay_closed():
    report = listeners.evaluate(
        listeners.ListenerOptions(scenes=8, seed_base=VALIDATION, frames=17), load_bundle("toy")
    )
    assert report["drawn"] < 0.02 and report["judged"] >= 8
    assert report["model"] <= listeners.THRESHOLD
