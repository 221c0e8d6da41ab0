"""Options of the evaluation, and the suites that it can run."""

from __future__ import annotations

import functools
import json as jsonlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from bya_core.config import DubConfig, RefineConfig
from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.progress import ProgressCallback
from bya_core.validation import Field, validated
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.loader import load_bundle
from training.benchmark import byab, video_suite
from training.benchmark.dub_suite import DubEvaluator, dub_report, dub_table
from training.benchmark.gallery import Cell, VideoStore
from training.benchmark.long_suite import LongSettings, long_report, long_table
from training.benchmark.picture_suite import LENGTHS, PictureEvaluator, picture_report, picture_table
from training.benchmark.puppet_report import (
    REFERENCE_TARGETS,
    Measurements,
    ReportOptions,
    RowEvaluator,
    SceneEvaluator,
    gallery_cell,
    gallery_cells,
    in_processes,
    puppet_report,
    table,
    versions,
)
from training.benchmark.refinement_suite import REFINE_SHARES, refinement_report, refinement_table
from training.benchmark.router_suite import ALL_VARIANTS, BASELINES, VARIANTS, router_report, router_table
from training.benchmark.rows import read_scene_options
from training.benchmark.scenes import HELD_OUT, SceneSettings, all_scenes
from training.benchmark.takes_suite import TakesEvaluator, takes_report, takes_table
from training.benchmark.targets import ModelTarget, weights_hash
from training.benchmark.video_tasks import byab_tasks, folder_tasks, generation_key
from training.command_line import OptionalOutput, OutputFile

Loras = tyro.conf.UseAppendAction[tuple[str, ...]]
Rows = Iterable[tuple[str, Mapping[str, Cell]]]
Report = dict[str, Any]


@validated
class EvaluateOptions:
    """Evaluate a model.

    Args:
        suite: "puppets" = router, binding and identity on puppet scenes; "routers" = comparison of router variants;
            "baselines" = comparison with baselines; "byab" = Bind-Your-Avatar benchmark (docs/how-to/benchmark.md);
            "folder" = videos of any system; "refinement" = masks before and after refinement; "long" = videos of
            20 seconds, each window evaluated separately; "pictures" = image quality of stills and videos; "takes" = the
            best of several takes, without a first frame; "dub" = new voices for people in drawn films.
        model: Name of a model (see `bya models`), model folder or converted file, `final` or a checkpoint of a training
            run, "truth" or "shuffled".
        lora: LoRA file to merge into the model, FILE or FILE:0.8; may be repeated.
        output: Folder for results.json, table.md, videos and index.html with all videos side by side.
        json: JSON report; none = results.json in `output`. The suites puppets, pictures, takes, routers and
            baselines update it after every scene and resume from it.
        compare: Two reports (results.json, or their folders) to compare instead: every metric, the difference and its
            standard error; only --output and --json have an effect.
        row: A row of the paper's tables (training/benchmark/paper_rows.yaml), such as table3-ours: its options replace
            those that are not given.
        first_frames: Only pairs with or without a first frame (byab).
        scene_options: Keys of a scene file as JSON for every pair, such as {"router": {"static": true}} (byab).
        systems: Only these systems (folder); none = all.
        data: Folder of the benchmark (byab), or of videos in one subfolder per system (folder).
        scenes_dir: Folder of scene files, if they are not next to the videos (folder).
        real: Folder of real videos with the same names, for FID and FVD (byab, folder).
        length: Frames of a video; none = length of the speech (byab).
        scenes: Number of held-out scenes, or pairs; use 64 or more for published figures.
        seed_base: Seed of the first scene.
        characters: Characters per scene; "mixed" = 1 to 4 in turn (puppets, pictures, takes).
        frames: Video frames per scene; 0 = native length of the model.
        steps: Number of sampling steps; none = default of the model.
        generate: Generate the scenes, which takes most of the time; otherwise only the router is evaluated.
        router: Evaluate the router masks on held-out clips.
        codec: Evaluate the ground truth reconstructed by the VAE, the upper bound for the transformer.
        variants: Variants with this name or prefix (routers, baselines); none = all of the suite.
        lengths: Numbers of frames in which each scene is generated (pictures).
        takes: Number of takes (takes).
        describe_motion: Describe the motion in the prompts, for models trained with such prompts.
        work_dir: Folder that keeps the windows, so that an interrupted evaluation can be resumed (long).
        device: "auto" = GPU if available.
        threads: CPU threads; 0 = all, or 1 with several processes.
        processes: Parallel processes (puppets, pictures, takes); one per core is fastest for the toy model.
    """

    suite: Literal[
        "puppets", "byab", "folder", "routers", "baselines", "refinement", "long", "pictures", "takes", "dub"
    ] = "puppets"
    model: str = "toy"
    lora: Loras = ()
    output: OptionalOutput = None
    json: OutputFile = None
    compare: tuple[Path, Path] | None = None
    row: str | None = None
    first_frames: Literal["any", "with", "without"] = "any"
    scene_options: str = "{}"
    systems: tuple[str, ...] = ()
    data: Path | None = None
    scenes_dir: Path | None = None
    real: Path | None = None
    length: int | None = None
    scenes: Annotated[int, Field(ge=1)] = 64
    seed_base: int = HELD_OUT
    characters: int | Literal["mixed"] = 2
    frames: int = SceneSettings.num_frames
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    generate: bool = True
    router: bool = True
    codec: bool = False
    variants: tuple[str, ...] = ()
    lengths: tuple[int, ...] = LENGTHS
    takes: Annotated[int, Field(ge=2, le=16)] = 4
    describe_motion: bool = False
    work_dir: OutputFile = None
    device: str = "auto"
    threads: int = 0
    processes: Annotated[int, Field(ge=1, le=1024)] = 1

    @property
    def model_name(self) -> str:
        """The model with its LoRAs."""
        return " + ".join([self.model, *(Path(spec).name for spec in self.lora)])


