"""Scene files: what they give, and what is said about those that cannot be used."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from bya_core.config import RoutingConfig, SamplingConfig
from bya_core.errors import InputError
from bya_core.scene import Character, Scene, SceneDefaults
from bya_core.scene_format import scene_schema, schema_text
from bya_core.scene_load import load_scene
from tests.headless.conftest import SceneMaker
from tests.headless.fakes import RATE, tone, write_picture, write_wav

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = SceneDefaults(
    height=64,
    width=96,
    max_frames=17,
    size_unit=16,
    time_factor=4,
    sampling=SamplingConfig(steps=12, guidance_text=3.0, guidance_speech=3.0, scheduler="ddim"),
)


def characters(**last: Any) -> list[dict[str, Any]]:
    return [
        {"name": "Ada", "image": "ada.png", "speech": "ada.wav"},
        {"name": "Bo", "image": "bo.png", "speech": "bo.wav"} | last,
    ]


def test_a_short_scene_takes_everything_else_from_the_model(make_scene: SceneMaker) -> None:
    scene = load_scene(make_scene(), DEFAULTS)
    assert [c.name for c in scene.characters] == ["Ada", "Bo"]
    assert (scene.height, scene.width, scene.fps) == (64, 96, 25.0)
    assert scene.sampling == DEFAULTS.sampling and scene.routing == RoutingConfig()
    assert scene.num_frames == 9  # 0.3 s are 7.5 frames
    assert torch.equal(scene.matrix, torch.eye(2)) and scene.notices == ()


def test_everything_in_the_file_is_used(make_scene: SceneMaker, tmp_path: Path) -> None:
    write_picture(tmp_path / "scene" / "start.png", seed=5)
    scene = load_scene(
        make_scene(
            **{"$schema": "../scene.schema.json"},
            negative_prompt="rain",
            characters=characters(offset=0.1, gain=-6),
            first_frame="start.png",
            audio_character_matrix=[[0, 1], [1, 0.5]],
            height=32,
            width=48,
            length=13,
            fps=25,
            seed=3,
            steps=4,
            guidance_text=5,
            guidance_speech=2,
            scheduler="dpm",
        ),
        DEFAULTS,
        seed=8,
    )
    assert scene.speeches[1] is not None and (scene.speeches[1].offset, scene.speeches[1].gain) == (0.1, -6.0)
    assert scene.negative_prompt == "rain" and scene.first_frame is not None
    assert scene.matrix.tolist() == [[0, 1], [1, 0.5]]
    assert (scene.height, scene.width, scene.num_frames) == (32, 48, 13)
    assert scene.sampling == SamplingConfig(4, 5.0, 2.0, "dpm", 8)


def test_speech_guidance_follows_text_guidance(make_scene: SceneMaker) -> None:
    assert load_scene(make_scene(guidance_text=5), DEFAULTS).sampling.guidance_speech == 5
    assert load_scene(make_scene(guidance_speech=5), DEFAULTS).sampling.guidance_text == 3


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.01, 1), (0.04, 1), (0.041, 5), (0.2, 5), (0.36, 9), (0.361, 13)]
)
def test_auto_length_is_rounded_up(
    seconds: float, frames: int, make_scene: SceneMaker, tmp_path: Path
) -> None:
    path = make_scene(characters=characters(speech=None))
    write_wav(tmp_path / "scene" / "ada.wav", tone(seconds))
    scene = load_scene(path, DEFAULTS)
    assert scene.num_frames == frames and scene.notices == ()
    assert scene.speeches[1] is None


def test_auto_length_says_how_much_is_cut(make_scene: SceneMaker, tmp_path: Path) -> None:
    write_wav(tmp_path / "scene" / "bo.wav", tone(2.0))
    scene = load_scene(make_scene(characters=characters(offset=0.5)), DEFAULTS)
    assert scene.num_frames == 17
    assert len(scene.notices) == 1 and "2.50 s" in scene.notices[0] and "1.82 s" in scene.notices[0]


def test_a_longer_video_than_trained_is_made_with_a_warning(make_scene: SceneMaker) -> None:
    scene = load_scene(make_scene(length=21), DEFAULTS)
    assert scene.num_frames == 21 and any("17" in notice for notice in scene.notices)


def test_silent_and_equal_recordings_are_told(make_scene: SceneMaker, tmp_path: Path) -> None:
    write_wav(tmp_path / "scene" / "bo.wav", np.zeros(RATE // 4))
    notices = load_scene(make_scene(), DEFAULTS).notices
    assert len(notices) == 1 and "Bo" in notices[0] and "silent" in notices[0]
    notices = load_scene(make_scene(characters=characters(speech="ada.wav")), DEFAULTS).notices
    assert len(notices) == 1 and "same recording" in notices[0]


def test_masks_at_token_and_pixel_resolution(make_scene: SceneMaker, tmp_path: Path) -> None:
    tokens = np.zeros((2, 3, 4, 6), np.float32)
    tokens[0, :, :, :3] = 1.0
    np.savez(tmp_path / "scene" / "tokens.npz", masks=tokens)
    pixels = np.zeros((2, 9, 64, 96), bool)
    pixels[0, :, :, :48] = True
    np.savez(tmp_path / "scene" / "pixels.npz", masks=pixels)
    for name in ("tokens", "pixels"):
        router = {"mode": "manual", "masks": f"{name}.npz", "blend": 0.5}
        scene = load_scene(make_scene(router=router), DEFAULTS)
        assert scene.routing == RoutingConfig("manual") and scene.forced_masks is not None
        assert scene.forced_blend is not None and scene.forced_blend.tolist() == [0.5, 0.5]
        torch.testing.assert_close(scene.forced_masks, torch.from_numpy(tokens))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"promt": "x"}, r'unknown key "promt".*write "prompt"'),
    "unknown key of a character": ({"characters": characters(gian=1)}, r'characters\[1\].*"gian".*"gain"'),
    "unknown key of the router": ({"router": {"blendd": 1}}, r'router.*"blendd".*"blend"'),
    "no characters": ({"characters": []}, "characters has 0 entries; expected at least 1"),
    "characters of another kind": ({"characters": "Ada"}, "a list"),
    "character without image": ({"characters": [{"name": "Ada"}]}, 'no "image"'),
    "names twice": ({"characters": characters(name="Ada")}, 'two characters named "Ada"'),
    "missing image": ({"characters": characters(image="no.png")}, r"no\.png does not exist"),
    "missing speech": ({"characters": characters(speech="no.wav")}, r"no\.wav does not exist"),
    "speech over before it starts": ({"characters": characters(offset=-5)}, "before the video starts"),
    "missing first frame": ({"first_frame": "no.png"}, r"no\.png does not exist"),
    "matrix too small": ({"audio_character_matrix": [[1]]}, r"1 x 1.*2 rows .* x 2 columns"),
    "matrix too wide": ({"audio_character_matrix": [[1, 0, 0], [0, 1, 0]]}, r"2 x 3.*2 rows"),
    "ragged matrix": ({"audio_character_matrix": [[1], [0, 1]]}, "rows of different length"),
    "empty matrix": ({"audio_character_matrix": []}, "rows of different length"),
    "matrix of words": ({"audio_character_matrix": [["a", 0], [0, 1]]}, r"matrix\[0\]\[0\].*a number"),
    "matrix out of range": ({"audio_character_matrix": [[2, 0], [0, 1]]}, r"0\.\.1"),
    "height not divisible": ({"height": 60}, "height of 60 pixels; expected a multiple of 16; use 64"),
    "width not divisible": ({"width": 100}, "a multiple of 16; use 96"),
    "absurd size": ({"width": 100000}, "at most 4096"),
    "length not divisible": ({"length": 10}, r"10 frames; expected 1 \+ a multiple of 4; use 9"),
    "length of nothing": ({"length": 0}, "at least 1"),
    "length of another kind": ({"length": "long"}, '"auto" or a whole number'),
    "other rate": ({"fps": 30}, "fps is 30"),
    "steps": ({"steps": 0}, "steps is 0; expected at least 1"),
    "seed": ({"seed": -1}, "seed is -1"),
    "seed of another kind": ({"seed": 1.5}, "a whole number"),
    "true is no number": ({"steps": True}, "a whole number"),
    "not a number": ({"guidance_text": math.nan}, "finite"),
    "scheduler": ({"scheduler": "euler"}, '"dpm" or "ddim"'),
    "router mode": ({"router": {"mode": "psychic"}}, '"intra" or "manual"'),
    "manual without masks": ({"router": {"mode": "manual"}}, '"manual" without masks'),
    "missing masks": ({"router": {"mode": "manual", "masks": "no.npz"}}, r"no\.npz does not exist"),
    "masks that are none": ({"router": {"mode": "manual", "masks": "ada.png"}}, "cannot be read"),
    "masks of one": ({"router": {"mode": "manual", "masks": "one.npz"}}, r"shape \(1, 3, 4, 6\)"),
    "masks out of range": ({"router": {"mode": "manual", "masks": "large.npz"}}, r"outside 0\.\.1"),
    "prompt of another kind": ({"prompt": 7}, "a text"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_clear_sentence(name: str, make_scene: SceneMaker, tmp_path: Path) -> None:
    given, said = BAD[name]
    folder = tmp_path / "scene"
    np.savez(folder / "masks.npz", masks=np.zeros((2, 3, 4, 6), np.float32))
    np.savez(folder / "one.npz", masks=np.zeros((1, 3, 4, 6), np.float32))
    np.savez(folder / "large.npz", masks=np.full((2, 3, 4, 6), 3.0, np.float32))
    with pytest.raises(InputError, match=said) as caught:
        load_scene(make_scene(**given), DEFAULTS)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no valid JSON"),
        ('{"prompt": "x", "prompt": "y", "characters": []}', 'key "prompt" stands twice'),
        ("[]", "an object"),
        ("{}", 'no "prompt"'),
        ("\x00\x01", "no valid JSON"),
    ],
)
def test_files_that_are_no_scene(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "scene.json").write_text(text)
    with pytest.raises(InputError, match=said):
        load_scene(tmp_path / "scene.json", DEFAULTS)


def test_nobody_speaks_and_no_length(make_scene: SceneMaker) -> None:
    silent = [character | {"speech": None} for character in characters()]
    with pytest.raises(InputError, match="nobody speaks"):
        load_scene(make_scene(characters=silent), DEFAULTS)
    assert load_scene(make_scene(characters=silent, length=5), DEFAULTS).num_frames == 5


def test_a_scene_made_in_code_is_checked_too() -> None:
    with pytest.raises(InputError, match="0 characters"):
        Scene("", [], [], 64, 96, 9)
    face = Character("Ada", torch.zeros(3, 4, 4))
    with pytest.raises(InputError, match="2 x 1"):
        Scene("", [face], [None], 64, 96, 9, audio_character_matrix=torch.ones(2, 1))
    with pytest.raises(InputError, match="2 masks for 1"):
        masks = torch.zeros(2, 3, 4, 6)
        Scene("", [face], [None], 64, 96, 9, routing=RoutingConfig("manual"), forced_masks=masks)


def test_the_schema_file_is_up_to_date() -> None:
    """If this fails: python -m bya_core.scene"""
    assert (ROOT / "docs" / "scene.schema.json").read_text(encoding="utf-8") == schema_text()


def test_the_schema_agrees_with_the_reader(make_scene: SceneMaker) -> None:
    schema = scene_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(make_scene().read_text()), schema)
    by_schema = [
        "unknown key",
        "unknown key of a character",
        "no characters",
        "character without image",
        "absurd size",
        "length of another kind",
        "other rate",
        "seed",
        "scheduler",
        "matrix of words",
    ]
    for name in by_schema:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(make_scene(**BAD[name][0]).read_text()), schema)


def test_the_example_of_the_documentation_is_valid() -> None:
    text = (ROOT / "docs" / "scene.md").read_text(encoding="utf-8")
    example = text.split("```json\n")[1].split("```")[0]
    jsonschema.validate(json.loads(example), scene_schema())
    for key in scene_schema()["properties"]:
        assert f"`{key}`" in text
