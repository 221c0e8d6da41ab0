"""Malformed values at every entry point: exit code 2, one sentence, no traceback, no file written, bounded time."""

from __future__ import annotations

import json
import re
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch

from bya_core.cli.guard import run_guarded
from bya_core.cli.main import main
from bya_core.config import RefineConfig, RouterConfig, SamplingConfig, WindowConfig
from bya_core.errors import InputError, one_line, out_of_memory
from bya_core.scene.compose import CastMember, SceneOptions, combine_casts, compose, parse_matrix, parse_prompts
from bya_core.scene.notices import first_few
from bya_core.scene.types import SceneDefaults, Speech
from tests.fakes import tone, write_picture, write_wav

SENTENCE = re.compile(r"error: [^\n]+; expected [^\n]+; [^\n]+\.")
SECONDS = 10.0  # of CPU
DEFAULTS = SceneDefaults(height=64, width=96, max_frames=17, size_unit=16, time_factor=4)
ADA, BO = {"name": "Ada", "image": "ada.png"}, {"name": "Bo", "image": "bo.png"}
SCENE: dict[str, Any] = {"prompt": "two people", "characters": [ADA, BO], "length": 9}
TALK = {**SCENE, "dialogue": "talk.wav"}
LONG = "x" * 100_000


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for number, name in enumerate(("ada", "bo")):
        write_picture(tmp_path / f"{name}.png", seed=number)
    write_wav(tmp_path / "talk.wav", tone(2.0))
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary.json").write_bytes(bytes(range(256)) * 16)
    (tmp_path / "scene.json").write_text(json.dumps(SCENE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str], seconds: float = SECONDS) -> str:
    """Run a command that has to refuse its input; returns its sentence."""
    before = sorted(folder.rglob("*"))
    start = time.process_time()
    code = main(words)
    spent = time.process_time() - start
    printed = capsys.readouterr()
    errors = [
        line for line in printed.err.splitlines() if not line.startswith("warning: ") and not line.endswith("...")
    ]
    assert code == 2, printed
    assert len(errors) == 1 and SENTENCE.fullmatch(errors[0]) and len(errors[0]) < 1800, errors
    assert "Traceback" not in printed.err + printed.out and not printed.out
    assert sorted(folder.rglob("*")) == before
    assert spent < seconds
    return errors[0]


def scene(**changes: Any) -> bytes:
    return json.dumps(SCENE | changes).encode()


def cast(**changes: Any) -> bytes:
    return scene(characters=[ADA | changes, BO])


