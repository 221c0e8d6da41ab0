r"""From raw footage to training shards (sec. 4.1 and 4.2), on one machine or on a Ray cluster.

    python training/curate.py --input FOLDER_OR_LIST --output SHARDS --config training/recipes/curation.yaml --report
        report.html [--engine local|ray] [--resume] [--audit N]

A run that was stopped, in whatever way, goes on with --resume and ends with the same shards and index.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

if __package__ in (None, ""):  # started as a file: let the packages beside it be found
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bya_core.errors import InputError
from training.curation.output import Layout, Output
from training.curation.pipeline import STAGE_NAMES, prepare
from training.curation.progress import Progress
from training.curation.record import Record
from training.curation.settings import load_settings
from training.curation.sources import list_sources

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Curate raw footage.

    Args:
        input: folder of footage (with its subfolders), or a text file with one path a line.
        output: folder for shards, index.parquet and, hidden in it, everything that lets a run go on.
        config: settings of all stages.
        engine: processes on this machine, or a Ray cluster (RAY_ADDRESS, else one on this machine).
        resume: go on with what is in the output folder; without it that folder must be new or empty.
        workers: processes of the local engine; -1 = one for each core, 0 = none but this one.
        report: HTML file to write: funnel, histograms, a contact sheet of clips.
        audit: pick this many clips at random for a person to look at; they go into audit/ in the output folder.
        seed: of the audit's choice.
    """

    input: Path
    output: Path
    config: Path
    engine: Literal["local", "ray"] = "local"
    resume: bool = False
    workers: int = -1
    report: Path | None = None
    audit: int = 0
    seed: int = 0


def curate(arguments: Arguments) -> Progress:
    """The whole run; returns what was counted.

    Raises:
        InputError: anything that can be told before the run starts, and a full disk.
    """
    settings = load_settings(arguments.config)
    layout = Layout(arguments.output)
    if layout.folder.is_dir() and any(layout.folder.iterdir()) and not arguments.resume:
        came = f"--output {arguments.output}, which is not empty"
        raise InputError(came, "a new folder, or --resume", "add --resume to go on with what is there")
    sources = list_sources(arguments.input, ignore=layout.folder)
    broken: dict[tuple[str, int], Record] = {}
    output = Output(arguments.output, settings, broken)
    if output.stand_ins:
        log.warning("stand-ins for drawn puppets are used (%s)", ", ".join(output.stand_ins))
    prepare(output.stages)
    layout.folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(sources, STAGE_NAMES)
    if arguments.engine == "ray":
        from training.curation.ray_engine import run_ray

        clips = run_ray(sources, output, progress)
    else:
        from training.curation.local_engine import run_local

        workers = arguments.workers if arguments.workers >= 0 else len(os.sched_getaffinity(0))
        clips = run_local(sources, output, progress, workers)
    progress.tell()
    log.info("%d clips in %s", clips, layout.folder)
    if progress.broken:
        log.warning("%d records were given up by errors; --resume tries them again", progress.broken)
    if arguments.report is not None:
        from training.curation.report import write_report

        write_report(arguments.report, layout, output)
    if arguments.audit:
        from training.curation.audit import pick

        log.info("to look at: %s", pick(layout, arguments.audit, arguments.seed))
    return progress


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        curate(tyro.cli(Arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; --resume goes on from here", file=sys.stderr)
        sys.exit(130)
