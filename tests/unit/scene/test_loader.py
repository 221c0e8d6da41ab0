"""Scene files: what they give, and what is said about those that cannot be used."""

from __future__ import annotations

import dataclasses
import json
import math
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
from bya_core.scene.schema import scene_schema, schema_text
from bya_core.scene.types import Character, PromptSpan, Scene, SceneDefaults, prompt_at
from tests.fakes import RATE, tone, write_picture, write_wav
from tests.unit.conftest import SceneMaker

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


def test_a_short_scene_takes_everything_else_from_the_model(make_scene: SceneMaker) -> None:
    scene = load_scene(make_scene(), DEFAULTS)
    assert [c.name for c in scene.characters] == ["Ada", "Bo"]
    assert (scene.height, scene.width, scene.fps) == (64, 96, 25.0)
    assert scene.sampling == DEFAULTS.sampling and scene.routing == RouterConfig()
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
            guidance_scale=5,
            audio_guidance_scale=2,
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
    assert load_scene(make_scene(guidance_scale=5), DEFAULTS).sampling.audio_guidance_scale == 5
    assert load_scene(make_scene(audio_guidance_scale=5), DEFAULTS).sampling.guidance_scale == 3


@pytest.mark.parametrize(("seconds", "frames"), [(0.01, 1), (0.04, 1), (0.041, 5), (0.2, 5), (0.36, 9), (0.361, 13)])
def test_auto_length_is_rounded_up(seconds: float, frames: int, make_scene: SceneMaker, tmp_path: Path) -> None:
    path = make_scene(characters=characters(speech=None))
    write_wav(tmp_path / "scene" / "ada.wav", tone(seconds))
    scene = load_scene(path, DEFAULTS)
    assert scene.num_frames == frames and scene.notices == ()
    assert scene.speeches[1] is None


def test_auto_length_holds_all_speech_however_long(make_scene: SceneMaker, tmp_path: Path) -> None:
    write_wav(tmp_path / "scene" / "bo.wav", tone(2.0))
    scene = load_scene(make_scene(characters=characters(offset=0.5)), DEFAULTS)
    assert scene.num_frames == 65  # 2.5 s are 62.5 frames
    assert not scene.notices


def test_windows_longer_than_trained_are_made_with_a_warning(make_scene: SceneMaker) -> None:
    scene = load_scene(make_scene(length=21), DEFAULTS)
    assert scene.num_frames == 21 and not scene.notices
    scene = load_scene(make_scene(length=41, windows={"frames": 21}), DEFAULTS)
    assert any("window of 21 frames" in notice and "17" in notice for notice in scene.notices)


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
def test_a_painted_mask_of_one_character(mode: str, make_scene: SceneMaker, tmp_path: Path) -> None:
    """Of a size of its own, over the router's masks; the other character is left to the router."""
    write_mask(tmp_path / "scene" / "left.png", mode=mode)
    mine = characters(mask="left.png", mask_strength=0.75, mask_start_percent=0.25, mask_end_percent=0.5)
    scene = load_scene(make_scene(characters=mine), DEFAULTS)
    assert scene.routing.mode == "intra" and scene.mask_control is not None
    assert scene.mask_control.start_percent.tolist() == [0, 0.25]
    left = torch.tensor([1.0, 1, 1, 0, 0, 0]).expand(3, 4, 6)
    torch.testing.assert_close(scene.mask_control.masks[1], left)
    assert scene.mask_control.strength.tolist() == [0, 0.75] and scene.mask_control.end_percent.tolist() == [1, 0.5]


def test_masks_of_one_character_from_arrays(make_scene: SceneMaker, tmp_path: Path) -> None:
    """Still, per video frame, per latent frame, or picked by name from a file of everybody; area decides."""
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


