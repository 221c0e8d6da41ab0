"""Validated options: each violation is one sentence with the problem, what is expected and a hint."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import jsonschema
import pytest

from bya_core.config import RouterConfig, SamplingConfig
from bya_core.errors import InputError
from bya_core.scene.schema import SceneFile, scene_schema
from bya_core.validation import Field, from_mapping, option, parse_json, validated

ADA = {"name": "Ada", "image": "ada.png"}
SCENE = {"prompt": "x", "characters": [ADA]}
LARGER, SMALLER, CORRECT = "use a larger value", "use a smaller value", "correct the value"
WORD = "audio_character_matrix"


@pytest.mark.parametrize(
    ("given", "problem", "expected", "hint"),
    [
        ({"promt": "x"}, 'has the unknown key "promt"', "one of prompt, characters", 'use "prompt" or "prompts"'),
        ({"colour": 1}, 'has the unknown key "colour"', "one of prompt, characters", "remove it"),
        ({"characters": [ADA | {"gian": 1}]}, 'characters[0] has the unknown key "gian"', "one of name", 'use "gain"'),
        ({"router": {"refine": {"smoooth": 1}}}, 'router.refine has the unknown key "smoooth"', "one of", "use"),
        (
            {"characters": [ADA | {"speech": [{"file": "a.wav", "begin": 1}]}]},
            'characters[0].speech[0] has the unknown key "begin"',
            "one of file, start, gain, from, to",
            'use "gain"',
        ),
        ({"characters": [{"name": "Ada"}]}, 'characters[0] has no "image"', "a value for it", 'add "image"'),
        ({"prompts": [{"start": 0, "prompt": "x"}]}, 'prompts[0] has no "end"', "a value for it", 'add "end"'),
        ({"characters": []}, "characters has 0 entries", "at least 1", "add the missing entries"),
        ({"characters": [ADA | {"speech": []}]}, "characters[0].speech has 0 entries", "at least 1", "add"),
        ({"steps": 0}, "steps is 0", "at least 1", LARGER),
        ({"width": 100000}, "width is 100000", "at most 4096", SMALLER),
        ({"length": 0}, "length is 0", "at least 1", LARGER),
        ({"characters": [ADA | {"mask_strength": 2}]}, "characters[0].mask_strength is 2", "at most 1", SMALLER),
        ({"router": {"probe": {"max_fraction": 2}}}, "router.probe.max_fraction is 2", "at most 1", SMALLER),
        ({"guidance_scale": math.nan}, "guidance_scale is nan", "a finite number", CORRECT),
        ({"prompt": 7}, "prompt is 7", "a string", CORRECT),
        ({"characters": "Ada"}, 'characters is "Ada"', "a list", CORRECT),
        ({"router": {"probe": 3}}, "router.probe is 3", "an object", CORRECT),
        ({"router": {"static": 1}}, "router.static is 1", "true or false", CORRECT),
        ({"router": {"refine": "yes"}}, 'router.refine is "yes"', "an object or true or false", CORRECT),
        ({"steps": True}, "steps is true", "an integer", CORRECT),
        ({"seed": 1.5}, "seed is 1.5", "an integer", CORRECT),
        ({WORD: [["a", 0]]}, f'{WORD}[0][0] is "a"', "a number", CORRECT),
        ({WORD: "swap"}, f'{WORD} is "swap"', 'a list or "identity" or "swapped" or "auto"', CORRECT),
        ({"scheduler": "euler"}, 'scheduler is "euler"', '"dpm" or "ddim"', CORRECT),
        ({"fps": 30}, "fps is 30", "25", CORRECT),
        ({"length": "y" * 99}, f'length is "{"y" * 36}...', '"auto" or an integer', CORRECT),
        ({"windows": {"frames": 5, "overlap": 9}}, "windows of 5 frames with", "an overlap", "increase"),
    ],
)  # fmt: skip
def test_message(given, problem, expected, hint):
    with pytest.raises(InputError) as caught:
        from_mapping(SceneFile, SCENE | given, "scene.json")
    error = caught.value
    assert error.problem.removeprefix("scene.json").removeprefix(":").strip().startswith(problem)
    assert error.expected.startswith(expected) and error.hint.startswith(hint)
    assert str(error) == f"{error.problem}; expected {error.expected}; {error.hint}." and "\n" not in str(error)
    if "windows" not in given and not (isinstance(value := next(iter(given.values())), float) and math.isnan(value)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(SCENE | given, scene_schema())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not valid JSON"),
        ("\x00\x01", "not valid JSON"),
        ("1" * 5000, "of 5000 digits"),
        ('{"a": 1, "a": 2}', 'the key "a" twice'),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ("[]", r"is \[\]; expected an object"),
        ("{}", 'no "prompt"'),
    ],
)
def test_invalid_json(text, problem):
    with pytest.raises(InputError, match=problem):
        from_mapping(SceneFile, parse_json(text, "scene.json"), "scene.json")


@validated
class Settings:
    count: Annotated[int | None, Field(ge=1, le=8, description="A count.")] = None
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5


def test_constructor_and_replace_are_checked():
    assert Settings(3, ratio=0.25) == dataclasses.replace(Settings(3), ratio=0.25)
    for name, value, expected in (("count", 9, "at most 8"), ("ratio", 0.0, "more than 0"), ("ratio", 1.0, "less")):
        with pytest.raises(InputError, match=f"{name} is {value}; expected {expected}"):
            Settings(**{name: value})
        with pytest.raises(InputError, match=f"{name} is {value}"):
            dataclasses.replace(Settings(), **{name: value})
    with pytest.raises(TypeError):
        Settings(1, 0.5, 3)  # type: ignore[call-arg]


def test_option_describes_a_field():
    count = option(Settings, "count")
    assert (count.type, count.default, count.optional, count.minimum, count.maximum) == (int, None, True, 1, 8)
    assert count.description == "A count."
    assert option(RouterConfig, "mode").choices == ("intra", "pre", "post", "manual")
    assert option(SamplingConfig, "steps").description == "Number of denoising steps."
