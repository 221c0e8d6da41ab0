"""What each preset of speed costs in quality, and what it saves: drawn scenes made by the toy model.

    python benchmarks/speed_quality.py                            # scenes for tuning; writes docs/results/reports/presets.json
    python benchmarks/speed_quality.py --seed-base 1000000        # scenes for figures to publish

Each scene is made with its voices given and swapped, by every preset from the same noise, and judged as in the puppet
suite (training/benchmark/puppet_suite.py). Finished scenes are kept in the report: a run that was stopped goes on, and
one that asks for more scenes makes only those. With other weights, presets or seeds it begins anew.

On a processor nothing is compiled, no attention exchanged and nothing computed in 8 bits: the table shows what the
other parts of a preset do.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.memory_ladder import write_between  # noqa: E402
from bya_core.io.atomic import AtomicFiles  # noqa: E402
from bya_core.pipelines.generate import denoised, prepare, route  # noqa: E402
from bya_core.progress import ProgressTracker  # noqa: E402
from bya_core.sampling.acceleration import PRESETS  # noqa: E402
from bya_core.weights.loader import load_bundle  # noqa: E402
from training.benchmark.puppet_suite import aggregate_videos, evaluate_clip  # noqa: E402
from training.benchmark.scenes import SceneSettings, SuiteScene, all_scenes  # noqa: E402
from training.benchmark.targets import GeneratedVideo, ModelTarget, decode_clips  # noqa: E402

DOCUMENT = ROOT / "docs" / "results" / "speed.md"
REPORT = ROOT / "docs" / "results" / "reports" / "presets.json"
TUNING = 2_000_000
"""Seeds from here up are for choosing presets; those below are for the figures of what was chosen."""
LEAST = 32
"""Scenes of a report whose table goes into the document."""


class Cost:
    """What a transformer computes, counted for each version of the video in a batch: calls, blocks, router layers."""

    def __init__(self) -> None:
        self.calls = self.blocks = self.routed = 0
        self.seconds = 0.0

    @contextmanager
    def of(self, transformer: Any) -> Iterator[None]:
        def add(what: str, versions: int) -> None:
            setattr(self, what, getattr(self, what) + versions)

        hooks = [
            transformer.register_forward_pre_hook(
                lambda _, __, given: add("calls", len(given["hidden_states"])), with_kwargs=True
            ),
            *(
                block.ff.register_forward_pre_hook(lambda _, given: add("blocks", len(given[0])))
                for block in transformer.transformer_blocks
            ),
        ]
        if transformer.router is not None:
            hooks.append(transformer.router.register_forward_pre_hook(lambda _, given: add("routed", len(given[0]))))
        clock = time.process_time if next(transformer.parameters()).device.type == "cpu" else time.perf_counter
        start = clock()
        try:
            yield
        finally:
            self.seconds += clock() - start
            for hook in hooks:
                hook.remove()

    def row(self) -> dict[str, float]:
        return {**vars(self), "seconds": round(self.seconds, 3)}


@torch.no_grad()
def scene_row(target: ModelTarget, scene: SuiteScene, names: Sequence[str]) -> dict[str, Any]:
    """One scene by every preset; the first of them is what the others' pictures are compared with."""
    bundle = target.bundle
    matrices = [scene.clip.matrix, scene.swapped]
    prepared = [prepare(target.scene(scene, matrix, scene.first_frame), bundle) for matrix in matrices]
    latents, masks, costs = [], [], {name: Cost() for name in names}
    for name in names:
        for given in prepared:
            sampling = replace(given.scene.sampling, preset=name)
            faster = replace(given, scene=replace(given.scene, sampling=sampling))
            with costs[name].of(bundle.transformer):
                clean, acted = denoised(faster, route(faster, bundle), bundle, ProgressTracker())
            latents.append(clean)
            masks.append(acted.numpy())
    frames = decode_clips(bundle, latents)
    made = [GeneratedVideo(*pair) for pair in zip(frames, masks, strict=True)]
    row: dict[str, Any] = {
        "seed": scene.clip.seed,
        "characters": len(scene.clip.portraits),
        "first_frame": scene.first_frame,
        "motion": scene.clip.motion,
    }
    for index, name in enumerate(names):
        pair = made[2 * index : 2 * index + 2]
        judged = [evaluate_clip(v, scene, matrix, target.grid).row() for v, matrix in zip(pair, matrices, strict=True)]
        row[name] = {
            "given": judged[0],
            "swapped": judged[1],
            "psnr": [_psnr(one.frames, plain.frames) for one, plain in zip(pair, made, strict=False)],
            **costs[name].row(),
        }
    return row


def _psnr(one: np.ndarray, other: np.ndarray) -> float | None:
    """In dB, of two videos [F, H, W, 3] uint8; None where they are equal."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return round(10 * float(np.log10(255**2 / error)), 2) if error else None


def summary(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Figures of each preset over all scenes, and how far it is from the first."""
    found: dict[str, Any] = {}
    plain = rows[0][names[0]]
    for name in names:
        figures = aggregate_videos(rows, name)
        change, spread = _binding_change(rows, names[0], name)
        known = [value for row in rows for value in row[name]["psnr"] if value is not None]
        total = {key: sum(row[name][key] for row in rows) for key in ("calls", "blocks", "routed", "seconds")}
        whole = {key: sum(row[names[0]][key] for row in rows) for key in total}
        found[name] = {
            "binding": figures["binding"]["accuracy"],
            "binding_swapped": figures["binding_swapped"]["accuracy"],
            "judged": figures["binding"]["judged"] + figures["binding_swapped"]["judged"],
            "binding_change": change,
            "binding_change_error": spread,
            "mask_iou": figures["mask_iou"],
            "identity": figures["identity"],
            "psnr": round(float(np.mean(known)), 2) if known else None,
            **{f"{key}_per_video": round(value / (2 * len(rows)), 3) for key, value in total.items()},
            **{f"{key}_share": round(total[key] / whole[key], 4) for key in total if plain[key]},
        }
    return found