def evaluate_scenes(options: EvaluateOptions, callback: ProgressCallback | None = None) -> tuple[Report, str, Rows]:
    """Run a suite of puppet scenes: report, table and gallery rows."""
    bundle = _load_target(options)
    size = {} if bundle is None else {"height": bundle.native.height, "width": bundle.native.width}
    frames = options.frames or (SceneSettings.num_frames if bundle is None else bundle.native.num_frames)
    settings = SceneSettings(
        options.scenes,
        options.seed_base,
        options.characters,
        num_frames=frames,
        describe_motion=options.describe_motion,
        **size,
    )
    videos = None if options.output is None else VideoStore(options.output)
    cells: dict[str, dict[int, Cell]] = {}
    if options.suite == "puppets":
        report = evaluate_puppets(bundle, settings, options, videos, callback)
        text, cells = table(report), gallery_cells(report)
    elif options.suite == "pictures":
        report = evaluate_pictures(bundle, settings, options, videos, callback)
        text = picture_table(report)
        cells = {f"{frames} frames": {} for frames in options.lengths}
    elif bundle is None:
        raise InputError(f"--model {options.model}", "a model with a router", 'choose one, or use --suite "puppets"')
    elif options.suite == "long":
        report = evaluate_long(bundle, settings, options, callback)
        text = long_table(report)
    elif options.suite == "takes":
        report = evaluate_takes(bundle, settings, options, videos, callback)
        text = takes_table(report)
        cells = {f"place {place}": {} for place in range(1, options.takes + 1)}
    elif options.suite == "dub":
        report = evaluate_dub(bundle, settings, options, videos, callback)
        text, cells = dub_table(report), {"film": {}, "dubbed": {}}
    elif options.suite == "refinement":
        report = evaluate_refinement(bundle, settings)
        text = refinement_table(report)
    else:
        report = evaluate_routers(bundle, settings, options, videos, callback)
        text = router_table(report)
        for row in report["rows"]:
            if "failed" not in row:
                cells.setdefault(row["way"], {})[row["seed"]] = gallery_cell(row)
    report |= {"model": options.model_name, "versions": versions()}
    seeds = list(dict.fromkeys(seed for by_seed in cells.values() for seed in by_seed)) or report.get("seeds", ())
    return report, text, [] if videos is None else videos.rows(seeds, cells)


