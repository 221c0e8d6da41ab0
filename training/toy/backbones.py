"""The toy face and speech networks, trained on puppets before the transformer.

    python -m training.toy.backbones --output runs/toy

The face network learns that two portraits of one identity (other pose, light, expression) belong together and others
do not (contrastive, in-batch). The speech network learns the mouth of a voice: opening and lip shape per video frame.
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
import tyro
from safetensors.torch import save_file
from torch import Tensor, nn

from bya_core.toy.encoders import FaceNetwork, SpeechNetwork, network_config
from training.puppets.looks import draw_look
from training.puppets.voice import conversation, random_voice, speak
from training.puppets.world import draw_portrait

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneTraining:
    """How the backbones are trained.

    Args:
        output: folder for face.safetensors and speech.safetensors.
        face_steps: steps of the face network; 0 = leave it.
        speech_steps: steps of the speech network; 0 = leave it.
        seed: training seed.
    """

    output: Path
    face_steps: int = 320
    speech_steps: int = 700
    seed: int = 800_000


def portrait_pairs(rng: np.random.Generator, count: int) -> Tensor:
    """[2, count, 3, 48, 48]: two portraits each of `count` identities, blurred and tinted by chance."""
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


def train_face(settings: BackboneTraining) -> tuple[FaceNetwork, float]:
    """The network and its top-1 accuracy among 64 unseen identities."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    network = FaceNetwork()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    for step in range(settings.face_steps):
        _anneal(optimiser, 2e-3, step, settings.face_steps)
        a, b = portrait_pairs(rng, 48)
        scores = 12.0 * network(a)[0] @ network(b)[0].T
        target = torch.arange(len(a))
        loss = F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)
        _step(optimiser, network, loss)
        if step % 100 == 0:
            log.info("face step %d  loss %.3f", step, loss.item())
    a, b = portrait_pairs(np.random.default_rng(settings.seed + 1), 64)
    with torch.no_grad():
        hits = (network(a)[0] @ network(b)[0].T).argmax(1) == torch.arange(64)
    return network, float(hits.float().mean())


def voices(rng: np.random.Generator, count: int, num_frames: int = 50) -> tuple[Tensor, Tensor]:
    """Waveforms [count,S] with chance level, noise and tone, and their (opening, shape) [count,F,2]."""
    sounds, mouths = [], []
    for _ in range(count):
        duration = num_frames / 25
        spans = conversation(1, duration, rng, mode="mixed")[0]
        spoken = speak(random_voice(rng), spans, duration, fps=25, rng=rng, sample_rate=16_000)
        sound = spoken.waveform + 10 ** rng.uniform(-4.5, -2.2) * rng.standard_normal(len(spoken.waveform))
        tone = rng.uniform(-0.4, 0.4)
        sound = sound + tone * np.roll(sound, 1)
        sounds.append(sound * 10 ** rng.uniform(-1.0, 0.5))
        mouths.append(np.stack([spoken.opening[:num_frames], spoken.shape[:num_frames]], -1))
    return torch.from_numpy(np.stack(sounds).astype(np.float32)), torch.from_numpy(np.stack(mouths).astype(np.float32))


def speech_loss(prediction: Tensor, mouth: Tensor) -> Tensor:
    """Opening everywhere, shape where the mouth is open; both [B,F,2]."""
    error = (prediction.sigmoid() - mouth) ** 2
    return error[..., 0].mean() + 0.3 * (error[..., 1] * mouth[..., 0]).mean()


def train_speech(settings: BackboneTraining) -> tuple[SpeechNetwork, float]:
    """The network and the correlation of its opening with the truth on unseen voices."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed + 2)
    network = SpeechNetwork()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    for step in range(settings.speech_steps):
        _anneal(optimiser, 3e-3, step, settings.speech_steps)
        sound, mouth = voices(rng, 12)
        prediction = network(sound)[1][:, : mouth.shape[1]]
        loss = speech_loss(prediction, mouth)
        _step(optimiser, network, loss)
        if step % 100 == 0:
            log.info("speech step %d  loss %.4f", step, loss.item())
    sound, mouth = voices(np.random.default_rng(settings.seed + 3), 64)
    with torch.no_grad():
        opening = network(sound)[1][:, : mouth.shape[1], 0].sigmoid()
    return network, float(torch.corrcoef(torch.stack([opening.flatten(), mouth[..., 0].flatten()]))[0, 1])


def _anneal(optimiser: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = peak * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _step(optimiser: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()


def save(network: FaceNetwork | SpeechNetwork, path: Path, measured: dict) -> None:
    """Weights with the network's sizes and figures in the file's metadata."""
    metadata = {"config": json.dumps(network_config(network)), "measured": json.dumps(measured)}
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path, metadata=metadata)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = tyro.cli(BackboneTraining)
    settings.output.mkdir(parents=True, exist_ok=True)
    if settings.speech_steps:
        speech, agreement = train_speech(settings)
        save(speech, settings.output / "speech.safetensors", {"opening_correlation": agreement})
        print(f"opening of unseen voices: correlation {agreement:.3f}")
    if settings.face_steps:
        face, accuracy = train_face(settings)
        save(face, settings.output / "face.safetensors", {"top1_of_64": accuracy})
        print(f"unseen identities found among 64: {accuracy:.3f}")
