"""What a denoising step costs, part by part: the plain transformer, faces, router, speech and what is left.

    python benchmarks/step_time.py --count   # operations, bytes and memory at full size, counted without computing
    python benchmarks/step_time.py --toy    # the toy model on this processor
    python benchmarks/step_time.py           # full size on an NVIDIA GPU, bfloat16, random weights

Each fills in its table in docs/results/speed.md, and `--json` writes the figures. A way is `naive` (the same numbers the plain
way, see benchmarks/naive.py), `exact`, or a preset of `sampling.acceleration`; all of them are measured in turns in one run.
A step is one with guidance (two versions of the video) in which all blocks are computed; masks are boxes that cover
`--covered` of each frame. Operations are matrix products and attention, 2 per multiplication and addition.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.live_bytes import LiveBytes  # noqa: E402
from benchmarks.memory_ladder import write_between  # noqa: E402
from benchmarks.meter import (  # noqa: E402
    PARTS,
    Meter,
    Moved,
    attending_as_one,
    boxes,
    clock,
    covering,
    metered,
    most_allocated,
)
from benchmarks.naive import naive  # noqa: E402
from bya_core.models import rope, router  # noqa: E402
from bya_core.models.kv_cache import KVCache  # noqa: E402
from bya_core.models.transformer import BindYourAvatarTransformer3DModel  # noqa: E402
from bya_core.sampling.acceleration import apply_preset, get_preset  # noqa: E402

DOCUMENT = ROOT / "docs" / "results" / "speed.md"
WAYS = ("naive", "exact", "balanced", "fast")
FRAMES = 49
LAYERS = 42  # blocks of the published transformer
VERSIONS = 2
COVERED = 0.4
"""Share of a frame that the masks of all characters cover together, where nothing else is said."""
PATCHES = 577  # tokens of a feature map of EVA02-CLIP at 336 pixels
TERA, GB = 1e12, 1e9
HEAD = "| way | characters | frames | blocks | faces | router | speech | rest | total | on top of the others |"


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


class Step:
    """A step of one way, to be called again and again; what is computed once per clip is there after the first call.

    Args:
        way: see above.
        covered: see above.
    """

    def __init__(self, model: Any, given: dict[str, Tensor], way: str, covered: float) -> None:
        self.model, self.given, self.covered = model, given, covered
        self.plainly = way == "naive"
        self.speed = get_preset("exact" if self.plainly else way)
        self.kv_cache = None if self.plainly else KVCache()
        c, noisy = model.config, given["noisy"]
        characters = given["identity"].shape[1]
        self.told: dict[str, Any] = dict(self.speed.arguments)
        if not self.plainly:
            self.told["face_tokens"] = noisy.new_ones(VERSIONS, characters, c.lfe_num_queries, c.lfe_output_dim)
            shape = VERSIONS, characters, noisy.shape[1], c.audio_context_tokens, c.audio_dim
            self.told["audio_tokens"] = noisy.new_ones(shape)
        if self.speed.router.freeze:  # of a run's steps, most: masks have settled
            size = noisy.shape[1], noisy.shape[3] // c.patch_size, noisy.shape[4] // c.patch_size
            masks = noisy.new_zeros(VERSIONS, characters, *size)
            self.told["mask_override"] = masks if masks.device.type == "meta" else boxes(masks, covered)

    def __call__(self, meter: Meter) -> None:
        told, given = dict(self.told), self.given
        with self._as_told(), meter, metered(self.model, meter):
            if self.plainly:
                with meter.part("face"):
                    told["face_tokens"] = self.model.encode_faces(_all(given["identity"]), _all(given["hidden"]))
                with meter.part("speech"):
                    told["audio_tokens"] = self.model.encode_speech(_all(given["speech"]))
            when = torch.full((VERSIONS,), 500, device=given["noisy"].device)
            self.model(
                hidden_states=given["noisy"],
                encoder_hidden_states=given["text"],
                timestep=when,
                kv_cache=self.kv_cache,
                **told,
            )

    @contextmanager
    def _as_told(self) -> Iterator[None]:
        """The preset is put on anew each time, so that ways can take turns on one model."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(naive() if self.plainly else nullcontext())
            stack.enter_context(covering(self.covered, bool(self.model.config.inflate_audio_masks)))
            stack.enter_context(apply_preset(self.model, replace(self.speed, cache_threshold=0.0)))
            yield


