"""The commands `models`, `download` and `convert`: what there is, getting it, and making one file of it."""

from __future__ import annotations

import json as jsonlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bya_core.errors import InputError

if TYPE_CHECKING:
    from bya_core.weights.components import Component
    from bya_core.weights.registry import ModelEntry


@dataclass(frozen=True)
class Models:
    """List the models and their parts: what each is for, size, licence, whether it is here and how to get it.

    Args:
        models_dir: look here first; the other places are told at the end.
        json: print JSON.
    """

    models_dir: Path | None = None
    json: bool = False

    def run(self) -> int:
        from bya_core.weights.cache import local_models, model_folders
        from bya_core.weights.registry import MODELS

        entries = [_entry(entry, self.models_dir) for entry in MODELS.values()]
        own = {name: str(path) for name, path in local_models().items() if name not in MODELS}
        looked = [str(folder) for folder in model_folders(self.models_dir)]
        if self.json:
            print(jsonlib.dumps({"models": entries, "own": own, "places": looked}, indent=2))
            return 0
        for entry in entries:
            print(_as_text(entry))
        for name, path in own.items():
            print(f"{name}\n  here        yes ({path})")
        print(f"Looked in {', '.join(looked)}.")
        return 0


@dataclass(frozen=True)
class Download:
    """Fetch the files of a model; what is here already is not fetched again. Goes on where it was stopped.

    HF_ENDPOINT names a mirror of the hub; BYA_MODELS_DIR names the folder for models for good.

    Args:
        model: a name from `python -m bya_core models`.
        models_dir: folder that gets a folder of the model's name; None = the first place that `models` tells.
        components: names of the components to download; default: all of them.
        verify: also read every fetched file again and compare its SHA-256 with the recorded one.
    """

    model: tyro.conf.Positional[str] = "official"
    models_dir: Path | None = None
    components: tuple[str, ...] = ()
    verify: bool = False

    def run(self) -> int:
        from bya_core.weights.cache import changed_files
        from bya_core.weights.registry import MODELS, download_model

        def tell(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        root, fetched = download_model(self.model, self.components, self.models_dir, notify=tell)
        if self.verify:
            selected = [c for c in MODELS[self.model].components if c.name in self.components or not self.components]
            wrong = [name for component in selected for name in changed_files(component, root)]
            if wrong:
                came = f"in {root} these files are not what was fetched: {', '.join(wrong)}"
                raise InputError(came, "their recorded SHA-256", "delete them, then run this again")
            tell("all hashes are as recorded")
        print(f"fetched {len(fetched)} files; {self.model} lies in {root}")
        return 0


@dataclass(frozen=True)
class Convert:
    """Make one safetensors file of a model or a training run, or the released files.

    LoRA is merged into the weights it belongs to. The file holds the video transformer with its speech, face and router
    modules, and says what it was made from; text encoder, video codec and the other encoders stay where they are.

    Args:
        model: a name from `python -m bya_core models`, a folder (released files, `final` of a training run, a bundle)
            or a converted file.
        out: the .safetensors file to write; a folder with --to released.
        to: one file, or the released layout (transformer/, audio_module/, face_module/, router/, lora_weight/).
        precision: of the weights; as-stored keeps them, fp8 is e4m3 with a scale per tensor for matrices, others bf16.
        encoders: the model whose text encoder, video codec and encoders belong to it; None = found by its sizes.
    """

    model: tyro.conf.Positional[str]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    to: Literal["safetensors", "released"] = "safetensors"
    precision: Literal["as-stored", "bf16", "fp16", "fp32", "fp8"] = "as-stored"
    encoders: str | None = None

    def run(self) -> int:
        from bya_core.weights.export import convert, convert_to_released

        if self.to == "released":
            told = convert_to_released(self.model, self.out, self.precision)
        else:
            told = convert(self.model, self.out, self.precision, encoders=self.encoders)
        for text in told:
            print(text)
        return 0


def _entry(entry: ModelEntry, models_dir: Path | None) -> dict[str, Any]:
    """All that is known of a model and its parts."""
    root = entry.path_in(models_dir)
    components = [_component(component, root, entry.name) for component in entry.components]
    return {
        "name": entry.name,
        "for": entry.purpose,
        "size": entry.size,
        "license": entry.license,
        "commercial use": entry.commercial_use,
        "how to get": entry.how_to_get,
        "folder": str(root),
        "here": entry.available if not components else all(c["here"] or not c["required"] for c in components),
        "components": components,
    }


def _component(component: Component, root: Path, model: str) -> dict[str, Any]:
    from bya_core.weights.cache import missing_files, read_manifest

    recorded = read_manifest(root).get(component.name)
    missing = missing_files(component, root)
    known = 0 if recorded is None else sum(file["size"] for file in recorded["files"].values())
    return {
        "name": component.name,
        "for": component.purpose,
        "required": component.required,
        "size": _in_words(known) if known else component.size,
        "license": component.license,
        "commercial use": component.commercial_use,
        "from": component.url,
        "revision": recorded["revision"] if recorded else component.revision,
        "verified": recorded is not None,
        "missing": missing,
        "how to get": f"bya download {model} --components {component.name}",
        "here": not missing,
    }


def _in_words(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _as_text(entry: dict[str, Any]) -> str:
    state = f"yes ({entry['folder']})" if entry["here"] else f"no; {entry['how to get']}"
    lines = [entry["name"], *(f"  {key:<14} {entry[key]}" for key in ("for", "size", "license", "commercial use"))]
    lines.append(f"  {'here':<14} {state}")
    for part in entry["components"]:
        lines += ["", f"  {part['name']}{'' if part['required'] else ' (not needed to make videos)'}: {part['for']}"]
        lines += [f"    {key:<14} {part[key]}" for key in ("size", "license", "commercial use")]
        lines.append(f"    {'from':<14} {part['from']}" + (f" at {part['revision'][:10]}" if part["revision"] else ""))
        here = "yes" + ("" if part["verified"] else ", not fetched by this project and not verified")
        if part["missing"]:
            more = f" and {len(part['missing']) - 4} more" if len(part["missing"]) > 4 else ""
            here = f"missing: {', '.join(part['missing'][:4])}{more}\n    {'how to get':<14} {part['how to get']}"
        lines.append(f"    {'here':<14} {here}")
    return "\n".join([*lines, ""])