def test_the_mask_of_a_character_goes_before_the_file_of_all(make_scene: SceneMaker, tmp_path: Path) -> None:
    np.savez(tmp_path / "scene" / "all.npz", masks=np.full((2, 3, 4, 6), 0.25, np.float32))
    write_mask(tmp_path / "scene" / "all.png", share=1)
    router = {"mode": "post", "masks": "all.npz", "strength": 0.5}
    scene = load_scene(make_scene(router=router, characters=characters(mask="all.png")), DEFAULTS)
    assert scene.mask_control is not None
    assert scene.mask_control.masks.mean((1, 2, 3)).tolist() == [0.25, 1.0]
    assert scene.mask_control.strength.tolist() == [0.5, 1.0] and scene.routing.mode == "post"


def test_every_setting_of_the_router_reaches_it(make_scene: SceneMaker) -> None:
    refine = {
        "threshold": 0.3,
        "propagate": False,
        "max_regions": 2,
        "fill_holes": False,
        "smoothing": 0,
        "exclusive": False,
        "grow": -1,
    }
    router = {
        "mode": "pre",
        "probe": {"threshold": 0.1, "max_fraction": 0.2, "steps": 3},
        "region": "box",
        "segmenter": "sam2",
        "segmenter_weights": "here",
        "static": True,
        "refine": refine,
        "background_audio": "none",
    }
    expected = RouterConfig(
        "pre", ProbeConfig(0.1, 0.2, 3), "box", "sam2", "here", True, RefineConfig(**refine), "none"
    )
    given = load_scene(make_scene(router=router, windows={"frames": 13, "overlap": 5, "match_colors": False}), DEFAULTS)
    assert given.routing == expected and given.windows == WindowConfig(13, 5, False)
    assert set(router) == {field.name for field in dataclasses.fields(RouterConfig)}
    for value, meant in ((True, RefineConfig()), (False, None), (None, None), ({}, RefineConfig())):
        assert load_scene(make_scene(router={"refine": value}), DEFAULTS).routing.refine == meant


def test_the_matrix_in_words(make_scene: SceneMaker) -> None:
    for word, rows, bind in (
        ("identity", [[1, 0], [0, 1]], "given"),
        ("swapped", [[0, 1], [1, 0]], "given"),
        ("auto", [[1, 0], [0, 1]], "auto"),
    ):
        scene = load_scene(make_scene(audio_character_matrix=word), DEFAULTS)
        assert scene.matrix.tolist() == rows and scene.bind == bind
    third = {**characters()[0], "name": "Cy"}
    three = load_scene(make_scene(audio_character_matrix="swapped", characters=[*characters(), third]), DEFAULTS)
    assert three.matrix.argmax(1).tolist() == [1, 2, 0], "each voice moves the next character"


def test_speech_strength(make_scene: SceneMaker) -> None:
    assert load_scene(make_scene(), DEFAULTS).speech_strength is None
    scene = load_scene(make_scene(characters=characters(speech_strength=0.25)), DEFAULTS)
    assert scene.speech_strength is not None and scene.speech_strength.tolist() == [1, 0.25]


def test_a_prompt_that_no_window_takes_is_told(make_scene: SceneMaker) -> None:
    """49 frames (1.96 s) in four windows of at most 17."""
    spans = [{"start": 0, "end": 0.9, "prompt": "rain"}, {"start": 0.9, "end": 1.1, "prompt": "sun"}]
    windows = {"frames": 17, "overlap": 5}
    scene = load_scene(make_scene(prompts=spans, length=49, windows=windows), DEFAULTS)
    assert [notice for notice in scene.notices if "prompt" in notice] == [
        "The prompt from 0.9 to 1.1 s is not used: it covers less than half of each of the 4 windows."
    ]


