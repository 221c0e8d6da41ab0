"""`bya inspect`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from bya_core.weights.inspection import Inspection


@dataclass(frozen=True)
class Inspect:
    """List what would be loaded from a model's files, what is missing and what does not fit.

    Weights are not read. The exit code is 0 if the model can be loaded, otherwise 1.
    """

    model: Annotated[
        Positional[str],
        arg(help="Model name, folder (released files, training run, bundle) or converted file.", metavar="MODEL"),
    ]
    json: Annotated[bool, arg(help="Print JSON.")] = False

    def run(self) -> int:
        from bya_core.weights.inspection import inspect_model

        inspection = inspect_model(self.model)
        print(json.dumps(inspection.as_json(), indent=2) if self.json else as_text(inspection))
        return 0 if inspection.loads else 1


def as_text(inspection: Inspection) -> str:
    """The inspection as text."""
    from bya_core.weights.comparison import shorten

    found = inspection.comparison.expected - len(inspection.comparison.missing)
    lines = [
        f"{inspection.path}: {inspection.parameters / 1e9:.3f} billion parameters, flavour {inspection.flavour}",
        f"  weights      {found} of {inspection.comparison.expected} found, {inspection.lora} LoRA updates to merge",
    ]
    lines += [f"  file         {path} ({size / 1e6:.1f} MB)" for path, size in inspection.files.items()]
    if inspection.zeroed:
        lines.append(f"  set to zero  {len(inspection.zeroed)} that no computation reads: {shorten(inspection.zeroed)}")
    if inspection.ignored:
        lines.append(f"  ignored      {len(inspection.ignored)} unexpected: {shorten(inspection.ignored)}")
    lines.append(f"  encoders     {inspection.encoders}")
    for name, files in inspection.missing_components.items():
        lines.append(f"  missing      {name}: {shorten(files)}; run: bya download official --components {name}")
    lines += [f"  error        {error}" for error in inspection.errors]
    lines.append("The model can be loaded." if inspection.loads else "The model cannot be loaded.")
    return "\n".join(lines)
