"""Measure a model.

    python training/evaluate.py --suite puppets --model tiny --json report.json
    python training/evaluate.py --suite puppets --model tiny --json report.json --scenes 8
    python training/evaluate.py --suite routers --model tiny --json routers.json --scenes 18
    python training/evaluate.py --suite routers --model tiny --json routers.json --scenes 18 --ways intra "post, fine"
    python training/evaluate.py --suite refinement --model tiny --json refinement.json
    python training/evaluate.py --suite long --model tiny --scenes 2 --json long.json --windows kept

The models "truth" and "shuffled" answer with the drawn truth and with that of other scenes: they test the
measurement (figures near 1, and at chance). A folder of weights can be given in place of a model's name.
"""

from __future__ import annotations

import importlib.metadata
import json as jsonlib
import logging
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tqdm import tqdm

if __package__ in (None, ""):  # started as a file: let the packages beside it be found
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bya_core
from bya_core.checkpoints.bundle import ModelBundle
from bya_core.checkpoints.registry import load_bundle
from bya_core.config import RefineConfig
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from training.benchmark.long_suite import LongSettings, long_table, measure_long
from training.benchmark.puppet_suite import SHARES, all_scenes, measure_generated, measure_router
from training.benchmark.refinement_suite import SHARES as REFINED_AT
from training.benchmark.refinement_suite import refinement_report, refinement_table
from training.benchmark.router_suite import ALL_WAYS, WAYS, router_report, router_table
from training.benchmark.scenes import HELD_OUT, SceneSettings
from training.benchmark.subjects import CodecSubject, ModelSubject, ShuffledSubject, Subject, TruthSubject

MARKS = {"router IoU": 0.5, "binding": 0.75, "binding swapped": 0.75}
STAND_INS = {"truth": TruthSubject, "shuffled": ShuffledSubject}


@dataclass(frozen=True)
class Arguments:
    """Measure a model.

    Args:
        suite: "puppets" = router, binding and identity of a model; "routers" = ways of routing against each other;
            "refinement" = masks before and after cleaning; "long" = 20 seconds in windows, each judged by itself.
        model: a name from `python -m bya_core models`, a folder of tiny weights, "truth" or "shuffled".
        json: file for the whole report; none = only the table. The router suite writes it after every scene, and
            goes on with what it finds there.
        scenes: held-out scenes; 64 for figures to publish, 8 for a look.
        seed_base: seed of the first scene.
        characters: people per scene.
        frames: video frames per scene; 0 = as many as the model takes.
        steps: sampling steps; none = the model's.
        generate: also generate the scenes (most of the time); otherwise only the router is measured.
        codec: also measure the drawn truth after the model's video codec, the best its transformer can reach.
        ways: of the router suite, those of this name, or that begin so; none = its table.
        windows: of the long suite, a folder that keeps the windows: a measurement that was stopped goes on.
        device: "auto" takes a GPU where there is one.
        threads: processor threads; 0 = all.
    """

    suite: Literal["puppets", "routers", "refinement", "long"] = "puppets"
    model: str = "tiny"
    json: Path | None = None
    scenes: int = 64
    seed_base: int = HELD_OUT
    characters: int = 2
    frames: int = SceneSettings.num_frames
    steps: int | None = None
    generate: bool = True
    codec: bool = False
    ways: tuple[str, ...] = ()
    windows: Path | None = None
    device: str = "auto"
    threads: int = 0


