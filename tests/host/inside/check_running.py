"""Execution of the nodes with the toy model."""

from __future__ import annotations

import base64
import gc
import importlib.util
import json
import os
import weakref
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management as management
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from conftest import FIXED, Run, short
from PIL import Image
from torch.nn.modules import module as torch_modules

N, T, F, H, W = 2, 3, 9, 64, 96
PREVIEWS = comfy.cli_args.LatentPreviewMethod


@pytest.fixture(scope="module")
def sampled(run: Run, routing: Any) -> tuple[Any, ...]:
    return run("Sampler", routing=routing)


def half_mask(side: str, height: int = H, width: int = W) -> torch.Tensor:
    """A mask [1, height, width] of the left or right half."""
    mask = torch.zeros(1, height, width)
    mask[..., slice(width // 2) if side == "left" else slice(width // 2, None)] = 1
    return mask


def test_sampler(run: Run, routing: Any, sampled: tuple[Any, ...], cast: Any) -> None:
    frames, video, audio, masks, fps, report = sampled
    assert frames.shape == (F, H, W, 3) and frames.min() >= 0 and frames.max() <= 1 and frames.std() > 0.05
    assert fps == 25
    components = video.get_components()
    assert components.frame_rate == 25 and torch.equal(components.images, frames)
    assert audio["waveform"].shape == (1, 1, round(F / 25 * audio["sample_rate"]))
    voices = [member.speech.waveform[0, : audio["waveform"].shape[-1]] for member in cast]
    assert torch.allclose(audio["waveform"][0, 0], sum(voices), atol=1e-6)  # original audio at its original level
    assert masks.shape == (N * T, H, W)
    for character in masks.reshape(N, T, H, W):
        assert 0.05 < (character > 0.5).float().mean() < 0.6
    assert "Ada: " in report and "Denoising: " in report
    assert torch.equal(run("Sampler", routing=routing)[0], frames)  # inputs were not modified


def test_best_take(run: Run, nodes: dict[str, Any], model: Any, cast: Any, demo: dict[str, Any]) -> None:
    """Three seeds are listed, two are finished; the video is that of the best seed, and its masks can be edited."""
    options = {"model": model, "cast": cast, "prompt": demo["prompt"], **short(9, steps=4)}
    (scene,) = run("Scene", seed=7, **options)[:1]
    frames, _, _, masks, fps, report, table, seed, routing = run("BestTake", scene=scene, num_takes=3, keep=2)
    assert frames.shape == (F, H, W, 3) and masks.shape == (N * T, H, W) and fps == 25 and "Denoising: " in report
    head, *rows, cost = table.splitlines()
    assert [row.split()[0] for row in rows] == ["1.", "2.", "3."] and head.split()[-1] == "calls"
    assert sorted(int(row.split()[1]) for row in rows) == [7, 8, 9] and int(rows[0].split()[1]) == seed
    assert int(cost.split()[0]) == sum(int(row.split()[-1]) for row in rows)
    (alone,) = run("Scene", seed=seed, **options)[:1]
    assert torch.equal(run("Sampler", routing=run("EmbeddingRouter", scene=alone)[0])[0], frames)
    assert torch.equal(run("Sampler", routing=run("MaskRefine", routing=routing, refine=False)[0])[0], frames)
    refused = nodes["BestTake"].validate_inputs(num_takes=2, keep=3)
    assert "keep 3 of 2 takes" in refused and nodes["BestTake"].validate_inputs(num_takes=3, keep=3) is True


def test_script_gives_the_cast_its_speech(run: Run, nodes: dict[str, Any], cast: Any) -> None:
    """Recordings as a text-to-speech node behind BYA Script Lines returns them: one per line of a character."""
    play = "ADA: One.\nbo: Two.\n(pause 2)\nAda: Three."
    lines, estimate = run("ScriptLines", script=play, character="ada")
    assert lines == ["One.", "Three."] and "s in total" in estimate
    audio = {"waveform": torch.linspace(0, 300, 8000).cos()[None, None], "sample_rate": 16_000}
    inputs = {"cast": [cast], "script": [play], "recordings_1": [audio, audio], "recordings_2": [audio]}
    spoken, table, subtitles = run("Script", **inputs)
    assert [member.name for member in spoken] == ["Ada", "Bo"] and spoken[0].image is cast[0].image
    starts = [float(row.split()[0]) for row in table.splitlines()[:-1]]
    ends = [float(row.split()[2]) for row in table.splitlines()[:-1]]
    assert starts[2] == pytest.approx(ends[1] + 2, abs=0.02) and starts[0] == 0.3
    assert [member.speech.end for member in spoken] == pytest.approx([ends[2], ends[1]], abs=0.02)
    assert "Ada: Three." in subtitles
    check = nodes["Script"].validate_inputs
    assert check(script=[play], voices=["Bo=en+m1"]) is True and "Cy=x" in check(script=[play], voices=["Cy=x"])
    assert "has no name" in check(script=["Hello."], voices=[""]) and "0 lines" in check(script=[""])
    assert check(voices=["anything"]) is True  # the script is connected
    assert 'no line of "Cy"' in nodes["ScriptLines"].validate_inputs(script=play, character="Cy")
    with pytest.raises(ValueError, match="1 recordings of Ada, who has 2 lines"):
        run("Script", **inputs | {"recordings_1": [audio]})
    with pytest.raises(ValueError, match="recordings_3 of 2 characters"):
        run("Script", **inputs, recordings_3=[audio], recordings_4=[])


def level(audio: dict[str, Any], hertz: float, start: float, end: float) -> float:
    """Amplitude of a tone in a part of a sound."""
    rate = audio["sample_rate"]
    part = audio["waveform"][0].mean(0)[round(start * rate) : round(end * rate)].double()
    wave = torch.exp(-2j * torch.pi * hertz * torch.arange(len(part)) / rate)
    return float(2 * (part * wave).sum().abs() / len(part))


def test_dub_takes_separate_recordings_or_a_timeline(run: Run, model: Any, demo: dict[str, Any]) -> None:
    """Ada gets a new voice: the old voices, the film and the background are distinguished by their pitch."""

    def tone(hertz: float) -> dict[str, Any]:
        waveform = 0.2 * torch.sin(2 * torch.pi * hertz * torch.arange(8000) / 16_000)
        return {"waveform": waveform[None, None], "sample_rate": 16_000}

    new, _ = run("AudioEncode", audio=tone(950))
    (one,) = run("FaceEncode", image=demo["image_1"], name="Ada", speech=new)
    (cast,) = run("FaceEncode", image=demo["image_2"], name="Bo", cast=one)
    scene = run("Scene", model=model, cast=cast, prompt=demo["prompt"], **short(9, steps=2))[0]
    frames = InputImpl.VideoFromFile(str(Path(os.environ["BYA_PACK"], "demo/two_puppets.mp4"))).get_components().images
    parts = Types.VideoComponents(images=frames[:10], frame_rate=Fraction(25), audio=tone(100))
    film = InputImpl.VideoFromComponents(parts)
    inputs = {"scene": scene, "film": film, "old_voice_1": tone(350), "old_voice_2": tone(550), "background": tone(750)}
    audio = run("Dub", **inputs)[2]
    levels = {hertz: level(audio, hertz, 0, 0.4) for hertz in (100, 350, 550, 750, 950)}
    assert all((levels[hertz] > 0.15) == (hertz in (550, 750, 950)) for hertz in levels), levels

    timeline = "1\n00:00:00,000 --> 00:00:00,200\nADA: Hello.\n\n2\n00:00:00,200 --> 00:00:00,400\nBo: Hi.\n"
    _, _, audio, _, _, report = run("Dub", scene=scene, film=film, timeline=timeline)
    assert level(audio, 100, 0, 0.2) < 0.02 and level(audio, 100, 0.22, 0.4) > 0.15 and "muted" not in report
    with pytest.raises(ValueError, match="old_voice_3 of 2 characters"):
        run("Dub", **inputs, old_voice_3=tone(1150))


def test_outputs_are_on_the_cpu(routing: Any) -> None:
    values = [*vars(routing.prepared.conditions).values(), *vars(routing.routing.state).values(), routing.routing.masks]
    assert all(value.device.type == "cpu" for value in values if isinstance(value, torch.Tensor))


def test_refine_keeps_the_state_unless_restarted(run: Run, routing: Any) -> None:
    before = routing.routing.masks.clone()
    refined, masks, report = run("MaskRefine", routing=routing)
    assert refined.routing.state is routing.routing.state
    assert set(refined.routing.masks.unique().tolist()) <= {0.0, 1.0}
    assert masks.shape == (N * T, H, W) and "confidence" in report
    assert torch.equal(routing.routing.masks, before)
    assert run("MaskRefine", routing=routing, restart=True)[0].routing.state is None


def test_override_mask(run: Run, routing: Any) -> None:
    override = {"routing": routing, "refine": False, "override_mask": half_mask("left", 40, 60)}
    edited, masks, _ = run("MaskRefine", **override, character="Bo")
    ada, bo = masks.reshape(N, T, H, W)
    assert bo[..., : W // 2].min() == 1 and bo[..., W // 2 :].max() == 0
    assert torch.equal(ada, routing.mask_images.reshape(N, T, H, W)[0])
    assert edited.routing.control.strength.tolist() == [0.0, 1.0]  # Ada's mask is still predicted
    control = run("MaskRefine", **override, strength=0.5, start_percent=0.2, end_percent=0.6)[0].routing.control
    assert control.strength.tolist() == [0.5, 0.0]
    assert (control.start_percent[0].item(), control.end_percent[0].item()) == pytest.approx((0.2, 0.6))


def test_painted_masks(run: Run, nodes: dict[str, Any], routing: Any) -> None:
    """Strokes on the second frame of Bo: white on the left half, black on the right; the other masks are kept."""
    name = "painted.png"
    pixels = np.zeros((2 * 8, T * 12, 4), dtype=np.uint8)
    pixels[8:, 12:18], pixels[8:, 18:24] = 255, (0, 0, 0, 255)
    path = Path(folder_paths.get_input_directory()) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    try:
        description = {"file": f"{name} [input]", "grid": [T, 8, 12], "characters": ["Ada", "Bo"], "columns": T}
        painted = {"painted_masks": json.dumps(description)}
        assert nodes["MaskRefine"].validate_inputs(**painted) is True
        edited, masks, _ = run("MaskRefine", routing=routing, refine=False, **painted, strength=0.5)
        ada, bo = masks.reshape(N, T, H, W)
        before = routing.mask_images.reshape(N, T, H, W)
        assert bo[1, :, : W // 2].min() == 1 and bo[1, :, W // 2 :].max() == 0
        assert torch.equal(ada, before[0]) and torch.equal(bo[[0, 2]], before[1, [0, 2]])
        assert edited.routing.control.strength.tolist() == [[0, 0, 0], [0, 0.5, 0]]
        shown = nodes["MaskRefine"].execute(routing=routing, refine=False, **painted).ui["bya_masks"][0]
        temporary = Path(folder_paths.get_temp_directory())
        sheet = np.asarray(Image.open(temporary / shown["subfolder"] / shown["filename"]))
        assert sheet.shape == (8, N * T * 12) and shown["names"] == ["Ada", "Bo"]
        expected = (routing.routing.masks[1, 1] * 255).round().numpy()
        assert np.array_equal(sheet[:, (T + 1) * 12 : (T + 2) * 12], expected), "masks below the strokes"
        key = nodes["MaskRefine"].fingerprint_inputs(**painted)
        inline = description | {"file": f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"}
        again = {"painted_masks": json.dumps(inline)}
        assert nodes["MaskRefine"].validate_inputs(**again) is True
        assert nodes["MaskRefine"].fingerprint_inputs(**again) == key
        assert torch.equal(run("MaskRefine", routing=routing, refine=False, **again, strength=0.5)[1], masks)
        Image.fromarray(255 - pixels).save(path)
        assert nodes["MaskRefine"].fingerprint_inputs(**painted) != key
    finally:
        path.unlink()
    assert "is missing" in nodes["MaskRefine"].validate_inputs(**painted)
    outside = json.dumps(description | {"file": "../outside.png [input]"})
    assert "outside of" in nodes["MaskRefine"].validate_inputs(painted_masks=outside)


def test_manual_masks(run: Run, scene: Any, routing: Any) -> None:
    painted = torch.cat([half_mask("left"), half_mask("right")])
    routed, masks, report = run("EmbeddingRouter", scene=scene, mode="manual", masks=painted)
    assert torch.equal(masks, painted.repeat_interleave(T, dim=0))
    assert routed.routing.calls == 0 and "manual" in report
    again, masks, _ = run("EmbeddingRouter", scene=scene, mode="manual", masks=routing.mask_images)
    assert torch.allclose(again.routing.masks, routing.routing.masks, atol=1e-6)
    assert torch.allclose(masks, routing.mask_images, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "matrix"),
    [
        ({}, [[1, 0], [0, 1]]),
        ({"audio_assignment": "swapped"}, [[0, 1], [1, 0]]),
        ({"audio_assignment": "matrix", "audio_character_matrix": "1 1; 0 0.5"}, [[1, 1], [0, 0.5]]),
    ],
)
def test_audio_assignment(run: Run, scene: Any, inputs: dict[str, str], matrix: list[list[float]]) -> None:
    routed, _, _ = run("EmbeddingRouter", scene=scene, mode="manual", masks=torch.ones(N, 4, 4), **inputs)
    assert routed.routing.matrix.tolist() == matrix


def test_automatic_audio_assignment(run: Run, scene: Any) -> None:
    inputs = {"mode": "manual", "audio_assignment": "auto", "masks": torch.ones(N, 4, 4)}
    routed, _, report = run("EmbeddingRouter", scene=scene, **inputs)
    assert sorted(routed.routing.matrix.tolist()) == [[0, 1], [1, 0]]
    assert "Ada follows" in report


@pytest.mark.parametrize("mode", ["pre", "post"])
def test_router_modes(mode: str, run: Run, scene: Any) -> None:
    routed, masks, report = run("EmbeddingRouter", scene=scene, mode=mode)
    assert masks.shape == (N * T, H, W) and f"by the {mode} router" in report
    ada, bo = routed.routing.masks > 0.5
    assert ada.any() and bo.any() and not (ada & bo).any()
    assert routed.routing.control.strength.tolist() == [1.0, 1.0]


def test_probe_options(run: Run, scene: Any) -> None:
    options = {**FIXED, "probe_steps": 1, "num_seeds": 5, "threshold": 0.01, "max_percent": 0.3}
    probe = run("EmbeddingRouter", scene=scene, **options)[0].scene.routing.probe
    assert (probe.steps, probe.num_seeds, probe.threshold, probe.max_fraction) == (1, 5, 0.01, 0.3)


def test_several_takes(run: Run, scene: Any) -> None:
    routed, _, report = run("EmbeddingRouter", scene=scene, mode="intra", **FIXED, num_takes=2)
    assert routed.scene.routing.probe.num_takes == 2 and "the best of 2 by masks" in report


def test_spatial(run: Run, routing: Any, sampled: tuple[Any, ...]) -> None:
    frames, _, audio, *_ = run("Sampler", routing=routing, spatial=True)
    left, right = audio["waveform"][0]
    assert torch.equal(frames, sampled[0]) and not torch.allclose(left, right, atol=1e-3)


def test_reference_video_of_drawn_people_is_refused(run: Run, scene: Any, sampled: tuple[Any, ...]) -> None:
    for assignment, match in (("auto", "with drawn characters"), ("given", "without automatic audio assignment")):
        with pytest.raises(ValueError, match=match):
            run("EmbeddingRouter", scene=scene, audio_assignment=assignment, reference_video=sampled[1])


def test_overlay_and_selection(run: Run, routing: Any, sampled: tuple[Any, ...]) -> None:
    frames, masks = sampled[0], sampled[3]
    (shown,) = run("MaskOverlay", routing=routing, images=frames, masks=masks)
    assert shown.shape[0] == F and shown.shape[1] > shown.shape[2] * H / W  # legend below
    (plain,) = run("MaskOverlay", routing=routing, legend=False)
    assert plain.shape[1] * W == plain.shape[2] * H
    (mask,) = run("SelectCharacterMask", routing=routing, character="2")
    assert torch.equal(mask, routing.mask_images[T:])
    (mask,) = run("SelectCharacterMask", routing=routing, character="Ada", frames="video", masks=masks)
    assert mask.shape == (F, H, W) and torch.allclose(mask[[0, 8]], masks[[0, 2]], atol=1e-6)


def test_report_and_preflight(run: Run, routing: Any, sampled: Any, cast: Any, demo: dict[str, Any]) -> None:
    picture, text = run("BindingReport", routing=routing, frames=sampled[0], masks=sampled[3])
    assert picture.shape[0] == 1 and "9 frames" in text
    checked, faces, text, ok = run(
        "Preflight", cast=cast, **short(F), first_frame=demo["first_frame"], masks=sampled[3]
    )
    assert checked is cast and ok is True and faces.shape[0] == 1
    assert "Ada" in text and "Bo" in text
    with pytest.raises(ValueError, match="1 image for 2 characters"):
        run("Preflight", cast=cast, **short(F), masks=torch.ones(1, 8, 8))
    _, _, text, ok = run("Preflight", cast=cast, model="official", stop_on_error=False)
    assert ok is False and "download official" in text


def test_report_of_any_video(run: Run) -> None:
    """Two real people who speak at once: a VIDEO and two recordings, in the order of the other person first."""
    spec = importlib.util.spec_from_file_location("clips", Path(os.environ["BYA_PACK"], "tests/clips.py"))
    clips = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clips)
    frames, speech = clips.side_by_side(("brbk7n", "lrwp9a"))
    sounds = [{"waveform": torch.from_numpy(each.copy())[None, None], "sample_rate": 16_000} for each in speech]
    parts = Types.VideoComponents(images=torch.from_numpy(frames) / 255, frame_rate=Fraction(25), audio=sounds[0])
    video = InputImpl.VideoFromComponents(parts)
    picture, text, verdict = run("VideoReport", video=video, voice_1=sounds[1], voice_2=sounds[0])
    assert verdict == "passed" and picture.shape[0] == 1
    assert "face 1 follows the voice of voice 2" in text and "face 2 follows the voice of voice 1" in text


def test_long_video(run: Run, model: Any, cast: Any, demo: dict[str, Any]) -> None:
    """Windows of 9 frames; an edited mask applies to all of them, and no temporary files are left."""
    options = {"first_frame": demo["first_frame"], **short(17, steps=2, window_frames=9, window_overlap=1)}
    scene, _ = run("Scene", model=model, cast=cast, prompt=demo["prompt"], **options)
    routing, masks, report = run("EmbeddingRouter", scene=scene)
    assert masks.shape == (N * T, H, W) and "window 1 of 2" in report
    routing, _, _ = run("MaskRefine", routing=routing, override_mask=half_mask("left"), character="Ada")
    frames, _, audio, masks, _, _ = run("Sampler", routing=routing)
    assert frames.shape == (17, H, W, 3) and audio["waveform"].shape[-1] == round(17 / 25 * audio["sample_rate"])
    ada = masks.reshape(N, 5, H, W)[0]
    assert ada[..., : W // 2].min() == 1 and ada[..., W // 2 :].max() == 0
    assert run("MaskOverlay", routing=routing, images=frames, masks=masks)[0].shape[0] == 17
    folder = Path(folder_paths.get_temp_directory()) / "bindyouravatar"
    assert not list(folder.rglob("*.safetensors"))


def test_window_of_a_long_video(run: Run, model: Any, cast: Any, demo: dict[str, Any], caplog: Any) -> None:
    """The sampler continues from the window that the router looked at, and keeps the windows before it."""
    options = {"first_frame": demo["first_frame"], **short(17, steps=2, window_frames=9, window_overlap=1)}
    scene, _ = run("Scene", model=model, cast=cast, prompt=demo["prompt"], **options)
    routing, masks, report = run("EmbeddingRouter", scene=scene, window=2, **FIXED, probe_steps=1)
    assert masks.shape == (N * T, H, W) and "window 2 of 2" in report
    first = run("MaskOverlay", routing=routing)[0]
    assert first.shape[0] == F
    routing, _, _ = run("MaskRefine", routing=routing, refine=False)
    frames = run("Sampler", routing=routing)[0]
    folder = Path(folder_paths.get_temp_directory()) / "bindyouravatar"
    kept = list(folder.rglob("window_*.safetensors"))
    assert [path.name for path in kept] == ["window_0001.safetensors"]
    whole = run("Sampler", routing=run("EmbeddingRouter", scene=scene, **FIXED, probe_steps=1)[0])[0]
    assert torch.equal(frames, whole)
    with pytest.raises(ValueError, match="a number from 1 to 2"):
        run("EmbeddingRouter", scene=scene, window=3)
    for path in folder.rglob("*.safetensors"):
        path.unlink()


def test_lengths_are_rounded_and_told(run: Run, model: Any, cast: Any, caplog: Any) -> None:
    scene, info = run("Scene", model=model, cast=cast, prompt="", **short(100_000))
    assert scene.scene.num_frames == 100_001 and "rounded to 100001" in info and "rounded to 100001" in caplog.text


def test_unpainted_masks(run: Run, scene: Any, routing: Any) -> None:
    """The MASK of Load Image is 64x64 and black for a picture without transparency."""
    black = torch.zeros(1, 64, 64)
    with pytest.raises(ValueError, match="of .Ada. is empty"):
        run("MaskRefine", routing=routing, override_mask=black, character="ada")
    with pytest.raises(ValueError, match="is empty"):
        run("EmbeddingRouter", scene=scene, mode="manual", masks=torch.cat([black, black]))
    report = run("EmbeddingRouter", scene=scene, mode="manual", masks=torch.cat([black, 1 - black]))[2]
    assert "Ada is empty" in report


def test_first_frame_fit(run: Run, model: Any, cast: Any, demo: dict[str, Any]) -> None:
    """A first frame twice as tall as the video gets black bars with pad, and none with crop."""
    tall = torch.nn.functional.pad(demo["first_frame"], (0, 0, 0, 0, 32, 32), value=0.5)
    options = {"model": model, "cast": cast, "prompt": demo["prompt"], "first_frame": tall, **short(9, steps=2)}
    edge = {}
    for fit in ("crop", "pad"):
        scene, _ = run("Scene", first_frame_fit=fit, **options)
        edge[fit] = run("Sampler", routing=run("EmbeddingRouter", scene=scene)[0])[0][0, :, :8].mean()
    assert edge["pad"] < 0.15 < edge["crop"]
    with pytest.raises(ValueError, match='"crop" or "pad"'):
        run("EmbeddingRouter", scene=run("Scene", first_frame_fit="stretch", **options)[0])


@pytest.mark.parametrize(
    ("node", "inputs", "match"),
    [
        ("EmbeddingRouter", {"mode": "manual"}, "masks"),
        ("EmbeddingRouter", {"mode": "manual", "masks": torch.ones(1, 8, 8)}, "1 image for 2 characters"),
        (
            "EmbeddingRouter",
            {"audio_assignment": "matrix", "audio_character_matrix": "1 0 0; 0 1 0"},
            "audio-character matrix",
        ),
        ("MaskRefine", {"override_mask": torch.ones(1, 8, 8), "character": "Cy"}, r"1 \(Ada\), 2 \(Bo\)"),
        ("MaskRefine", {"override_mask": torch.ones(2, 8, 8)}, "Ada"),
        ("Scene", short(9, width=100), "a multiple of 8"),
        ("Scene", {"prompt_schedule": "soon: Ada laughs"}, "2.5 - 4: Ada laughs"),
        ("FaceEncode", {"name": "Ada"}, 'two characters named "Ada"'),
        ("FaceEncode", {"image": torch.rand(2, 8, 8, 3)}, "a batch of 2 images"),
        ("FaceEncode", {"image": torch.ones(1, 64, 64, 3), "name": "Cy"}, "Cy"),
        ("AudioEncode", {"audio": None}, "no audio"),
        ("AudioEncode", {"offset": -60.0}, "before the video starts"),
        ("Loader", {"model": "official"}, "download official"),
    ],
)
def test_invalid_input(
    node: str, inputs: dict[str, Any], match: str, run: Run, demo: Any, request: pytest.FixtureRequest
) -> None:
    required = {
        "EmbeddingRouter": ("scene",), "MaskRefine": ("routing",), "Scene": ("model", "cast"), "FaceEncode": ("cast",)
    }.get(node, ())  # fmt: skip
    valid = {name: request.getfixturevalue(name) for name in required}
    valid |= {"FaceEncode": {"image": demo["image_1"]}, "AudioEncode": {"audio": demo["audio_1"]}}.get(node, {})
    with pytest.raises(ValueError, match=match) as raised:
        outputs = run(node, **valid | inputs)
        if node == "FaceEncode":  # faces are encoded by the router
            scene, _ = run("Scene", model=request.getfixturevalue("model"), cast=outputs[0], **short(F))
            run("EmbeddingRouter", scene=scene)
    assert type(raised.value).__name__ == "InputError" and "\n" not in str(raised.value)


@pytest.mark.parametrize("method", [PREVIEWS.Auto, PREVIEWS.NoPreviews])
def test_progress_and_previews(run: Run, routing: Any, monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    calls: list[tuple[int, int, Any]] = []

    def hook(value: int, total: int, preview: Any, **_: Any) -> None:
        calls.append((value, total, preview))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", method)
    run("Sampler", routing=routing)
    steps = [value for value, _, _ in calls if value]
    previews = [preview for *_, preview in calls if preview is not None]
    if method is PREVIEWS.Auto:
        assert steps[-2:] == [3, 4]  # the router did 2 of 4 steps
    else:  # ComfyUI limits the rate of updates without previews
        assert steps[-1] == 4 and set(steps) <= {3, 4}
    assert len(previews) == (2 if method is PREVIEWS.Auto else 0)
    for kind, picture, side in previews:
        assert (kind, side) == ("JPEG", 512)
        assert picture.width * H == picture.height * W
        assert len(picture.getcolors(picture.width * picture.height)) > 200


@pytest.mark.parametrize(
    ("node", "network"),
    [
        ("EmbeddingRouter", "BindYourAvatarTransformer3DModel"),
        ("Sampler", "BindYourAvatarTransformer3DModel"),
        ("Sampler", "CogVideoXDecoder3D"),
    ],
)
def test_cancel(node: str, network: str, run: Run, scene: Any, routing: Any, interrupted: Callable[[], None]) -> None:
    """Cancellation in the middle of a network stops at the next layer and leaves nothing behind."""
    calls: list[str] = []

    def cancel(module: torch.nn.Module, inputs: Any) -> None:
        if type(module).__name__ == network or (calls and len(calls) < 40):
            calls.append(type(module).__name__)
            if len(calls) == 20:
                interrupted()

    handle = torch_modules.register_module_forward_pre_hook(cancel)
    try:
        with pytest.raises(management.InterruptProcessingException):
            run(node, **({"scene": scene} if node == "EmbeddingRouter" else {"routing": routing}))
    finally:
        handle.remove()
    assert len(calls) in (20, 21)
    assert not torch_modules._global_forward_pre_hooks
    assert run("Sampler", routing=routing)[0].shape[0] == F


def test_memory_is_managed_by_comfyui(run: Run, cast: Any) -> None:
    """ComfyUI lists all components, can unload them, and holds none once the model is deleted."""
    (model,) = run("Loader")
    patchers = [managed.patcher for managed in model.managed]
    assert len(patchers) == 4  # transformer, face, speech, codec; the toy text encoder has no weights
    scene, _ = run("Scene", model=model, cast=cast, **short(1, steps=1))
    routing, _, _ = run("EmbeddingRouter", scene=scene)
    run("Sampler", routing=routing)
    assert _loaded(patchers) == 4
    management.unload_all_models()
    assert _loaded(patchers) == 0
    run("Sampler", routing=routing)
    assert _loaded(patchers) >= 2
    weights = [weakref.ref(managed.patcher.model.inner) for managed in model.managed]
    del model, patchers, scene, routing
    gc.collect()
    assert [weight() for weight in weights] == [None] * 4
    management.cleanup_models()


def test_low_memory_mode_in_half_precision(run: Run, cast: Any) -> None:
    (model,) = run("Loader", memory_mode="low", dtype="bfloat16")
    assert model.bundle.dtype == torch.bfloat16
    patchers = [managed.patcher for managed in model.managed]
    scene, _ = run("Scene", model=model, cast=cast, **short(1, steps=1))
    routing, _, _ = run("EmbeddingRouter", scene=scene)
    assert _loaded(patchers) == 0
    frames = run("Sampler", routing=routing)[0]
    assert frames.shape == (1, H, W, 3) and frames.isfinite().all()
    assert _loaded(patchers) == 0


def _loaded(patchers: list[Any]) -> int:
    return sum(any(loaded.model is patcher for loaded in management.current_loaded_models) for patcher in patchers)
