"""The router suite: where the masks come from, how fine they are, and whether they move with the people.

Repeats the paper's ablations (sec. 5.4.1, bounding boxes against fine masks; 5.4.2, static 2D masks against 3D masks)
for every router, on people who keep still, who move, and who cross each other. Every scene has a first frame (the pre
router needs one), everybody talks, and the voices of every other scene are swapped. All ways of routing start from the
same noise. A clip is judged by its pixels, as in the puppet suite.

Ways that share a router share its run, so that only masks differ; the time of each holds the whole of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from bya_core.config import BackgroundAudio, RefineConfig, Region, RouterConfig
from bya_core.errors import InputError
from bya_core.evaluation import binding as bindings
from bya_core.masks import time_union, to_boxes
from bya_core.pipelines.generate import denoised, prepare
from bya_core.progress import ProgressTracker
from bya_core.routing.refine import refine
from bya_core.routing.result import Routing
from bya_core.routing.route import find
from bya_core.sampling.prepared import Prepared
from training.benchmark.baselines import Baseline, make_baseline
from training.benchmark.page import Keeper
from training.benchmark.puppet_suite import Tick, judge
from training.benchmark.scenes import SceneSettings, SuiteScene, draw, with_references
from training.benchmark.subjects import Made, ModelSubject, TruthSubject, decode_clips
from training.puppets.world import Motion

MOTIONS: tuple[Motion, ...] = ("still", "moving", "crossing")


@dataclass(frozen=True)
class Way:
    """One way of routing.

    Args:
        router: who finds the masks; "truth" = nothing is generated, the drawn clip is judged (what can be reached).
        boxes: each character's bounding box in place of its mask.
        static: 2D masks, the union over time; otherwise 3D masks.
        forced: the masks found act over the rest of the run; False = the intra router goes on deciding.
        refine: cleans the masks first.
        region: what the pre router draws around a face.
        background_audio: what tokens of nobody hear.
        baseline: made as others do it, see `baselines`; then nothing of the above counts.
    """

    router: Literal["intra", "post", "pre", "truth"]
    boxes: bool = False
    static: bool = False
    forced: bool = True
    refine: RefineConfig | None = None
    region: Region = "head"
    background_audio: BackgroundAudio = "model"
    baseline: Baseline | None = None

    @property
    def routing(self) -> RouterConfig:
        """Settings of the run that finds the masks: ways with equal ones share it."""
        mode = "intra" if self.router == "truth" else self.router
        return RouterConfig(mode=mode, region=self.region, background_audio=self.background_audio)

    def shaped(self, routing: Routing) -> Routing:
        """What this way makes of its router's masks."""
        if not self.forced:
            return routing
        if self.refine is not None:
            routing = refine(routing, self.refine)
        masks = routing.masks
        if self.static:
            masks = time_union(masks)
        if self.boxes:
            masks = to_boxes(masks)
        return routing.with_masks(masks)


WAYS: dict[str, Way] = {
    "intra": Way("intra", forced=False),
    "intra, fine 3D": Way("intra"),
    "intra, fine 3D, refined": Way("intra", refine=RefineConfig()),
    "intra, fine 2D": Way("intra", static=True),
    "intra, box 3D": Way("intra", boxes=True),
    "intra, box 2D": Way("intra", boxes=True, static=True),
    "post, fine 3D": Way("post"),
    "post, fine 2D": Way("post", static=True),
    "post, box 3D": Way("post", boxes=True),
    "post, box 2D": Way("post", boxes=True, static=True),
    "pre, head 2D": Way("pre", static=True),
    "pre, box 2D": Way("pre", static=True, region="box"),
    "drawn truth": Way("truth"),
}
"""The table. Masks of the pre router are boxes or head shapes from the first frame, and never move."""

BYSTANDERS: dict[str, Way] = {
    "intra, background hears everybody": Way("intra", forced=False, background_audio="all"),
    "intra, background hears nobody": Way("intra", forced=False, background_audio="none"),
}

BASELINES: dict[str, Way] = {
    "concat": Way("intra", baseline="concat"),
    "mixed": Way("intra", baseline="mixed"),
    "boxes": Way("pre", static=True, region="box"),
    "halves": Way("intra", baseline="halves"),
    "ingredients-style": Way("intra", baseline="tokens"),
    "pre": WAYS["pre, head 2D"],
    "post": WAYS["post, fine 3D"],
    "intra": WAYS["intra"],
    "drawn truth": WAYS["drawn truth"],
}
"""The table of baselines: what others do, beside the three routers."""

