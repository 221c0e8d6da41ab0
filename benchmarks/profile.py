"""Profile generation: time and memory of each stage, and time of each part of a denoising step.

    python benchmarks/profile.py                                     # toy model, demo scene, all presets
    python benchmarks/profile.py --presets exact --steps 4 --json profile.json
    python benchmarks/profile.py --model full-size                   # NVIDIA GPU, random weights, no download
    python benchmarks/profile.py --model full-size --layers 1 --steps 1 --device cpu
    python benchmarks/profile.py --count --characters 1 2 3 4        # operations at full size, on the meta device

Every moment of a step belongs to the innermost running part: "blocks" and "other" (embeddings, output) are the plain
transformer, "face", "router" and "audio" what the characters add. On a GPU, parts are separated by synchronization,
which makes steps slightly slower. Memory is the peak VRAM of each stage on a GPU, otherwise the peak RAM of the process
so far.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path = [str(ROOT), *(path for path in sys.path if Path(path or ".").resolve() != ROOT / "benchmarks")]

from bya_core.config import Preset  # noqa: E402
from bya_core.grid import TokenGrid  # noqa: E402
from bya_core.io.atomic import write_json  # noqa: E402
from bya_core.models import transformer as transformer_module  # noqa: E402
from bya_core.progress import ProgressCallback, ProgressTracker  # noqa: E402

PARTS = ("blocks", "face", "router", "audio", "other")
METHODS = {"_add_face": "face", "_masks": "router", "_speech": "audio"}
"""Methods of `BlockConditioning` and the part they belong to."""
PRESETS: tuple[Preset, ...] = ("exact", "balanced", "fast")
LAYERS = 42  # of the released transformer


class PartProfiler:
    """Attributes a growing counter (seconds, operations) to nested parts.

    Args:
        read: Reads the counter.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.cost: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._last = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Attribute the counter to `name` until another part begins."""
        self._attribute()
        self._stack.append(name)
        try:
            yield
        finally:
            self._attribute()
            self._stack.pop()

    def _attribute(self) -> None:
        now = self.read()
        if self._stack:
            self.cost[self._stack[-1]] += now - self._last
        self._last = now


@contextmanager
def profiled(model: Any, profiler: PartProfiler) -> Iterator[None]:
    """Profile all calls of a transformer."""
    plain: Any = transformer_module.BlockConditioning

    def timed(method: str, part: str) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with profiler.part(part):
                return getattr(plain, method)(self, *args, **kwargs)

        return call

    measured = type(plain.__name__, (plain,), {method: timed(method, part) for method, part in METHODS.items()})
    with contextlib.ExitStack() as stack:
        for module, part in [(model, "other"), *((block, "blocks") for block in model.transformer_blocks)]:
            stack.callback(setattr, module, "forward", module.forward)
            module.forward = _within(profiler, part, module.forward)
        stack.callback(setattr, transformer_module, "BlockConditioning", plain)
        transformer_module.BlockConditioning = measured  # type: ignore[misc]
        yield


def _within(profiler: PartProfiler, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with profiler.part(part):
            return function(*args, **kwargs)

    return call


class StageProfiler(ProgressTracker):
    """A progress tracker that also measures the peak memory of each stage, in GB."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.memory: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[ProgressCallback]:
        from bya_core.pipelines.run_report import peak_ram

        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        with super().stage(name, total) as callback:
            yield callback
            synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) if cuda else (peak_ram() or 0)
        self.memory[name] = max(self.memory.get(name, 0.0), round(peak / 1e9, 3))


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def profile_toy(preset: Preset, steps: int | None, device: torch.device) -> dict[str, Any]:
    """One run of the demo scene."""
    from bya_core.pipelines.generate import prepare, route, sample
    from bya_core.pipelines.load import load_model
    from bya_core.scene.loader import load_scene

    tracker = StageProfiler(device)
    with tracker.stage("Loading model"):
        bundle = load_model("toy", device=device, vram=None)
    scene = load_scene(ROOT / "demo" / "scene.json", bundle.defaults, steps=steps, preset=preset)
    profiler = PartProfiler(lambda: (synchronize(device), time.perf_counter())[1])
    with torch.no_grad(), profiled(bundle.transformer, profiler):
        prepared = prepare(scene, bundle, tracker)
        sample(prepared, route(prepared, bundle, tracker), bundle, tracker)
    return result(preset, scene.sampling.steps, tracker, profiler)


