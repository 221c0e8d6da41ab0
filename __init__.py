"""Entry point for ComfyUI, which imports the pack by path. Without ComfyUI, no nodes are defined."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

WEB_DIRECTORY = "./web"
OLDEST_COMFYUI = "0.3.48"  # the first release with the V3 node API

__all__ = ["WEB_DIRECTORY"]


def _find_core() -> None:
    """Make bya_core importable without adding the folder to sys.path (ComfyUI has its own module `nodes`).

    Raises:
        ImportError: Another bya_core would be imported.
    """
    folder = Path(__file__).resolve().parent / "bya_core"
    found = find_spec("bya_core")
    if found is None:
        spec = spec_from_file_location("bya_core", folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules["bya_core"] = module
        spec.loader.exec_module(module)
        return
    other = Path(found.origin or "").resolve().parent
    if other != folder:
        raise ImportError(
            f"bya_core was found in {other}; expected {folder}; remove the other one (pip uninstall bind-your-avatar, "
            "or a second copy of this pack in custom_nodes) and start ComfyUI again."
        )


if find_spec("comfy_api") is None:
    pass  # not in ComfyUI
elif find_spec("comfy_api.latest") is None:
    logging.getLogger(__name__).error(
        "Bind-Your-Avatar: this ComfyUI has no V3 node API; expected ComfyUI %s or newer; update ComfyUI.",
        OLDEST_COMFYUI,
    )
else:
    _find_core()
    try:
        from .nodes import comfy_entrypoint  # noqa: F401  # used by ComfyUI
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Bind-Your-Avatar: the Python package {error.name} is missing; expected those of requirements.txt; run "
            f"pip install -r {Path(__file__).resolve().parent / 'requirements.txt'} with ComfyUI's Python, then start "
            "ComfyUI again."
        ) from None

    __all__.append("comfy_entrypoint")
