"""What flows along the wires between the pack's nodes. All of it is immutable: ComfyUI keeps outputs in its cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from comfy_api.latest import io

if TYPE_CHECKING:
    from torch import Tensor

    from bya_core.cast import Member
    from bya_core.prepare import Prepared
    from bya_core.routing import Routing
    from bya_core.scene import Scene

    from .host import HostModel

Model = io.Custom("BYA_MODEL")
Cast = io.Custom("BYA_CAST")
Speech = io.Custom("BYA_SPEECH")
Scenery = io.Custom("BYA_SCENE")
Routed = io.Custom("BYA_ROUTING")

CastValue = tuple["Member", ...]
"""BYA_CAST: the characters of a scene, in order."""


@dataclass(frozen=True)
class SceneValue:
    """BYA_SCENE: a scene and the model that makes it, so that router and sampler cannot disagree."""

    model: HostModel
    scene: Scene


@dataclass(frozen=True)
class RoutingValue:
    """BYA_ROUTING: an encoded scene, who is where in it, and the model that goes on from there."""

    model: HostModel
    prepared: Prepared
    routing: Routing

    @property
    def names(self) -> list[str]:
        return [character.name for character in self.prepared.scene.characters]

    @property
    def mask_images(self) -> Tensor:
        """MASK of the routing: [N * T, height, width]."""
        from bya_core.mask_images import to_images

        return to_images(self.routing.masks, self.prepared.grid)

    def token_masks(self, images: Tensor | None) -> Tensor:
        """A MASK of all characters as [N, T, h, w]; that of the routing where there is none."""
        from bya_core.mask_images import from_images

        if images is None:
            return self.routing.masks
        return from_images(images, self.prepared.grid, len(self.names))

    def with_routing(self, routing: Routing) -> RoutingValue:
        """The same scene with other masks."""
        return replace(self, routing=routing)
