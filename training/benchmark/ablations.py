r"""What each part of stage 3 is good for: trained without it from the same weights, measured on held-out puppets.

    python -m training.benchmark.ablations --data runs/ablations/data --output runs/ablations  # all, three seeds
    python -m training.benchmark.ablations --data runs/ablations/data --output runs/ablations --variants no_layer_loss
    python -m training.benchmark.ablations --output runs/ablations --table  # only what is finished so far

Every variant is a change of the recipe (`training/recipes/ablation.yaml`). It starts from given weights, the router
made anew from the seed, and sees the same clips and noise in the same order as the others of that seed. What is done
is kept in `OUTPUT/results`, one file per variant and seed; a run that was stopped goes on.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.loader import load_bundle
from training.data.dataset import ClipFolder
from training.engine.loop import RunSettings, train
from training.engine.stages import Recipe, Stage, load_recipe, override
from training.engine.validation import ValidationConfig, validation_metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """A change of the recipe.

    Args:
        says: what is different, for the table.
        stage: values of stage 3, nested as in a recipe file.
        model: arguments of the model.
    """

    says: str
    stage: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


BASE = "base"
VARIANTS: dict[str, Variant] = {
    BASE: Variant("as it is: softmax, 3D masks, both losses, LoRA, half of the samples on the router's own masks"),
    "no_teacher": Variant(
        "without teacher forcing: own masks only, router and denoiser trained jointly",
        {"scheduled_sampling": 1.0, "scheduled_sampling_warmup": 0},
        {"router_detach": False},
    ),
    "sigmoid": Variant("a sigmoid per character instead of the softmax", {}, {"router_activation": "sigmoid"}),
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
    "own_voice": "own voice",
    "other_voice": "other",
}


@dataclass(frozen=True)
class Arguments:
    """What each part of stage 3 is good for.

    Args:
        output: folder of runs and results.
        data: folder of encoded clips (see training/toy/clips.py).
        init: folder of the transformer to start from; its router is not used.
        bundle: model whose encoders and codec belong to it.
        recipe: what is changed.
        variants: names, in this order; none = all.
        seeds: of router, data order and noise. All variants of the first seed come first.
        steps: in place of the recipe's.
        batch: in place of the recipe's.
        held_out: what is measured.
        precision: of the forward pass while training.
        threads: processor threads; 0 = all.
        table: measure nothing, only write report and table of what is finished.
    """

    output: Path
    data: Path | None = None
    init: Path = Path("bya_core/toy/weights/transformer")
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


def varied(recipe: Recipe, variant: Variant, steps: int | None = None, batch: int | None = None) -> Recipe:
    """The recipe with the change of a variant in its model and its stage 3."""
    stage: Stage = override(recipe.stages[3], variant.stage, "variant")
    stage = replace(stage, steps=steps or stage.steps, batch_size=batch or stage.batch_size)
    return replace(recipe, model=recipe.model | variant.model, stages={**recipe.stages, 3: stage})


def fresh_router(init: Path, recipe: Recipe, seed: int) -> BindYourAvatarTransformer3DModel:
    """The model of the recipe with the weights of `init`, but a router made anew from the seed.

    Raises:
        InputError: the weights do not fit the recipe in anything but the router.
    """
    if not (init / "config.json").is_file():
        raise InputError(f"--init {init}", "a folder with config.json", "give the transformer of a model")
    known = BindYourAvatarTransformer3DModel.from_pretrained(init)
    torch.manual_seed(seed)
    model = BindYourAvatarTransformer3DModel(**recipe.model)
    given = {name: value for name, value in known.state_dict().items() if not name.startswith("router.")}
    wrong = [name for name, value in model.state_dict().items() if _misfits(name, value, given)]
    if wrong:
        raise InputError(
            f"--init {init} without fitting {wrong[0]}", "weights of this recipe's model", "choose another"
        )
    model.load_state_dict(given, strict=False)
    return model


def _misfits(name: str, value: torch.Tensor, given: dict[str, torch.Tensor]) -> bool:
    return not name.startswith("router.") and (name not in given or given[name].shape != value.shape)


def run(name: str, seed: int, data: ClipFolder, arguments: Arguments) -> dict[str, Any]:
    """Train and measure one variant; what is finished is read from its file."""
    path = arguments.output / "results" / f"{name}-{seed}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    recipe = varied(load_recipe(arguments.recipe), VARIANTS[name], arguments.steps, arguments.batch)
    model = fresh_router(arguments.init, recipe, seed)
    settings = RunSettings(arguments.output / "runs" / f"{name}-{seed}", seed=seed, mixed_precision=arguments.precision)  # type: ignore[arg-type]
    started = time.monotonic()
    summary = train(model, data, recipe.stages[3], settings)
    trained = time.monotonic()
    figures = validation_metrics(model.float(), arguments.held_out, load_bundle(arguments.bundle))
    result = {
        "variant": name,
        "seed": seed,
        "figures": {key: round(value, 5) for key, value in figures.items()},
        "training": {key: round(float(value), 5) for key, value in summary.items() if isinstance(value, (int, float))},
        "seconds": {"training": round(trained - started), "measuring": round(time.monotonic() - trained)},
        "settings": _settings(arguments, recipe),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)
    return result


def _settings(arguments: Arguments, recipe: Recipe) -> dict[str, Any]:
    """What must be equal in runs that are compared."""
    stage = recipe.stages[3]
    return {
        "recipe": arguments.recipe,
        "steps": stage.steps,
        "batch": stage.batch_size,
        "precision": arguments.precision,
        "held_out": json.loads(json.dumps(asdict(arguments.held_out))),
    }


def report(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All runs, and per variant mean and spread over the seeds, also of the difference from the base, seed by seed.

    Raises:
        InputError: runs of different lengths or measurements.
    """
    settings = [result["settings"] for result in results]
    if any(other != settings[0] for other in settings):
        raise InputError("results made with different settings", "one folder per setting", "choose another --output")
    base = {r["seed"]: r["figures"] for r in results if r["variant"] == BASE}
    variants = {}
    for name in VARIANTS:
        runs = [result for result in results if result["variant"] == name]
        if not runs:
            continue
        figures = {
            column: _spread([r["figures"][column] for r in runs if column in r["figures"]]) for column in COLUMNS
        }
        paired = [(r["figures"], base[r["seed"]]) for r in runs if r["seed"] in base and name != BASE]
        apart = {c: _spread([a[c] - b[c] for a, b in paired if c in a and c in b]) for c in COLUMNS} if paired else {}
        variants[name] = {
            "says": VARIANTS[name].says,
            "seeds": sorted(r["seed"] for r in runs),
            "figures": {key: value for key, value in figures.items() if value},
            "from_base": {key: value for key, value in apart.items() if value},
        }
    drawn = [r["figures"]["flicker_drawn"] for r in results if "flicker_drawn" in r["figures"]]
    return {
        "settings": settings[0] if settings else {},
        "flicker_drawn": drawn[0] if drawn else None,
        "variants": variants,
        "runs": sorted(({k: v for k, v in r.items() if k != "settings"} for r in results), key=_order),
    }


