"""What the nodes do, with the toy model."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.cli_args
import comfy.model_management as management
import comfy.utils
import folder_paths
import pytest
import torch
from conftest import Run
from torch.nn.modules import module as torch_modules

N, T, F, H, W = 2, 3, 9, 64, 96
PREVIEWS = comfy.cli_args.LatentPreviewMethod


@pytest.fixture(scope="module")
def made(run: Run, routing: Any) -> tuple[Any, ...]:
    return run("Sampler", routing=routing)


def test_from_faces_and_voices_to_a_video(made: tuple[Any, ...], cast: Any) -> None:
    frames, video, audio, masks, fps, report = made
    assert frames.shape == (F, H, W, 3) and frames.min() >= 0 and frames.max() <= 1 and frames.std() > 0.05
    assert fps == 25
    parts = video.get_components()
    assert parts.frame_rate == 25 and torch.equal(parts.images, frames)
    assert audio["waveform"].shape == (1, 1, round(F / 25 * audio["sample_rate"]))
    voices = [member.speech.waveform[0, : audio["waveform"].shape[-1]] for member in cast]
    assert torch.allclose(audio["waveform"][0, 0], sum(voices), atol=1e-6)  # the recordings themselves, at their level
    assert masks.shape == (N * T, H, W)
    for character in masks.reshape(N, T, H, W):
        assert 0.05 < (character > 0.5).float().mean() < 0.6
    assert "Ada: " in report and "Denoising: " in report


def test_nodes_can_be_cached(run: Run, routing: Any, made: tuple[Any, ...]) -> None:
    """Nothing that flowed in was changed: the same goes in again, the same comes out."""
    assert torch.equal(run("Sampler", routing=routing)[0], made[0])


def test_what_nodes_hand_out_is_on_the_cpu(routing: Any) -> None:
    conditions, state = routing.prepared.conditions, routing.routing.state
    for value in [*vars(conditions).values(), *vars(state).values(), routing.routing.masks]:
        if isinstance(value, torch.Tensor):
            assert value.device.type == "cpu"


def test_refining_keeps_the_half_done_run(run: Run, routing: Any) -> None:
    before = routing.routing.masks.clone()
    refined, masks, report = run("MaskRefine", routing=routing)
    assert refined.routing.state is routing.routing.state
    assert set(refined.routing.masks.unique().tolist()) <= {0.0, 1.0}
    assert masks.shape == (N * T, H, W) and "confidence" in report
    assert torch.equal(routing.routing.masks, before)
    anew, _, _ = run("MaskRefine", routing=routing, restart=True)
    assert anew.routing.state is None


def test_a_mask_of_ones_own(run: Run, routing: Any) -> None:
    left = torch.zeros(1, 40, 60)
    left[..., :30] = 1
    given, masks, _ = run("MaskRefine", routing=routing, refine=False, override_mask=left, character="Bo")
    ada, bo = masks.reshape(N, T, H, W)
    assert bo[..., : W // 2].min() == 1 and bo[..., W // 2 :].max() == 0
    assert torch.equal(ada, routing.mask_images.reshape(N, T, H, W)[0])
    assert given.routing.control.strength.tolist() == [0.0, 1.0]  # the other one is still the router's
    half, _, _ = run(
        "MaskRefine",
        routing=routing,
        refine=False,
        override_mask=left,
        strength=0.5,
        start_percent=0.2,
        end_percent=0.6,
    )
    assert half.routing.control.strength.tolist() == [0.5, 0.0]
    assert half.routing.span[0].tolist() == pytest.approx([0.2, 0.6])


def test_hand_painted_masks_alone(run: Run, scene: Any) -> None:
    painted = torch.zeros(N, H, W)
    painted[0, :, : W // 2], painted[1, :, W // 2 :] = 1, 1
    routed, masks, report = run("EmbeddingRouter", scene=scene, mode="manual", masks=painted)
    assert torch.equal(masks, painted.repeat_interleave(T, dim=0))
    assert routed.routing.calls == 0 and "manual" in report


def test_masks_survive_the_way_through_the_graph(run: Run, scene: Any, routing: Any) -> None:
    """What the router shows can be given back to it, to rounding."""
    again, masks, _ = run("EmbeddingRouter", scene=scene, mode="manual", masks=routing.mask_images)
    assert torch.allclose(again.routing.masks, routing.routing.masks, atol=1e-6)
    assert torch.allclose(masks, routing.mask_images, atol=1e-6)


@pytest.mark.parametrize(
    ("wish", "matrix"),
    [
        ({}, [[1, 0], [0, 1]]),
        ({"audio_assignment": "swapped"}, [[0, 1], [1, 0]]),
        ({"audio_character_matrix": "1 1; 0 0.5"}, [[1, 1], [0, 0.5]]),
    ],
)
def test_who_hears_whom(run: Run, scene: Any, wish: dict[str, str], matrix: list[list[float]]) -> None:
    painted = torch.ones(N, 4, 4)
    routed, _, _ = run("EmbeddingRouter", scene=scene, mode="manual", masks=painted, **wish)
    assert routed.routing.matrix.tolist() == matrix


def test_voices_find_their_faces(run: Run, scene: Any) -> None:
    routed, _, report = run(
        "EmbeddingRouter", scene=scene, mode="manual", audio_assignment="auto", masks=torch.ones(N, 4, 4)
    )
    assert sorted(routed.routing.matrix.tolist()) == [[0, 1], [1, 0]]  # each voice has one face
    assert "follows the voice of" in report


@pytest.mark.parametrize("mode", ["pre", "post"])
def test_other_routers(mode: str, run: Run, scene: Any) -> None:
    routed, masks, report = run("EmbeddingRouter", scene=scene, mode=mode)
    assert masks.shape == (N * T, H, W) and f"by the {mode} router" in report
    ada, bo = (routed.routing.masks[n] > 0.5 for n in range(N))
    assert ada.any() and bo.any() and not (ada & bo).any()
    assert routed.routing.control.strength.tolist() == [1.0, 1.0]


def test_overlay_and_selection(run: Run, routing: Any, made: tuple[Any, ...]) -> None:
    (shown,) = run("MaskOverlay", routing=routing, images=made[0], masks=made[3])
    assert shown.shape[0] == F and shown.shape[1] > shown.shape[2] * H / W  # a legend below
    (plain,) = run("MaskOverlay", routing=routing, legend=False)
    assert plain.shape[1] * W == plain.shape[2] * H
    (mask,) = run("SelectCharacterMask", routing=routing, character="2")
    assert torch.equal(mask, routing.mask_images[T:])
    (mask,) = run("SelectCharacterMask", routing=routing, character="Ada", frames="video", masks=made[3])
    assert mask.shape == (F, H, W) and torch.allclose(mask[[0, 8]], made[3][[0, 2]], atol=1e-6)


def test_report_and_preflight(run: Run, routing: Any, made: tuple[Any, ...], cast: Any, demo: dict[str, Any]) -> None:
    picture, text = run("BindingReport", routing=routing, frames=made[0], masks=made[3])
    assert picture.shape[0] == 1 and "9 frames are too few" in text
    checked, faces, text, ok = run("Preflight", cast=cast, frames=F, first_frame=demo["first_frame"], masks=made[3])
    assert checked is cast and ok is True and faces.shape[0] == 1
    assert "Ada: the face covers" in text and "speech of Bo" in text and "cost: about" in text


def test_preflight_stops_or_tells(run: Run, cast: Any) -> None:
    with pytest.raises(ValueError, match="1 mask for 2 characters"):
        run("Preflight", cast=cast, frames=F, masks=torch.ones(1, 8, 8))
    wrong = {"cast": cast, "model": "official", "stop_on_error": False}
    _, _, text, ok = run("Preflight", **wrong)
    assert ok is False and "error   model official" in text and "download official" in text


def test_a_long_video_is_made_in_windows(run: Run, model: Any, cast: Any, demo: dict[str, Any]) -> None:
    wishes = {"first_frame": demo["first_frame"], "frames": 17, "steps": 2, "window_frames": 9, "overlap_frames": 1}
    scene, _ = run("Scene", model=model, cast=cast, prompt=demo["prompt"], **wishes)
    routing, masks, report = run("EmbeddingRouter", scene=scene)
    assert masks.shape == (N * 3, H, W) and "first window" in report
    left = torch.zeros(1, H, W)
    left[..., : W // 2] = 1
    routing, _, _ = run("MaskRefine", routing=routing, override_mask=left, character="Ada")
    frames, _, audio, masks, _, _ = run("Sampler", routing=routing)
    assert frames.shape == (17, H, W, 3) and audio["waveform"].shape[-1] == round(17 / 25 * audio["sample_rate"])
    ada = masks.reshape(N, 5, H, W)[0]
    assert ada[..., : W // 2].min() == 1 and ada[..., W // 2 :].max() == 0  # in every window
    (shown,) = run("MaskOverlay", routing=routing, images=frames, masks=masks)
    assert shown.shape[0] == 17
    folder = Path(folder_paths.get_temp_directory()) / "bindyouravatar"
    assert not folder.exists() or not list(folder.rglob("*.safetensors"))


def test_places_are_looked_for_as_often_as_asked(run: Run, scene: Any) -> None:
    (value, _, _) = run("EmbeddingRouter", scene=scene, probe_steps=1, tries=5)
    assert value.scene.routing.probe.num_seeds == 5


def test_a_first_frame_of_another_shape(run: Run, model: Any, cast: Any, demo: dict[str, Any]) -> None:
    """Twice as tall as the video: padded, it stands between black bars and its masks stay between them."""
    tall = torch.nn.functional.pad(demo["first_frame"], (0, 0, 0, 0, 32, 32), value=0.5)
    wishes = {"model": model, "cast": cast, "prompt": demo["prompt"], "first_frame": tall, "frames": 9, "steps": 2}
    shapes = {}
    for fit in ("crop", "pad"):
        scene, _ = run("Scene", first_frame_fit=fit, **wishes)
        shapes[fit] = run("Sampler", routing=run("EmbeddingRouter", scene=scene)[0])[0]
    edge = {fit: frames[0, :, :8].mean() for fit, frames in shapes.items()}
    assert edge["pad"] < 0.15 < edge["crop"]
    with pytest.raises(ValueError, match='"crop" or "pad"'):
        run("EmbeddingRouter", scene=run("Scene", first_frame_fit="stretch", **wishes)[0])


@pytest.mark.parametrize(
    ("node", "given", "sentence"),
    [
        ("EmbeddingRouter", {"mode": "manual"}, "without masks"),
        ("EmbeddingRouter", {"mode": "manual", "masks": torch.ones(1, 8, 8)}, "1 mask for 2 characters"),
        ("EmbeddingRouter", {"audio_character_matrix": "1 0 0; 0 1 0"}, "audio-character matrix"),
        ("EmbeddingRouter", {"audio_character_matrix": "1 0; 0 1", "audio_assignment": "auto"}, "one of the two"),
        ("MaskRefine", {"override_mask": torch.ones(1, 8, 8), "character": "Cy"}, r"1 \(Ada\), 2 \(Bo\)"),
        ("MaskRefine", {"override_mask": torch.ones(2, 8, 8)}, "the mask of Ada"),
        ("Scene", {"width": 100}, "a multiple of 8; use 96"),
        ("Scene", {"frames": 10}, r"1 \+ a multiple of 4; use 9"),
        ("Scene", {"prompt_schedule": "soon: Ada laughs"}, "2.5 - 4: Ada laughs"),
        ("FaceEncode", {"name": "Ada"}, 'two characters named "Ada"'),
        ("FaceEncode", {"image": torch.rand(2, 8, 8, 3)}, "a batch of 2 images"),
        ("FaceEncode", {"image": torch.ones(1, 64, 64, 3), "name": "Cy"}, "one single colour"),
        ("AudioEncode", {"audio": None}, "no audio"),
        ("AudioEncode", {"offset": -60.0}, "before the video starts"),
        ("Loader", {"model": "official"}, "download official"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(
    node: str, given: dict[str, Any], sentence: str, run: Run, nodes: Any, request: pytest.FixtureRequest
) -> None:
    known: dict[str, Any] = {
        "EmbeddingRouter": {"scene": "scene"},
        "MaskRefine": {"routing": "routing"},
        "Scene": {"model": "model", "cast": "cast"},
        "FaceEncode": {"cast": "cast"},
    }.get(node, {})
    filled = {key: request.getfixturevalue(fixture) for key, fixture in known.items()}
    demo = request.getfixturevalue("demo")
    filled |= {"FaceEncode": {"image": demo["image_1"]}, "AudioEncode": {"audio": demo["audio_1"]}}.get(node, {})
    with pytest.raises(ValueError, match=sentence) as told:
        made = run(node, **filled | given)
        if node == "FaceEncode":  # faces are read when the router runs
            scene, _ = run("Scene", model=request.getfixturevalue("model"), cast=made[0], frames=F)
            run("EmbeddingRouter", scene=scene)
    assert type(told.value).__name__ == "InputError" and "\n" not in str(told.value)


@pytest.mark.parametrize("method", [PREVIEWS.Auto, PREVIEWS.NoPreviews])
def test_progress_and_previews(run: Run, routing: Any, monkeypatch: pytest.MonkeyPatch, method: Any) -> None:
    seen: list[tuple[int, int, Any]] = []

    def hook(value: int, total: int, preview: Any, **_: Any) -> None:
        seen.append((value, total, preview))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", method)
    run("Sampler", routing=routing)
    told = [value for value, _, _ in seen if value]
    if method is PREVIEWS.Auto:
        assert told[-2:] == [3, 4]  # of 4 steps, the router took 2
    else:  # without pictures ComfyUI tells at most ten a second
        assert told[-1] == 4 and set(told) <= {3, 4}
    pictures = [preview for *_, preview in seen if preview is not None]
    assert len(pictures) == (2 if method is PREVIEWS.Auto else 0)
    for kind, picture, side in pictures:
        assert kind == "JPEG" and side == 512
        assert picture.width * H == picture.height * W
        assert len(picture.getcolors(picture.width * picture.height)) > 200


@pytest.mark.parametrize("place", ["looking who is where", "denoising", "decoding"])
def test_cancel(
    place: str, run: Run, scene: Any, routing: Any, interrupted: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The click comes in the middle of a network; nothing of the pack stays behind, and the next run is a good one."""
    # the codec is not called as a whole, its decoder is
    network = "CogVideoXDecoder3D" if place == "decoding" else "BindYourAvatarTransformer3DModel"
    calls: list[str] = []

    def click(module: torch.nn.Module, inputs: Any) -> None:
        if type(module).__name__ == network or (calls and len(calls) < 40):
            calls.append(type(module).__name__)
            if len(calls) == 20:
                interrupted()

    probing = place == "looking who is where"
    node, given = ("EmbeddingRouter", {"scene": scene}) if probing else ("Sampler", {"routing": routing})
    watching = torch_modules.register_module_forward_pre_hook(click)
    try:
        with pytest.raises(management.InterruptProcessingException):
            run(node, **given)
    finally:
        watching.remove()
    assert len(calls) in (20, 21)  # no further layer was computed
    assert not torch_modules._global_forward_pre_hooks
    assert run("Sampler", routing=routing)[0].shape[0] == F


