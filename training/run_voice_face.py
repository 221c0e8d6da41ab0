r"""Train and measure the voice-face association: which voice belongs to which face.

    python training/run_voice_face.py
    python training/run_voice_face.py --evaluate --seed-base 2000000 --scenes 200
    python training/run_voice_face.py --evaluate --scenes 200 --json docs/results/reports/voice_face.json

Training is contrastive (InfoNCE in both directions): in a batch of puppets each voice must find its own portrait among
all, and each portrait its voice. Pictures and sounds are drawn first; about 5 minutes on one processor core.
"""

from __future__ import annotations

import json as jsonlib
import logging
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import save_file
from torch import Tensor

if __package__ in (None, ""):  # started as a file: let the packages beside it be found
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bya_core.encoders.vad import VoiceActivityName, load_voice_activity
from bya_core.encoders.voice_face import VoiceFace, VoiceFaceMatcher, VoiceFaceNetwork, VoiceTower
from bya_core.errors import InputError
from bya_core.io.atomic import AtomicFiles, check_output
from bya_core.io.media import existing_file
from bya_core.routing.audio_assignment import match
from bya_core.scene.types import Speech
from training.benchmark.scenes import HELD_OUT
from training.puppets.looks import draw_look
from training.puppets.voice import SAMPLE_RATE, speak, voice_for
from training.puppets.world import Talk, draw_portrait, make_clip

log = logging.getLogger(__name__)

CHECKPOINT = Path(__file__).resolve().parent.parent / "bya_core/toy/weights/voice_face.safetensors"
SECONDS = 2.0  # of speech drawn for each training puppet
SHORTEST = 0.5  # of the piece of it that a step hears


@dataclass(frozen=True)
class Arguments:
    """Train the voice-face association on puppets, or measure it.

    Args:
        checkpoint: the file to write, or with --evaluate to read.
        evaluate: measure instead of training.
        puppets: identities drawn for training.
        steps: training steps.
        batch: identities per step, all against all.
        rate: peak learning rate.
        seed: training seed; training scenes stay below 1,000,000.
        scenes: measured scenes of each kind.
        seed_base: seed of the first one; validation from 2,000,000, the final table from 1,000,000.
        activity: what finds the speech while measuring.
        json: file for the figures; none = only the table.
        threads: processor threads; 0 = as torch chooses.
    """

    checkpoint: Path = CHECKPOINT
    evaluate: bool = False
    puppets: int = 5000
    steps: int = 1200
    batch: int = 128
    rate: float = 2e-3
    seed: int = 700_000
    scenes: int = 200
    seed_base: int = HELD_OUT
    activity: VoiceActivityName = "auto"
    json: Path | None = None
    threads: int = 0


@dataclass(frozen=True)
class Puppets:
    """Identities to learn from: two portraits each [P, 2, 3, 48, 48] uint8, voices as the tower sees them
    [P, C, frames] in half precision."""

    portraits: Tensor
    voices: Tensor


@torch.no_grad()
def draw_puppets(count: int, seed: int, tower: VoiceTower) -> Puppets:
    """`count` identities by chance, each with two portraits and 2 s of speech in chance noise."""
    rng = np.random.default_rng(seed)
    portraits = np.empty((count, 2, 48, 48, 3), np.uint8)
    voices = []
    for k in range(count):
        look = draw_look(rng)
        portraits[k] = [draw_portrait(look, rng), draw_portrait(look, rng)]
        start = -float(rng.uniform(0.0, 0.5))  # cut out of running speech
        sound = speak(voice_for(look.voice_traits), [(start, SECONDS + 0.5)], SECONDS, rng=rng).waveform
        sound = sound + 10 ** rng.uniform(-4.5, -2.5) * rng.standard_normal(len(sound))
        voices.append(tower.features(torch.from_numpy(sound[None].astype(np.float32))).half())
    return Puppets(torch.from_numpy(portraits).permute(0, 1, 4, 2, 3), torch.cat(voices))


