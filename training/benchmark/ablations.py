"""Ablations of training stage 3: variants trained from the same weights and evaluated on held-out puppet scenes.

    python -m training.benchmark.ablations --data runs/ablations/data --output runs/ablations  # all, three seeds
    python -m training.benchmark.ablations --data runs/ablations/data --output runs/ablations --variants no_layer_loss
    python -m training.benchmark.ablations --data runs/ablations/data --output runs/ablations --variants base mine.yaml
    python -m training.benchmark.ablations --output runs/ablations --table  # finished runs only

Every variant changes the recipe (`training/recipes/ablation.yaml`). It starts from the weights `init` with a router
initialized from the seed; all variants of a seed use the same clips and noise in the same order. Results are saved to
`OUTPUT/results`, one file per variant and seed, so that an interrupted run can be resumed; results of other data,
weights or settings are refused. A variant of your own is a YAML file with the fields of `Variant`, named by the file.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.validation import from_mapping, validated
from bya_core.weights.checkpoints import source_fingerprint
from bya_core.weights.loader import init_source, load_bundle
from training.benchmark.tables import markdown_table
from training.benchmark.validation import ValidationConfig, validation_metrics
from training.command_line import OutputPath, run_command
from training.data.batches import Clips
from training.data.dataset import open_data
from training.engine.build import init_folder
from training.engine.loop import RunSettings, train
from training.engine.lora import load_model
from training.engine.model_config import check_model
from training.engine.recipe import Recipe, load_recipe, override
from training.engine.record import plain
from training.engine.stages import Stage
from training.engine.yaml_files import read_yaml

log = logging.getLogger(__name__)


@validated
class Variant:
    """A change of the recipe.

    Args:
        description: difference from the base, for the table.
        stage: options of stage 3, nested as in a recipe file.
        model: arguments of the model.
    """

    description: str
    stage: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


BASE = "base"
VARIANTS: dict[str, Variant] = {
    BASE: Variant("base: softmax, 3D masks, both losses, LoRA, predicted masks in half of the samples"),
    "no_teacher": Variant(
        "without teacher forcing: predicted masks only, router and denoiser trained jointly",
        {"scheduled_sampling": 1.0, "scheduled_sampling_warmup": 0},
        {"router_detach": False},
    ),
    "sigmoid": Variant("sigmoid per character instead of softmax", {}, {"router_activation": "sigmoid"}),
    "targets_2d": Variant("2D targets: one mask for all frames", {"static_masks": True}),
    "no_layer_loss": Variant("without layer loss", {"router_weights": {"layer_variance": 0.0}}),
    "no_lora": Variant("without LoRA", {"lora": None}),
    "no_smoothness": Variant("without smoothness loss", {"router_weights": {"smoothness": 0.0}}),
    "always_forced": Variant("teacher forcing in all samples (appendix B)", {"scheduled_sampling": 0.0}),
}

COLUMNS = {
    "iou": "IoU",
    "iou_0.9_first_frame": "0.9 ff",
    "iou_0.5_first_frame": "0.5 ff",
    "iou_0.1_first_frame": "0.1 ff",
    "iou_0.9_alone": "0.9",
    "iou_0.5_alone": "0.5",
    "iou_0.1_alone": "0.1",
    "flicker": "flicker",
    "binding": "binding",
    "own_voice": "own speech",
    "other_voice": "other",
}


@dataclass(frozen=True)
class AblationOptions:
    """Train and evaluate ablations of stage 3.

    Args:
        output: Folder of runs and results.
        data: Encoded clips (see training/toy/clips.py), shards, or puppets, as of training/run_stage.py.
        init: Initial weights, a folder or a name; their router is not used.
        bundle: Model that provides encoders and VAE.
        recipe: Base recipe.
        variants: Names of variants or YAML files of variants, in this order; none = all that have a name.
        seeds: Random seeds of router, data order and noise. All variants of the first seed are run first.
        steps: Override of the recipe's number of steps.
        batch: Override of the recipe's batch size.
        held_out: Options of the evaluation.
        precision: Precision of the forward pass during training.
        threads: CPU threads; 0 = all.
        table: Only write report and table of finished runs.
    """

    output: OutputPath
    data: str | None = None
    init: str = "toy"
    bundle: str = "toy"
    recipe: str = "ablation"
    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    batch: int | None = None
    held_out: ValidationConfig = field(
        default_factory=lambda: ValidationConfig(masks=8, videos=4, noise_levels=(0.9, 0.5, 0.1))
    )
    precision: str = "bf16"
    threads: int = 0
    table: bool = False


def apply_variant(recipe: Recipe, variant: Variant, steps: int | None = None, batch: int | None = None) -> Recipe:
    """Apply a variant to the model and stage 3 of a recipe."""
    stage: Stage = override(recipe.stages[3], variant.stage, "variant")
    stage = replace(stage, steps=steps or stage.steps, batch_size=batch or stage.batch_size)
    return replace(recipe, model=recipe.model | variant.model, stages={**recipe.stages, 3: stage})


def read_variants(names: Sequence[str]) -> dict[str, Variant]:
    """Variants by name: those of `VARIANTS`, and YAML files with the fields of `Variant`.

    Raises:
        InputError: an unknown name, or a file that is no variant.
    """
    found: dict[str, Variant] = {}
    for given in names or VARIANTS:
        name, variant = given, VARIANTS.get(given)
        if given.endswith((".yaml", ".yml")):
            path = Path(given)
            name, variant = path.stem, from_mapping(Variant, read_yaml(path), path.name)
            check_model(variant.model, f"{path.name}: model")
            if name in VARIANTS:
                raise InputError(f"--variants {given}", f"a name other than {name}", "rename the file")
        if variant is None:
            raise InputError(f"--variants {given}", f"{', '.join(VARIANTS)}, or a .yaml file", "check the spelling")
        if name in found:
            raise InputError(f"the variant {name} twice", "different variants", "remove one")
        found[name] = variant
    return found


def initialize_router(init: str, recipe: Recipe, seed: int) -> BindYourAvatarTransformer3DModel:
    """Load `init` into the model of a recipe, with a router initialized from the seed.

    Raises:
        InputError: the weights do not fit the model outside of the router.
    """
    pretrained = load_model(init_folder(init))
    torch.manual_seed(seed)
    model = BindYourAvatarTransformer3DModel(**recipe.model)
    weights = {name: value for name, value in pretrained.state_dict().items() if not name.startswith("router.")}
    for name, value in model.state_dict().items():
        if not name.startswith("router.") and (name not in weights or weights[name].shape != value.shape):
            problem = f"--init {init} has no matching {name}"
            raise InputError(problem, "weights of this recipe's model", "choose another folder")
    model.load_state_dict(weights, strict=False)
    return model


def run_variant(
    name: str, variant: Variant, seed: int, data: Clips, options: AblationOptions, settings: dict[str, Any]
) -> dict[str, Any]:
    """Train and evaluate one variant, or load its saved result.

    Args:
        name, variant: the variant.
        seed: random seed.
        data: training clips.
        options: options of the command.
        settings: from `comparable_settings`.

    Raises:
        InputError: the saved result is of another variant or has other settings.
    """
    path = options.output / "results" / f"{name}-{seed}.json"
    content = {"settings": settings, "changes": plain(asdict(variant))}
    if path.is_file():
        stored = dict(json.loads(path.read_text()))
        for part, wanted in content.items():
            found = stored.get(part) or {}
            if differing := [key for key in wanted | found if wanted.get(key) != found.get(key)]:
                problem = f"{path} was measured with another {' and '.join(differing)}"
                raise InputError(problem, "the settings of this run", "choose another --output, or remove the file")
        return stored
    recipe = apply_variant(load_recipe(options.recipe), variant, options.steps, options.batch)
    model = initialize_router(options.init, recipe, seed)
    run = RunSettings(options.output / "runs" / f"{name}-{seed}", seed=seed, mixed_precision=options.precision)  # type: ignore[arg-type]
    started = time.monotonic()
    summary = train(model, data, recipe.stages[3], run)
    trained = time.monotonic()
    figures = validation_metrics(model.float(), options.held_out, load_bundle(options.bundle))
    result = {
        "variant": name,
        "seed": seed,
        "figures": {key: round(value, 5) for key, value in figures.items()},
        "training": {key: round(float(value), 5) for key, value in summary.items() if isinstance(value, (int, float))},
        "seconds": {"training": round(trained - started), "measuring": round(time.monotonic() - trained)},
        **content,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    return result


def comparable_settings(options: AblationOptions, data: Clips) -> dict[str, Any]:
    """What must be equal for a comparison: data, initial weights, the recipe that variants change, the evaluation."""
    recipe = apply_variant(load_recipe(options.recipe), Variant(""), options.steps, options.batch)
    description: dict[str, Any] = getattr(data, "description", {})
    settings = {
        "data": {name: value for name, value in description.items() if name != "source"},
        "init": source_fingerprint(init_source(init_folder(options.init))),
        "bundle": source_fingerprint(init_source(init_folder(options.bundle))),
        "model": recipe.model,
        "stage": asdict(recipe.stages[3]),
        "precision": options.precision,
        "held_out": asdict(options.held_out),
    }
    return dict(json.loads(json.dumps(settings)))


def report(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarize runs: mean and standard deviation over the seeds, also of the paired difference from the base.

    Raises:
        InputError: runs with different settings.
    """
    settings = [result["settings"] for result in results]
    if any(other != settings[0] for other in settings):
        raise InputError("results with different settings", "one folder per setting", "choose another --output")
    base = {r["seed"]: r["figures"] for r in results if r["variant"] == BASE}
    results = sorted(results, key=_order)
    variants = {}
    for name in dict.fromkeys(result["variant"] for result in results):
        runs = [result for result in results if result["variant"] == name]
        figures = {
            column: _spread([r["figures"][column] for r in runs if column in r["figures"]]) for column in COLUMNS
        }
        pairs = [(r["figures"], base[r["seed"]]) for r in runs if r["seed"] in base and name != BASE]
        deltas = {c: [a[c] - b[c] for a, b in pairs if c in a and c in b] for c in COLUMNS}
        variants[name] = {
            "says": runs[0]["changes"]["description"],
            "seeds": sorted(r["seed"] for r in runs),
            "figures": {key: value for key, value in figures.items() if value},
            "from_base": {key: _spread(values) for key, values in deltas.items() if values},
        }
    drawn = [r["figures"]["flicker_drawn"] for r in results if "flicker_drawn" in r["figures"]]
    return {
        "settings": settings[0] if settings else {},
        "flicker_drawn": drawn[0] if drawn else None,
        "variants": variants,
        "runs": [{k: v for k, v in r.items() if k not in ("settings", "changes")} for r in results],
    }