def test_memory_is_given_back(run: Run, cast: Any, demo: dict[str, Any], host: ModuleType) -> None:
    """ComfyUI sees all parts, can take them off the device, and nothing is held once nobody has the model."""
    (model,) = run("Loader")
    patchers = [resident.patcher for resident in model.residents]
    assert len(patchers) == 4  # transformer, face, speech, codec; the prompt needs no weights
    scene, _ = run("Scene", model=model, cast=cast, frames=1, steps=1)
    routing, _, _ = run("EmbeddingRouter", scene=scene)
    run("Sampler", routing=routing)
    assert _loaded(patchers) == 4
    management.unload_all_models()
    assert _loaded(patchers) == 0
    run("Sampler", routing=routing)  # comes back by itself
    assert _loaded(patchers) >= 2
    weights = [weakref.ref(resident.patcher.model.inner) for resident in model.residents]
    del model, patchers, scene, routing
    gc.collect()
    assert [weight() for weight in weights] == [None] * 4
    management.cleanup_models()


def test_low_memory_keeps_nothing_between_nodes(run: Run, cast: Any, demo: dict[str, Any]) -> None:
    (model,) = run("Loader", memory_mode="low")
    patchers = [resident.patcher for resident in model.residents]
    scene, _ = run("Scene", model=model, cast=cast, frames=1, steps=1)
    routing, _, _ = run("EmbeddingRouter", scene=scene)
    assert _loaded(patchers) == 0
    assert run("Sampler", routing=routing)[0].shape == (1, H, W, 3)
    assert _loaded(patchers) == 0