def _order(result: dict[str, Any]) -> tuple[int, int]:
    return list(VARIANTS).index(result["variant"]), result["seed"]


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, and standard deviation over the seeds (None of one)."""
    if not values:
        return None
    found: dict[str, Any] = {"mean": round(statistics.fmean(values), 4), "seeds": len(values)}
    found["deviation"] = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return found


def markdown(summary: dict[str, Any]) -> str:
    """The table: mean over the seeds, ± standard deviation where there are several."""
    lines = ["| variant | seeds | " + " | ".join(COLUMNS.values()) + " | IoU from base |"]
    lines.append("|---|" + "---|" * (len(COLUMNS) + 2))
    for variant in summary["variants"].values():
        cells = [_cell(variant["figures"].get(column)) for column in COLUMNS]
        apart = variant["from_base"].get("iou")
        lines.append(
            f"| {variant['says']} | {len(variant['seeds'])} | {' | '.join(cells)} | {_cell(apart, sign=True)} |"
        )
    return "\n".join(lines)


def _cell(value: dict[str, float] | None, sign: bool = False) -> str:
    if value is None:
        return "-"
    mean = f"{value['mean']:+.3f}" if sign else f"{value['mean']:.3f}"
    return mean if value["deviation"] is None else f"{mean} ± {value['deviation']:.3f}"


def main(arguments: Arguments) -> None:
    """Train and measure what is missing, then write report and table."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = arguments.variants or tuple(VARIANTS)
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise InputError(f"--variants {unknown[0]}", f"names out of {', '.join(VARIANTS)}", "check the spelling")
    if not arguments.table:
        if arguments.data is None:
            raise InputError("no --data", "a folder of encoded clips", "make one with python -m training.toy.clips")
        data = ClipFolder(arguments.data)
        for seed in arguments.seeds:
            for name in names:
                result = run(name, seed, data, arguments)
                log.info("%s, seed %d: IoU %.3f", name, seed, result["figures"]["iou"])
                write(arguments.output)
    print(write(arguments.output))


def write(output: Path) -> str:
    """`ablations.json` and `ablations.md` of everything that is finished in a folder; returns the table."""
    results = [json.loads(path.read_text()) for path in sorted((output / "results").glob("*.json"))]
    if not results:
        raise InputError(f"no finished run in {output}", "at least one", "run it without --table first")
    summary = report(results)
    (output / "ablations.json").write_text(json.dumps(summary, indent=1) + "\n")
    table = markdown(summary)
    (output / "ablations.md").write_text(table + "\n")
    return table


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
