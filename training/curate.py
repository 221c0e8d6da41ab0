"""Curate source footage into training shards (paper sec. 4.1 and 4.2), on one machine or on a Ray cluster.

    python training/curate.py --input FOLDER_OR_LIST --output SHARDS --config training/recipes/curation.yaml
        [--report report.html] [--engine local|ray] [--resume] [--audit N]

An interrupted run is continued with --resume; shards and index do not depend on interruptions.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bya_core.errors import InputError
from bya_core.io.outputs import make_folder
from training.command_line import OutputFile, OutputPath, run_command
from training.curation.models import release_models
from training.curation.output import CurationOutput
from training.curation.pipeline import STAGE_NAMES, CurationSettings, load_settings
from training.curation.record import list_sources
from training.curation.stage import MissingRequirements, Stage
from training.curation.stats import RunStats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CurateOptions:
    """Curate source footage.

    Args:
        input: Folder of footage (recursive), or a text file with one path per line.
        output: Folder for shards, index.parquet and cached stage results.
        config: YAML file with the settings of all stages.
        engine: Process pool on this machine, or a Ray cluster (RAY_ADDRESS, otherwise a local one).
        resume: Continue the run in the output folder; without it the folder must be empty.
        workers: Processes of the local engine; -1 = one per core, 0 = run in the main process.
        report: HTML report to write.
        audit: Number of random clips exported to audit/ in the output folder for manual review.
        seed: Random seed of the audit.
    """

    input: Path
    output: OutputPath
    config: Path
    engine: Literal["local", "ray"] = "local"
    resume: bool = False
    workers: int = -1
    report: OutputFile = None
    audit: int = 0
    seed: int = 0


def curate(options: CurateOptions) -> RunStats:
    """Run the curation and return its statistics.

    Raises:
        InputError: invalid options or settings, missing models, or a full disk.
    """
    settings = load_settings(options.config)
    if problems := missing_packages(options, settings):  # before a module that imports one of them is used
        raise problems[0] if len(problems) == 1 else MissingRequirements(problems)
    output = CurationOutput(options.output, settings)
    folder = output.layout.folder
    if folder.is_dir() and any(folder.iterdir()) and not options.resume:
        problem = f"--output {options.output} is not empty"
        raise InputError(problem, "an empty folder, or --resume", "add --resume to continue the run in it")
    sources = list_sources(options.input, ignore=folder)
    if output.puppet_models:
        log.warning("models for synthetic puppets are used (%s)", ", ".join(output.puppet_models))
    models = check_models(output.stages)
    if options.engine == "ray" or options.workers != 0:
        release_models()  # workers load their own
    make_folder(folder)
    stats = RunStats(sources, [stage.name for stage in output.stages])
    if options.engine == "ray":
        from training.curation.ray_engine import run_ray

        clips = run_ray(sources, output, stats)
    else:
        from training.curation.local_engine import run_local

        workers = options.workers if options.workers >= 0 else len(os.sched_getaffinity(0))
        clips = run_local(sources, output, stats, workers)
    stats.log()
    for line in stats.summary(models, STAGE_NAMES, output.store.root):
        log.info("%s", line)
    if settings.complete:
        log.info("%d clips in %s", clips, folder)
    else:
        missing = "no masks" if settings.until is None else f"the run ends after stage {settings.until}"
        log.info("%d clips in %s; no shards are written: %s", clips, output.layout.index, missing)
    if stats.failed:
        log.warning("%d records failed with errors; use --resume to retry them", stats.failed)
    if options.report is not None:
        from training.curation.report import write_report

        write_report(options.report, output)
    if options.audit:
        from training.curation.report import export_random_clips

        for path in export_random_clips(output.layout, options.audit, options.seed):
            log.info("exported %s", path)
    return stats


def missing_packages(options: CurateOptions, settings: CurationSettings) -> list[InputError]:
    """Packages that the run needs and that are not installed."""
    needed = {"pyarrow": "data"}
    if settings.complete:
        needed["webdataset"] = "data"
    if settings.until != STAGE_NAMES[0]:
        needed["scenedetect"] = "data"
    if options.engine == "ray":
        needed["ray"] = "cluster"
    elif options.workers != 0:
        needed["pebble"] = "data"
    return [
        InputError(f"the package {name} is not installed", name, f'run pip install -e ".[{extra}]"')
        for name, extra in needed.items()
        if find_spec(name) is None
    ]


def check_models(stages: list[Stage]) -> dict[str, str]:
    """Load all models; return a description of the models of each stage.

    Raises:
        InputError: something is missing. All that is missing is reported at once.
    """
    problems = [problem for stage in stages for problem in stage.find_problems()]
    if problems:
        raise problems[0] if len(problems) == 1 else MissingRequirements(problems)
    return {stage.name: stage.describe_models() for stage in stages}


if __name__ == "__main__":
    try:
        run_command(curate, CurateOptions)
    except KeyboardInterrupt:
        print("interrupted; continue with --resume", file=sys.stderr)
        sys.exit(130)
