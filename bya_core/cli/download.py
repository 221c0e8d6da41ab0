"""`bya download`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bya_core.cli.common import optional
from bya_core.errors import InputError


@dataclass(frozen=True)
class Download:
    """Download a model.

    Complete files are skipped, partial ones are resumed.

    HF_ENDPOINT selects a mirror of the hub, BYA_MODELS_DIR the folder for models.
    """

    model: Annotated[Positional[str], arg(help="Model name (see `bya models`).", metavar="MODEL")] = "official"
    models_dir: Annotated[Path | None, optional("Folder for models. Default: the first that `bya models` lists.")] = (
        None
    )
    components: Annotated[
        tuple[str, ...], arg(help="Components to download. Default: all.", metavar="[NAME ...]", help_behavior_hint="")
    ] = ()
    verify: Annotated[bool, arg(help="Check the SHA-256 of all downloaded files afterwards.")] = False

    def run(self) -> int:
        from bya_core.weights.cache import changed_files
        from bya_core.weights.registry import MODELS, download_model

        def show(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        root, downloaded = download_model(self.model, self.components, self.models_dir, notify=show)
        if self.verify:
            components = MODELS[self.model].components
            selected = [each for each in components if each.name in self.components or not self.components]
            changed = [name for each in selected for name in changed_files(each, root)]
            if changed:
                problem = f"damaged files in {root}: {', '.join(changed)}"
                raise InputError(problem, "their recorded SHA-256", "delete them, then run this again")
            show("All SHA-256 hashes match")
        print(f"Downloaded {len(downloaded)} files; {self.model} is in {root}")
        return 0
