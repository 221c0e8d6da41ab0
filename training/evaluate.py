r"""Measure a model.

    python training/evaluate.py --suite puppets --model toy --json report.json
    python training/evaluate.py --suite puppets --model toy --json report.json --scenes 8
    python training/evaluate.py --suite puppets --model toy --json marks.json --scenes 256 \
        --characters mixed --processes 2
    python training/evaluate.py --suite routers --model toy --json routers.json --scenes 18
    python training/evaluate.py --suite routers --model toy --json routers.json --scenes 18 --ways intra "post, fine"
    python training/evaluate.py --suite baselines --model toy --json baselines.json --scenes 18
    python training/evaluate.py --suite byab --data BENCHMARK --model official --output results
    python training/evaluate.py --suite folder --data VIDEOS --output results
    python training/evaluate.py --suite refinement --model toy --json refinement.json
    python training/evaluate.py --suite long --model toy --scenes 2 --json long.json --windows kept

The models "truth" and "shuffled" answer with the drawn truth and with that of other scenes: they test the
measurement (figures near 1, and at chance). A folder of weights can be given in place of a model's name.
"""

from __future__ import annotations

import functools
import json as jsonlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tqdm import tqdm

if __package__ in (None, ""):  # started as a file: let the packages beside it be found
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bya_core.config import RefineConfig
from bya_core.errors import InputError
from bya_core.io.atomic import AtomicFiles
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.loader import load_bundle
from training.benchmark.long_suite import LongSettings, long_table, measure_long
from training.benchmark.page import Keeper, write_page
from training.benchmark.puppet_report import (
    STAND_INS,
    Examiner,
    Wanted,
    cell_of,
    evaluate,
    in_processes,
    kept_cells,
    puppet_report,
    table,
    versions,
)
from training.benchmark.puppet_suite import all_scenes
from training.benchmark.refinement_suite import SHARES as REFINED_AT
from training.benchmark.refinement_suite import refinement_report, refinement_table
from training.benchmark.router_suite import ALL_WAYS, BASELINES, WAYS, router_report, router_table
from training.benchmark.scenes import HELD_OUT, SceneSettings
from training.benchmark.subjects import ModelSubject

__all__ = ["Arguments", "evaluate", "evaluate_routers", "main", "table"]


@dataclass(frozen=True)
class Arguments:
    """Measure a model.

    Args:
        suite: "puppets" = router, binding and identity of a model; "routers" = ways of routing against each other;
            "baselines" = what others do, beside the routers;
            "byab" = the Bind-Your-Avatar benchmark (docs/how-to/benchmark.md); "folder" = videos of any system;
            "refinement" = masks before and after cleaning; "long" = 20 seconds in windows, each judged by itself.
        model: a name from `python -m bya_core models`, a folder of toy weights, "truth" or "shuffled".
        output: folder for everything: results.json, table.md, videos and index.html that shows them side by side.
        json: file for the whole report; none = results.json in `output`, or only the table. The suites of puppets,
            routers and baselines write it after every scene, and go on with what they find there.
        data: of the suite "byab", the benchmark's folder; of "folder", the videos, in folders of one system each.
        scenes_at: of the suite "folder", where scene files are that do not lie beside the videos.
        real: of both, real videos by the same names: FID and FVD are measured against them.
        length: of the suite "byab", frames of a video; none = as long as its speech.
        scenes: held-out scenes, or pairs; 64 or more for figures to publish, 8 for a look.
        seed_base: seed of the first scene.
        characters: people per scene; "mixed" = 1 to 4 by turns (suite of puppets).
        frames: video frames per scene; 0 = as many as the model takes.
        steps: sampling steps; none = the model's.
        generate: also generate the scenes (most of the time); otherwise only the router is measured.
        router: also measure the router's masks on held-out clips.
        codec: also measure the drawn truth after the model's video codec, the best its transformer can reach.
        ways: of the router suite, those of this name, or that begin so; none = its table.
        windows: of the long suite, a folder that keeps the windows: a measurement that was stopped goes on.
        device: "auto" takes a GPU where there is one.
        threads: processor threads; 0 = all, or 1 where there are several processes.
        processes: that measure scenes of the suite of puppets at once; for the toy model one per core is fastest.
    """

    suite: Literal["puppets", "byab", "folder", "routers", "baselines", "refinement", "long"] = "puppets"
    model: str = "toy"
    output: Path | None = None
    json: Path | None = None
    data: Path | None = None
    scenes_at: Path | None = None
    real: Path | None = None
    length: int | None = None
    scenes: int = 64
    seed_base: int = HELD_OUT
    characters: int | Literal["mixed"] = 2
    frames: int = SceneSettings.num_frames
    steps: int | None = None
    generate: bool = True
    router: bool = True
    codec: bool = False
    ways: tuple[str, ...] = ()
    windows: Path | None = None
    device: str = "auto"
    threads: int = 0
    processes: int = 1