def draw_batch(puppets: Puppets, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """`count` different puppets: speech as the tower sees it [B, C, frames], of one length by chance, and a portrait
    each [B, 3, 48, 48]."""
    chosen = torch.from_numpy(rng.choice(len(puppets.voices), count, replace=False))
    whole = puppets.voices.shape[-1]
    length = round(rng.uniform(SHORTEST / SECONDS, 1.0) * whole)
    start = int(rng.integers(0, whole - length + 1))
    voices = puppets.voices[chosen, :, start : start + length].float()
    images = puppets.portraits[chosen, torch.from_numpy(rng.integers(0, 2, count))].float() / 255.0
    return voices, changed(images, rng)


def changed(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Portraits [B, 3, H, W] mirrored by chance, moved by up to 2 pixels, with colours mixed: only shapes stay."""
    count, _, height, width = images.shape
    mirrored = torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.5)
    images = torch.where(mirrored, images.flip(-1), images)
    top, left = (int(v) for v in rng.integers(0, 5, 2))
    images = F.pad(images, (2, 2, 2, 2), mode="replicate")[..., top : top + height, left : left + width]
    mix = torch.eye(3) + torch.from_numpy(0.12 * rng.standard_normal((count, 3, 3)).astype(np.float32))
    return torch.einsum("bkc,bchw->bkhw", mix, images).clamp(0.0, 1.0)


def contrastive_loss(scores: Tensor) -> Tensor:
    """InfoNCE in both directions on scores [B, B] whose diagonal belongs together."""
    target = torch.arange(len(scores))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def train(arguments: Arguments) -> tuple[VoiceFaceNetwork, dict[str, float]]:
    """The network, and its figures on puppets it has not seen."""
    if not 0 <= arguments.seed < HELD_OUT - 2:
        raise InputError(f"seed {arguments.seed}", f"0 to {HELD_OUT - 3}", "higher seeds are for measuring")
    torch.manual_seed(arguments.seed)
    start = time.perf_counter()
    network = VoiceFaceNetwork()
    puppets = draw_puppets(arguments.puppets, arguments.seed, network.voice)
    log.info("%d puppets drawn in %.0f s", arguments.puppets, time.perf_counter() - start)
    rng = np.random.default_rng(arguments.seed + 1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / arguments.steps)),
    )
    for step in range(arguments.steps):
        loss = contrastive_loss(network(*draw_batch(puppets, arguments.batch, rng)))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == arguments.steps - 1:
            log.info("step %d  loss %.3f  scale %.1f", step, loss.item(), network.log_scale.exp().item())
    network.eval()
    return network, {"loss": held_out_loss(network, arguments), "chance": math.log(arguments.batch)}


@torch.no_grad()
def held_out_loss(network: VoiceFaceNetwork, arguments: Arguments) -> float:
    """Loss on unseen training puppets, in batches of the training's size."""
    puppets = draw_puppets(4 * arguments.batch, arguments.seed + 2, network.voice)
    rng = np.random.default_rng(arguments.seed + 2)
    losses = [contrastive_loss(network(*draw_batch(puppets, arguments.batch, rng))) for _ in range(8)]
    return float(torch.stack(losses).mean())


def save(network: VoiceFaceNetwork, path: Path, measured: dict[str, float]) -> None:
    """Weights with the network's sizes and figures in the file's metadata; the file appears only when complete."""
    metadata = {"config": jsonlib.dumps(network.config), "measured": jsonlib.dumps(measured)}
    with AtomicFiles() as files:
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, files.at(path), metadata=metadata)


@dataclass(frozen=True)
class Trial:
    """One scene: whether all who speak were matched right, and how sure the match was (the least sure pair)."""

    right: bool
    confidence: float


def try_scene(
    voice_face: VoiceFace, seed: int, count: int, frames: int, talk: Talk, activity: VoiceActivityName
) -> Trial:
    """Match the voices of a drawn scene, handed over in an order of chance, to its portraits."""
    clip = make_clip(seed, count, num_frames=frames, talk=talk, draw_video=False)
    order = np.random.default_rng([seed, 0xB1]).permutation(count)
    speeches = [Speech(torch.from_numpy(clip.speeches[k])[None], SAMPLE_RATE) for k in order]
    images = [torch.from_numpy(portrait).permute(2, 0, 1).float() / 255.0 for portrait in clip.portraits]
    found = match(speeches, images, voice_face, load_voice_activity(activity))
    voiced = [m for m in range(count) if float(speeches[m].waveform.abs().max()) > 0]
    right = all(int(found.matrix[m].argmax()) == order[m] for m in voiced)
    return Trial(right, float(found.confidence[voiced].min()) if voiced else 1.0)


def evaluate(arguments: Arguments, voice_face: VoiceFace) -> dict[str, Any]:
    """Share of scenes bound right, by number of characters, length and who talks."""
    kinds: list[tuple[int, int, Talk]] = [
        (2, 49, "overlap"),
        (2, 49, "turns"),
        (2, 49, "one"),
        (2, 17, "overlap"),
        (2, 98, "overlap"),
        (3, 49, "overlap"),
        (4, 49, "overlap"),
    ]
    rows = []
    for count, frames, talk in kinds:
        trials = [
            try_scene(voice_face, arguments.seed_base + k, count, frames, talk, arguments.activity)
            for k in range(arguments.scenes)
        ]
        rows.append({"characters": count, "frames": frames, "talk": talk, **figures(trials)})
    return {
        "checkpoint": arguments.checkpoint.name,
        "scenes": arguments.scenes,
        "seed_base": arguments.seed_base,
        "activity": load_voice_activity(arguments.activity).name,
        "rows": rows,
    }


def figures(trials: list[Trial]) -> dict[str, Any]:
    """Accuracy in all, and apart by confidence."""
    bands = {}
    for low, high in ((0.0, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.01)):
        band = [trial.right for trial in trials if low <= trial.confidence < high]
        bands[f"{low:g}..{min(high, 1.0):g}"] = {
            "scenes": len(band),
            "right": round(float(np.mean(band)), 4) if band else None,
        }
    return {"right": round(float(np.mean([trial.right for trial in trials])), 4), "by_confidence": bands}


def table(report: dict[str, Any]) -> str:
    """The figures for people, as a Markdown table."""
    bands = list(report["rows"][0]["by_confidence"])
    lines = [
        "| characters | frames | talk | bound right | " + " | ".join(f"confidence {b}" for b in bands) + " |",
        "|" + " --- |" * (4 + len(bands)),
    ]
    for row in report["rows"]:
        cells = [
            f"{band['right']:.0%} of {band['scenes']}" if band["scenes"] else "-"
            for band in row["by_confidence"].values()
        ]
        first = f"| {row['characters']} | {row['frames']} | {row['talk']} | {row['right']:.1%} | "
        lines.append(first + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    """Train and save, or load and measure."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not arguments.evaluate:
        path = check_output(arguments.checkpoint, (".safetensors",), "the checkpoint")
        network, measured = train(arguments)
        save(network, path, measured)
        print("  ".join(f"{name} {value:.3f}" for name, value in measured.items()))
        return
    if arguments.seed_base < HELD_OUT:
        raise InputError(f"seed base {arguments.seed_base}", f"{HELD_OUT} or more", "lower seeds are trained on")
    if arguments.json is not None:
        arguments = replace(arguments, json=check_output(arguments.json, (".json",), "the figures"))
    report = evaluate(arguments, VoiceFaceMatcher.load(existing_file(arguments.checkpoint, "the checkpoint")))
    print(table(report))
    if arguments.json is not None:
        arguments.json.write_text(jsonlib.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