ALL_WAYS = WAYS | BYSTANDERS


def router_scene(settings: SceneSettings, index: int) -> SuiteScene:
    """Scene number `index`: still, moving and crossing people by turns; with a first frame; everybody talks."""
    seed = settings.seed_base + index
    motion = MOTIONS[index % len(MOTIONS)]
    clip = draw(settings, seed, "overlap", motion=motion)
    scene = replace(with_references(settings, clip, first_frame=True), motion=motion)
    if index // len(MOTIONS) % 2:
        return replace(scene, clip=replace(clip, matrix=np.ascontiguousarray(scene.swapped)))
    return scene


def measure_routers(
    subject: ModelSubject,
    indices: Sequence[int],
    ways: dict[str, Way],
    known: dict[tuple[int, str], dict[str, Any]] | None = None,
    done: Callable[[list[dict[str, Any]]], object] | None = None,
    tick: Tick | None = None,
    keeper: Keeper | None = None,
) -> list[dict[str, Any]]:
    """One row of figures per scene and way.

    Args:
        subject: the model.
        indices: which scenes.
        ways: by name.
        known: rows by (seed, way) of an earlier run; they are not made again.
        done: called with all rows after each scene.
        tick: called before each clip.
        keeper: keeps the videos.
    """
    rows: list[dict[str, Any]] = []
    for index in indices:
        seed = subject.settings.seed_base + index
        have = {name: known[seed, name] for name in ways if known and (seed, name) in known}
        wanted = {name: way for name, way in ways.items() if name not in have}
        made = dict(_judged(subject, router_scene(subject.settings, index), wanted, tick, keeper)) if wanted else {}
        rows += [have.get(name) or made[name] for name in ways]
        if done is not None:
            done(rows)
    return rows


