r"""Train or evaluate the voice-face association, which matches voices to faces.

    python training/run_voice_face.py -o runs/toy/voice_face.safetensors
    python training/run_voice_face.py --evaluate --seed-base 2000000 --scenes 200
    python training/run_voice_face.py --evaluate --scenes 200 -o report.json

Training is contrastive (InfoNCE in both directions): within a batch of puppets each voice has to match its own portrait
and each portrait its voice. Takes about 5 minutes on one CPU core.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

if __package__ in (None, ""):  # started as a script: make the packages beside it importable
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bya_core.encoders.vad import VoiceActivityName, load_voice_activity
from bya_core.encoders.voice_face import VoiceFace, VoiceFaceMatcher, VoiceFaceNetwork, VoiceTower
from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.io.files import existing_file
from bya_core.io.outputs import check_output
from bya_core.routing.audio_assignment import match_voices
from bya_core.scene.types import Speech
from training.benchmark.scenes import HELD_OUT
from training.command_line import OptionalOutput, run_command
from training.puppets.looks import draw_look
from training.puppets.voice import SAMPLE_RATE, synthesize, voice_for
from training.puppets.world import Talk, draw_portrait, make_clip

log = logging.getLogger(__name__)

SHIPPED_WEIGHTS = Path(__file__).resolve().parent.parent / "bya_core/toy/weights/voice_face.safetensors"
SECONDS = 2.0  # of speech per training puppet
MIN_SECONDS = 0.5  # of the excerpt used in a training step
SCENE_KINDS: tuple[tuple[int, int, Talk], ...] = (
    (2, 49, "overlap"), (2, 49, "turns"), (2, 49, "one"), (2, 17, "overlap"), (2, 98, "overlap"), (3, 49, "overlap"),
    (4, 49, "overlap"),
)  # fmt: skip
"""Characters, frames and conversation pattern of the evaluated scenes."""


@dataclass(frozen=True)
class Arguments:
    """Train the voice-face association on puppets, or evaluate it.

    Args:
        output: file to write: the weights (.safetensors), or with --evaluate an optional report (.json).
        evaluate: evaluate instead of training.
        checkpoint: weights to evaluate; default: those of the toy model.
        puppets: number of training identities.
        steps: training steps.
        batch_size: identities per step.
        lr: peak learning rate.
        seed: training seed, below 1,000,000.
        scenes: number of evaluation scenes of each kind.
        seed_base: first evaluation seed; 2,000,000 for validation, 1,000,000 for the published table.
        activity: voice activity detector used in the evaluation.
        threads: CPU threads; 0 = default of torch.
    """

    output: OptionalOutput = None
    evaluate: bool = False
    checkpoint: Path = SHIPPED_WEIGHTS
    puppets: int = 5000
    steps: int = 1200
    batch_size: int = 128
    lr: float = 2e-3
    seed: int = 700_000
    scenes: int = 200
    seed_base: int = HELD_OUT
    activity: VoiceActivityName = "auto"
    threads: int = 0


@dataclass(frozen=True)
class Puppets:
    """Training identities: two portraits each [P, 2, 3, 48, 48] uint8, voice features [P, C, frames] float16."""

    portraits: Tensor
    voices: Tensor


@torch.no_grad()
def draw_puppets(count: int, seed: int, tower: VoiceTower) -> Puppets:
    """Draw random identities, each with two portraits and 2 s of noisy speech."""
    rng = np.random.default_rng(seed)
    portraits = np.empty((count, 2, 48, 48, 3), np.uint8)
    voices = []
    for k in range(count):
        look = draw_look(rng)
        portraits[k] = [draw_portrait(look, rng), draw_portrait(look, rng)]
        start = -float(rng.uniform(0.0, 0.5))  # an excerpt of longer speech
        sound = synthesize(voice_for(look.voice_traits), [(start, SECONDS + 0.5)], SECONDS, rng=rng).waveform
        sound = sound + 10 ** rng.uniform(-4.5, -2.5) * rng.standard_normal(len(sound))
        voices.append(tower.features(torch.from_numpy(sound[None].astype(np.float32))).half())
    return Puppets(torch.from_numpy(portraits).permute(0, 1, 4, 2, 3), torch.cat(voices))


def draw_batch(puppets: Puppets, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A random batch: voice features [B, C, frames] of a random common length, and one portrait each [B, 3, 48, 48]."""
    chosen = torch.from_numpy(rng.choice(len(puppets.voices), count, replace=False))
    whole = puppets.voices.shape[-1]
    length = round(rng.uniform(MIN_SECONDS / SECONDS, 1.0) * whole)
    start = int(rng.integers(0, whole - length + 1))
    voices = puppets.voices[chosen, :, start : start + length].float()
    images = puppets.portraits[chosen, torch.from_numpy(rng.integers(0, 2, count))].float() / 255.0
    return voices, augment(images, rng)


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Randomly mirror portraits [B, 3, H, W], shift them by up to 2 pixels, and mix their color channels."""
    count, _, height, width = images.shape
    mirrored = torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.5)
    images = torch.where(mirrored, images.flip(-1), images)
    top, left = (int(v) for v in rng.integers(0, 5, 2))
    images = F.pad(images, (2, 2, 2, 2), mode="replicate")[..., top : top + height, left : left + width]
    mix = torch.eye(3) + torch.from_numpy(0.12 * rng.standard_normal((count, 3, 3)).astype(np.float32))
    return torch.einsum("bkc,bchw->bkhw", mix, images).clamp(0.0, 1.0)


def contrastive_loss(scores: Tensor) -> Tensor:
    """InfoNCE in both directions on scores [B, B] with the matches on the diagonal."""
    target = torch.arange(len(scores))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def train(arguments: Arguments) -> tuple[VoiceFaceNetwork, dict[str, float]]:
    """Train the network; also returns its metrics on unseen puppets."""
    if not 0 <= arguments.seed < HELD_OUT - 2:
        raise InputError(f"seed {arguments.seed}", f"0 to {HELD_OUT - 3}", "higher seeds are for evaluation")
    torch.manual_seed(arguments.seed)
    start = time.perf_counter()
    network = VoiceFaceNetwork()
    puppets = draw_puppets(arguments.puppets, arguments.seed, network.voice)
    log.info("%d puppets drawn in %.0f s", arguments.puppets, time.perf_counter() - start)
    rng = np.random.default_rng(arguments.seed + 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
    )
    for step in range(arguments.steps):
        loss = contrastive_loss(network(*draw_batch(puppets, arguments.batch_size, rng)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == arguments.steps - 1:
            log.info("step %d  loss %.3f  scale %.1f", step, loss.item(), network.log_scale.exp().item())
    network.eval()
    return network, {"loss": held_out_loss(network, arguments), "chance": math.log(arguments.batch_size)}


@torch.no_grad()
def held_out_loss(network: VoiceFaceNetwork, arguments: Arguments) -> float:
    """Loss on unseen puppets with the training batch size."""
    puppets = draw_puppets(4 * arguments.batch_size, arguments.seed + 2, network.voice)
    rng = np.random.default_rng(arguments.seed + 2)
    losses = [contrastive_loss(network(*draw_batch(puppets, arguments.batch_size, rng))) for _ in range(8)]
    return float(torch.stack(losses).mean())


def save(network: VoiceFaceNetwork, path: Path, metrics: dict[str, float]) -> None:
    """Write the weights with configuration and metrics in the metadata of the file."""
    metadata = {"config": json.dumps(network.config), "measured": json.dumps(metrics)}
    with atomic_write(path) as temporary:
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, temporary, metadata=metadata)


@dataclass(frozen=True)
class Trial:
    """Result of one scene: whether all speakers were matched correctly, and the lowest confidence."""

    correct: bool
    confidence: float


def evaluate_scene(
    voice_face: VoiceFace, seed: int, count: int, frames: int, talk: Talk, activity: VoiceActivityName
) -> Trial:
    """Match the voices of a drawn scene, in random order, to its portraits."""
    clip = make_clip(seed, count, num_frames=frames, talk=talk, draw_video=False)
    order = np.random.default_rng([seed, 0xB1]).permutation(count)
    speeches = [Speech(torch.from_numpy(clip.speeches[k])[None], SAMPLE_RATE) for k in order]
    images = [torch.from_numpy(portrait).permute(2, 0, 1).float() / 255.0 for portrait in clip.portraits]
    result = match_voices(speeches, images, voice_face, load_voice_activity(activity))
    voiced = [m for m in range(count) if float(speeches[m].waveform.abs().max()) > 0]
    correct = all(int(result.matrix[m].argmax()) == order[m] for m in voiced)
    return Trial(correct, float(result.confidence[voiced].min()) if voiced else 1.0)


def evaluate(arguments: Arguments, voice_face: VoiceFace) -> dict[str, Any]:
    """Accuracy by number of characters, length and conversation pattern."""
    rows = []
    for count, frames, talk in SCENE_KINDS:
        trials = [
            evaluate_scene(voice_face, arguments.seed_base + k, count, frames, talk, arguments.activity)
            for k in range(arguments.scenes)
        ]
        rows.append({"characters": count, "frames": frames, "talk": talk, **accuracy(trials)})
    return {
        "checkpoint": arguments.checkpoint.name,
        "scenes": arguments.scenes,
        "seed_base": arguments.seed_base,
        "activity": load_voice_activity(arguments.activity).name,
        "rows": rows,
    }


def accuracy(trials: list[Trial]) -> dict[str, Any]:
    """Accuracy in total and by confidence."""
    bands = {}
    for low, high in ((0.0, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.01)):
        band = [trial.correct for trial in trials if low <= trial.confidence < high]
        bands[f"{low:g}..{min(high, 1.0):g}"] = {
            "scenes": len(band),
            "accuracy": round(float(np.mean(band)), 4) if band else None,
        }
    return {"accuracy": round(float(np.mean([trial.correct for trial in trials])), 4), "by_confidence": bands}


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    bands = list(report["rows"][0]["by_confidence"])
    lines = [
        "| characters | frames | talk | accuracy | " + " | ".join(f"confidence {b}" for b in bands) + " |",
        "|" + " --- |" * (4 + len(bands)),
    ]
    for row in report["rows"]:
        cells = [
            f"{band['accuracy']:.0%} of {band['scenes']}" if band["scenes"] else "-"
            for band in row["by_confidence"].values()
        ]
        first = f"| {row['characters']} | {row['frames']} | {row['talk']} | {row['accuracy']:.1%} | "
        lines.append(first + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    """Train and save the weights, or evaluate them."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not arguments.evaluate:
        if arguments.output is None:
            raise InputError("no --output", "a .safetensors file for the weights", "add -o FILE.safetensors")
        path = check_output(arguments.output, (".safetensors",), "the weights")
        network, metrics = train(arguments)
        save(network, path, metrics)
        print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        return
    if arguments.seed_base < HELD_OUT:
        raise InputError(f"seed base {arguments.seed_base}", f"{HELD_OUT} or more", "lower seeds are for training")
    report_path = None if arguments.output is None else check_output(arguments.output, (".json",), "the report")
    report = evaluate(arguments, VoiceFaceMatcher.load(existing_file(arguments.checkpoint, "the weights")))
    print(table(report))
    if report_path is not None:
        with atomic_write(report_path) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main, Arguments)
