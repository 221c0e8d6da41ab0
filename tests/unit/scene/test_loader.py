"""Scene files: values, notices and errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from bya_core.config import ProbeConfig, RefineConfig, RouterConfig, SamplingConfig, WindowConfig
from bya_core.errors import InputError
from bya_core.masks import MaskControl
from bya_core.scene.loader import load_scene
from bya_core.scene.schema import scene_schema
from bya_core.scene.types import Character, PromptSpan, Scene, SceneDefaults, prompt_at
from tests.fakes import RATE, tone, write_picture, write_wav

ROOT = Path(__file__).resolve().parents[3]
DEFAULTS = SceneDefaults(
    height=64,
    width=96,
    max_frames=17,
    size_unit=16,
    time_factor=4,
    sampling=SamplingConfig(steps=12, guidance_scale=3.0, audio_guidance_scale=3.0, scheduler="ddim"),
)


def characters(**last: Any) -> list[dict[str, Any]]:
    return [
        {"name": "Ada", "image": "ada.png", "speech": "ada.wav"},
        {"name": "Bo", "image": "bo.png", "speech": "bo.wav"} | last,
    ]


def test_defaults_come_from_the_model(make_scene):
    scene = load_scene(make_scene(), DEFAULTS)
    assert [c.name for c in scene.characters] == ["Ada", "Bo"]
    assert (scene.height, scene.width, scene.fps) == (64, 96, 25.0)
    assert scene.sampling == DEFAULTS.sampling and scene.routing == RouterConfig()
    assert scene.num_frames == 9  # 0.3 s are 7.5 frames
    assert torch.equal(scene.matrix, torch.eye(2)) and scene.notices == () and scene.speech_strength is None


def test_all_options_are_used(make_scene, tmp_path):
    write_picture(tmp_path / "scene" / "start.png", seed=5)
    sampling = {"seed": 3, "steps": 4, "guidance_scale": 5, "audio_guidance_scale": 2, "scheduler": "dpm"}
    path = make_scene(
        **{"$schema": "../scene.schema.json", "height": 32, "width": 48, "length": 13, "fps": 25} | sampling,
        negative_prompt="rain",
        characters=characters(offset=0.1, gain=-6, speech_strength=0.25),
        first_frame="start.png",
        audio_character_matrix=[[0, 1], [1, 0.5]],
    )
    scene = load_scene(path, DEFAULTS, seed=8)
    assert scene.speeches[1] is not None and (scene.speeches[1].offset, scene.speeches[1].gain) == (0.1, -6.0)
    assert scene.negative_prompt == "rain" and scene.first_frame is not None
    assert scene.matrix.tolist() == [[0, 1], [1, 0.5]]
    assert (scene.height, scene.width, scene.num_frames) == (32, 48, 13)
    assert scene.sampling == SamplingConfig(4, 5.0, 2.0, "dpm", 8)
    assert scene.speech_strength is not None and scene.speech_strength.tolist() == [1, 0.25]


def test_audio_guidance_scale_follows_guidance_scale(make_scene):
    assert load_scene(make_scene(guidance_scale=5), DEFAULTS).sampling.audio_guidance_scale == 5
    assert load_scene(make_scene(audio_guidance_scale=5), DEFAULTS).sampling.guidance_scale == 3


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.01, 1), (0.04, 1), (0.041, 5), (0.2, 5), (0.36, 9), (0.361, 13), (2.5, 65)]
)
def test_auto_length_is_rounded_up(seconds, frames, make_scene, tmp_path):
    path = make_scene(characters=characters(speech=None))
    write_wav(tmp_path / "scene" / "ada.wav", tone(seconds))
    scene = load_scene(path, DEFAULTS)
    assert scene.num_frames == frames and scene.notices == ()
    assert scene.speeches[1] is None


def test_lengths_are_rounded_with_a_notice(make_scene):
    scene = load_scene(make_scene(length=16, windows={"frames": 10, "overlap": 3}), DEFAULTS)
    assert (scene.num_frames, scene.windows.frames, scene.windows.overlap) == (17, 9, 1)
    rounded = [notice for notice in scene.notices if "rounded" in notice]
    assert len(rounded) == 3 and "of 16 frames is rounded to 17" in rounded[0]


def test_auto_length_needs_speech(make_scene):
    silent = [character | {"speech": None} for character in characters()]
    with pytest.raises(InputError, match="no speech"):
        load_scene(make_scene(characters=silent), DEFAULTS)
    assert load_scene(make_scene(characters=silent, length=5), DEFAULTS).num_frames == 5


def test_notices(make_scene, tmp_path):
    """Windows longer than trained, equal recordings, silent recordings."""
    assert not load_scene(make_scene(length=21), DEFAULTS).notices
    (notice,) = load_scene(make_scene(length=41, windows={"frames": 21}), DEFAULTS).notices
    assert "window of 21 frames" in notice and "17" in notice
    (notice,) = load_scene(make_scene(characters=characters(speech="ada.wav")), DEFAULTS).notices
    assert "same recording" in notice
    write_wav(tmp_path / "scene" / "bo.wav", np.zeros(RATE // 4))
    (notice,) = load_scene(make_scene(), DEFAULTS).notices
    assert "Bo" in notice and "silent" in notice


def test_masks_at_token_and_pixel_resolution(make_scene, tmp_path):
    tokens = np.zeros((2, 3, 4, 6), np.float32)
    tokens[0, :, :, :3] = 1.0
    np.savez(tmp_path / "scene" / "tokens.npz", masks=tokens)
    pixels = np.zeros((2, 9, 64, 96), bool)
    pixels[0, :, :, :48] = True
    np.savez(tmp_path / "scene" / "pixels.npz", masks=pixels)
    for name in ("tokens", "pixels"):
        router = {"mode": "manual", "masks": f"{name}.npz", "strength": 0.5}
        scene = load_scene(make_scene(router=router), DEFAULTS)
        assert scene.routing == RouterConfig("manual") and scene.mask_control is not None
        assert scene.mask_control.strength.tolist() == [0.5, 0.5]
        torch.testing.assert_close(scene.mask_control.masks, torch.from_numpy(tokens))


def write_mask(path: Path, share: float = 0.5, size: tuple[int, int] = (60, 40), mode: str = "L") -> None:
    """A picture (width, height), white in its left `share`, black (or transparent) elsewhere."""
    picture = Image.new(mode, size)
    picture.paste("white", (0, 0, round(size[0] * share), size[1]))
    picture.save(path)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_mask_image(mode, make_scene, tmp_path):
    """Any size; characters without a mask use the router's."""
    write_mask(tmp_path / "scene" / "left.png", mode=mode)
    mine = characters(mask="left.png", mask_strength=0.75, mask_start_percent=0.25, mask_end_percent=0.5)
    scene = load_scene(make_scene(characters=mine), DEFAULTS)
    assert scene.routing.mode == "intra" and scene.mask_control is not None
    assert scene.mask_control.start_percent.tolist() == [0, 0.25]
    left = torch.tensor([1.0, 1, 1, 0, 0, 0]).expand(3, 4, 6)
    torch.testing.assert_close(scene.mask_control.masks[1], left)
    assert scene.mask_control.strength.tolist() == [0, 0.75] and scene.mask_control.end_percent.tolist() == [1, 0.5]


