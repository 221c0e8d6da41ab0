"""Door of the pack for ComfyUI. Outside ComfyUI importing it does nothing; the nodes come in a later version."""

from importlib.util import find_spec

__all__: list[str] = []

if find_spec("comfy_api") is not None:
    from comfy_api.latest import ComfyExtension

    class BindYourAvatar(ComfyExtension):
        """An extension that has no nodes yet; the command line (`python -m bya_core`) does the work so far."""

        async def get_node_list(self) -> list[type]:
            return []

    async def comfy_entrypoint() -> BindYourAvatar:
        return BindYourAvatar()

    __all__.append("comfy_entrypoint")
