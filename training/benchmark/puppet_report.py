"""The puppet suite as a whole: its scenes one by one, in several processes, gone on with; and its table."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

import torch

import bya_core
from bya_core.grid import TokenGrid
from bya_core.weights.bundle import ModelBundle
from training.benchmark.page import Keeper
from training.benchmark.puppet_suite import KEPT, MEASURE, SHARES, Tick, pooled_report, scene_row
from training.benchmark.scenes import SceneSettings, suite_scene
from training.benchmark.subjects import CodecSubject, ModelSubject, ShuffledSubject, Subject, TruthSubject

STAND_INS = {"truth": TruthSubject, "shuffled": ShuffledSubject}
MARKS = {
    "half noise and below": 0.85,
    "noisiest, first frame": 0.6,
    "change on static": 0.02,
    "binding": 0.95,
    "binding swapped": 0.95,
    "identity": 0.9,
}
"""What a model must reach on 256 mixed scenes; the change of masks is a mark from above."""


@dataclass(frozen=True)
class Wanted:
    """What is measured of every scene; see `scene_row`."""

    router: bool = True
    generate: bool = True
    codec: bool = False

    @property
    def keys(self) -> set[str]:
        """Of a finished row."""
        made = {"made", "drawn truth"} | ({"behind the codec"} if self.codec else set())
        return ({"router"} if self.router else set()) | (made if self.generate else set())


@dataclass(frozen=True)
class Examiner:
    """Measures scenes of one subject by their number."""

    subject: Subject
    settings: SceneSettings
    wanted: Wanted
    drawn: dict[str, Subject]
    keeper: Keeper | None = None

    @classmethod
    def of(
        cls,
        bundle: ModelBundle | None,
        settings: SceneSettings,
        wanted: Wanted,
        steps: int | None = None,
        stand_in: str = "truth",
        keeper: Keeper | None = None,
    ) -> Examiner:
        """For a model, or for the stand-in of that name where there is none; `keeper` keeps the videos."""
        if bundle is not None:
            subject: Subject = ModelSubject(bundle, settings, SHARES, steps)
        else:
            grid = TokenGrid.from_pixels(settings.num_frames, settings.height, settings.width, space_factor=4)
            subject = STAND_INS[stand_in](settings, SHARES, grid)
        drawn: dict[str, Subject] = {"drawn truth": TruthSubject(settings, SHARES, subject.grid)}
        if wanted.codec and bundle is not None:
            drawn["behind the codec"] = CodecSubject(bundle, settings, SHARES)
        return cls(subject, settings, wanted, drawn, keeper)

    def row(self, index: int, tick: Tick | None = None) -> dict[str, Any]:
        scene = suite_scene(self.settings, index)
        return scene_row(
            self.subject,
            scene,
            router=self.wanted.router,
            generate=self.wanted.generate,
            drawn=self.drawn,
            tick=tick,
            keeper=self.keeper,
        )


def puppet_report(
    examiner: Examiner,
    *,
    known: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], object] | None = None,
    tick: Tick | None = None,
    elsewhere: Callable[[Sequence[int]], Iterator[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Measure the scenes that are not measured yet, and pool all of them.

    Args:
        examiner: see there.
        known: an earlier report; its scenes are kept where model and settings are the same.
        save: called with the report so far after each scene.
        tick: called before each piece of work, or, where it is done elsewhere, after each scene.
        elsewhere: measures scenes by their numbers in any order, see `in_processes`; None = here, one by one.

    Raises:
        InputError: a size that does not fit the model.
    """
    start = time.perf_counter()
    settings, subject = examiner.settings, examiner.subject
    fixed = {"points": SHARES, "list": settings.version, "measure": MEASURE}
    described = {**asdict(settings), **fixed, **subject.describe()}
    same = known is not None and _comparable(known["settings"]) == _comparable(described)
    numbers = range(settings.scenes)
    needed = examiner.wanted.keys
    old = {row["seed"]: row for row in known["scenes"]} if known is not None and same else {}
    rows = {
        index: old[settings.seed_base + index]
        for index in numbers
        if needed <= old.get(settings.seed_base + index, {}).keys()
    }
    before = known["seconds"] if known is not None and rows else 0.0

    def report() -> dict[str, Any]:
        ordered = [rows[index] for index in sorted(rows)]
        return {
            "suite": "puppets",
            "model": subject.name,
            **pooled_report(ordered, subject.points),
            "settings": described,
            "seeds": [row["seed"] for row in ordered],
            "versions": versions(),
            "seconds": round(before + time.perf_counter() - start, 1),
            "scenes": ordered,
        }

    missing = [index for index in numbers if index not in rows]
    fresh = elsewhere(missing) if elsewhere is not None else (examiner.row(index, tick) for index in missing)
    for row in fresh:
        rows[row["seed"] - settings.seed_base] = row
        if tick is not None and elsewhere is not None:
            tick(f"scene {row['seed']} done")
        if save is not None:
            save(report())
    return report()


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings but for the number of scenes, with lists for tuples, as JSON has them."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in settings.items() if key != "scenes"
    }


