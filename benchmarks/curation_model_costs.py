"""What one clip costs in the models of curation: floating point operations, counted without computing anything.

    python benchmarks/curation_model_costs.py [--frames 49] [--characters 2]

The published architectures are built without weights (torch's meta device) and torch's own counter adds up their matrix
products and convolutions. Of Qwen2-VL the products of its weights are counted (two operations for each weight and
token). What a device makes of it is for its owner to measure; docs/how-to/curate.md says what was assumed.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FPS, RATE = 25, 16_000


def counted(model: torch.nn.Module, *inputs: torch.Tensor, **more: torch.Tensor) -> float:
    """Operations of one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs, **more)
    return float(counter.get_total_flops())


def syncnet(frames: int) -> float:
    """One face and one voice; there are windows for all but five frames."""
    from bya_core.evaluation.syncnet import SyncNet

    network = SyncNet().eval()

    class Both(torch.nn.Module):
        def forward(self, lips: torch.Tensor, voice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return network.lips(lips), network.speech(voice)

    each = counted(Both(), torch.empty(1, 3, 5, 224, 224), torch.empty(1, 1, 13, 20))
    return each * (frames - 5)


def wav2vec(frames: int) -> float:
    """One voice with a second around it on both sides."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    return counted(Wav2Vec2Model(Wav2Vec2Config()).eval(), torch.empty(1, round((frames / FPS + 2) * RATE)))


def sam2_encoder(frames: int) -> float:
    """The picture encoder of SAM 2.1 large, which takes nearly all of its time; the rest is done for each character."""
    from transformers import Sam2HieraDetConfig, Sam2VisionConfig, Sam2VisionModel

    backbone = Sam2HieraDetConfig(
        hidden_size=144,
        blocks_per_stage=[2, 6, 36, 4],
        embed_dim_per_stage=[144, 288, 576, 1152],
        num_attention_heads_per_stage=[2, 4, 8, 16],
        window_size_per_stage=[8, 4, 16, 8],
        global_attention_blocks=[23, 33, 43],
    )
    config = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=[1152, 576, 288, 144])
    return frames * counted(Sam2VisionModel(config).eval(), torch.empty(1, 3, 1024, 1024))


def qwen2vl(pictures: int = 8, height: int = 480, width: int = 720, answer: int = 150) -> float:
    """Qwen2-VL-7B: a token for each 28 x 28 pixels, four times as many patches in its picture encoder, the answer."""
    tokens = pictures * math.ceil(height / 28) * math.ceil(width / 28) + 150
    language, vision = 7.07e9, 0.675e9
    return 2 * language * (tokens + answer) + 2 * vision * 4 * tokens


def main() -> None:
    """A table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--characters", type=int, default=2)
    given = parser.parse_args()
    with torch.device("meta"):
        costs = {
            "SyncNet, every voice and face": given.characters * syncnet(given.frames),
            "wav2vec2-base": given.characters * wav2vec(given.frames),
            "SAM 2.1 large, picture encoder": sam2_encoder(given.frames),
        }
    costs["Qwen2-VL-7B, 8 pictures of 720x480"] = qwen2vl()
    for name, cost in costs.items():
        print(f"{name}: {cost / 1e12:.2f} TFLOP a clip of {given.frames} frames and {given.characters} characters")


if __name__ == "__main__":
    main()
