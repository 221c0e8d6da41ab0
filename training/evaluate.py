r"""Evaluate a model.

    python training/evaluate.py --suite puppets --model toy --json report.json --scenes 8
    python training/evaluate.py --suite puppets --model toy --json report.json --scenes 256 \
        --characters mixed --processes 2
    python training/evaluate.py --suite routers --model toy --json routers.json --scenes 18
    python training/evaluate.py --suite routers --model toy --json routers.json --variants intra "post, fine"
    python training/evaluate.py --suite baselines --model toy --json baselines.json --scenes 18
    python training/evaluate.py --suite byab --data BENCHMARK --model official --output results
    python training/evaluate.py --suite folder --data VIDEOS --output results
    python training/evaluate.py --suite refinement --model toy --json refinement.json
    python training/evaluate.py --suite pictures --model toy --json pictures.json --characters mixed
    python training/evaluate.py --suite takes --model toy --json takes.json --scenes 16 --frames 49
    python training/evaluate.py --suite long --model toy --scenes 2 --json long.json --work-dir windows
    python training/evaluate.py --suite puppets --model toy --lora runs/lora/final/pytorch_lora_weights.safetensors:0.8
    python training/evaluate.py --row table3-ours --data BENCHMARK --output results/table3
    python training/evaluate.py --compare results/before results/after

The models "truth" and "shuffled" return the ground truth of the same and of other scenes. They validate the metrics:
values are close to 1, and at chance level.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.io.outputs import make_folder
from bya_core.progress import Progress, ProgressCallback
from training.benchmark.compare import compare_reports
from training.benchmark.gallery import write_gallery
from training.benchmark.rows import apply_row
from training.benchmark.suites import EvaluateOptions, Report, evaluate_scenes, evaluate_videos, write_json
from training.command_line import run_command


def main(options: EvaluateOptions) -> None:
    """Run a suite, print its table and write its report."""
    if options.row is not None:
        options = apply_row(options, options.row)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.output is not None:
        make_folder(options.output)
        options = replace(options, json=options.json or options.output / "results.json")
    if options.json is not None and not os.access(options.json.resolve().parent, os.W_OK):
        raise InputError(f"--json {options.json}", "a writable folder", "create it or choose another one")
    if options.compare is not None:
        report, text = compare_reports(*options.compare)
        print(text)
        _write(report, text, options)
        return
    run_suite = evaluate_videos if options.suite in ("byab", "folder") else evaluate_scenes
    with _progress_bar() as callback:
        report, text, rows = run_suite(options, callback)
    print(text)
    _write(report, text, options)
    if options.output is not None:
        seeds = report.get("seeds") or sorted({row["seed"] for row in report.get("rows", ()) if "seed" in row})
        description = [f"seeds {seeds[0]} to {seeds[-1]}"] if seeds else []
        description.append(", ".join(f"{name}: {value}" for name, value in report["versions"].items()))
        write_gallery(options.output / "index.html", f"{options.suite}: {report['model']}", text, rows, description)
        print(f"wrote {options.output / 'index.html'}")


def _write(report: Report, text: str, options: EvaluateOptions) -> None:
    """Write the JSON report, and the table into the output folder."""
    if options.json is not None:
        write_json(report, options.json)
        print(f"wrote {options.json}")
    if options.output is not None:
        with atomic_write(options.output / "table.md") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def _progress_bar() -> Iterator[ProgressCallback]:
    with tqdm(mininterval=0.5, file=sys.stderr) as bar:

        def update(progress: Progress) -> None:
            bar.set_description(progress.stage, refresh=False)
            bar.total, bar.n = progress.total, progress.step
            bar.refresh()

        yield update


if __name__ == "__main__":
    run_command(main, EvaluateOptions)