def _all(value: Tensor) -> Tensor:
    return value.expand(VERSIONS, *value.shape[1:])


def operations(model: Any, characters: int, frames: int, way: str, covered: float = COVERED) -> dict[str, float]:
    """Operations of each part of a step; `model` on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    step = Step(model, inputs(model.config, characters, frames, next(model.parameters())), way, covered)
    with torch.device("meta"):
        step(Meter(lambda: 0))  # what is computed once per clip
        with FlopCounterMode(display=False) as counter:
            step(meter := Meter(lambda: float(counter.get_total_flops())))
    return meter.costs()


def memory(
    way: str, characters: int = 2, frames: int = FRAMES, covered: float = COVERED, **size: Any
) -> dict[str, Any]:
    """Bytes that each part of a step reads and writes, the most alive in it beside weights and inputs, and the seconds
    that `meter.Gpu` would need at least.

    Args:
        size: of the transformer; none = the published one.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    _forget_tables()
    try:
        with FakeTensorMode():
            model = BindYourAvatarTransformer3DModel(**size).eval()
            given = inputs(model.config, characters, FRAMES, torch.empty(0))
            step = Step(model, given, way, covered)
            step(Meter(lambda: 0))
            known = [*model.parameters(), *model.buffers(), *given.values()]
            with LiveBytes(known) as alive, Moved() as moved, attending_as_one(moved):

                def peak() -> float:
                    most, alive.peak = alive.peak, alive.now
                    return float(most)

                step(meter := Meter(lambda: (float(moved.bytes), moved.seconds), peak))
    finally:
        torch.set_default_dtype(before)
        _forget_tables()
    peaks = {part: meter.peaks.get(part, 0.0) for part in PARTS}
    moves, least = (meter.costs(lambda before, now, k=k: now[k] - before[k]) for k in (0, 1))
    return {"bytes": moves, "alive": {**peaks, "total": max(peaks.values())}, "seconds": least}


def _forget_tables() -> None:
    """Tables that are kept from call to call: those made without values are of no use to others."""
    rope._tables.cache_clear()
    router._rebuilt_table.cache_clear()


