"""Scene to video with random weights: shapes, inputs, notices, progress and cancellation."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bya_core.config import RouterConfig
from bya_core.errors import Cancelled, InputError
from bya_core.masks import MaskControl, mask_statistics
from bya_core.pipelines.generate import Progress, Video, generate
from bya_core.pipelines.run_report import build_report, peak_ram
from bya_core.scene.types import Character, Scene, Speech
from bya_core.weights.bundle import ModelBundle
from tests.fakes import RATE, fake_bundle, tone

ROOT = Path(__file__).resolve().parents[3]


def voice(seconds: float, hertz: float = 200.0) -> Speech:
    return Speech(torch.from_numpy(tone(seconds, hertz)).float()[None], RATE)


def scene_of(count: int, bundle: ModelBundle, **fields: Any) -> Scene:
    torch.manual_seed(1)
    defaults: dict[str, Any] = {
        "prompt": "some people",
        "characters": [Character(f"c{i}", torch.rand(3, 20, 24)) for i in range(count)],
        "speeches": [voice(0.3, 200.0 + 100 * i) for i in range(count)],
        "height": 64,
        "width": 96,
        "num_frames": 9,
        "sampling": bundle.sampling,
    }
    return Scene(**defaults | fields)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_characters(count: int, bundle: ModelBundle) -> None:
    video = generate(scene_of(count, bundle), bundle)
    assert video.frames.shape == (9, 64, 96, 3) and video.frames.dtype == torch.uint8
    assert video.masks.shape == (count, 3, 4, 6)
    assert video.masks.min() >= 0 and video.masks.max() <= 1
    assert video.audio is not None and video.audio[0].shape == (1, round(9 / 25 * RATE))
    assert any("trained with at most 2" in notice for notice in video.notices) == (count > 2)


def test_other_sizes_give_a_notice(bundle: ModelBundle) -> None:
    video = generate(scene_of(2, bundle, height=48, width=64, num_frames=5), bundle)
    assert video.frames.shape == (5, 48, 64, 3) and video.masks.shape == (2, 2, 3, 4)
    assert any("96x64" in notice for notice in video.notices)


def test_seed(bundle: ModelBundle) -> None:
    sampling = dataclasses.replace(bundle.sampling, seed=1)
    first, again = (generate(scene_of(2, bundle, sampling=sampling), bundle) for _ in range(2))
    other = generate(scene_of(2, bundle), bundle)
    assert torch.equal(first.frames, again.frames) and torch.equal(first.masks, again.masks)
    assert not torch.equal(first.frames, other.frames)


@pytest.mark.parametrize("change", ["speech", "matrix", "first frame", "face", "prompt", "silence", "gain", "negative"])
def test_every_input_reaches_the_video(change: str, bundle: ModelBundle) -> None:
    scene = scene_of(2, bundle)
    changed = {
        "speech": {"speeches": [voice(0.3, 200.0), voice(0.1, 300.0)]},
        "matrix": {"audio_character_matrix": torch.tensor([[0.0, 1.0], [0.0, 0.0]])},
        "first frame": {"first_frame": torch.rand(3, 30, 40)},
        "face": {"characters": [scene.characters[0], Character("other", torch.rand(3, 9, 9))]},
        "prompt": {"prompt": "nobody"},
        "negative": {"negative_prompt": "rain"},
        "silence": {"speeches": [scene.speeches[0], None]},
        "gain": {"speeches": [scene.speeches[0], dataclasses.replace(voice(0.3, 300.0), gain=-20.0)]},
    }[change]
    assert not torch.equal(generate(scene, bundle).frames, generate(scene_of(2, bundle, **changed), bundle).frames)


def test_mask_control(bundle: ModelBundle) -> None:
    masks = torch.zeros(2, 3, 4, 6)
    masks[0, :, :, :3], masks[1, :, :, 3:] = 1.0, 1.0

    def controlled(strength: Tensor) -> Video:
        control = MaskControl(masks, strength)
        return generate(scene_of(2, bundle, routing=RouterConfig("manual"), mask_control=control), bundle)

    full, half, none = (controlled(torch.full((2,), strength)) for strength in (1.0, 0.5, 0.0))
    torch.testing.assert_close(full.masks, masks)
    torch.testing.assert_close(none.masks, generate(scene_of(2, bundle), bundle).masks)
    assert not torch.equal(half.frames, full.frames)


def test_no_speech_no_audio(bundle: ModelBundle) -> None:
    assert generate(scene_of(2, bundle, speeches=[None, None]), bundle).audio is None


def test_callback_receives_every_step(bundle: ModelBundle) -> None:
    received: list[Progress] = []
    generate(scene_of(2, bundle), bundle, received.append)
    steps = [progress for progress in received if progress.info is not None]
    assert [(progress.step, progress.total) for progress in steps] == [(1, 2), (2, 2)]
    assert steps[0].info is not None and steps[0].info.masks is not None
    assert steps[0].info.x0.shape == (1, 3, 3, 8, 12)
    assert "Decoding" in {progress.stage for progress in received}


@pytest.mark.parametrize("when", ["Encoding prompt", "Denoising", "Decoding"])
def test_callback_cancels(when: str, bundle: ModelBundle) -> None:
    with pytest.raises(Cancelled):
        generate(scene_of(2, bundle), bundle, lambda progress: progress.stage != when)


def test_guidance_branches(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    forward = bundle.transformer.forward

    def counted(**inputs: Any) -> Any:
        batches.append(inputs["hidden_states"].shape[0])
        return forward(**inputs)

    monkeypatch.setattr(bundle.transformer, "forward", counted)
    for text, speech in ((1.0, 1.0), (2.0, 2.0), (2.0, 3.0)):
        sampling = dataclasses.replace(bundle.sampling, steps=1, guidance_scale=text, audio_guidance_scale=speech)
        generate(scene_of(2, bundle, sampling=sampling), bundle)
    assert batches == [1, 2, 3]


def test_mask_statistics() -> None:
    masks = torch.zeros(3, 2, 4, 4)
    masks[0, :, :2] = 0.9
    masks[1, 0, 0, 0] = 0.6
    statistics = mask_statistics(masks)
    assert [each.coverage for each in statistics] == pytest.approx([0.5, 1 / 32, 0.0], abs=1e-4)
    assert [each.confidence for each in statistics] == pytest.approx([0.9, 0.6, 0.0], abs=1e-4)


def test_build_report(bundle: ModelBundle) -> None:
    matrix = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    scene = scene_of(2, bundle, audio_character_matrix=matrix, speeches=[voice(0.3), None])
    video = generate(scene, bundle)
    video = dataclasses.replace(video, masks=torch.zeros_like(video.masks), notices=("careful",))
    report = build_report(scene, Path("scene.json"), bundle, video, {"loading": 1.0}, [Path("a.mp4")])
    assert [character["speech_of"] for character in report["characters"]] == [[], ["c0"]]
    assert report["characters"][0]["mask"] == {"coverage": 0.0, "confidence": 0.0}
    assert report["warnings"] == ["careful"]
    assert report["seconds"]["total"] == pytest.approx(1.0 + sum(video.seconds.values()), abs=0.01)
    assert report["peak_memory"]["ram_gb"] > 0
    assert report["model"]["name"] == "toy" and report["seed"] == 0 and report["files"] == ["a.mp4"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_ram_excludes_the_parent_process() -> None:
    """On Linux, `ru_maxrss` of a child process includes the peak of its parent."""
    held = bytearray(b"1") * 300_000_000
    script = (
        "import sys; from bya_core.pipelines.run_report import peak_ram; x = b'1' * int(sys.argv[1]); print(peak_ram())"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", script, size], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
        for size in ("60000000", "160000000")
    ]
    assert peak_ram() > len(held) + 100_000_000
    assert peaks[1] - peaks[0] == pytest.approx(100_000_000, rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_matches_cpu(bundle: ModelBundle) -> None:
    gpu = fake_bundle().to("cuda")
    assert gpu.device.type == "cuda"
    masks = torch.rand(2, 3, 4, 6)
    scene = scene_of(2, bundle, first_frame=torch.rand(3, 30, 40))
    half, manual = torch.full((2,), 0.5), RouterConfig("manual")
    forced = dataclasses.replace(scene, routing=manual, mask_control=MaskControl(masks, half))
    for each in (scene, forced):
        expected, video = generate(each, bundle), generate(each, gpu)
        assert video.frames.device.type == "cpu"
        torch.testing.assert_close(video.masks, expected.masks, atol=1e-2, rtol=0)
        assert (video.frames.float() - expected.frames.float()).abs().mean() < 3


def test_errors_of_the_face_encoder_name_the_character(bundle: ModelBundle) -> None:
    class NoFace:
        def encode(self, image: torch.Tensor) -> None:
            raise InputError("no face detected", "one face", "use another image")

    scene = scene_of(2, bundle)
    with pytest.raises(InputError, match=f"image of {scene.characters[0].name}: no face detected"):
        generate(scene, dataclasses.replace(bundle, face=NoFace()))
