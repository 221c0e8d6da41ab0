"""The memory ladder at full size: how much each rung takes, and how long a step.

    python benchmarks/memory_ladder.py --count                # without a GPU: sizes, computed; writes docs/how-to/memory.md
    python benchmarks/memory_ladder.py --compare              # on the CPU: every rung against full residency; likewise
    python benchmarks/memory_ladder.py                        # NVIDIA GPU: measured with random weights; likewise

Measured is the published architecture in bfloat16 with random weights: 480x720 pixels, 49 frames, two characters,
guidance (two versions of the video). For each rung: the peak of memory while denoising (encoding faces and speech
included) and while decoding; the time of a step after the first, and of decoding. Text, face and speech encoders are
not built; the rung `resident` is measured with the room that they take filled.

Each writes its table between two marks of docs/how-to/memory.md; --json writes the figures as well.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.live_bytes import LiveBytes  # noqa: E402
from bya_core.memory import planner as memory  # noqa: E402
from bya_core.memory.planner import LADDER, Rung, needed, plan_memory  # noqa: E402
from bya_core.pipelines.full_size import ENCODERS, NATIVE, VAE, build, one_step, wait  # noqa: E402

DOCUMENT = ROOT / "docs" / "how-to" / "memory.md"
CARDS = ("80", "48", "24", "16", "12", "8")
GB = 1e9


def full_size_parts() -> dict[str, int]:
    """Sizes of the released model in bytes, counted on the meta device: weights as stored in bfloat16."""
    from types import SimpleNamespace

    from diffusers import AutoencoderKLCogVideoX

    from bya_core.models.transformer import BindYourAvatarTransformer3DModel
    from bya_core.weights.bundle import ModelBundle

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            transformer: Any = BindYourAvatarTransformer3DModel()
            vae = AutoencoderKLCogVideoX(**VAE)
    finally:
        torch.set_default_dtype(before)
    codec: Any = SimpleNamespace(vae=vae, space_factor=8, time_factor=4)
    absent: Any = SimpleNamespace()
    bundle = ModelBundle("official", transformer, absent, absent, absent, codec, {}, NATIVE)
    return memory.part_sizes(bundle) | ENCODERS


def alive() -> dict[str, int]:
    """Bytes alive at once while a step, an encoding and a decoding compute, counted with fake tensors."""
    from diffusers import AutoencoderKLCogVideoX
    from torch._subclasses.fake_tensor import FakeTensorMode

    from bya_core.models.transformer import BindYourAvatarTransformer3DModel

    found: dict[str, int] = {}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(), torch.no_grad():
            model = BindYourAvatarTransformer3DModel(num_layers=2).eval()  # all blocks are alike
            for versions in (2, 1):
                given = {
                    "hidden_states": torch.zeros(versions, 13, 48, 60, 90),
                    "encoder_hidden_states": torch.zeros(versions, 226, 4096),
                    "timestep": torch.zeros(versions, dtype=torch.long),
                    "face_tokens": torch.zeros(versions, 2, 32, 2048),
                    "audio_tokens": torch.zeros(versions, 2, 13, 32, 768),
                }
                with LiveBytes([*model.parameters(), *model.buffers(), *given.values()]) as counted:
                    model(**given)
                found[f"a step, {versions} version{'s' if versions > 1 else ''} of the video"] = counted.peak
            vae = AutoencoderKLCogVideoX(**VAE).eval()
            latents, picture = torch.zeros(1, 16, 13, 60, 90), torch.zeros(1, 3, 1, 480, 720)
            with LiveBytes([*vae.parameters(), picture]) as counted:
                vae.encode(picture)
            found["encoding a picture"] = counted.peak
            for tiled in (False, True):
                if tiled:
                    vae.enable_tiling()
                with LiveBytes([*vae.parameters(), latents]) as counted:
                    vae.decode(latents)
                found["decoding 49 frames" + (" in tiles" if tiled else "")] = counted.peak
    finally:
        torch.set_default_dtype(before)
    return found


def count() -> tuple[dict[str, Any], str]:
    """All that can be said without a GPU, as figures and as Markdown."""
    parts, live = full_size_parts(), alive()
    named = {
        "text": "text encoder (T5-XXL)", "face": "face encoders (EVA02-CLIP, ArcFace, parser)", "speech": "wav2vec2",
        "codec": "video codec", "blocks": "transformer: 42 blocks, 21 face and 42 speech layers",
        "group": "... the largest of 42 groups", "projection": "transformer: speech projection, once per clip",
        "extractor": "transformer: face extractor, once per clip", "rest": "transformer: router, input and output",
    }  # fmt: skip
    lines = ["| weights | GB |", "|---|---|"]
    lines += [f"| {text} | {parts[name] / GB:.2f} |" for name, text in named.items()]
    lines += ["", "| alive beside the weights | GB |", "|---|---|"]
    live["keys and values of the clip, kept from step to step when all is resident"] = parts["clip_keys"]
    lines += [f"| {name} | {size / GB:.2f} |" for name, size in live.items()]
    lines += ["", "| rung | " + " | ".join(_phases(LADDER[1])) + " | page-locked host memory | chosen for cards of |"]
    lines += ["|---|" + "---|" * (len(_phases(LADDER[1])) + 2)]
    chosen = {card: plan_memory(card, parts) for card in CARDS}
    rungs = []
    for rung in LADDER:
        cards = ", ".join(f"{card} GB" for card, picked in chosen.items() if picked.name == rung.name) or "-"
        needs = needed(replace(rung, text_on_cpu=False), parts)
        cells = [f"{needs[phase] / GB:.1f}" if phase in needs else "-" for phase in _phases(LADDER[1])]
        host = memory.host_needed(rung, parts)
        lines.append(f"| {rung.name} | {' | '.join(cells)} | {host / GB:.1f} | {cards} |")
        rungs.append({"rung": rung.name, "needed": needs, "host": host, "cards": cards})
    on_cpu = [card for card, picked in chosen.items() if picked.text_on_cpu]
    if on_cpu:
        lines += ["", f"On cards of {' and '.join(on_cpu)} GB prompts are read on the processor."]
    return {"parts": parts, "alive": live, "rungs": rungs}, "\n".join(lines)


@torch.no_grad()
def compare(steps: int = 2) -> str:
    """Every rung against full residency: the toy model and its demo scene, on the CPU, as Markdown."""
    from bya_core.pipelines.generate import decoded, denoised, prepare, route
    from bya_core.progress import ProgressTracker
    from bya_core.scene.loader import load_scene
    from bya_core.weights.loader import load_bundle

    lines = ["| rung | latents: largest difference | masks: largest difference | frames: PSNR |", "|---|---|---|---|"]
    base: tuple[torch.Tensor, ...] | None = None
    for rung in LADDER:
        bundle = load_bundle("toy")
        memory.apply_rung(bundle, rung, "cpu")
        scene = load_scene(ROOT / "demo" / "scene.json", bundle.defaults, steps=steps)
        prepared = prepare(scene, bundle)
        latents, masks = denoised(prepared, route(prepared, bundle, ProgressTracker()), bundle, ProgressTracker())
        made = latents, masks, decoded(latents, bundle, ProgressTracker()).float()
        base = base or made
        apart = [float((a - b).abs().max()) for a, b in zip(made[:2], base[:2], strict=True)]
        error = float((made[2] - base[2]).square().mean())
        frames = f"{10 * math.log10(255**2 / error):.1f} dB" if error else "equal"
        lines.append(f"| {rung.name} | {' | '.join(f'{x:.2g}' if x else 'equal' for x in apart)} | {frames} |")
    return "\n".join(lines)


def _phases(rung: Rung) -> list[str]:
    return list(needed(rung, {}))


def measure(rung: Rung, layers: int | None, steps: int, device: torch.device) -> dict[str, Any]:
    """One rung on the GPU. What does not fit is told, not raised."""
    bundle = build(layers, torch.bfloat16, ruled=False)
    filler = None
    try:
        memory.apply_rung(bundle, rung, device)
        if not rung.in_turns:
            filler = torch.empty(sum(ENCODERS.values()), dtype=torch.uint8, device=device)
        figures: dict[str, Any] = {"rung": rung.name}
        torch.cuda.reset_peak_memory_stats(device)
        latents = one_step(bundle, versions=2)  # warm: kernels are chosen, blocks have come once
        wait(device)
        start = time.perf_counter()
        one_step(bundle, versions=2)
        first = time.perf_counter() - start
        start = time.perf_counter()
        latents = one_step(bundle, versions=2, steps=1 + steps)
        figures["step_s"] = (time.perf_counter() - start - first) / steps
        figures["denoising_gb"] = torch.cuda.max_memory_allocated(device) / GB
        figures["denoising_reserved_gb"] = torch.cuda.max_memory_reserved(device) / GB
        torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        with torch.no_grad():
            bundle.codec.decode(latents.to(device, torch.bfloat16))
        wait(device)
        figures["decoding_s"] = time.perf_counter() - start
        figures["decoding_gb"] = torch.cuda.max_memory_allocated(device) / GB
    except torch.cuda.OutOfMemoryError as error:
        figures = {"rung": rung.name, "failed": str(error).splitlines()[0]}
    del bundle, filler
    gc.collect()
    torch.cuda.empty_cache()
    return figures


def measured(rows: list[dict[str, Any]], about: str) -> str:
    """Markdown of all rungs."""
    lines = [about, "", "| rung | s a step | against resident | peak denoising GB | peak decoding GB | s decoding |"]
    lines += ["|---|---|---|---|---|---|"]
    base = next((row["step_s"] for row in rows if "step_s" in row), None)
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['rung']} | did not fit | | | | |")
            continue
        ratio = row["step_s"] / base if base else 1.0
        lines.append(
            f"| {row['rung']} | {row['step_s']:.2f} | {ratio:.2f} | {row['denoising_gb']:.1f} | "
            f"{row['decoding_gb']:.1f} | {row['decoding_s']:.1f} |"
        )
    return "\n".join(lines)


def write_between(document: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- end of mark -->`."""
    start, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, found, rest = document.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{document} lacks the marks {start} and {end}")
    document.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="compute sizes only; needs no GPU")
    parser.add_argument("--compare", action="store_true", help="what each rung changes in the video; needs no GPU")
    parser.add_argument("--rungs", nargs="*", help="names of rungs to measure; none = all")
    parser.add_argument("--layers", type=int, help="blocks of the transformer, to try the script out; none = all 42")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="Markdown file with the marks")
    given = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    if given.count:
        figures, text = count()
        write_between(given.document, "computed", text)
    elif given.compare:
        text = compare()
        write_between(given.document, "compared", text)
    else:
        if not torch.cuda.is_available():
            parser.error("there is no NVIDIA GPU here; --count computes what can be known without one")
        device = torch.device("cuda", torch.cuda.current_device())
        rungs = [rung for rung in LADDER if not given.rungs or rung.name in given.rungs]
        rows = []
        for rung in rungs:
            rows.append(measure(rung, given.layers, given.steps, device))
            print(json.dumps(rows[-1]), flush=True)
        card = torch.cuda.get_device_properties(device)
        about = f"Measured on one {card.name} ({card.total_memory / GB:.0f} GB), torch {torch.__version__}, "
        about += f"Python {platform.python_version()}" + (f", {given.layers} blocks only" if given.layers else "") + "."
        figures, text = {"rows": rows, "about": about}, measured(rows, about)
        write_between(given.document, "measured", text)
    print(text)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