def evaluate_videos(options: EvaluateOptions, callback: ProgressCallback | None = None) -> tuple[Report, str, Rows]:
    """Evaluate finished videos: report, table and gallery rows."""
    output, data = options.output, options.data
    if output is None or data is None:
        problem = f"--suite {options.suite} without {'--output' if output is None else '--data'}"
        raise InputError(problem, "both folders", "add the missing option")
    notices: list[str] = []
    settings: dict[str, Any] = {}
    if options.suite == "byab":
        scene_options = read_scene_options(options.scene_options)
        pairs = _pairs(data, options)
        notices = byab.check(data)
        names = [pair.name for pair in pairs]
        settings = {"list": byab.VERSION, "pairs": names, "sha256": byab.fingerprint(pairs), "scene": scene_options}
        system = options.row or Path(options.model).name
        given = all((output / "videos" / system / f"{name}.mp4").is_file() for name in names)
        bundle = None if given and not options.lora else _load(options)
        if bundle is not None:
            system += f"-{generation_key(bundle, options.steps, options.length, scene_options)}"
        if options.length is not None:
            scene_options["length"] = options.length
        tasks = byab_tasks(
            pairs, output, system, bundle, steps=options.steps, scene_options=scene_options, callback=callback
        )
    else:
        tasks = folder_tasks(data, options.scenes_dir, options.systems)
    on_gpu = torch.cuda.is_available() and options.device != "cpu"
    models = video_suite.MetricModels.load_available("cuda" if on_gpu else "cpu")
    previous, _ = _previous_report(options.json, options.suite)
    known = {(row["system"], row["clip"]): row for row in (previous or {}).get("rows", ())}
    rows, systems = video_suite.measure_videos(
        tasks, models, output, real=options.real, previous=known, callback=callback
    )
    report = {
        "suite": options.suite,
        "model": options.model_name if options.suite == "byab" else ", ".join(systems),
        "systems": systems,
        "notices": [*notices, *models.notices],
        "settings": settings,
        "versions": versions(),
        "rows": rows,
    }
    return report, video_suite.video_table(report), video_suite.gallery_rows(rows)


def _pairs(data: Path, options: EvaluateOptions) -> list[byab.Pair]:
    """The pairs that the options select. Raises InputError for none."""
    wanted = {"any": (True, False), "with": (True,), "without": (False,)}[options.first_frames]
    pairs = [pair for pair in byab.read_pairs(data) if (pair.first_frame is not None) in wanted]
    if not pairs:
        raise InputError(f"{data} has no pair {options.first_frames} a first frame", "some", "check the folder")
    return pairs[: options.scenes]


def evaluate_puppets(
    bundle: ModelBundle | None,
    settings: SceneSettings,
    options: EvaluateOptions,
    videos: VideoStore | None = None,
    callback: ProgressCallback | None = None,
) -> Report:
    """Run the puppet suite; resumes the report at `options.json` of the same model."""
    measurements = Measurements(options.router, options.generate, options.codec and bundle is not None)
    arguments = (settings, measurements, options.steps, options.model_name, videos)
    evaluator = SceneEvaluator.create(bundle, *arguments)
    return puppet_report(evaluator, **_resumed("puppets", options, callback, SceneEvaluator.create, arguments))


def evaluate_pictures(
    bundle: ModelBundle | None,
    settings: SceneSettings,
    options: EvaluateOptions,
    videos: VideoStore | None = None,
    callback: ProgressCallback | None = None,
) -> Report:
    """Run the picture suite; resumes the report at `options.json` of the same model."""
    arguments = (settings, options.lengths, options.steps, options.model_name, options.codec, videos)
    run = _resumed("pictures", options, callback, PictureEvaluator.create, arguments)
    return picture_report(PictureEvaluator.create(bundle, *arguments), options.model_name, **run)


def evaluate_takes(
    bundle: ModelBundle,
    settings: SceneSettings,
    options: EvaluateOptions,
    videos: VideoStore | None = None,
    callback: ProgressCallback | None = None,
) -> Report:
    """Run the takes suite; resumes the report at `options.json` of the same model."""
    arguments = (settings, options.takes, options.steps, videos)
    run = _resumed("takes", options, callback, TakesEvaluator, arguments)
    return takes_report(TakesEvaluator(bundle, *arguments), **run)


