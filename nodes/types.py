"""Types of the values between the nodes. All are immutable, because ComfyUI caches outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from comfy_api.latest import io

if TYPE_CHECKING:
    from torch import Tensor

    from bya_core.config import Preset
    from bya_core.grid import TokenGrid
    from bya_core.routing import Routing as CoreRouting
    from bya_core.sampling.conditions import Prepared
    from bya_core.scene.types import Scene as CoreScene
    from bya_core.scene.windows import Window

    from .host import HostModel

Model = io.Custom("BYA_MODEL")
Lora = io.Custom("BYA_LORA")  # a tuple of (file, strength)
Cast = io.Custom("BYA_CAST")  # a tuple of cast members, in order
Speech = io.Custom("BYA_SPEECH")
Scene = io.Custom("BYA_SCENE")
Routing = io.Custom("BYA_ROUTING")

MASK_ORDER = "Masks: characters x latent frames, all frames of the first character first, at the size of the video."
ROUTING_REPORT = "Coverage and confidence per character, audio assignment, notices."


@dataclass(frozen=True)
class SceneValue:
    """BYA_SCENE: a scene and its model."""

    model: HostModel
    scene: CoreScene


@dataclass(frozen=True)
class RoutingValue:
    """BYA_ROUTING: an encoded scene, its character masks and its model.

    Args:
        whole: The complete scene if it is longer than one window; the other fields then belong to one window.
        before: The complete scene as it was when the router ran: the windows before are made from it.
        window: That window; None if there is only one.
        windows: Number of windows.
        preview: Predicted latent frames in colors, uint8 [T, H, W, 3] at the resolution of the latents; None if the
            router did not denoise.
    """

    model: HostModel
    prepared: Prepared
    routing: CoreRouting
    whole: CoreScene | None = None
    before: CoreScene | None = None
    window: Window | None = None
    windows: int = 1
    preview: Tensor | None = None

    @property
    def latent_start(self) -> int:
        """First latent frame of the window in the video."""
        return 0 if self.window is None else self.window.latent.start

    @property
    def number(self) -> int:
        """Number of the window, from 1."""
        return 1 if self.window is None else self.window.index + 1

    @property
    def scene(self) -> CoreScene:
        """The complete scene."""
        return self.prepared.scene if self.whole is None else self.whole

    def with_sampling(self, preset: Preset, spatial: bool) -> RoutingValue:
        """The same, sampled with another preset, and with stereo placement of the voices or without."""

        prepared = replace(self.prepared, scene=with_sampling(self.prepared.scene, preset, spatial))
        return replace(self, prepared=prepared, whole=self.whole and with_sampling(self.whole, preset, spatial))

    @property
    def names(self) -> list[str]:
        """Names of the characters."""
        return [character.name for character in self.scene.characters]

    @property
    def mask_images(self) -> Tensor:
        """The masks as MASK [N * T, height, width]."""
        from bya_core.pipelines.interactive import masks_to_images

        return masks_to_images(self.routing.masks, self.prepared.grid)

    def token_masks(self, images: Tensor | None) -> tuple[Tensor, TokenGrid]:
        """A MASK of all characters as [N, T, h, w] with its grid; None returns the masks of the routing."""
        from bya_core.pipelines.interactive import images_to_masks

        if images is None:
            return self.routing.masks, self.prepared.grid
        count, grid, scene = len(self.names), self.prepared.grid, self.scene
        whole = self.model.bundle.grid(scene.num_frames, scene.height, scene.width)
        if images.shape[0] in (count * whole.frames, count * whole.video_frames):
            grid = whole
        return images_to_masks(images, grid, count), grid


def with_sampling(scene: CoreScene, preset: Preset, spatial: bool) -> CoreScene:
    """The scene with the settings of the sampler."""
    return replace(scene, sampling=replace(scene.sampling, preset=preset, spatial=spatial))