def seconds(model: Any, characters: int, frames: int, repeats: int, covered: float) -> dict[str, dict[str, Any]]:
    """For each way the parts of the run whose total is the median, what share of `exact` it took, and on a GPU the most
    memory in each part. Ways take turns."""
    parameter = next(model.parameters())
    given = inputs(model.config, characters, frames, parameter)
    steps = {way: Step(model, given, way, covered) for way in WAYS}
    read, since = clock(parameter.device)
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    peaks: dict[str, dict[str, float]] = {}
    for _ in range(repeats + 1):  # the first round warms up
        for way, step in steps.items():
            step(meter := Meter(read, most_allocated(parameter.device)))
            if parameter.device.type == "cuda":
                torch.cuda.synchronize()
            taken[way].append(meter.costs(since))
            peaks[way] = dict(meter.peaks)
    found: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        timed = taken[way][1:]
        ratios = [own["total"] / exact["total"] for own, exact in zip(timed, taken["exact"][1:], strict=True)]
        median = sorted(timed, key=lambda cost: cost["total"])[len(timed) // 2]
        found[way] = {"seconds": median, "of_exact": statistics.median(ratios), "alive": peaks[way]}
    return found


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, by the same clock as a step."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    read, since = clock(device)
    for _ in range(2):
        a @ a
    start = read()
    for _ in range(8):
        a @ a
    end = read()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 8 * 2.0 * size**3 / since(start, end)


def hollow(layers: int) -> Any:
    """The published architecture without memory, so many blocks deep."""
    with torch.device("meta"):
        return BindYourAvatarTransformer3DModel(num_layers=layers).eval()


def on_top(cost: dict[str, float]) -> float:
    """What faces, router and speech cost, as a share of the plain transformer."""
    return (cost["face"] + cost["router"] + cost["speech"]) / (cost["blocks"] + cost["rest"])


def row(way: str, characters: int, frames: int, cost: dict[str, float], unit: float, digits: int) -> str:
    """A line of the table."""
    cells = " | ".join(f"{cost[name] / unit:.{digits}f}" for name in (*PARTS, "total"))
    return f"| {way} | {characters} | {frames} | {cells} | {100 * on_top(cost):.1f} % |"


def full_size(of: Callable[[int], dict[str, float]], way: str) -> dict[str, float]:
    """What all blocks of the published transformer cost, from what one and two periods of them do."""
    period = 2 * (1 if way == "naive" else get_preset(way).router.every)  # every second block is a face layer
    few, more = of(period), of(2 * period)
    return {name: few[name] + (LAYERS / period - 1) * (more[name] - few[name]) for name in few}


def full_size_operations(characters: int, frames: int, way: str, covered: float = COVERED) -> dict[str, float]:
    """`operations` at full size."""
    return full_size(lambda layers: operations(hollow(layers), characters, frames, way, covered), way)


def full_size_memory(way: str, covered: float = COVERED) -> dict[str, dict[str, float]]:
    """`memory` at full size; of what is alive the whole only, as few blocks do not tell the peak of each part."""
    known = functools.cache(lambda layers: memory(way, covered=covered, num_layers=layers))
    return {
        "bytes": full_size(lambda layers: known(layers)["bytes"], way),
        "seconds": full_size(lambda layers: known(layers)["seconds"], way),
        "alive": full_size(lambda layers: {"total": known(layers)["alive"]["total"]}, way),
    }


def count(covered: float) -> tuple[dict[str, Any], str]:
    """At full size: characters, lengths, ways; bytes and memory; what a run of 50 steps takes."""
    rows, lines = [], [HEAD, "|---|" + "---|" * 9]
    cases = [(way, n, FRAMES) for n in (1, 2, 3, 4) for way in ("naive", "exact")]
    cases += [(way, n, FRAMES) for way in ("balanced", "fast") for n in (2, 3)]
    cases += [("exact", 2, frames) for frames in (25, 97, 193)]
    for way, characters, frames in cases:
        cost = full_size_operations(characters, frames, way, covered)
        rows.append({"way": way, "characters": characters, "frames": frames, "operations": cost})
        lines.append(row(way, characters, frames, cost, TERA, 1))
    lines += ["", *_runs({r["way"]: r["operations"] for r in rows if (r["characters"], r["frames"]) == (2, FRAMES)})]
    stored = {way: full_size_memory(way, covered) for way in WAYS}
    names = {"bytes": "read and written", "alive": "most alive"}
    lines += ["", "| way | GB | blocks | faces | router | speech | rest | total |", "|---|---|" + "---|" * 6]
    for way, found in stored.items():
        for kind, name in names.items():
            own = found[kind]
            cells = " | ".join(f"{own[part] / GB:.1f}" if part in own else "-" for part in (*PARTS, "total"))
            lines.append(f"| {way} | {name} | {cells} |")
    lines += ["", f"{HEAD} time to exact |", "|---|" + "---|" * 10]
    exact = stored["exact"]["seconds"]["total"]
    for way, found in stored.items():
        least = found["seconds"]
        lines.append(f"{row(way, 2, FRAMES, least, 1.0, 3)} {least['total'] / exact:.2f} |")
    return {"covered": covered, "steps": rows, "memory": stored}, "\n".join(lines)


def _runs(whole: dict[str, dict[str, float]], steps: int = 50) -> list[str]:
    """What presets save in a run: by guidance in a part of it, and by each step whose blocks are skipped."""
    skipped = operations(hollow(1), 2, FRAMES, "exact")["total"]
    exact = steps * whole["exact"]["total"]
    lines = ["| preset | operations of exact to one of it, no step skipped | aim | steps to be skipped for that |"]
    lines.append("|---|---|---|---|")
    for way, aim in (("balanced", 2.0), ("fast", 3.0)):
        start, end = get_preset(way).guidance_interval
        guided = sum(start <= step / steps < end for step in range(steps))
        share = (guided + (steps - guided) / VERSIONS) / steps
        own = share * steps * whole[way]["total"]
        # to skip a share s of the steps costs own (1 - s) + share * steps * skipped * s
        needed = (own - exact / aim) / (own - share * steps * skipped)
        lines.append(f"| {way} | {exact / own:.2f} | {aim:.0f} | {100 * max(0.0, needed):.0f} % |")
    return lines


def timed(
    model: Any, cases: list[tuple[int, int]], repeats: int, covered: float, about: str
) -> tuple[list[dict[str, Any]], str]:
    """Seconds of each case (characters, frames), and how much of this machine's matrix rate is used."""
    parameter = next(model.parameters())
    rate = matrix_rate(parameter.device, parameter.dtype)
    with torch.device("meta"):
        shapes = BindYourAvatarTransformer3DModel.from_config(model.config).eval()
    rows, lines = [], [about, "", f"{HEAD} time to exact | of the matrix rate |", "|---|" + "---|" * 11]
    for characters, frames in cases:
        for way, found in seconds(model, characters, frames, repeats, covered).items():
            cost = found["seconds"]
            used = operations(shapes, characters, frames, way, covered)["total"] / cost["total"] / rate
            rows.append({"way": way, "characters": characters, "frames": frames, "of_rate": used, **found})
            line = row(way, characters, frames, cost, 1.0, 3)
            lines.append(f"{line} {found['of_exact']:.2f} | {100 * used:.0f} % |")
    return rows, "\n".join([*lines, *_peaks(rows)])


def _peaks(rows: list[dict[str, Any]]) -> list[str]:
    """Most memory in each part, where the device tells it."""
    held = [r for r in rows if r["alive"]]
    if not held:
        return []
    lines = ["", "| way | characters | frames | GB: " + " | ".join(PARTS) + " |", "|---|---|---|" + "---|" * len(PARTS)]
    for r in held:
        cells = " | ".join(f"{r['alive'].get(part, 0.0) / GB:.1f}" for part in PARTS)
        lines.append(f"| {r['way']} | {r['characters']} | {r['frames']} | {cells} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="operations and bytes at full size; needs no GPU")
    parser.add_argument("--toy", action="store_true", help="processor seconds of the toy model")
    parser.add_argument("--characters", type=int, nargs="*", default=[1, 2, 3, 4], help="at 49 frames")
    parser.add_argument("--frames", type=int, nargs="*", default=[25, 97], help="other lengths, with two characters")
    parser.add_argument("--covered", type=float, default=COVERED, help="share of a frame that masks cover")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, help="blocks of the full-size transformer; none = all 42")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="Markdown file with the marks")
    given = parser.parse_args(arguments)
    cases = [(n, FRAMES) for n in given.characters] + [(2, frames) for frames in given.frames]
    figures: Any
    if given.count:
        figures, text = count(given.covered)
        write_between(given.document, "operations", text)
    elif given.toy:
        from bya_core.weights.loader import load_bundle

        about = f"The toy model, {torch.get_num_threads()} thread(s), float32, processor seconds a step; torch "
        about += f"{torch.__version__}; medians of {given.repeats}."
        figures, text = timed(load_bundle("toy").transformer, cases, given.repeats, given.covered, about)
        write_between(given.document, "toy", text)
    else:
        if not torch.cuda.is_available():
            parser.error("there is no NVIDIA GPU here; --count and --toy need none")
        from bya_core.pipelines.full_size import build

        bundle = build(given.layers, torch.bfloat16, codec=False, ruled=False)
        model = bundle.transformer.to("cuda")
        about = f"{torch.cuda.get_device_name()}, bfloat16, random weights, seconds a step; torch {torch.__version__}; "
        about += f"medians of {given.repeats}" + (f"; {given.layers} blocks only." if given.layers else ".")
        figures, text = timed(model, cases, given.repeats, given.covered, about)
        write_between(given.document, "gpu", text)
    print(text)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