def evaluate_dub(
    bundle: ModelBundle,
    settings: SceneSettings,
    options: EvaluateOptions,
    videos: VideoStore | None = None,
    callback: ProgressCallback | None = None,
) -> Report:
    """Run the dub suite; resumes the report at `options.json` of the same model."""
    arguments = (settings, DubConfig(), options.steps, videos)
    run = _resumed("dub", options, callback, DubEvaluator, arguments)
    return dub_report(DubEvaluator(bundle, *arguments), **run)


def _resumed(
    suite: str,
    options: EvaluateOptions,
    callback: ProgressCallback | None,
    create: Callable[..., RowEvaluator],
    arguments: tuple[Any, ...],
) -> ReportOptions:
    """Options of a report that resumes the one at `options.json`; several processes create their own evaluators."""
    previous, save = _previous_report(options.json, suite)
    source = None
    if options.processes > 1:
        own = functools.partial(_create_evaluator, create, options, arguments)
        source = in_processes(own, options.processes, options.threads or 1)
    return {"previous": previous, "save": save, "callback": callback, "row_source": source}


def _create_evaluator(
    create: Callable[..., RowEvaluator], options: EvaluateOptions, arguments: tuple[Any, ...]
) -> RowEvaluator:
    return create(_load_target(options), *arguments)


def evaluate_routers(
    bundle: ModelBundle,
    settings: SceneSettings,
    options: EvaluateOptions,
    videos: VideoStore | None = None,
    callback: ProgressCallback | None = None,
) -> Report:
    """Compare router variants or baselines; resumes the report at `options.json` of the same model."""
    default, known = (BASELINES, BASELINES) if options.suite == "baselines" else (VARIANTS, ALL_VARIANTS)
    variants = {} if options.variants else dict(default)
    for prefix in options.variants:
        names = [prefix] if prefix in known else [name for name in known if name.startswith(prefix)]
        if not names:
            raise InputError(f'--variants "{prefix}"', f"the name or prefix of one of {', '.join(known)}", "choose one")
        variants |= {name: known[name] for name in names}
    target = ModelTarget(bundle, settings, (), options.steps)
    previous, save = _previous_report(options.json, options.suite)
    return router_report(target, variants, previous, save, callback, known, videos)


def evaluate_long(
    bundle: ModelBundle, scenes: SceneSettings, options: EvaluateOptions, callback: ProgressCallback | None = None
) -> Report:
    """Run the long suite with --frames, if longer than one window, or 20 seconds."""
    if scenes.characters == "mixed":
        raise InputError("--characters mixed", "a number in the long suite", "pass a number")
    frames = {"num_frames": options.frames} if options.frames > bundle.native.num_frames else {}
    settings = LongSettings(
        scenes.scenes, scenes.seed_base, characters=scenes.characters, steps=options.steps, **frames
    )
    return long_report(bundle, settings, callback, options.work_dir) | {
        "settings": {**asdict(settings), "transformer_sha256": weights_hash(bundle.transformer)}
    }


def evaluate_refinement(bundle: ModelBundle, settings: SceneSettings) -> Report:
    """Run the refinement suite with the default options of refinement."""
    target = ModelTarget(bundle, settings, REFINE_SHARES)
    scenes = all_scenes(settings)
    return {
        "suite": "refinement",
        **refinement_report(target, scenes, RefineConfig()),
        "settings": {**asdict(settings), **target.describe()},
        "seeds": [scene.clip.seed for scene in scenes],
    }


def _previous_report(path: Path | None, suite: str) -> tuple[Report | None, Callable[[Report], None] | None]:
    """Load the report of an earlier run at `path`, if any; also return a function that replaces it."""
    if path is None:
        return None, None
    report = jsonlib.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if report is not None and report.get("suite") != suite:
        raise InputError(f"--json {path}", f"a report of the suite {suite}, or no file", "choose another file")
    return report, lambda report: write_json(report, path)


def write_json(report: Report, path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(jsonlib.dumps(report, indent=1) + "\n", encoding="utf-8")


def _load_target(options: EvaluateOptions) -> ModelBundle | None:
    """The model; None for ground truth."""
    if options.model not in REFERENCE_TARGETS:
        return _load(options)
    if options.lora:
        raise InputError(f"--lora with --model {options.model}", "a model with weights", "remove one of them")
    return None


def _load(options: EvaluateOptions) -> ModelBundle:
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = auto if options.device == "auto" else options.device
    return load_bundle(options.model, device=device, lora=options.lora)