def _order(result: dict[str, Any]) -> tuple[int, str, int]:
    """Named variants first, in their order."""
    name, known = result["variant"], list(VARIANTS)
    return known.index(name) if name in known else len(known), name, result["seed"]


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, and standard deviation over the seeds (None for a single one)."""
    if not values:
        return None
    result: dict[str, Any] = {"mean": round(statistics.fmean(values), 4), "seeds": len(values)}
    result["deviation"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return result


def ablation_table(summary: dict[str, Any]) -> str:
    """Format the means over the seeds, ± standard deviation if there are several."""
    rows = []
    for variant in summary["variants"].values():
        cells = [_cell(variant["figures"].get(column)) for column in COLUMNS]
        rows.append([variant["says"], str(len(variant["seeds"])), *cells, _cell(variant["from_base"].get("iou"), "+")])
    return markdown_table(["variant", "seeds", *COLUMNS.values(), "IoU - base"], rows)


def _cell(value: dict[str, float] | None, sign: str = "") -> str:
    if value is None:
        return "-"
    mean = f"{value['mean']:{sign}.3f}"
    return mean if value["deviation"] is None else f"{mean} ± {value['deviation']:.3f}"


def main(options: AblationOptions) -> None:
    """Run missing variants, then write report and table."""
    if options.threads:
        torch.set_num_threads(options.threads)
    variants = read_variants(options.variants)
    if not options.table:
        if options.data is None:
            raise InputError("no --data", "encoded clips, shards or puppets", "see python -m training.toy.clips")
        data = open_data(options.data, options.bundle)
        settings = comparable_settings(options, data)
        for seed in options.seeds:
            for name, variant in variants.items():
                result = run_variant(name, variant, seed, data, options, settings)
                log.info("%s, seed %d: IoU %.3f", name, seed, result["figures"]["iou"])
                write_tables(options.output)
    print(write_tables(options.output))


def write_tables(output: Path) -> str:
    """Write `ablations.json` and `ablations.md` of all finished runs; return the table."""
    results = [json.loads(path.read_text()) for path in sorted((output / "results").glob("*.json"))]
    if not results:
        raise InputError(f"no finished run in {output}", "at least one", "run it without --table first")
    summary = report(results)
    table = ablation_table(summary)
    for name, text in (("ablations.json", json.dumps(summary, indent=1)), ("ablations.md", table)):
        with atomic_write(output / name) as temporary:
            temporary.write_text(text + "\n")
    return table


if __name__ == "__main__":
    run_command(main, AblationOptions)
