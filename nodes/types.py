"""What flows along the wires between the pack's nodes. All of it is immutable: ComfyUI keeps outputs in its cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from comfy_api.latest import io

if TYPE_CHECKING:
    from torch import Tensor

    from bya_core.config import Preset
    from bya_core.grid import TokenGrid
    from bya_core.routing import Routing
    from bya_core.sampling.prepared import Prepared
    from bya_core.scene.compose import Member
    from bya_core.scene.types import Scene

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
    """BYA_ROUTING: an encoded scene, who is where in it, and the model that goes on from there.

    Args:
        whole: the scene where it is longer than a window; the rest is then about its first window.
    """

    model: HostModel
    prepared: Prepared
    routing: Routing
    whole: Scene | None = None

    @property
    def scene(self) -> Scene:
        """What was asked for."""
        return self.prepared.scene if self.whole is None else self.whole

    def at(self, speed: Preset) -> RoutingValue:
        """The same, sampled at that speed."""

        def faster(scene: Scene) -> Scene:
            return replace(scene, sampling=replace(scene.sampling, preset=speed))

        prepared = replace(self.prepared, scene=faster(self.prepared.scene))
        return replace(self, prepared=prepared, whole=self.whole and faster(self.whole))

    @property
    def names(self) -> list[str]:
        return [character.name for character in self.scene.characters]

    @property
    def mask_images(self) -> Tensor:
        """MASK of the routing: [N * T, height, width]."""
        from bya_core.pipelines.mask_images import to_images

        return to_images(self.routing.masks, self.prepared.grid)

    def token_masks(self, images: Tensor | None) -> tuple[Tensor, TokenGrid]:
        """A MASK of all characters as [N, T, h, w], and its grid; that of the routing where there is none."""
        from bya_core.pipelines.mask_images import from_images

        if images is None:
            return self.routing.masks, self.prepared.grid
        count, grid, scene = len(self.names), self.prepared.grid, self.scene
        every = self.model.bundle.grid(scene.num_frames, scene.height, scene.width)
        if images.shape[0] in (count * every.frames, count * every.video_frames):
            grid = every
        return from_images(images, grid, count), grid