def test_prompts_for_parts(make_scene: SceneMaker) -> None:
    spans = [{"start": 0.2, "end": 0.4, "prompt": "rain"}, {"start": 0.4, "end": 1, "prompt": "sun"}]
    scene = load_scene(make_scene(prompts=spans, prompt="fog"), DEFAULTS)
    assert scene.notices == (
        "The prompt from 0.2 to 0.4 s is not used: it covers less than half of the video, which is one window.",
        "The prompt from 0.4 to 1 s starts after the end of the video (0.36 s).",
    )
    assert prompt_at(scene, 0, 0.36) == "fog"  # 0.20 s against 0.16 s
    assert prompt_at(scene, 0, 0.4) == "rain"  # both 0.2 s: what was said for that time
    assert prompt_at(scene, 0.1, 0.5) == "rain" and prompt_at(scene, 0.3, 0.6) == "sun"
    assert prompt_at(scene, 1, 2) == "fog"
    again = dataclasses.replace(scene, prompts=(PromptSpan(0, 1, "rain"), PromptSpan(1.5, 2.5, "rain")))
    assert prompt_at(again, 0.5, 2.2) == "rain"  # in two pieces


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"promt": "x"}, r'unknown key "promt".*use "prompt"'),
    "unknown key of a character": ({"characters": characters(gian=1)}, r'characters\[1\].*"gian".*"gain"'),
    "unknown key of the router": ({"router": {"strenght": 1}}, r'router.*"strenght".*use "strength"'),
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
    "length of another kind": ({"length": "long"}, '"auto" or an integer'),
    "other rate": ({"fps": 30}, "fps is 30"),
    "steps": ({"steps": 0}, "steps is 0; expected at least 1"),
    "seed": ({"seed": -1}, "seed is -1"),
    "seed of another kind": ({"seed": 1.5}, "an integer"),
    "true is no number": ({"steps": True}, "an integer"),
    "not a number": ({"guidance_scale": math.nan}, "finite"),
    "scheduler": ({"scheduler": "euler"}, '"dpm" or "ddim"'),
    "router mode": ({"router": {"mode": "psychic"}}, '"intra" or "pre" or "post" or "manual"'),
    "manual without masks": ({"router": {"mode": "manual"}}, '"manual" without masks'),
    "missing masks": ({"router": {"mode": "manual", "masks": "no.npz"}}, r"no\.npz does not exist"),
    "masks that are none": ({"router": {"mode": "manual", "masks": "ada.png"}}, "cannot be read"),
    "manual without the mask of one": (
        {"router": {"mode": "manual"}, "characters": characters(mask="left.png")},
        '"manual", but Ada has no mask',
    ),
    "missing mask": ({"characters": characters(mask="no.png")}, r"the mask of Bo .*no\.png does not exist"),
    "mask that is none": ({"characters": characters(mask="ada.wav")}, "the mask of Bo .* cannot be read"),
    "empty mask": ({"characters": characters(mask="black.png")}, "the mask of Bo .* is empty"),
    "mask of nobody here": ({"characters": characters(mask="others.npz")}, "of Cleo, Dan.* as the mask of Bo"),
    "mask of odd frames": ({"characters": characters(mask="odd.npz")}, "the mask of Bo .* with 4 frames"),
    "mask that ends before it begins": (
        {"characters": characters(mask="left.png", mask_start_percent=0.6, mask_end_percent=0.5)},
        "the mask of Bo applies from 0.6 to 0.5",
    ),
    "blend of a mask": ({"characters": characters(mask="left.png", mask_strength=2)}, "mask_strength is 2.* at most 1"),
    "speech strength": ({"characters": characters(speech_strength=2.5)}, "speech_strength is 2.5.* at most 2"),
    "probe": ({"router": {"probe": {"max_fraction": 2}}}, "probe.max_fraction is 2"),
    "probe of another kind": ({"router": {"probe": 3}}, "probe is 3; expected an object"),
    "refine": ({"router": {"refine": {"smoooth": 1}}}, r'refine.*"smoooth".*use "smoothing"'),
    "refine of another kind": ({"router": {"refine": "yes"}}, "an object or true or false"),
    "region": ({"router": {"region": "hand"}}, '"box" or "head"'),
    "segmenter": ({"router": {"segmenter": "eyes"}}, '"self" or "sam2"'),
    "background_audio": ({"router": {"background_audio": "deaf"}}, '"model" or "all" or "none"'),
    "matrix of another word": ({"audio_character_matrix": "swap"}, '"identity" or "swapped" or "auto"'),
    "one character swapped": (
        {"audio_character_matrix": "swapped", "characters": characters()[:1]},
        '"swapped" with 1 character; expected at least 2',
    ),
    "prompt without an end": ({"prompts": [{"start": 0, "prompt": "x"}]}, r'prompts\[0\] has no "end"'),
    "prompt that ends before it begins": (
        {"prompts": [{"start": 2, "end": 1, "prompt": "x"}]},
        "a prompt from 2 to 1 s",
    ),
    "two prompts at a time": (
        {"prompts": [{"start": 1, "end": 3, "prompt": "x"}, {"start": 0, "end": 2, "prompt": "y"}]},
        "prompts from 0 to 2 s and from 1 to 3 s; expected one prompt at a time",
    ),
    "windows": ({"windows": {"frames": 5, "overlap": 9}}, "windows of 5 frames with an overlap of 9 frames"),
    "window of no length": ({"windows": {"frames": 10}}, r"windows of 10 frames; expected 1 \+ a multiple of 4"),
    "masks that are broken": ({"router": {"masks": "broken.npz"}}, r"broken\.npz cannot be read"),
    "masks of one": ({"router": {"mode": "manual", "masks": "one.npz"}}, r"shape 1 x 3 x 4 x 6; expected 2"),
    "masks out of range": ({"router": {"mode": "manual", "masks": "large.npz"}}, r"outside 0\.\.1"),
    "prompt of another kind": ({"prompt": 7}, "a string"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_clear_sentence(name: str, make_scene: SceneMaker, tmp_path: Path) -> None:
    given, said = BAD[name]
    folder = tmp_path / "scene"
    np.savez(folder / "masks.npz", masks=np.zeros((2, 3, 4, 6), np.float32))
    np.savez(folder / "one.npz", masks=np.zeros((1, 3, 4, 6), np.float32))
    np.savez(folder / "others.npz", masks=np.ones((2, 3, 4, 6), np.float32), names=["Cleo", "Dan"])
    np.savez(folder / "odd.npz", mask=np.ones((4, 8, 8), np.float32))
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 and so on")
    write_mask(folder / "left.png")
    write_mask(folder / "black.png", share=0)
    np.savez(folder / "large.npz", masks=np.full((2, 3, 4, 6), 3.0, np.float32))
    with pytest.raises(InputError, match=said) as caught:
        load_scene(make_scene(**given), DEFAULTS)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ('{"prompt": "x", "prompt": "y", "characters": []}', 'key "prompt" twice'),
        ("[]", "an object"),
        ("{}", 'no "prompt"'),
        ("\x00\x01", "not valid JSON"),
    ],
)
def test_files_that_are_no_scene(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "scene.json").write_text(text)
    with pytest.raises(InputError, match=said):
        load_scene(tmp_path / "scene.json", DEFAULTS)


def test_nobody_speaks_and_no_length(make_scene: SceneMaker) -> None:
    silent = [character | {"speech": None} for character in characters()]
    with pytest.raises(InputError, match="no speech"):
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
        Scene("", [face], [None], 64, 96, 9, routing=RouterConfig("manual"), mask_control=MaskControl(masks))


def test_the_schema_file_is_up_to_date() -> None:
    """If this fails: python -m bya_core.scene.schema"""
    assert (ROOT / "docs" / "reference" / "scene.schema.json").read_text(encoding="utf-8") == schema_text()


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
    text = (ROOT / "docs" / "reference" / "scene.md").read_text(encoding="utf-8")
    example = text.split("```json\n")[1].split("```")[0]
    jsonschema.validate(json.loads(example), scene_schema())
    for key in keys_of(scene_schema()):
        assert f"`{key}`" in text, key


def keys_of(schema: Any) -> set[str]:
    """All keys that any object of the schema may have."""
    if isinstance(schema, list):
        return set().union(*map(keys_of, schema))
    if not isinstance(schema, dict):
        return set()
    own = {key for key in schema.get("properties", {}) if key not in ("$schema", "text")}
    return own.union(*map(keys_of, schema.values()))
