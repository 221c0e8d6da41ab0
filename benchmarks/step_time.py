"""What a denoising step costs, part by part: the plain transformer, faces, speech, router; and against the plain way.

    python benchmarks/step_time.py --count     # operations at full size, counted without a GPU; writes docs/speed.md
    python benchmarks/step_time.py --tiny      # seconds of the tiny model on this processor; likewise
    python benchmarks/step_time.py             # NVIDIA GPU: seconds at full size in bfloat16, random weights; likewise

`exact` is the project as it is; `naive` computes the same numbers the plain way (benchmarks/naive.py). Both are run in
turns in one process, so that their ratio holds though the machine is busy. A part costs what a step with it costs more
than one without. Operations are matrix products and attention, 2 per multiplication and addition; a step has guidance
(two versions of the video).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.memory_ladder import write_between  # noqa: E402
from benchmarks.naive import naive  # noqa: E402
from bya_core.models.transformer import BindYourAvatarTransformer3DModel  # noqa: E402

DOCUMENT = ROOT / "docs" / "speed.md"
WAYS = ("plain", "face", "router", "speech")
"""Of a step: each with one part more than the one before."""
PARTS = ("blocks", "face", "router", "speech")
FRAMES = 49
LAYERS = 42  # blocks of the published transformer
VERSIONS = 2
PATCHES = 577  # tokens of a feature map of EVA02-CLIP at 336 pixels
TERA = 1e12


def inputs(config: Any, characters: int, frames: int, like: Tensor) -> dict[str, Tensor]:
    """Random inputs of a step: noise with pictures, prompt, and what faces and speech are encoded from."""
    latent = (frames - 1) // config.temporal_compression_ratio + 1

    def draw(*shape: int) -> Tensor:
        if like.device.type == "meta":
            return torch.empty(shape, device="meta", dtype=like.dtype)
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(like)

    context = config.audio_window - 1
    return {
        "noisy": draw(VERSIONS, latent, config.in_channels, config.sample_height, config.sample_width),
        "text": draw(VERSIONS, config.max_text_seq_length, config.text_embed_dim),
        "identity": draw(1, characters, config.lfe_id_dim),
        "hidden": draw(1, characters, config.lfe_num_scale, PATCHES, config.lfe_vit_dim),
        "speech": draw(1, characters, frames + context, config.audio_blocks, config.audio_channels),
    }


def step(model: Any, given: dict[str, Tensor], what: str, again: bool) -> Any:
    """One call of the transformer.

    Args:
        what: "plain" (the transformer alone), "face" (faces, masks given), "router" (faces, masks predicted) or
            "speech" (all of it).
        again: encode faces and speech in the step, for every version; else they are zeros of the right shape, as if
            encoded before.
    """
    c = model.config
    characters, noisy = given["identity"].shape[1], given["noisy"]
    told: dict[str, Any] = {}
    if what != "plain":
        if again:
            told["face_tokens"] = model.encode_faces(_all(given["identity"]), _all(given["hidden"]))
        else:
            told["face_tokens"] = noisy.new_ones(VERSIONS, characters, c.lfe_num_queries, c.lfe_output_dim)
    if what == "face":
        size = noisy.shape[1], noisy.shape[3] // c.patch_size, noisy.shape[4] // c.patch_size
        told["forced_masks"] = noisy.new_ones(VERSIONS, characters, *size)
    if what == "speech":
        if again:
            told["audio_tokens"] = model.encode_speech(_all(given["speech"]))
        else:
            shape = VERSIONS, characters, noisy.shape[1], c.audio_context_tokens, c.audio_dim
            told["audio_tokens"] = noisy.new_ones(shape)
    when = torch.full((VERSIONS,), 500, device=noisy.device)
    return model(hidden_states=noisy, encoder_hidden_states=given["text"], timestep=when, **told)


def _all(value: Tensor) -> Tensor:
    return value.expand(VERSIONS, *value.shape[1:])


def parts(cost: Callable[[str], float]) -> dict[str, float]:
    """Cost of each part, as what a step costs with it less what it costs without."""
    whole = {what: cost(what) for what in WAYS}
    found = {"blocks": whole["plain"]}
    for before, what in zip(WAYS, WAYS[1:], strict=False):
        found[what] = whole[what] - whole[before]
    return {**found, "total": whole["speech"]}


def operations(model: Any, characters: int, frames: int, plainly: bool) -> dict[str, float]:
    """Operations of each part of a step; `model` on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    given = inputs(model.config, characters, frames, next(model.parameters()))

    def cost(what: str) -> float:
        way = naive() if plainly else nullcontext()
        with torch.device("meta"), torch.no_grad(), way, FlopCounterMode(display=False) as counter:
            step(model, given, what, again=plainly)
        return float(counter.get_total_flops())

    return parts(cost)