SCENES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "spaces": (b" \n ", "is empty"),
    "binary": (bytes(range(1, 256)), "not UTF-8"),
    "NUL": (b"\0" * 100, "binary"),
    "UTF-16": (json.dumps(SCENE).encode("utf-16"), "UTF-16"),
    "latin-1": ('{"prompt": "é"}'.encode("latin-1"), "not UTF-8"),
    "list": (b"[]", "expected an object"),
    "null": (b"null", "expected an object"),
    "number": (b"5", "expected an object"),
    "cut": (json.dumps(SCENE).encode()[:-3], "not valid JSON"),
    "depth": (b"[" * 1000 + b"]" * 1000, "nested too deeply"),
    "extreme depth": (b"[" * 1_000_000, "nested too deeply"),
    "digits": (b'{"seed": ' + b"9" * 5000 + b"}", "5000 digits"),
    "size": (b" " * (100 * 2**20), "more than 16 MB"),
    "twice": (b'{"prompt": "a", "prompt": "b"}', "twice"),
    "long key": (scene(**{LONG: 1}), "unknown key"),
    "surrogate": (scene(prompt="\ud800"), "surrogate"),
    "NaN": (scene(guidance_scale=float("nan")), "guidance_scale is nan"),
    "Infinity": (scene(guidance_scale=float("inf")), "guidance_scale is inf"),
    "huge integer": (scene(guidance_scale=10**399), "guidance_scale"),
    "huge list": (scene(prompt=["x" * 1000] * 1000), "expected a string"),
    "seed 2^64": (scene(seed=2**64), "at most 9223372036854775807"),
    "seed -1": (scene(seed=-1), "at least 0"),
    "steps 0": (scene(steps=0), "at least 1"),
    "steps true": (scene(steps=True), "an integer"),
    "fps 0": (scene(fps=0), "fps"),
    "fps 1e9": (scene(fps=1e9), "fps"),
    "height 10^9": (scene(height=10**9), "at most 4096"),
    "height 60": (scene(height=60), "a multiple of"),
    "8x8 pixels": (scene(height=8, width=8), "8x8 pixels; expected at least"),
    "length 10^9": (scene(length=10**9), "at most 100000"),
    "no characters": (scene(characters=[]), "at least 1"),
    "101 characters": (scene(characters=[ADA | {"name": f"{n}"} for n in range(101)]), "at most 100"),
    "empty name": (cast(name=""), "name is empty"),
    "blank name": (cast(name=" \u200f "), "empty name"),
    "long name": (cast(name="x" * 10_000), "at most 100 characters"),
    "line break in a name": (cast(name="A\nda"), "control characters"),
    "escape in a name": (cast(name="\x1b[31mAda"), "control characters"),
    "equal names": (cast(name="Bo"), "unique names"),
    "names equal in NFC": (
        scene(characters=[ADA | {"name": "Zoe\u0308"}, BO | {"name": unicodedata.normalize("NFC", "Zoe\u0308")}]),
        "unique names",
    ),
    "names equal but for a mark": (cast(name="Bo\u200f"), "unique names"),
    "long prompt": (scene(prompt=LONG), "at most 20000"),
    "empty path": (cast(image=""), "image is empty"),
    "NUL in a path": (cast(image="a\0b.png"), "no file name"),
    "surrogate in a path": (cast(image="\udcff.png"), "surrogate"),
    "long path": (cast(image="x" * 5000), "at most 4096"),
    "long part of a path": (cast(image="x" * 3000), "cannot be accessed"),
    "path of a folder": (cast(image="folder"), "is a folder"),
    "path of a device": (cast(image="/dev/null"), "is not a file"),
    "huge matrix": (scene(audio_character_matrix=[[1.0] * 500] * 500), "audio-character matrix"),
    "NaN in a matrix": (scene(audio_character_matrix=[[float("nan"), 0], [0, 1]]), "finite"),
    "reversed prompt": (scene(prompts=[{"start": 2, "end": 1, "prompt": "x"}]), "later end"),
    "late prompt": (scene(prompts=[{"start": 1, "end": 10**6, "prompt": "x"}]), "at most 36000"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_scene_files(name, folder, capsys):
    content, words = SCENES[name]
    (folder / "scene.json").write_bytes(content)
    assert words in refused(["timeline", "scene.json", "-o", "out.png"], folder, capsys)


def test_byte_order_mark_and_line_ends_are_accepted(folder):
    (folder / "scene.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(TALK | {"timeline": "t.srt"}).encode())
    cues = "1\n00:00:00,000 --> 00:00:01,000\nAda: a\n\n2\n00:00:01,000 --> 00:00:02,000\nBo: b\n"
    (folder / "t.srt").write_bytes(b"\xef\xbb\xbf" + cues.replace("\n", "\r\n").encode())
    assert main(["timeline", "scene.json", "-o", "out.png"]) == 0


def cue(times: str, text: str = "Ada: a") -> bytes:
    return f"1\n{times}\n{text}\n".encode()


TIMELINES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("t.srt", b"", "no turns"),
    "binary": ("t.rttm", bytes(range(256)), "not UTF-8"),
    "UTF-16": ("t.vtt", "WEBVTT".encode("utf-16"), "UTF-16"),
    "30 digits of hours": ("t.srt", cue(f"{'9' * 30}:00:00,000 --> {'9' * 30}:00:01,000"), "cue times"),
    "5000 digits of hours": ("t.srt", cue(f"{'9' * 5000}:00:00,000 --> 00:00:01,000"), "cue times"),
    "late": ("t.srt", cue("999:00:00,000 --> 999:00:01,000"), "at most 36000"),
    "negative": ("t.srt", cue("-1:00:00,000 --> 00:00:01,000"), "cue times"),
    "reversed": ("t.vtt", b"WEBVTT\n\n" + cue("00:02.000 --> 00:01.000"), "later end"),
    "long line": ("t.srt", cue("x" * 1_000_000 + " --> 00:00:01,000"), "cue times"),
    "long cue": ("t.srt", cue("00:00:00,000 --> 00:00:01,000", "<v " * 300_000), "at most 5000"),
    "long speaker": ("t.rttm", b"SPEAKER f 1 0 1 <NA> <NA> " + b"x" * 100_000, "is not a character"),
    "NaN": ("t.rttm", b"SPEAKER f 1 nan 1 <NA> <NA> Ada", "later end"),
    "infinity": ("t.rttm", b"SPEAKER f 1 0 inf <NA> <NA> Ada", "later end"),
    "1e400": ("t.rttm", b"SPEAKER f 1 0 1e400 <NA> <NA> Ada", "later end"),
    "many turns": ("t.rttm", b"SPEAKER f 1 0.1 0.1 <NA> <NA> Ada\n" * 100_000, "at most 10000"),
    "object": ("t.json", b"{}", "not a list"),
    "depth": ("t.json", b"[" * 100_000, "nested too deeply"),
    "number": ("t.json", b"[5]", "expected an object"),
    "huge time": ("t.json", b'[{"speaker": "Ada", "start": 0, "end": 1' + b"0" * 300 + b"}]", "end"),
    "empty speaker": ("t.json", b'[{"speaker": "", "start": 0, "end": 1}]', "is empty"),
    "other file": ("t.txt", b"", "ending in"),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMELINES)
def test_timelines(name, folder, capsys):
    file, content, words = TIMELINES[name]
    (folder / file).write_bytes(content)
    (folder / "scene.json").write_text(json.dumps(TALK | {"timeline": file}))
    assert words in refused(["timeline", "scene.json", "-o", "out.png"], folder, capsys)


def test_speakers_that_differ_in_case_only(folder, capsys):
    (folder / "t.rttm").write_text("SPEAKER f 1 0 1 <NA> <NA> Ada\n")
    content = TALK | {"characters": [ADA, BO | {"name": "ADA"}], "timeline": "t.rttm"}
    (folder / "scene.json").write_text(json.dumps(content))
    assert "two characters" in refused(["timeline", "scene.json", "-o", "out.png"], folder, capsys)


ARGUMENTS = {
    "nothing": "",
    "unknown command": "dance",
    "long command": LONG,
    "unknown option": "generate scene.json -o a.mp4 --sede 5",
    "missing option": "generate scene.json",
    "missing value": "generate scene.json -o",
    "too many values": "generate scene.json other.json -o a.mp4",
    "word for a number": "generate scene.json -o a.mp4 --steps many",
    "5000 digits": f"generate scene.json -o a.mp4 --seed {'9' * 5000}",
    "seed 2^64": f"generate scene.json -o a.mp4 --seed {2**64}",
    "seed -1": "generate scene.json -o a.mp4 --seed -1",
    "steps 0": "generate scene.json -o a.mp4 --steps 0",
    "unknown preset": "generate scene.json -o a.mp4 --preset warp",
    "regenerate 0": "generate scene.json -o a.mp4 --regenerate 0",
    "regenerate seed alone": "generate scene.json -o a.mp4 --regenerate-seed 4",
    "regenerate seed 2^64": f"generate scene.json -o a.mp4 --regenerate 1 --regenerate-seed {2**64}",
    "unknown model": f"timeline scene.json -o a.png --model {LONG}",
    "empty model": "convert EMPTY -o a.safetensors",
    "folder for a scene": "generate folder -o a.mp4",
    "image for a scene": "generate ada.png -o a.mp4",
    "binary for a scene": "generate binary.json -o a.mp4",
    "long output": f"generate scene.json -o {'x' * 5000}.mp4",
    "NUL in the output": "generate scene.json -o a\0b.mp4",
    "surrogate in the output": "generate scene.json -o \udcff\ud800.mp4",
    "image for a video": "report ada.png --scene scene.json -o a.png",
    "missing video": "report no.mp4 --scene scene.json -o a.png",
    "unknown encoders": "convert toy -o a.safetensors --encoders nonsense",
    "encoders of a released model": "convert toy -o a --to released --encoders toy",
    "binary for a model": "convert binary.json -o a.safetensors",
    "no images": "faces -o a.png",
    "state that is none": "generate scene.json -o a.mp4 --resume-from no.safetensors",
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_command_lines(name, folder, capsys):
    words = ["" if word == "EMPTY" else word for word in ARGUMENTS[name].split(" ") if word]
    refused(words, folder, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_vram_budget_without_gpu(folder, capsys):
    assert "without a GPU" in refused(["generate", "scene.json", "-o", "a.mp4", "--vram", "8"], folder, capsys)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["x", "-1", "", "9" * 5000])
def test_environment_variables(name, value, folder, capsys, monkeypatch):
    monkeypatch.setenv(name, value)
    assert name in refused(["timeline", "scene.json", "-o", "out.png"], folder, capsys)


def member(name: str) -> CastMember:
    return CastMember(name, torch.rand(3, 8, 8), Speech(torch.randn(1, 4000), 16_000))


NODES = {
    "empty name": lambda: combine_casts([member("")]),
    "names equal in NFC": lambda: combine_casts([member("Zo\u00eb"), member("Zoe\u0308")]),
    "surrogate in a name": lambda: combine_casts([member("\ud800")]),
    "long name": lambda: combine_casts([member("x" * 10_000)]),
    "width 10^9": lambda: compose([member("Ada")], SceneOptions("", width=10**9, height=10**9), DEFAULTS),
    "NaN guidance": lambda: SamplingConfig(guidance_scale=float("nan")),
    "seed 2^64": lambda: SamplingConfig(seed=2**64),
    "number as text": lambda: SamplingConfig(steps="5"),  # type: ignore[arg-type]
    "huge threshold": lambda: RefineConfig(threshold=10**400),
    "unknown mode": lambda: RouterConfig(mode=LONG),  # type: ignore[arg-type]
    "overlap of a whole window": lambda: WindowConfig(frames=9, overlap=9),
    "surrogate in a prompt": lambda: compose([member("Ada")], SceneOptions("\udcff"), DEFAULTS),
    "long prompt": lambda: compose([member("Ada")], SceneOptions(LONG), DEFAULTS),
    "8x8 pixels": lambda: compose([member("Ada")], SceneOptions("", width=16, height=16), DEFAULTS),
    "matrix of words": lambda: parse_matrix("a b; c d", 2, 2),
    "matrix with NaN": lambda: parse_matrix("nan 0; 0 1", 2, 2),
    "long matrix": lambda: parse_matrix("0 " * 100_000, 2, 2),
    "late prompt": lambda: parse_prompts("1 - " + "9" * 400 + ": rain"),
    "prompt without times": lambda: parse_prompts(LONG),
}


@pytest.mark.parametrize("name", NODES)
def test_node_inputs(name):
    with pytest.raises(InputError) as caught:
        NODES[name]()
    assert SENTENCE.fullmatch(f"error: {caught.value}") and len(str(caught.value)) < 1800


TRAINING = {
    "training.puppets.__main__": ("Arguments", ["--seed -1", f"--seed {2**70}", "--frames -5", "--width x"]),
    "training.run_stage": (
        "Arguments",
        [f"--stage 1 --data x -o out {rest}" for rest in (
            "--seed -1", "--batch-size 0", "--steps -1", "--max-minutes nan", "--threads -3", "--stage 4",
            "--validate-every -1", "--length-fractions 1", "--buckets 1x2x3 --nonsense",
        )],
    ),
    "training.curate": (
        "CurateOptions", [f"--input x -o out --config y {rest}" for rest in ("--workers -7", "--seed -1", "--audit -1")]
    ),
    "training.evaluate": (
        "EvaluateOptions", ["--scenes -1", "--suite nonsense", "--processes -2", "--steps 1e9", f"--seed-base {2**64}"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("module", "words"), [(module, words) for module, (_, lines) in TRAINING.items() for words in lines]
)
def test_training_arguments(module, words, folder, capsys, monkeypatch):
    import importlib

    from training.command_line import run_command

    kind = getattr(importlib.import_module(module), TRAINING[module][0])
    monkeypatch.setattr(sys, "argv", [module, *words.split()])
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda arguments: pytest.fail(f"{arguments} ran"), kind)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and SENTENCE.fullmatch(printed.strip()), printed
    assert sorted(folder.rglob("*")) == before


def allocate(error: BaseException) -> Any:
    def fail() -> int:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory of the machine"),
        (MemoryError("Unable to allocate 72.8 TiB for an array with shape (10,)"), "80044.4 GB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes."), "4.0 GB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "the GPU"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory of the machine"),
        (OSError(12, "Cannot allocate memory"), "memory of the machine"),
    ],
)
def test_exhausted_memory_is_one_sentence(error, said, capsys):
    assert run_guarded(allocate(error), "lower the size") == 2
    printed = capsys.readouterr().err.strip()
    assert SENTENCE.fullmatch(printed) and said in printed and "lower the size" in printed
    assert out_of_memory(ValueError("other"), "lower the size") is None