def evaluate(
    bundle: ModelBundle | None,
    settings: SceneSettings,
    *,
    steps: int | None = None,
    generate: bool = True,
    codec: bool = False,
    stand_in: str = "truth",
    show: bool = False,
) -> dict[str, Any]:
    """The whole puppet suite.

    Args:
        bundle: model, on the device where it shall run; None = `stand_in` is measured.
        settings: which scenes; their size must fit the model.
        steps: sampling steps; None = the bundle's.
        generate: False = only the router.
        codec: also "codec_ceiling", the drawn truth after the bundle's video codec.
        stand_in: "truth" or "shuffled".
        show: a progress bar on stderr.

    Returns:
        A report ready for JSON; "ceiling" holds what the same measurement says of the drawn truth.

    Raises:
        InputError: a size that does not fit the model.
    """
    start = time.perf_counter()
    if bundle is not None:
        subject: Subject = ModelSubject(bundle, settings, SHARES, steps)
    else:
        grid = TokenGrid.from_pixels(settings.num_frames, settings.height, settings.width, space_factor=4)
        subject = STAND_INS[stand_in](settings, SHARES, grid)
    scenes = all_scenes(settings)
    seconds = {"drawing scenes": time.perf_counter() - start}
    total = len(scenes) * (2 + (4 if generate else 0) + (2 if codec and bundle is not None else 0))
    with tqdm(total=total, disable=not show, unit="part", mininterval=0.5, file=sys.stderr) as bar:

        def tick(doing: str) -> None:
            bar.set_description(doing)
            bar.update()

        start = time.perf_counter()
        router = measure_router(subject, scenes, tick)
        seconds["router"] = time.perf_counter() - start
        generated, ceiling, behind = None, None, None
        rows: list[dict[str, Any]] = []
        if generate:
            start = time.perf_counter()
            generated, rows = measure_generated(subject, scenes, tick)
            seconds["generated"] = time.perf_counter() - start
            start = time.perf_counter()
            ceiling, _ = measure_generated(TruthSubject(settings, SHARES, subject.grid), scenes, tick)
            seconds["ceiling"] = time.perf_counter() - start
        if codec and bundle is not None:
            behind, _ = measure_generated(CodecSubject(bundle, settings, SHARES), scenes, tick)
    return {
        "suite": "puppets",
        "model": subject.name,
        "router": router,
        "generated": generated,
        "ceiling": ceiling,
        "codec_ceiling": behind,
        "settings": {**asdict(settings), "points": SHARES, **subject.describe()},
        "seeds": [scene.clip.seed for scene in scenes],
        "versions": versions(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "scenes": rows,
    }


def versions() -> dict[str, str]:
    """Of everything that could change a figure."""
    found = {"bya_core": bya_core.__version__, "python": platform.python_version()}
    for package in ("torch", "diffusers", "transformers", "numpy", "scipy"):
        found[package] = importlib.metadata.version(package)
    return found


def table(report: dict[str, Any]) -> str:
    """The figures that matter, for people."""
    router, made = report["router"], report["generated"]
    lines = [f"{report['model']} on {len(report['seeds'])} held-out puppet scenes", ""]
    lines.append(f"{'router IoU at noise':<26}{'with first frame':>18}{'without':>10}")
    for point in router["points"]:
        with_frame, without = point["with_first_frame"], point["without_first_frame"]
        lines.append(f"  {point['share']:<24}{_figure(with_frame):>18}{_figure(without):>10}")
    half = (router["headline_with_first_frame"], router["headline_without_first_frame"])
    lines.append(f"  {'half noise and below':<24}{_figure(half[0]):>18}{_figure(half[1]):>10}")
    mark = f"mark {MARKS['router IoU']}"
    lines += [f"  {'mean of both':<24}{_figure(router['headline_iou']):>18}{mark:>20}", ""]
    if made is None:
        return "\n".join(lines)
    names = f"{'generated clips':<26}{'all':>8}{'first frame':>13}{'without':>9}{'truth':>8}{'codec':>8}"
    lines.append(names)
    columns = (
        made,
        made["with_first_frame"],
        made["without_first_frame"],
        report["ceiling"],
        report["codec_ceiling"],
    )
    rows = {
        "mask IoU with pixels": ("mask_iou",),
        "binding": ("binding", "accuracy"),
        "binding swapped": ("binding_swapped", "accuracy"),
        "own voice, correlation": ("binding", "own"),
        "other voice, correlation": ("binding", "other"),
        "listeners' stillness": ("listener_stillness",),
        "identity": ("identity",),
    }
    for name, path in rows.items():
        cells = [_figure(_at(column, path)) for column in columns]
        mark = f"   mark {MARKS[name]}" if name in MARKS else ""
        lines.append(f"  {name:<24}{cells[0]:>8}{cells[1]:>13}{cells[2]:>9}{cells[3]:>8}{cells[4]:>8}{mark}")
    chance = made["binding"]["chance"]
    lines.append(f"  chance: binding {_figure(chance)}, identity {1 / report['settings']['references']:.3f}")
    return "\n".join(lines)


def _at(column: dict[str, Any] | None, path: tuple[str, ...]) -> float | None:
    value: Any = column
    for key in path:
        value = None if value is None else value[key]
    return value


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(arguments: Arguments) -> None:
    """Load, measure, print, write."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.json is not None and not os.access(arguments.json.resolve().parent, os.W_OK):
        raise InputError(
            f"--json {arguments.json}", "a folder that can be written to", "make it or choose another"
        )
    bundle = None if arguments.model in STAND_INS else _load(arguments.model, arguments.device)
    size = {} if bundle is None else {"height": bundle.native.height, "width": bundle.native.width}
    frames = arguments.frames or (SceneSettings.num_frames if bundle is None else bundle.native.num_frames)
    settings = SceneSettings(
        arguments.scenes, arguments.seed_base, arguments.characters, num_frames=frames, **size
    )
    if arguments.suite == "puppets":
        report = evaluate(
            bundle,
            settings,
            steps=arguments.steps,
            generate=arguments.generate,
            codec=arguments.codec,
            stand_in=arguments.model,
            show=True,
        )
        text = table(report)
    elif bundle is None:
        raise InputError(f"--model {arguments.model}", "a model with a router", 'choose one, or --suite "puppets"')
    elif arguments.suite == "long":
        report = evaluate_long(bundle, settings, arguments)
        text = long_table(report)
    elif arguments.suite == "routers":
        report = evaluate_routers(bundle, settings, arguments)
        text = router_table(report)
    else:
        report = evaluate_refinement(bundle, settings)
        text = refinement_table(report)
    report["model"] = arguments.model
    print(text)
    if arguments.json is not None:
        _write(report, arguments.json)
        print(f"wrote {arguments.json}")


def evaluate_routers(bundle: ModelBundle, settings: SceneSettings, arguments: Arguments) -> dict[str, Any]:
    """The router suite; goes on with the report at `arguments.json` where there is one of the same model."""
    ways = {name: way for name, way in WAYS.items() if not arguments.ways}
    for start in arguments.ways:
        found = {name: way for name, way in ALL_WAYS.items() if name == start}
        found = found or {name: way for name, way in ALL_WAYS.items() if name.startswith(start)}
        if not found:
            raise InputError(f'--ways "{start}"', f"the beginning of one of {', '.join(ALL_WAYS)}", "choose one")
        ways |= found
    subject = ModelSubject(bundle, settings, (), arguments.steps)
    path = arguments.json
    known = jsonlib.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else None
    if known is not None and known.get("suite") != "routers":
        raise InputError(f"--json {path}", "a report of the router suite, or no file", "choose another")
    with tqdm(total=len(ways) * settings.scenes, unit="clip", file=sys.stderr) as bar:

        def tick(doing: str) -> None:
            bar.set_description(doing)
            bar.update()

        save = None if path is None else lambda report: _write(report, path)
        report = router_report(subject, ways, known, save, tick)
    return report | {"versions": versions()}


def evaluate_long(bundle: ModelBundle, scenes: SceneSettings, arguments: Arguments) -> dict[str, Any]:
    """The long suite; --frames longer than a window, or its default of 20 seconds."""
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
    path.write_text(jsonlib.dumps(report, indent=1) + "\n", encoding="utf-8")


def _load(model: str, device: str) -> ModelBundle:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if Path(model).is_dir():
        from bya_core.checkpoints.tiny_bundle import load_tiny

        return load_tiny(Path(model)).to(device)
    return load_bundle(model).to(device)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