def _binding_change(rows: Sequence[Mapping[str, Any]], plain: str, name: str) -> tuple[float | None, float | None]:
    """Points of binding that `name` has more than `plain`, voices given and swapped together, and the standard error
    of that over scenes (the same scenes from the same noise, so that most of their spread falls out)."""
    counts = []
    for row in rows:
        right, judged = np.zeros(2), 0
        for which in ("given", "swapped"):
            for k, preset in enumerate((plain, name)):
                one = row[preset][which]
                hit = np.array(one["follows"]) == np.array(one["should_follow"])
                right[k] += float(hit[np.array(one["judged"], dtype=bool)].sum())
            judged += sum(row[plain][which]["judged"])
        if judged:
            counts.append((right[1] - right[0], judged))
    if not counts:
        return None, None
    gain, weight = np.array(counts, dtype=float).T
    mean = gain.sum() / weight.sum()
    error = np.sqrt(((gain - mean * weight) ** 2).sum()) / weight.sum()
    return round(100 * float(mean), 2), round(100 * float(error), 2)


def table(report: Mapping[str, Any]) -> str:
    """The summary as Markdown, with what it was measured on."""
    about, head = report["about"], "| preset | binding | voices swapped | change | mask IoU | identity | PSNR to exact "
    lines = [
        f"Toy model, {about['scenes']} scenes of {about['characters']} characters from seed {about['seed_base']}, "
        f"each with its voices given and swapped, {about['frames']} frames, {about['steps']} steps. Change: points of "
        "binding more or less than `exact` on the same scenes, with its standard error. Blocks and router: how many "
        "were computed, as a share; seconds: of denoising one video.",
        "",
        f"{head}| blocks | router | seconds |",
        "|---" * 10 + "|",
    ]
    for name, f in report["presets"].items():
        change = "" if not f["judged"] else f"{f['binding_change']:+.1f} ± {f['binding_change_error']:.1f}"
        cells = [
            name,
            *(f"{100 * f[key]:.1f} %" if f[key] is not None else "" for key in ("binding", "binding_swapped")),
            change,
            f"{f['mask_iou']:.3f}",
            f"{100 * f['identity']:.1f} %",
            "" if f["psnr"] is None else f"{f['psnr']:.1f} dB",
            *(f"{100 * f[key]:.0f} %" if key in f else "" for key in ("blocks_share", "routed_share")),
            f"{f['seconds_per_video']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(target: ModelTarget, settings: SceneSettings, names: Sequence[str], path: Path) -> dict[str, Any]:
    """The report at `path`, made or gone on with; written after every scene."""
    about = {
        "seed_base": settings.seed_base,
        "characters": settings.characters,
        "frames": settings.num_frames,
        "steps": target.sampling.steps,
        "scenes_version": settings.version,
        "subject": {key: value for key, value in target.describe().items() if key != "routing"},
        "torch": torch.__version__,
        "settings": {name: asdict(PRESETS[name]) for name in names},  # type: ignore[index]
    }
    about = json.loads(json.dumps(about))  # as it is read back
    rows: list[dict[str, Any]] = []
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if {key: value for key, value in old["about"].items() if key != "scenes"} == about:
            rows = old["scenes"][: settings.scenes]
    report: dict[str, Any] = {}
    scenes = all_scenes(settings)
    for scene in tqdm(scenes[len(rows) :], initial=len(rows), total=len(scenes), desc="scenes", disable=None):
        rows.append(scene_row(target, scene, names))
        report = {"about": {**about, "scenes": len(rows)}, "presets": summary(rows, names), "scenes": rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        with AtomicFiles() as files:
            files.at(path).write_text(json.dumps(report) + "\n", encoding="utf-8")
    return report or {"about": {**about, "scenes": len(rows)}, "presets": summary(rows, names), "scenes": rows}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy", help="a name from `python -m bya_core models`")
    parser.add_argument("--scenes", type=int, default=LEAST)
    parser.add_argument("--seed-base", type=int, default=TUNING)
    parser.add_argument("--characters", type=int, default=2)
    parser.add_argument("--presets", nargs="*", default=list(PRESETS), choices=list(PRESETS), help="the first is plain")
    parser.add_argument("--json", type=Path, default=REPORT)
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="Markdown file with the marks")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0 = as torch has it")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    bundle = load_bundle(given.model)
    settings = SceneSettings(
        scenes=given.scenes,
        seed_base=given.seed_base,
        characters=given.characters,
        height=bundle.native.height,
        width=bundle.native.width,
    )
    report = measure(ModelTarget(bundle, settings, ()), settings, given.presets, given.json)
    text = table(report)
    print(text)
    if given.scenes >= LEAST and given.presets == list(PRESETS):
        write_between(given.document, "presets", text)
    else:
        print(f"not written to {given.document}: that takes all presets and at least {LEAST} scenes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