def test_mask_arrays(make_scene, tmp_path):
    """Static, per video frame, per latent frame, or selected by name from a file of all characters."""
    folder = tmp_path / "scene"
    still = np.zeros((4, 12), np.uint8)
    still[:, :3] = 1  # a token and a half of six
    frames = np.zeros((9, 8, 12))
    frames[5:] = 1
    latent = np.stack([np.full((4, 6), value) for value in (0.0, 0.5, 1.0)])
    both = np.stack([np.zeros((3, 4, 6)), np.ones((3, 4, 6))])
    np.savez(folder / "still.npz", mask=still)
    np.savez(folder / "frames.npz", masks=frames)
    np.savez(folder / "latent.npz", mask=latent)
    np.savez(folder / "named.npz", masks=both, names=["Ada", "Bo"])
    np.savez(folder / "swapped.npz", masks=both[::-1], names=["Bo", "Ada"])
    np.savez(folder / "ordered.npz", masks=both)

    def read(name: str) -> torch.Tensor:
        scene = load_scene(make_scene(characters=characters(mask=f"{name}.npz")), DEFAULTS)
        assert scene.mask_control is not None
        return scene.mask_control.masks[1]

    torch.testing.assert_close(read("still"), torch.tensor([1, 0.5, 0, 0, 0, 0]).expand(3, 4, 6))
    torch.testing.assert_close(read("frames"), torch.tensor([0.0, 0, 1]).view(3, 1, 1).expand(3, 4, 6))
    torch.testing.assert_close(read("latent"), torch.tensor([0, 0.5, 1]).view(3, 1, 1).expand(3, 4, 6))
    for name in ("named", "swapped", "ordered"):
        torch.testing.assert_close(read(name), torch.ones(3, 4, 6))


