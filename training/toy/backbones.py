"""Train the face and speech networks of the toy model on puppets.

    python -m training.toy.backbones --output runs/toy

The face network is trained with an in-batch contrastive loss on pairs of portraits of one identity with different
pose, light and expression. The speech network predicts mouth opening and lip shape per video frame.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from bya_core.io.atomic import atomic_write
from bya_core.toy.encoders import FaceNetwork, SpeechNetwork
from training.command_line import OutputPath, run_command
from training.puppets.conversation import conversation
from training.puppets.looks import draw_look
from training.puppets.voice import random_voice, synthesize
from training.puppets.world import draw_portrait

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Train the face and speech networks of the toy model.

    Args:
        output: output folder of face.safetensors and speech.safetensors.
        face_steps: training steps of the face network; 0 = skip.
        speech_steps: training steps of the speech network; 0 = skip.
        seed: random seed.
    """

    output: OutputPath
    face_steps: int = 320
    speech_steps: int = 700
    seed: int = 800_000


def portrait_pairs(rng: np.random.Generator, count: int) -> Tensor:
    """[2, count, 3, 48, 48]: two portraits of each identity, randomly blurred and tinted."""
    pairs = np.empty((2, count, 48, 48, 3), np.uint8)
    for k in range(count):
        look = draw_look(rng)
        for side in range(2):
            pairs[side, k] = draw_portrait(look, rng)
    images = torch.from_numpy(pairs).permute(0, 1, 4, 2, 3).float() / 255.0
    tint = 1.0 + 0.08 * torch.from_numpy(rng.standard_normal((2, count, 3, 1, 1)).astype(np.float32))
    small = F.interpolate(images.flatten(0, 1), scale_factor=0.5, mode="area")
    blurred = F.interpolate(small, scale_factor=2.0, mode="bilinear").view_as(images)
    soft = torch.from_numpy(rng.random((2, count, 1, 1, 1)).astype(np.float32)) < 0.4
    return (torch.where(soft, blurred, images) * tint).clamp(0.0, 1.0)


def train_face(settings: Arguments) -> tuple[FaceNetwork, float]:
    """Train the face network; also returns its top-1 accuracy among 64 unseen identities."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    network = FaceNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    for step in range(settings.face_steps):
        _anneal(optimizer, 2e-3, step, settings.face_steps)
        a, b = portrait_pairs(rng, 48)
        scores = 12.0 * network(a)[0] @ network(b)[0].T
        target = torch.arange(len(a))
        loss = F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)
        _step(optimizer, network, loss)
        if step % 100 == 0:
            log.info("face step %d  loss %.3f", step, loss.item())
    a, b = portrait_pairs(np.random.default_rng(settings.seed + 1), 64)
    with torch.no_grad():
        hits = (network(a)[0] @ network(b)[0].T).argmax(1) == torch.arange(64)
    return network, float(hits.float().mean())


def voices(rng: np.random.Generator, count: int, num_frames: int = 50) -> tuple[Tensor, Tensor]:
    """Waveforms [count,S] with random level, noise and filtering, and their (opening, shape) [count,F,2]."""
    sounds, mouths = [], []
    for _ in range(count):
        duration = num_frames / 25
        spans = conversation(1, duration, rng, mode="mixed")[0]
        spoken = synthesize(random_voice(rng), spans, duration, rng=rng)
        sound = spoken.waveform + 10 ** rng.uniform(-4.5, -2.2) * rng.standard_normal(len(spoken.waveform))
        tone = rng.uniform(-0.4, 0.4)
        sounds.append((sound + tone * np.roll(sound, 1)) * 10 ** rng.uniform(-1.0, 0.5))
        mouths.append(np.stack([spoken.opening[:num_frames], spoken.shape[:num_frames]], -1))
    return torch.from_numpy(np.stack(sounds).astype(np.float32)), torch.from_numpy(np.stack(mouths).astype(np.float32))


def speech_loss(prediction: Tensor, mouth: Tensor) -> Tensor:
    """Squared error of the opening, and of the shape weighted by the opening; both inputs [B,F,2]."""
    error = (prediction.sigmoid() - mouth) ** 2
    return error[..., 0].mean() + 0.3 * (error[..., 1] * mouth[..., 0]).mean()


def train_speech(settings: Arguments) -> tuple[SpeechNetwork, float]:
    """Train the speech network; also returns the correlation of its opening on unseen voices."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed + 2)
    network = SpeechNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    for step in range(settings.speech_steps):
        _anneal(optimizer, 3e-3, step, settings.speech_steps)
        sound, mouth = voices(rng, 12)
        prediction = network(sound)[1][:, : mouth.shape[1]]
        loss = speech_loss(prediction, mouth)
        _step(optimizer, network, loss)
        if step % 100 == 0:
            log.info("speech step %d  loss %.4f", step, loss.item())
    sound, mouth = voices(np.random.default_rng(settings.seed + 3), 64)
    with torch.no_grad():
        opening = network(sound)[1][:, : mouth.shape[1], 0].sigmoid()
    return network, float(torch.corrcoef(torch.stack([opening.flatten(), mouth[..., 0].flatten()]))[0, 1])


def _anneal(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = peak * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _step(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def save(network: FaceNetwork | SpeechNetwork, path: Path, measured: dict) -> None:
    """Write the weights with configuration and metrics in the metadata of the file."""
    metadata = {"config": json.dumps(network.config), "measured": json.dumps(measured)}
    with atomic_write(path) as temporary:
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, temporary, metadata=metadata)


def main(arguments: Arguments) -> None:
    """Train, save and print the metrics."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.speech_steps:
        speech, correlation = train_speech(arguments)
        save(speech, arguments.output / "speech.safetensors", {"opening_correlation": correlation})
        print(f"mouth opening of unseen voices: correlation {correlation:.3f}")
    if arguments.face_steps:
        face, accuracy = train_face(arguments)
        save(face, arguments.output / "face.safetensors", {"top1_of_64": accuracy})
        print(f"top-1 accuracy among 64 unseen identities: {accuracy:.3f}")


if __name__ == "__main__":
    run_command(main, Arguments)