def seconds(model: Any, characters: int, frames: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each part, `exact` and `naive` in turns."""
    device = next(model.parameters()).device
    given = inputs(model.config, characters, frames, next(model.parameters()))
    taken: dict[tuple[str, bool], list[float]] = {(what, way): [] for what in WAYS for way in (False, True)}
    with torch.no_grad():
        for _ in range(repeats + 1):  # the first round warms up
            for what, plainly in taken:
                with naive() if plainly else nullcontext():
                    _wait(device)
                    start = time.perf_counter()
                    step(model, given, what, again=plainly)
                    _wait(device)
                    taken[what, plainly].append(time.perf_counter() - start)
    medians = {key: statistics.median(times[1:]) for key, times in taken.items()}
    ways = {"exact": False, "naive": True}
    return {name: parts(lambda what, way=way: medians[what, way]) for name, way in ways.items()}  # type: ignore[misc]


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    for _ in range(2):
        a @ a
    _wait(device)
    start = time.perf_counter()
    for _ in range(8):
        a @ a
    _wait(device)
    return 8 * 2.0 * size**3 / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def full_size_operations(characters: int, frames: int, plainly: bool) -> dict[str, float]:
    """The same at full size. Every second block is like the one two before, so 2 and 4 of them tell what 42 cost."""
    few, more = (operations(_hollow(layers), characters, frames, plainly) for layers in (2, 4))
    return {name: few[name] + (LAYERS - 2) // 2 * (more[name] - few[name]) for name in few}


def _hollow(layers: int) -> Any:
    """The published architecture without memory, so many blocks deep."""
    with torch.device("meta"):
        return BindYourAvatarTransformer3DModel(num_layers=layers).eval()


HEAD = "| way | characters | frames | blocks | faces | router | speech | total | on top of blocks |"


def row(way: str, characters: int, frames: int, cost: dict[str, float], unit: float, digits: int) -> str:
    """A line of the table."""
    cells = " | ".join(f"{cost[name] / unit:.{digits}f}" for name in (*PARTS, "total"))
    return f"| {way} | {characters} | {frames} | {cells} | {100 * (cost['total'] / cost['blocks'] - 1):.1f} % |"


def count() -> tuple[list[dict[str, Any]], str]:
    """Operations at full size: characters, lengths, and the plain way."""
    rows, lines = [], [HEAD, "|---|" + "---|" * 8]
    cases = [(way, n, FRAMES) for n in (1, 2, 3, 4) for way in ("exact", "naive")]
    cases += [("exact", 2, frames) for frames in (25, 97)]
    for way, characters, frames in cases:
        cost = full_size_operations(characters, frames, way == "naive")
        rows.append({"way": way, "characters": characters, "frames": frames, "operations": cost})
        lines.append(row(way, characters, frames, cost, TERA, 1))
    return rows, "\n".join(lines)


def timed(
    model: Any, frames: int, repeats: int, counts: tuple[int, ...], about: str
) -> tuple[list[dict[str, Any]], str]:
    """Seconds, and how much of this machine's matrix rate is used."""
    parameter = next(model.parameters())
    rate = matrix_rate(parameter.device, parameter.dtype)
    with torch.device("meta"):
        hollow = BindYourAvatarTransformer3DModel.from_config(model.config).eval()
    rows, lines = [], [about, "", f"{HEAD} of the matrix rate |", "|---|" + "---|" * 9]
    for characters in counts:
        found = seconds(model, characters, frames, repeats)
        for way, cost in found.items():
            done = operations(hollow, characters, frames, way == "naive")["total"]
            used = done / cost["total"] / rate
            rows.append({"way": way, "characters": characters, "frames": frames, "seconds": cost, "of_rate": used})
            lines.append(f"{row(way, characters, frames, cost, 1.0, 3)} {100 * used:.0f} % |")
    return rows, "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="operations at full size; needs no GPU")
    parser.add_argument("--tiny", action="store_true", help="seconds of the tiny model on this processor")
    parser.add_argument("--characters", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, help="blocks of the full-size transformer; none = all 42")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="Markdown file with the marks")
    given = parser.parse_args(arguments)
    many = tuple(given.characters)
    if given.count:
        rows, text = count()
        write_between(given.document, "operations", text)
    elif given.tiny:
        from bya_core.checkpoints.registry import load_bundle

        about = f"The tiny model on a processor, {torch.get_num_threads()} thread(s), float32, seconds a step; torch "
        about += f"{torch.__version__}; medians of {given.repeats}."
        rows, text = timed(load_bundle("tiny").transformer, FRAMES, given.repeats, many, about)
        write_between(given.document, "tiny", text)
    else:
        if not torch.cuda.is_available():
            parser.error("there is no NVIDIA GPU here; --count and --tiny need none")
        from bya_core.full_size import build

        bundle = build(given.layers, torch.bfloat16, codec=False, ruled=False)
        model = bundle.transformer.to("cuda")
        about = f"{torch.cuda.get_device_name()}, bfloat16, random weights, seconds a step; torch {torch.__version__}; "
        about += f"medians of {given.repeats}" + (f"; {given.layers} blocks only." if given.layers else ".")
        rows, text = timed(model, FRAMES, given.repeats, many, about)
        write_between(given.document, "gpu", text)
    print(text)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