def test_character_mask_overrides_router_masks(make_scene, tmp_path):
    np.savez(tmp_path / "scene" / "all.npz", masks=np.full((2, 3, 4, 6), 0.25, np.float32))
    write_mask(tmp_path / "scene" / "all.png", share=1)
    router = {"mode": "post", "masks": "all.npz", "strength": 0.5}
    scene = load_scene(make_scene(router=router, characters=characters(mask="all.png")), DEFAULTS)
    assert scene.mask_control is not None
    assert scene.mask_control.masks.mean((1, 2, 3)).tolist() == [0.25, 1.0]
    assert scene.mask_control.strength.tolist() == [0.5, 1.0] and scene.routing.mode == "post"


def test_router_and_window_options(make_scene):
    refine = {
        "threshold": 0.3, "propagate": False, "max_regions": 2, "fill_holes": False, "smoothing": 0, "exclusive": False,
        "grow": -1,
    }  # fmt: skip
    router = {
        "mode": "pre", "probe": {"threshold": 0.1, "max_fraction": 0.2, "steps": 3}, "region": "box",
        "segmenter": "sam2", "segmenter_weights": "here", "static": True, "refine": refine, "background_audio": "none",
    }  # fmt: skip
    assert set(router) == {field.name for field in dataclasses.fields(RouterConfig)}
    probe = ProbeConfig(0.1, 0.2, 3)
    expected = RouterConfig("pre", probe, "box", "sam2", "here", True, RefineConfig(**refine), "none")
    path = make_scene(router=router, windows={"frames": 13, "overlap": 5, "match_colors": False})
    scene = load_scene(path, DEFAULTS)
    assert scene.routing == expected and scene.windows == WindowConfig(13, 5, False)
    for value, refine_config in ((True, RefineConfig()), (False, None), (None, None), ({}, RefineConfig())):
        assert load_scene(make_scene(router={"refine": value}), DEFAULTS).routing.refine == refine_config


def test_named_matrix(make_scene):
    for word, rows, bind in (
        ("identity", [[1, 0], [0, 1]], "given"),
        ("swapped", [[0, 1], [1, 0]], "given"),
        ("auto", [[1, 0], [0, 1]], "auto"),
    ):
        scene = load_scene(make_scene(audio_character_matrix=word), DEFAULTS)
        assert scene.matrix.tolist() == rows and scene.bind == bind
    third = {**characters()[0], "name": "Cy"}
    three = load_scene(make_scene(audio_character_matrix="swapped", characters=[*characters(), third]), DEFAULTS)
    assert three.matrix.argmax(1).tolist() == [1, 2, 0]


def test_timed_prompts(make_scene):
    spans = [{"start": 0.2, "end": 0.4, "prompt": "rain"}, {"start": 0.4, "end": 1, "prompt": "sun"}]
    scene = load_scene(make_scene(prompts=spans, prompt="fog"), DEFAULTS)
    short, late = scene.notices
    assert "from 0.2 to 0.4 s is not used" in short and "from 0.4 to 1 s starts after the end" in late
    assert prompt_at(scene, 0, 0.36) == "fog"  # 0.20 s against 0.16 s
    assert prompt_at(scene, 0, 0.4) == "rain"  # ties go to the timed prompt
    assert prompt_at(scene, 0.1, 0.5) == "rain" and prompt_at(scene, 0.3, 0.6) == "sun"
    assert prompt_at(scene, 1, 2) == "fog"
    again = dataclasses.replace(scene, prompts=(PromptSpan(0, 1, "rain"), PromptSpan(1.5, 2.5, "rain")))
    assert prompt_at(again, 0.5, 2.2) == "rain"  # covered twice
    spans = [{"start": 0, "end": 0.9, "prompt": "rain"}, {"start": 0.9, "end": 1.1, "prompt": "sun"}]
    scene = load_scene(make_scene(prompts=spans, length=49, windows={"frames": 17, "overlap": 5}), DEFAULTS)
    (notice,) = (notice for notice in scene.notices if "prompt" in notice)
    assert "from 0.9 to 1.1 s" in notice and "4 windows" in notice


