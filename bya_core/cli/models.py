"""`bya models`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from bya_core.cli.common import optional

if TYPE_CHECKING:
    from bya_core.weights.components import Component
    from bya_core.weights.registry import ModelEntry


@dataclass(frozen=True)
class Models:
    """List models and their components with size, license and download command."""

    models_dir: Annotated[Path | None, optional("Folder to search first.")] = None
    json: Annotated[bool, arg(help="Print JSON.")] = False

    def run(self) -> int:
        from bya_core.weights.cache import local_models, model_folders
        from bya_core.weights.registry import MODELS

        entries = [_entry(entry, self.models_dir) for entry in MODELS.values()]
        local = {name: str(path) for name, path in local_models().items() if name not in MODELS}
        searched = [str(folder) for folder in model_folders(self.models_dir)]
        if self.json:
            print(json.dumps({"models": entries, "local": local, "searched": searched}, indent=2))
            return 0
        for entry in entries:
            print(_as_text(entry))
        for name, path in local.items():
            print(f"{name}\n  installed      yes ({path})")
        print(f"Searched {', '.join(searched)}")
        return 0


def _entry(entry: ModelEntry, models_dir: Path | None) -> dict[str, Any]:
    """A model and its components as JSON types."""
    root = entry.path_in(models_dir)
    components = [_component(each, root, entry.name) for each in entry.components]
    return {
        "name": entry.name,
        "purpose": entry.purpose,
        "size": entry.size,
        "license": entry.license,
        "commercial_use": entry.commercial_use,
        "how_to_get": entry.how_to_get,
        "folder": str(root),
        "installed": all(each["installed"] or not each["required"] for each in components)
        if components
        else entry.available,
        "components": components,
    }


def _component(component: Component, root: Path, model: str) -> dict[str, Any]:
    from bya_core.weights.cache import missing_files, read_manifest

    recorded = read_manifest(root).get(component.name)
    missing = missing_files(component, root)
    size = 0 if recorded is None else sum(file["size"] for file in recorded["files"].values())
    return {
        "name": component.name,
        "purpose": component.purpose,
        "required": component.required,
        "size": _size(size) if size else component.size,
        "license": component.license,
        "commercial_use": component.commercial_use,
        "source": component.url,
        "revision": recorded["revision"] if recorded else component.revision,
        "verified": recorded is not None,
        "missing": missing,
        "how_to_get": f"bya download {model} --components {component.name}",
        "installed": not missing,
    }


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _as_text(entry: dict[str, Any]) -> str:
    state = f"yes ({entry['folder']})" if entry["installed"] else f"no; {entry['how_to_get']}"
    lines = [entry["name"], *(f"  {key:<14} {entry[key]}" for key in ("purpose", "size", "license", "commercial_use"))]
    lines.append(f"  {'installed':<14} {state}")
    for component in entry["components"]:
        lines += ["", f"  {component['name']}{'' if component['required'] else ' (optional)'}: {component['purpose']}"]
        lines += [f"    {key:<14} {component[key]}" for key in ("size", "license", "commercial_use")]
        revision = f" at {component['revision'][:10]}" if component["revision"] else ""
        lines.append(f"    {'source':<14} {component['source']}{revision}")
        state = "yes" if component["verified"] else "yes, not downloaded by bya and not verified"
        if component["missing"]:
            more = f" and {len(component['missing']) - 4} more" if len(component["missing"]) > 4 else ""
            state = f"no, missing {', '.join(component['missing'][:4])}{more}; {component['how_to_get']}"
        lines.append(f"    {'installed':<14} {state}")
    return "\n".join([*lines, ""])