def _loaded(patchers: list[Any]) -> int:
    return sum(any(loaded.model is patcher for loaded in management.current_loaded_models) for patcher in patchers)


def test_half_precision(run: Run, cast: Any) -> None:
    (model,) = run("Loader", dtype="bfloat16")
    assert model.bundle.dtype == torch.bfloat16
    scene, _ = run("Scene", model=model, cast=cast, frames=1, steps=1)
    routing, _, _ = run("EmbeddingRouter", scene=scene)
    assert run("Sampler", routing=routing)[0].isfinite().all()


def test_models_in_extra_folders(run: Run, nodes: Any, tmp_path: Path) -> None:
    """A folder named in extra_model_paths.yaml counts as models/bindyouravatar does."""
    toy = Path(os.environ["BYA_PACK"]) / "bya_core" / "checkpoints" / "toy"
    (tmp_path / "my puppets").symlink_to(toy, target_is_directory=True)
    (tmp_path / "no model").mkdir()
    folder_paths.add_model_folder_path("bindyouravatar", str(tmp_path))
    options = nodes["Loader"].define_schema().inputs[0].options
    assert "my puppets" in options and "no model" not in options
    assert run("Loader", model="my puppets")[0].bundle.name == "my puppets"
    assert any("models" in place for place in folder_paths.get_folder_paths("bindyouravatar"))