def main(arguments: Arguments) -> None:
    """Load, measure, print, write."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        arguments = replace(arguments, json=arguments.json or arguments.output / "results.json")
    if arguments.json is not None and not os.access(arguments.json.resolve().parent, os.W_OK):
        raise InputError(f"--json {arguments.json}", "a folder that can be written to", "make it or choose another")
    report, text, rows = (_videos if arguments.suite in ("byab", "folder") else _drawn)(arguments)
    print(text)
    if arguments.json is not None:
        _write(report, arguments.json)
        print(f"wrote {arguments.json}")
    if arguments.output is not None:
        (arguments.output / "table.md").write_text(text + "\n", encoding="utf-8")
        title = f"{arguments.suite}: {report['model']}"
        about = [f"{name}: {value}" for name, value in report["versions"].items()]
        seeds = report.get("seeds") or sorted({row["seed"] for row in report.get("rows", ()) if "seed" in row})
        about = [f"seeds {seeds[0]} to {seeds[-1]}" if seeds else "", ", ".join(about)]
        write_page(arguments.output / "index.html", title, text, rows, [line for line in about if line])
        print(f"wrote {arguments.output / 'index.html'}")


Rows = Iterable[tuple[str, Mapping[str, Mapping[str, Any]]]]


def _drawn(arguments: Arguments) -> tuple[dict[str, Any], str, Rows]:
    """Suites of drawn puppets: report, table, rows of the page."""
    bundle = None if arguments.model in STAND_INS else _load(arguments.model, arguments.device)
    size = {} if bundle is None else {"height": bundle.native.height, "width": bundle.native.width}
    frames = arguments.frames or (SceneSettings.num_frames if bundle is None else bundle.native.num_frames)
    settings = SceneSettings(arguments.scenes, arguments.seed_base, arguments.characters, num_frames=frames, **size)
    keeper = None if arguments.output is None else Keeper(arguments.output)
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    if arguments.suite == "puppets":
        report = evaluate_puppets(bundle, settings, arguments, keeper)
        text, cells = table(report), kept_cells(report)
    elif bundle is None:
        raise InputError(f"--model {arguments.model}", "a model with a router", 'choose one, or --suite "puppets"')
    elif arguments.suite == "long":
        report = evaluate_long(bundle, settings, arguments)
        text = long_table(report)
    elif arguments.suite in ("routers", "baselines"):
        report = evaluate_routers(bundle, settings, arguments, keeper)
        text = router_table(report)
        for row in report["rows"]:
            if "failed" not in row:
                cells.setdefault(row["way"], {})[row["seed"]] = cell_of(row)
    else:
        report = evaluate_refinement(bundle, settings)
        text = refinement_table(report)
    report["model"] = arguments.model
    seeds = list(dict.fromkeys(seed for by_seed in cells.values() for seed in by_seed))
    return report, text, [] if keeper is None else keeper.rows(seeds, cells)


def _videos(arguments: Arguments) -> tuple[dict[str, Any], str, Rows]:
    """Suites of finished videos: report, table, rows of the page."""
    from training.benchmark.byab import VERSION, check, fingerprint, read_pairs
    from training.benchmark.video_suite import (
        Tools,
        byab_tasks,
        folder_tasks,
        measure_videos,
        page_rows,
        video_table,
    )

    output, data = arguments.output, arguments.data
    if output is None or data is None:
        came = f"--suite {arguments.suite} without {'--output' if output is None else '--data'}"
        raise InputError(came, "both", "name the folders")
    notices: list[str] = []
    about: dict[str, Any] = {}
    with tqdm(unit="video", file=sys.stderr) as bar:

        def tick(doing: str) -> None:
            bar.set_description(doing)
            bar.update()

        if arguments.suite == "byab":
            pairs = read_pairs(data)[: arguments.scenes]
            notices = check(data)
            about = {"list": VERSION, "pairs": [pair.name for pair in pairs], "sha256": fingerprint(pairs)}
            done = all((output / "videos" / arguments.model / f"{pair.name}.mp4").is_file() for pair in pairs)
            bundle = None if done else _load(arguments.model, arguments.device)
            tasks = byab_tasks(
                pairs, output, arguments.model, bundle, steps=arguments.steps, frames=arguments.length, tick=tick
            )
        else:
            tasks = folder_tasks(data, arguments.scenes_at)
        tools = Tools.here("cuda" if torch.cuda.is_available() and arguments.device != "cpu" else "cpu")
        known, _ = _earlier(arguments.json, arguments.suite)
        rows = {(row["system"], row["clip"]): row for row in known["rows"]} if known is not None else {}
        measured, systems = measure_videos(tasks, tools, output, real=arguments.real, known=rows, tick=tick)
    report = {
        "suite": arguments.suite,
        "model": arguments.model if arguments.suite == "byab" else ", ".join(systems),
        "systems": systems,
        "notices": [*notices, *tools.notices],
        "settings": about,
        "versions": versions(),
        "rows": measured,
    }
    return report, video_table(report), page_rows(measured)


def evaluate_puppets(
    bundle: ModelBundle | None, settings: SceneSettings, arguments: Arguments, keeper: Keeper | None = None
) -> dict[str, Any]:
    """The suite of puppets; goes on with the report at `arguments.json` where there is one of the same model."""
    wanted = Wanted(arguments.router, arguments.generate, arguments.codec and bundle is not None)
    load = functools.partial(_examiner, arguments.model, arguments.device, settings, wanted, arguments.steps, keeper)
    examiner = Examiner.of(bundle, settings, wanted, arguments.steps, arguments.model, keeper)
    known, save = _earlier(arguments.json, "puppets")
    elsewhere = in_processes(load, arguments.processes, arguments.threads or 1) if arguments.processes > 1 else None
    with tqdm(unit=" parts", mininterval=0.5, file=sys.stderr) as bar:

        def tick(doing: str) -> None:
            bar.set_description(doing)
            bar.update()

        return puppet_report(examiner, known=known, save=save, tick=tick, elsewhere=elsewhere)


def _examiner(
    model: str, device: str, settings: SceneSettings, wanted: Wanted, steps: int | None, keeper: Keeper | None
) -> Examiner:
    bundle = None if model in STAND_INS else _load(model, device)
    return Examiner.of(bundle, settings, wanted, steps, model, keeper)


def _earlier(path: Path | None, suite: str) -> tuple[dict[str, Any] | None, Callable[[dict[str, Any]], None] | None]:
    """The report of an earlier run at `path`, if there is one, and what writes it anew."""
    if path is None:
        return None, None
    known = jsonlib.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if known is not None and known.get("suite") != suite:
        rule = f"a report of the {suite.removesuffix('s')} suite, or no file"
        raise InputError(f"--json {path}", rule, "choose another")
    return known, lambda report: _write(report, path)


def evaluate_routers(
    bundle: ModelBundle, settings: SceneSettings, arguments: Arguments, keeper: Keeper | None = None
) -> dict[str, Any]:
    """Ways of routing, or baselines; goes on with the report at `arguments.json` where there is one of the model."""
    usual, every = (BASELINES, BASELINES) if arguments.suite == "baselines" else (WAYS, ALL_WAYS)
    ways = {name: way for name, way in usual.items() if not arguments.ways}
    for start in arguments.ways:
        found = {name: way for name, way in every.items() if name == start}
        found = found or {name: way for name, way in every.items() if name.startswith(start)}
        if not found:
            raise InputError(f'--ways "{start}"', f"the beginning of one of {', '.join(every)}", "choose one")
        ways |= found
    subject = ModelSubject(bundle, settings, (), arguments.steps)
    known, save = _earlier(arguments.json, arguments.suite)
    with tqdm(total=len(ways) * settings.scenes, unit="clip", file=sys.stderr) as bar:

        def tick(doing: str) -> None:
            bar.set_description(doing)
            bar.update()

        report = router_report(subject, ways, known, save, tick, every, keeper)
    return report | {"versions": versions()}


def evaluate_long(bundle: ModelBundle, scenes: SceneSettings, arguments: Arguments) -> dict[str, Any]:
    """The long suite; --frames longer than a window, or its default of 20 seconds."""
    if scenes.characters == "mixed":
        raise InputError("--characters mixed", "a number, in the long suite", "give one")
    frames = {"num_frames": arguments.frames} if arguments.frames > bundle.native.num_frames else {}
    settings = LongSettings(
        scenes.scenes, scenes.seed_base, characters=scenes.characters, steps=arguments.steps, **frames
    )
    with tqdm(unit="window", file=sys.stderr) as bar:

        def tick(doing: str) -> None:
            bar.set_description(doing)
            bar.update()

        report = measure_long(bundle, settings, tick, arguments.windows)
    return report | {"settings": asdict(settings), "versions": versions()}


def evaluate_refinement(bundle: ModelBundle, settings: SceneSettings) -> dict[str, Any]:
    """The refinement suite, with the default settings of refinement."""
    subject = ModelSubject(bundle, settings, REFINED_AT)
    scenes = all_scenes(settings)
    return {
        "suite": "refinement",
        **refinement_report(subject, scenes, RefineConfig()),
        "settings": {**asdict(settings), **subject.describe()},
        "seeds": [scene.clip.seed for scene in scenes],
        "versions": versions(),
    }


def _write(report: dict[str, Any], path: Path) -> None:
    with AtomicFiles() as files:
        files.at(path).write_text(jsonlib.dumps(report, indent=1) + "\n", encoding="utf-8")


def _load(model: str, device: str) -> ModelBundle:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if Path(model).is_dir():
        from bya_core.toy.bundle import load_toy

        return load_toy(Path(model)).to(device)
    return load_bundle(model).to(device)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