def evaluate(
    bundle: ModelBundle | None,
    settings: SceneSettings,
    *,
    steps: int | None = None,
    generate: bool = True,
    codec: bool = False,
    stand_in: str = "truth",
) -> dict[str, Any]:
    """The puppet suite of a model that is loaded already, in this process.

    Args:
        bundle: model, on the device where it shall run; None = `stand_in` is measured.
        settings: which scenes; their size must fit the model.
        steps: sampling steps; None = the bundle's.
        generate: False = only the router.
        codec: also "codec_ceiling", the drawn truth after the bundle's video codec.
        stand_in: "truth" or "shuffled".

    Returns:
        A report ready for JSON; "ceiling" holds what the same measurement says of the drawn truth.
    """
    wanted = Wanted(generate=generate, codec=codec and bundle is not None)
    return puppet_report(Examiner.of(bundle, settings, wanted, steps, stand_in))


_worker: Examiner | None = None


def _begin(load: Callable[[], Examiner], threads: int) -> None:
    global _worker
    torch.set_num_threads(threads)
    _worker = load()


def _row(index: int) -> dict[str, Any]:
    assert _worker is not None
    return _worker.row(index)


def in_processes(
    load: Callable[[], Examiner], processes: int, threads: int = 1
) -> Callable[[Sequence[int]], Iterator[dict[str, Any]]]:
    """Rows of scenes measured by several processes at once, in the order they are done.

    Small models gain more from a process for each core than from threads.

    Args:
        load: makes the examiner in each process; must be picklable.
        threads: of each process.
    """

    def rows(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        if not indices:
            return
        context = multiprocessing.get_context("spawn")
        count = min(processes, len(indices))
        with ProcessPoolExecutor(count, context, _begin, (load, threads)) as pool:
            for done in as_completed([pool.submit(_row, index) for index in indices]):
                yield done.result()

    return rows


def versions() -> dict[str, str]:
    """Of everything that could change a figure."""
    found = {"bya_core": bya_core.__version__, "python": platform.python_version()}
    for package in ("torch", "diffusers", "transformers", "numpy", "scipy"):
        found[package] = importlib.metadata.version(package)
    return found


def table(report: dict[str, Any]) -> str:
    """The figures that matter, for people."""
    router, made = report["router"], report["generated"]
    lines = [f"{report['model']} on {len(report['seeds'])} held-out puppet scenes ({report['settings']['list']})", ""]
    if router is not None:
        lines += _router_lines(router)
    if made is None:
        return "\n".join(lines)
    lines.append(f"{'generated clips':<26}{'all':>8}{'first frame':>13}{'without':>9}{'truth':>8}{'codec':>8}")
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
    if made["by"]:
        lines += ["", f"{'apart':<12}{'scenes':>8}{'router IoU':>12}{'binding':>9}{'swapped':>9}{'identity':>10}"]
    for name, part in made["by"].items():
        found = None if router is None else router["headline_iou_by"][name]
        cells = [_figure(part[key]["accuracy"]) for key in ("binding", "binding_swapped")]
        figures = f"{_figure(found):>12}{cells[0]:>9}{cells[1]:>9}{_figure(part['identity']):>10}"
        lines.append(f"  {name:<10}{part['scenes']:>8}{figures}")
    return "\n".join(lines)


def _router_lines(router: dict[str, Any]) -> list[str]:
    lines = [f"{'router IoU at noise':<26}{'with first frame':>18}{'without':>10}"]
    for point in router["points"]:
        with_frame, without = point["with_first_frame"], point["without_first_frame"]
        lines.append(f"  {point['share']:<24}{_figure(with_frame):>18}{_figure(without):>10}")
    half = (router["headline_with_first_frame"], router["headline_without_first_frame"])
    lines.append(f"  {'half noise and below':<24}{_figure(half[0]):>18}{_figure(half[1]):>10}")
    mark = f"mark {MARKS['half noise and below']}"
    lines.append(f"  {'mean of both':<24}{_figure(router['headline_iou']):>18}{mark:>20}")
    mark = f"mark {MARKS['noisiest, first frame']}"
    lines.append(f"  {'noisiest, first frame':<24}{_figure(router['noisiest_with_first_frame']):>18}{mark:>20}")
    change, truth = router["change_on_static"], _figure(router["change_on_static_of_truth"])
    mark = f"mark {MARKS['change on static']} or less (truth {truth}, {router['static_scenes']} scenes)"
    return [*lines, f"  {'change on static people':<24}{_figure(change):>18}     {mark}", ""]


def kept_cells(report: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """What the page says below each kept video: name -> seed -> cell."""
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for name in ("made", "drawn truth"):
        for word, key in zip(KEPT, ("given", "swapped"), strict=True):
            cells[f"{name}, {word}"] = {row["seed"]: cell_of(row[name][key]) for row in report["scenes"] if name in row}
    return cells


def cell_of(row: dict[str, Any]) -> dict[str, Any]:
    """Below one video: is it bound, and its figures."""
    judged = [n for n, is_judged in enumerate(row["judged"]) if is_judged]
    right = all(row["follows"][n] == row["should_follow"][n] for n in judged)
    own = [row["correlation"][n][k] for n, k in enumerate(row["should_follow"]) if k >= 0]
    words = f"masks {_figure(row['mask_iou'])}, own voice {', '.join(f'{value:.2f}' for value in own)}"
    return {"good": right if judged else None, "words": [words]}


def _at(column: dict[str, Any] | None, path: tuple[str, ...]) -> float | None:
    value: Any = column
    for key in path:
        value = None if value is None else value[key]
    return value


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
