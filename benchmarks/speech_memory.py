"""Memory that a long recording needs: wav2vec2-base with two of its twelve blocks and random weights, on the CPU.

python benchmarks/speech_memory.py --seconds 300
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import tyro
from transformers import Wav2Vec2Config, Wav2Vec2Model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bya_core.encoders.wav2vec2 import Wav2Vec2SpeechEncoder  # noqa: E402
from bya_core.pipelines.run_report import peak_ram  # noqa: E402

RATE, SHORT = 16_000, 50


def most() -> float:
    """Largest memory of this process so far, in MiB."""
    return (peak_ram() or 0) / 2**20


def main(seconds: int = 300) -> None:
    """Print how much more memory a recording of `seconds` takes than one of 50 s, which goes through in two pieces."""
    with tempfile.TemporaryDirectory() as folder:
        Wav2Vec2Model(Wav2Vec2Config(num_hidden_layers=2)).save_pretrained(folder)
        encoder = Wav2Vec2SpeechEncoder(Path(folder))
        encoder.features(torch.randn(SHORT * RATE))
        before = most()
        made = encoder.features(torch.randn(seconds * RATE))
    result = made.nbytes / 2**20
    print(f"{seconds} s: {most() - before:.0f} MiB more than {SHORT} s; the result alone has {result:.0f} MiB")


if __name__ == "__main__":
    tyro.cli(main)