def test_real_allocations_are_recognized(capsys):
    assert run_guarded(lambda: len(torch.zeros(10**14)), "lower the size") == 2
    assert "400000.0 GB" in capsys.readouterr().err
    assert run_guarded(lambda: len(bytearray(2**60)), "lower the size") == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [RecursionError("too deep"), KeyError("x"), AssertionError()])
def test_internal_errors_are_one_sentence(error, capsys, monkeypatch):
    monkeypatch.delenv("BYA_TRACEBACK", raising=False)
    assert run_guarded(allocate(error), "lower the size") == 1
    printed = capsys.readouterr().err
    assert SENTENCE.fullmatch(printed.strip()) and type(error).__name__ in printed and "Traceback" not in printed
    monkeypatch.setenv("BYA_TRACEBACK", "1")
    assert run_guarded(allocate(error), "lower the size") == 1 and "Traceback" in capsys.readouterr().err


def test_interruption_is_quiet(capsys):
    assert run_guarded(allocate(KeyboardInterrupt()), "lower the size") == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_messages_are_one_line_and_cut():
    text = one_line(f"a\nb\x1b[31m\u202e\ud800 {LONG} end")
    assert text.isprintable() and text.encode() and len(text) <= 400 and text.endswith("end")
    assert one_line("Zoë says 你好") == "Zoë says 你好"
    error = InputError(LONG, "x " * 5000, "a\r\nb")
    assert len(str(error)) < 1800 and "\n" not in str(error)


def test_equal_recordings_of_many_characters_are_one_notice(folder, capsys):
    characters = [{"name": f"character {n}", "image": "ada.png", "speech": "talk.wav"} for n in range(40)]
    (folder / "scene.json").write_text(json.dumps(SCENE | {"characters": characters}))
    assert main(["timeline", "scene.json", "-o", "out.png"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert sum("same recording" in line for line in warnings) == 1 and "35 others" in " ".join(warnings)
    assert len(warnings) < 10
    assert first_few(f"notice {n}" for n in range(100))[-1] == "95 more notices of this kind are not shown."
