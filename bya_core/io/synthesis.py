"""Speech synthesis by the program or package that is installed: espeak-ng, Piper or Kokoro."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.files import existing_file

Engine: TypeAlias = Literal["auto", "espeak", "piper", "kokoro"]
PROGRAMS = ("espeak-ng", "espeak")
VARIANTS = ("f3", "m3", "f4", "m7", "f2", "m1", "f5", "m5")
"""Voices of espeak-ng that differ clearly, used in turn."""
TIMEOUT = 300.0  # seconds for one line


class SpeechSynthesizer(Protocol):
    """Text to speech."""

    name: str

    def default_voices(self, count: int) -> Sequence[str]:
        """Voices for `count` speakers, different where there are enough."""
        ...

    def synthesize(self, text: str, voice: str) -> tuple[Tensor, int]:
        """The speech of a text as float32 [1, samples], and its sample rate in Hz.

        Raises:
            InputError: There is no such voice, or the synthesis failed.
        """
        ...


class Espeak:
    """espeak-ng (or espeak), a program. A voice is a language with a variant, such as "en-us+f3".

    Args:
        program: Path of the program.
        language: Language of the default voices.
    """

    name = "espeak-ng"

    def __init__(self, program: str, language: str = "en") -> None:
        self.program, self.language = program, language

    def default_voices(self, count: int) -> Sequence[str]:
        return [f"{self.language}+{VARIANTS[k % len(VARIANTS)]}" for k in range(count)]

    def synthesize(self, text: str, voice: str) -> tuple[Tensor, int]:
        command = [self.program, "-v", voice, "-b", "1", "--stdin", "--stdout"]  # -b 1: UTF-8
        try:
            done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=TIMEOUT, check=True)
            return read_wave(done.stdout)
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
            problem = f'espeak-ng failed with the voice "{voice}": {reason[0]}'
            raise InputError(problem, "a voice that espeak-ng --voices lists", "choose another voice") from error
        except (subprocess.TimeoutExpired, OSError, EOFError, wave.Error) as error:
            raise InputError(f"espeak-ng failed ({error})", "speech", "check the program and the text") from error


class Piper:
    """The package piper-tts. A voice is the path of its .onnx file."""

    name = "Piper"

    def __init__(self) -> None:
        self._voices: dict[str, Any] = {}

    def default_voices(self, count: int) -> Sequence[str]:
        raise InputError("Piper without a voice", "the .onnx file of a voice per character", "use --voice NAME=FILE")

    def synthesize(self, text: str, voice: str) -> tuple[Tensor, int]:
        if voice not in self._voices:
            from piper import PiperVoice

            self._voices[voice] = PiperVoice.load(str(existing_file(voice, "the voice")))
        chunks = list(self._voices[voice].synthesize(text))
        if not chunks:
            raise _nothing_said(text)
        samples = np.concatenate([np.frombuffer(chunk.audio_int16_bytes, np.int16) for chunk in chunks])
        return torch.from_numpy(samples.astype(np.float32) / 32768)[None], int(chunks[0].sample_rate)


class Kokoro:
    """The package kokoro, which downloads its weights at the first use. A voice is a name such as "af_heart"."""

    name, rate = "Kokoro", 24_000
    voices = ("af_heart", "am_michael", "af_bella", "am_fenrir", "bf_emma", "bm_george")

    def __init__(self) -> None:
        self._pipelines: dict[str, Any] = {}

    def default_voices(self, count: int) -> Sequence[str]:
        return [self.voices[k % len(self.voices)] for k in range(count)]

    def synthesize(self, text: str, voice: str) -> tuple[Tensor, int]:
        if voice[:1] not in self._pipelines:
            from kokoro import KPipeline

            self._pipelines[voice[:1]] = KPipeline(lang_code=voice[:1])
        parts = [torch.as_tensor(audio).float() for _, _, audio in self._pipelines[voice[:1]](text, voice=voice)]
        if not parts:
            raise _nothing_said(text)
        return torch.cat(parts)[None], self.rate


def _nothing_said(text: str) -> InputError:
    return InputError(f"nothing of the line {text[:40]!r} can be said", "words", "change its text")


def find_synthesizer(engine: Engine = "auto", voices: Sequence[str] = (), language: str = "en") -> SpeechSynthesizer:
    """The synthesizer to use. "auto" is Piper if the voices are .onnx files, else espeak-ng.

    Args:
        engine: Name of the synthesizer.
        voices: Voices that were chosen.
        language: Language of the default voices of espeak-ng.

    Raises:
        InputError: It is not installed.
    """
    if engine == "auto":
        engine = "piper" if voices and all(Path(voice).suffix == ".onnx" for voice in voices) else "espeak"
    if engine == "espeak":
        program = next((path for name in PROGRAMS if (path := shutil.which(name)) is not None), None)
        if program is not None:
            return Espeak(program, language)
        hint = "install espeak-ng (apt install espeak-ng, brew install espeak-ng), or choose --engine piper or kokoro"
        raise InputError("no speech synthesizer", "the program espeak-ng, or the package piper-tts or kokoro", hint)
    if find_spec(engine) is None:
        package = {"piper": "piper-tts", "kokoro": "kokoro"}[engine]
        problem = f"the speech synthesizer {engine} without its package"
        raise InputError(problem, f"{package} to be installed", f"pip install {package}")
    return Piper() if engine == "piper" else Kokoro()


def read_wave(content: bytes) -> tuple[Tensor, int]:
    """A wav file with 16-bit samples as float32 [channels, samples] and its sample rate.

    The lengths in the header are not used: programs that write to a pipe do not know them.
    """
    with wave.open(io.BytesIO(content)) as file:
        channels, rate = file.getnchannels(), file.getframerate()
    start = content.index(b"data") + 8
    samples = np.frombuffer(content[start : start + (len(content) - start) // (2 * channels) * 2 * channels], np.int16)
    return torch.from_numpy(samples.astype(np.float32).reshape(-1, channels).T.copy() / 32768), rate


def write_wave(path: Path, waveform: Tensor, rate: int) -> None:
    """Write [channels, samples] in -1..1 as a wav file with 16-bit samples."""
    samples = (waveform.T.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(waveform.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