def profile_full_size(
    preset: Preset, steps: int | None, device: torch.device, layers: int | None, vram: str | None
) -> dict[str, Any]:
    """Some steps at full size with random weights, after one step to warm up; on a GPU with guidance and decoding."""
    from bya_core.memory.planner import MEMORY_PLANS, apply_memory_plan, plan_memory
    from bya_core.memory.sizes import ENCODER_BYTES, component_sizes
    from bya_core.pipelines.full_size import build_full_size, run_steps

    cuda, steps = device.type == "cuda", steps or 3
    dtype = torch.bfloat16 if cuda else torch.float32
    branches = 2 if cuda else 1
    tracker = StageProfiler(device)
    with tracker.stage("Loading model"):
        bundle = build_full_size(layers, dtype, codec=cuda, branches=0 if cuda else 1)
        plan = plan_memory(vram, component_sizes(bundle) | ENCODER_BYTES) if cuda and vram else MEMORY_PLANS[0]
        apply_memory_plan(bundle, plan, device)
    run_steps(bundle, branches, preset=preset)
    profiler = PartProfiler(lambda: (synchronize(device), time.perf_counter())[1])
    with profiled(bundle.transformer, profiler):
        latents = run_steps(bundle, branches, tracker, steps, preset)
    if cuda:
        with tracker.stage("Decoding"), torch.no_grad():
            bundle.codec.decode(latents.to(device, dtype))
    return result(preset, steps, tracker, profiler) | {"memory_plan": plan.name}


def result(preset: str, steps: int, tracker: StageProfiler, profiler: PartProfiler) -> dict[str, Any]:
    """Figures of one run: stages in seconds and GB, and seconds per step of each part."""
    step = {part: profiler.cost.get(part, 0.0) / steps for part in PARTS}
    step["total"] = sum(step.values())
    return {"preset": preset, "steps": steps, "seconds": tracker.seconds, "memory_gb": tracker.memory, "step": step}


def count_operations(characters: int, frames: int) -> dict[str, float]:
    """TFLOP of each part of one step at full size with guidance, preset "exact"; all blocks are alike."""
    from torch.utils.flop_counter import FlopCounterMode

    from bya_core.memory.sizes import run_meta_step

    grid = TokenGrid.from_pixels(frames, 480, 720, patch=2, space_factor=8, time_factor=4)
    costs = []
    for layers in (2, 4):  # one and two periods: every second block has a face layer
        with torch.device("meta"):
            model = transformer_module.BindYourAvatarTransformer3DModel(num_layers=layers).float().eval()
        with FlopCounterMode(display=False) as counter:
            profiler = PartProfiler(lambda counter=counter: counter.get_total_flops() / 1e12)
            with profiled(model, profiler):
                run_meta_step(model, grid, characters, branches=2)
        costs.append({part: profiler.cost.get(part, 0.0) for part in PARTS})
    few, more = costs
    cost = {part: few[part] + (LAYERS / 2 - 1) * (more[part] - few[part]) for part in PARTS}
    return cost | {"total": sum(cost.values())}


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


def print_runs(runs: list[dict[str, Any]]) -> None:
    """Stages and steps of all runs, side by side."""
    stages = list(dict.fromkeys(stage for run in runs for stage in run["seconds"]))
    rows = [
        [stage, *(f"{run['seconds'].get(stage, 0):.2f} s, {run['memory_gb'].get(stage, 0):.2f} GB" for run in runs)]
        for stage in stages
    ]
    print_table(["stage", *(run["preset"] for run in runs)], rows)
    exact = runs[0]["step"]["total"]
    rows = [
        [
            run["preset"],
            *(f"{run['step'][part]:.3f}" for part in (*PARTS, "total")),
            f"{run['step']['total'] / exact:.2f}",
        ]
        for run in runs
    ]
    print_table(["seconds per step", *PARTS, "total", f"relative to {runs[0]['preset']}"], rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("toy", "full-size"), default="toy")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--steps", type=int, help="denoising steps; default: those of the demo, or 3 at full size")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, help="transformer blocks at full size; default: 42")
    parser.add_argument("--vram", help="plan memory for a GPU of this size in GB, at full size")
    parser.add_argument("--count", action="store_true", help="count operations at full size instead")
    parser.add_argument("--characters", type=int, nargs="+", default=[2], help="with --count")
    parser.add_argument("--frames", type=int, nargs="+", default=[49], help="with --count")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    figures: list[dict[str, Any]] = []
    if options.count:
        for characters in options.characters:
            for frames in options.frames:
                figures.append({"characters": characters, "frames": frames, **count_operations(characters, frames)})
        names = (*PARTS, "total")
        rows = [[str(f["characters"]), str(f["frames"]), *(f"{f[name]:.1f}" for name in names)] for f in figures]
        print_table(["characters", "frames", *(f"{name} (TFLOP)" for name in names)], rows)
    else:
        device = torch.device(options.device)
        for preset in options.presets:
            if options.model == "toy":
                figures.append(profile_toy(preset, options.steps, device))
            else:
                figures.append(profile_full_size(preset, options.steps, device, options.layers, options.vram))
        threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads}"
        print(f"{options.model} on {name}, torch {torch.__version__}\n")
        print_runs(figures)
    if options.json:
        write_json(options.json, figures, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