MANUAL = {"mode": "manual"}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"characters": characters(name="Ada")}, 'two characters named "Ada"'),
        ({"characters": characters(image="no.png")}, r"no\.png does not exist"),
        ({"characters": characters(speech="no.wav")}, r"no\.wav does not exist"),
        ({"characters": characters(offset=-5)}, "before the video starts"),
        ({"first_frame": "no.png"}, r"no\.png does not exist"),
        ({"audio_character_matrix": [[1]]}, r"1 x 1.*2 rows .* x 2 columns"),
        ({"audio_character_matrix": [[1, 0, 0], [0, 1, 0]]}, r"2 x 3.*2 rows"),
        ({"audio_character_matrix": [[1], [0, 1]]}, "rows of different length"),
        ({"audio_character_matrix": []}, "rows of different length"),
        ({"audio_character_matrix": [[2, 0], [0, 1]]}, r"0\.\.1"),
        ({"audio_character_matrix": "swapped", "characters": characters()[:1]}, "1 character; expected at least 2"),
        ({"height": 60}, "height of 60 pixels; expected a multiple of 16; use 64"),
        ({"router": MANUAL}, '"manual" without masks'),
        ({"router": MANUAL | {"masks": "no.npz"}}, r"no\.npz does not exist"),
        ({"router": MANUAL | {"masks": "ada.png"}}, "cannot be read"),
        ({"router": {"masks": "broken.npz"}}, r"broken\.npz cannot be read"),
        ({"router": MANUAL | {"masks": "one.npz"}}, r"shape 1 x 3 x 4 x 6; expected 2"),
        ({"router": MANUAL | {"masks": "large.npz"}}, r"outside 0\.\.1"),
        ({"router": MANUAL, "characters": characters(mask="left.png")}, '"manual", but Ada has no mask'),
        ({"characters": characters(mask="no.png")}, r"the mask of Bo .*no\.png does not exist"),
        ({"characters": characters(mask="ada.wav")}, "the mask of Bo .* cannot be read"),
        ({"characters": characters(mask="black.png")}, "the mask of Bo .* is empty"),
        (
            {"characters": characters(mask="others.npz")},
            'mask of Bo .* is of "Cleo", "Dan"; expected .* "Ada", "Bo"',
        ),
        ({"characters": characters(mask="odd.npz")}, "the mask of Bo .* with 4 frames"),
        ({"characters": characters(mask="left.png", mask_start_percent=1.0)}, "start_percent"),
        ({"characters": characters(speech_strength=2.5)}, "speech_strength is 2.5"),
        ({"prompts": [{"start": 2, "end": 1, "prompt": "x"}]}, "a prompt from 2 to 1 s"),
        (
            {"prompts": [{"start": 1, "end": 3, "prompt": "x"}, {"start": 0, "end": 2, "prompt": "y"}]},
            "prompts from 0 to 2 s and from 1 to 3 s",
        ),
    ],
)
def test_invalid_scene_raises(given, problem, make_scene, tmp_path):
    folder = tmp_path / "scene"
    np.savez(folder / "one.npz", masks=np.zeros((1, 3, 4, 6), np.float32))
    np.savez(folder / "others.npz", masks=np.ones((2, 3, 4, 6), np.float32), names=["Cleo", "Dan"])
    np.savez(folder / "odd.npz", mask=np.ones((4, 8, 8), np.float32))
    np.savez(folder / "large.npz", masks=np.full((2, 3, 4, 6), 3.0, np.float32))
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 and so on")
    write_mask(folder / "left.png")
    write_mask(folder / "black.png", share=0)
    with pytest.raises(InputError, match=problem):
        load_scene(make_scene(**given), DEFAULTS)


def test_scene_constructor_is_checked():
    face = Character("Ada", torch.zeros(3, 4, 4))
    with pytest.raises(InputError, match="0 characters"):
        Scene("", [], [], 64, 96, 9)
    with pytest.raises(InputError, match="2 x 1"):
        Scene("", [face], [None], 64, 96, 9, audio_character_matrix=torch.ones(2, 1))
    with pytest.raises(InputError, match="2 masks for 1"):
        Scene("", [face], [None], 64, 96, 9, mask_control=MaskControl(torch.zeros(2, 3, 4, 6)))


def test_schema_accepts_scene_and_documented_example(make_scene):
    schema = scene_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(make_scene().read_text()), schema)
    text = (ROOT / "docs" / "reference" / "scene.md").read_text(encoding="utf-8")
    jsonschema.validate(json.loads(text.split("```json\n")[1].split("```")[0]), schema)
    for key in keys_of(schema):
        assert f"`{key}`" in text, key


def keys_of(schema: Any) -> set[str]:
    """All keys that any object of the schema may have."""
    if isinstance(schema, list):
        return set().union(*map(keys_of, schema))
    if not isinstance(schema, dict):
        return set()
    own = {key for key in schema.get("properties", {}) if key not in ("$schema", "text")}
    return own.union(*map(keys_of, schema.values()))
