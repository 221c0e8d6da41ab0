"""Door of the pack for ComfyUI, which loads it by path under any folder name. Outside ComfyUI it does nothing."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY"]


def _find_core() -> None:
    """Make this pack's bya_core importable by its name, and nothing else of the folder (ComfyUI has its own `nodes`).

    Raises:
        ImportError: another bya_core would be imported instead.
    """
    place = Path(__file__).resolve().parent / "bya_core"
    found = find_spec("bya_core")
    if found is None:
        spec = spec_from_file_location("bya_core", place / "__init__.py", submodule_search_locations=[str(place)])
        assert spec is not None and spec.loader is not None  # a path to a Python file always has both
        module = module_from_spec(spec)
        sys.modules["bya_core"] = module
        spec.loader.exec_module(module)
        return
    other = Path(found.origin or "").resolve().parent
    if other != place:
        raise ImportError(
            f"bya_core was found in {other}; expected {place}; remove the other one (pip uninstall bind-your-avatar, "
            "or a second copy of this pack in custom_nodes) and start ComfyUI again."
        )


if find_spec("comfy_api") is not None:
    _find_core()
    from .nodes import comfy_entrypoint  # noqa: F401  # the host looks for it here

    __all__.append("comfy_entrypoint")