def _judged(
    subject: ModelSubject, scene: SuiteScene, ways: dict[str, Way], tick: Tick | None, keeper: Keeper | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    matrix = scene.clip.matrix
    shared: dict[RouterConfig, _Found] = {}
    for name, way in ways.items():
        if tick is not None:
            tick(f"{name}, scene {scene.clip.seed}")
        about = {"seed": scene.clip.seed, "motion": scene.clip.motion, "way": name}
        if way.router == "truth":
            made, cost = _drawn(subject, scene), _Cost()
        elif way.baseline is not None:
            cost = _Cost()
            with cost.counted(subject.bundle.transformer):
                made = make_baseline(way.baseline, subject, scene, matrix)
        else:
            try:
                if way.routing not in shared:
                    shared[way.routing] = _find(subject, scene, way.routing)
            except InputError as error:  # the pre router could not find somebody
                yield name, about | {"failed": str(error)}
                continue
            made, cost = _make(subject, shared[way.routing], way)
        if keeper is not None:
            keeper.keep(scene.clip, name, made.frames)
        judged = judge(made, scene, matrix, subject.grid, overlapping=True)
        followed = judged.binding
        heard = [(n, k) for n, k in enumerate(followed.target) if k >= 0]
        yield (
            name,
            {
                **about,
                **judged.row(),
                "flicker": round(judged.flicker, 4),
                "own": round(float(np.mean([followed.correlation[n, k] for n, k in heard])), 4),
                "calls": cost.calls,
                "seconds": round(cost.seconds, 2),
            },
        )


@dataclass
class _Cost:
    """Transformer calls and seconds of processor time so far."""

    calls: int = 0
    seconds: float = 0.0

    @contextmanager
    def counted(self, transformer: torch.nn.Module) -> Iterator[None]:
        def one(*_: Any) -> None:
            self.calls += 1

        hook, start = transformer.register_forward_pre_hook(one), time.process_time()
        try:
            yield
        finally:
            hook.remove()
            self.seconds += time.process_time() - start


@dataclass(frozen=True)
class _Found:
    """A router's run, and what it cost."""

    prepared: Prepared
    routing: Routing
    cost: _Cost = field(default_factory=_Cost)


def _find(subject: ModelSubject, scene: SuiteScene, config: RouterConfig) -> _Found:
    cost = _Cost()
    with cost.counted(subject.bundle.transformer):
        asked = subject.scene(scene, scene.clip.matrix, scene.first_frame, config)
        prepared = prepare(asked, subject.bundle)
        routing = find(prepared, subject.bundle)
    return _Found(prepared, routing, cost)


def _make(subject: ModelSubject, found: _Found, way: Way) -> tuple[Made, _Cost]:
    cost = replace(found.cost)
    with cost.counted(subject.bundle.transformer):
        latents, masks = denoised(found.prepared, way.shaped(found.routing), subject.bundle, ProgressTracker())
        frames = decode_clips(subject.bundle, [latents])[0]
    return Made(frames, masks.numpy()), cost


def _drawn(subject: ModelSubject, scene: SuiteScene) -> Made:
    """The drawn clip with its true masks; where the voices are swapped, the mouths are drawn so."""
    own = np.eye(len(scene.clip.portraits), dtype=np.float32)
    right = replace(scene, clip=replace(scene.clip, matrix=own))
    return TruthSubject(subject.settings, (), subject.grid).make(right, scene.clip.matrix)


def router_report(
    subject: ModelSubject,
    ways: dict[str, Way],
    known: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], object] | None = None,
    tick: Tick | None = None,
    table: dict[str, Way] = ALL_WAYS,
    keeper: Keeper | None = None,
) -> dict[str, Any]:
    """Everything for the record.

    Args:
        subject, ways: see `measure_routers`.
        known: an earlier report of the same model and settings: what it holds is not made again, and stays in it.
        save: called with the report so far after each scene.
        tick: called before each clip.
        table: every way there is, in its order.
        keeper: keeps the videos.
    """
    settings = {**asdict(subject.settings), **subject.describe()}
    old = known["rows"] if known is not None and known["settings"] | {"scenes": 0} == settings | {"scenes": 0} else []
    rows = {(row["seed"], row["way"]): row for row in old}
    order = list(table)

    def report(fresh: list[dict[str, Any]]) -> dict[str, Any]:
        rows.update({(row["seed"], row["way"]): row for row in fresh})
        ordered = sorted(rows.values(), key=lambda row: (order.index(row["way"]), row["seed"]))
        return {
            "suite": "baselines" if table is BASELINES else "routers",
            "model": subject.name,
            "summary": summary(ordered),
            "settings": settings,
            "ways": {name: asdict(table[name]) for name in order if any(row["way"] == name for row in ordered)},
            "rows": ordered,
        }

    done = None if save is None else lambda fresh: save(report(fresh))
    return report(measure_routers(subject, range(subject.settings.scenes), ways, dict(rows), done, tick, keeper))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures per way, over all scenes and for each kind of motion."""
    table: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == name]
        table[name] = {"all": pooled(mine)}
        for motion in MOTIONS:
            part = [row for row in mine if row["motion"] == motion]
            if part:
                table[name][motion] = pooled(part)
    return table


def pooled(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over scenes; binding over all judged mouths. Scenes that a router could not do are only counted."""
    failed = sum("failed" in row for row in rows)
    rows = [row for row in rows if "failed" not in row]
    if not rows:
        return {"scenes": 0, "failed": failed}
    score = bindings.score(
        bindings.BindingResult(*(np.array(row[key]) for key in ("correlation", "should_follow", "judged")))
        for row in rows
    )
    identities = [right for row in rows for right in row["identity"]]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ("mask_iou", "swap_rate", "flicker")}
    cost = {key: float(np.mean([row[key] for row in rows])) for key in ("calls", "seconds")}
    figures = {
        **mean,
        **{f"binding {key}": value for key, value in asdict(score).items()},
        "own": float(np.mean([row["own"] for row in rows])),
        "identity": float(np.mean(identities)),
        "likeness": float(np.mean([value for row in rows for value in row.get("likeness", [np.nan])])),
        **cost,
    }
    return {"scenes": len(rows), "failed": failed} | {
        key: round(float(value), 4) if np.isfinite(value) else None for key, value in figures.items()
    }


def router_table(report: dict[str, Any]) -> str:
    """The figures for people, as a Markdown table."""
    head = ["way", "mask IoU", *MOTIONS, "binding", *MOTIONS, "own / other", "swaps", "identity", "likeness", "calls"]
    head.append("seconds")
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for name, parts in report["summary"].items():
        whole = parts["all"]
        if not whole["scenes"]:
            continue
        cells = [name]
        for key in ("mask_iou", "binding accuracy"):
            cells += [_cell(parts.get(part, {}).get(key)) for part in ("all", *MOTIONS)]
        cells.append(f"{_cell(whole['own'])} / {_cell(whole['binding other'])}")
        cells += [_cell(whole["swap_rate"]), _cell(whole["identity"]), _cell(whole.get("likeness"))]
        cells += [f"{whole['calls']:.0f}", f"{whole['seconds']:.1f}"]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
