"""`bya script` with a synthesizer that hums."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from bya_core.cli import main as cli
from bya_core.errors import InputError
from bya_core.io import synthesis
from bya_core.io.media import read_audio
from bya_core.io.synthesis import Espeak, find_synthesizer, read_wave, write_wave
from bya_core.scene.schema import read_scene_file
from bya_core.scene.speech import read_speeches

ROOT = Path(__file__).resolve().parents[3]
RATE = 8000


class Hum:
    """A tenth of a second of sound per letter, with silence around it."""

    name = "hum"

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def default_voices(self, count: int) -> list[str]:
        return [f"voice {k}" for k in range(count)]

    def synthesize(self, text: str, voice: str) -> tuple[torch.Tensor, int]:
        self.said.append((voice, text))
        samples = torch.arange(RATE * len(text) // 10) * (2 * math.pi * 200 / RATE)
        silence = torch.zeros(RATE)
        return torch.cat([silence, 0.3 * samples.cos(), silence])[None], RATE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "play.txt").write_text("ADA: Hello, Bo!\nBo: Hello.\nADA: How are you?\n")
    for name in ("ada", "other"):
        (tmp_path / f"{name}.png").write_bytes((ROOT / "demo" / "puppet_A.png").read_bytes())
    monkeypatch.setattr(synthesis, "find_synthesizer", lambda *_: hum)
    hum.said.clear()
    return tmp_path


hum = Hum()


def test_scene_has_every_line_at_its_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = folder / "out" / "scene.json"
    options = ["--image", f"bo={folder / 'other.png'}", "--voice", "Bo=low", "--prompt", "Two puppets."]
    assert cli.main(["script", str(folder / "play.txt"), "-o", str(scene), *options]) == 0
    assert hum.said == [("voice 0", "Hello, Bo!"), ("low", "Hello."), ("voice 0", "How are you?")]
    file = read_scene_file(scene)
    assert file.prompt == "Two puppets." and [c.name for c in file.characters] == ["ADA", "Bo"]
    assert all((scene.parent / c.image).is_file() for c in file.characters)
    ada, bo = (c.speech for c in file.characters)
    assert [clip.file for clip in ada] == ["scene_speech/001.wav", "scene_speech/003.wav"]
    ends = {}
    for clip in (*ada, *bo):
        waveform, rate = read_audio(scene.parent / clip.file)
        ends[clip.file[-7:-4]] = clip.start + waveform.shape[1] / rate
    assert ada[0].start == 0.3 and ends["001"] == pytest.approx(0.3 + 1.0 + 0.06, abs=0.02), "silence is trimmed"
    assert bo[0].start == pytest.approx(ends["001"] + 0.2, abs=0.01)
    assert ada[1].start == pytest.approx(ends["002"] + 0.25, abs=0.01)
    audio = read_speeches(file, scene.parent)
    assert len(audio.speeches) == 2 and not audio.notices
    assert "00:00:00,300" in (scene.parent / "scene_speech" / "subtitles.srt").read_text()
    assert "ADA: How are you?" in capsys.readouterr().out


def test_images_are_found_from_a_linked_folder(folder: Path) -> None:
    (folder / "ada.png").rename(folder / "Ada.PNG")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "deep" / "er", target_is_directory=True)
    scene = folder / "link" / "scene.json"
    options = ["--image", f"Bo={folder / 'other.png'}"]
    assert cli.main(["script", str(folder / "play.txt"), "-o", str(scene), *options]) == 0
    images = [character.image for character in read_scene_file(scene).characters]
    assert images == ["../../Ada.PNG", "../../other.png"] and all((scene.parent / image).is_file() for image in images)


def test_estimate_needs_no_synthesizer_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert cli.main(["script", str(folder / "play.txt"), "--estimate"]) == 0
    printed = capsys.readouterr().out
    assert "ADA: How are you?" in printed and "s in total" in printed
    assert sorted(folder.iterdir()) == before and not hum.said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no reference image of Bo"),
        (["--image", "Cy=x.png"], "--image Cy=x.png"),
        (["--voice", "bo"], "--voice bo"),
        (["--image", "Bo=missing.png"], "missing.png"),
    ],
)
def test_errors_leave_no_file(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    assert cli.main(["script", str(folder / "play.txt"), "-o", str(folder / "scene.json"), *options]) == 2
    assert message in capsys.readouterr().err and sorted(folder.iterdir()) == before


def test_what_a_scene_cannot_have_is_found_before_the_synthesis(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "script",
        str(folder / "play.txt"),
        "-o",
        str(folder / "scene.json"),
        "--image",
        "Bo=" + str(folder / "ada.png"),
    ]
    assert cli.main([*command, "--prompt", "x" * 20_001]) == 2
    assert "prompt" in capsys.readouterr().err
    (folder / "scene_speech").touch()
    assert cli.main(command) == 2
    assert "scene_speech" in capsys.readouterr().err and not hum.said and not (folder / "scene.json").exists()


def test_images_are_found_in_any_normal_form(folder: Path) -> None:
    (folder / "ada.png").rename(folder / "zo\u00eb.png")
    (folder / "play.txt").write_text("Zoe\u0308: Hello.\n", encoding="utf-8")
    assert cli.main(["script", str(folder / "play.txt"), "-o", str(folder / "scene.json")]) == 0


def test_without_a_synthesizer_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis.shutil, "which", lambda _: None)
    monkeypatch.setattr(synthesis, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="install espeak-ng"):
        find_synthesizer()
    for engine, voices in (("kokoro", ()), ("auto", ("a.onnx",))):
        with pytest.raises(InputError, match="pip install"):
            find_synthesizer(engine, voices)  # type: ignore[arg-type]


@pytest.fixture
def espeak(tmp_path: Path) -> str:
    """A program with the options of espeak-ng, whose output says in how many bytes the text came."""
    (tmp_path / "sound.wav").touch()
    program = tmp_path / "espeak-ng"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, wave\n"
        "text = sys.stdin.buffer.read()\n"
        "if 'xx' in sys.argv:\n    print('voice does not exist', file=sys.stderr); sys.exit(1)\n"
        f"with wave.open({str(tmp_path / 'sound.wav')!r}, 'wb') as file:\n"
        "    file.setparams((1, 2, 22050, 0, 'NONE', ''))\n"
        "    file.writeframes(b'\\x00\\x40' * len(text))\n"
        f"content = bytearray(open({str(tmp_path / 'sound.wav')!r}, 'rb').read())\n"
        "content[40:44] = b'\\xff\\xff\\xff\\x7f'  # of unknown length, as in a pipe\n"
        "sys.stdout.buffer.write(content)\n"
    )
    program.chmod(0o755)
    return str(program)


def test_espeak_is_called_with_text_on_its_input(espeak: str) -> None:
    synthesizer = Espeak(espeak, "de")
    voices = synthesizer.default_voices(3)
    assert len(set(voices)) == 3 and all(voice.startswith("de+") for voice in voices)
    waveform, rate = synthesizer.synthesize("-v Grüße; $(id)", "de")
    assert (waveform.shape, rate) == ((1, len("-v Grüße; $(id)".encode())), 22050)
    assert float(waveform.min()) == 0.5
    with pytest.raises(InputError, match="voice does not exist"):
        synthesizer.synthesize("a", "xx")


def test_packages_are_used_as_documented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chunk = SimpleNamespace(audio_int16_bytes=np.full(5, 16384, np.int16).tobytes(), sample_rate=22050)
    piper, kokoro = ModuleType("piper"), ModuleType("kokoro")
    piper.PiperVoice = SimpleNamespace(load=lambda path: SimpleNamespace(synthesize=lambda text: [chunk, chunk]))  # type: ignore[attr-defined]
    kokoro.KPipeline = lambda lang_code: lambda text, voice: [(text, "", np.ones(4, np.float32))]  # type: ignore[attr-defined]
    for module in (piper, kokoro):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(synthesis, "find_spec", lambda _: True)
    (tmp_path / "voice.onnx").touch()
    voice = str(tmp_path / "voice.onnx")
    waveform, rate = find_synthesizer("auto", [voice]).synthesize("a", voice)
    assert waveform.tolist() == [[0.5] * 10] and rate == 22050
    waveform, rate = find_synthesizer("kokoro").synthesize("a", "af_heart")
    assert waveform.shape == (1, 4) and rate == 24_000
    piper.PiperVoice = SimpleNamespace(load=lambda path: SimpleNamespace(synthesize=lambda text: []))  # type: ignore[attr-defined]
    kokoro.KPipeline = lambda lang_code: lambda text, voice: []  # type: ignore[attr-defined]
    for engine, name in (("piper", voice), ("kokoro", "af_heart")):
        with pytest.raises(InputError, match=r"nothing of the line '\(\?\)' can be said"):
            find_synthesizer(engine).synthesize("(?)", name)  # type: ignore[arg-type]


def test_wave_files_are_read_back(tmp_path: Path) -> None:
    waveform = torch.tensor([[0.0, 0.5, -0.5], [1.0, -1.0, 0.25]])
    write_wave(tmp_path / "a.wav", waveform, 8000)
    again, rate = read_wave((tmp_path / "a.wav").read_bytes())
    assert rate == 8000 and torch.allclose(again, waveform, atol=1e-4)
    assert json.dumps(rate) == "8000"
