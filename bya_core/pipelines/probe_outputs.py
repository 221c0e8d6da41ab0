"""What looking who is where leaves on disk: state, masks and overlay; all or none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from bya_core.encoders.canvas import first_frame
from bya_core.errors import InputError
from bya_core.io.atomic import AtomicFiles, check_output
from bya_core.io.media import write_video
from bya_core.io.overlay import overlay_frames
from bya_core.pipelines.run_report import mask_figures
from bya_core.routing.result import Routing
from bya_core.routing.state import save_routing
from bya_core.sampling.prepared import Prepared
from bya_core.weights.bundle import ModelBundle

PICTURES = 4  # of an overlay in one picture
GREY = 0.5  # behind the masks where nothing of the video is known yet


@dataclass(frozen=True)
class RoutingOutputs:
    """Where a probe writes to.

    Args:
        state: safetensors, see `bya_core.routing.state`.
        masks: npz with "masks" [N, T, h, w] in 0..1 and "names" [N]; a scene's `router.masks` can read it.
        overlay: png (a few frames side by side) or mp4, tinted by the masks, with a legend.
    """

    state: Path | None = None
    masks: Path | None = None
    overlay: Path | None = None

    @property
    def wanted(self) -> list[Path]:
        return [path for path in (self.state, self.masks, self.overlay) if path is not None]

    def check(self, inputs: tuple[Path, ...] = ()) -> None:
        """Call before long work starts. Raises InputError where something cannot be written.

        Args:
            inputs: files that no output may replace.
        """
        for path, suffixes, what in (
            (self.state, (".safetensors",), "the state"),
            (self.masks, (".npz",), "the masks"),
            (self.overlay, (".png", ".mp4"), "the overlay"),
        ):
            if path is not None:
                check_output(path, suffixes, what)
        places = [path.resolve() for path in (*self.wanted, *inputs)]
        if len(set(places)) < len(places):
            twice = next(place for place in places if places.count(place) > 1)
            raise InputError(f"{twice} was named twice", "a file of its own for each output", "rename one")

    def write(self, found: Routing, shown: Routing, prepared: Prepared, bundle: ModelBundle) -> None:
        """Write everything that is wanted; the files appear together, once all are complete.

        Args:
            found: as the router said it; goes into the state.
            shown: with what the scene wants done to its masks; goes into masks and overlay.
            prepared: the scene.
            bundle: decodes what can be seen of the video so far.
        """
        names = [character.name for character in prepared.scene.characters]
        with AtomicFiles() as files:
            if self.state is not None:
                save_routing(found, files.at(self.state), prepared)
            if self.masks is not None:
                np.savez_compressed(files.at(self.masks), masks=shown.masks.numpy(), names=np.array(names))
            if self.overlay is not None:
                labels = [
                    f"{name}: {100 * figure.coverage:.0f} % of the picture, confidence {figure.confidence:.2f}"
                    for name, figure in zip(names, mask_figures(shown.masks), strict=True)
                ]
                frames, masks = preview(found, prepared, bundle), prepared.grid.tokens_to_pixels(shown.masks)
                if self.overlay.suffix.lower() == ".mp4":
                    tinted = overlay_frames(frames, masks, labels)
                    write_video(files.at(self.overlay), tinted, prepared.scene.fps)
                else:
                    write_sheet(files.at(self.overlay), frames, masks, labels)


@torch.no_grad()
def preview(found: Routing, prepared: Prepared, bundle: ModelBundle) -> Tensor:
    """What is known of the video: uint8 [F, H, W, 3].

    The half-done run's guess at its end; without one the first frame, held; without that, grey.
    """
    grid, still = prepared.grid, first_frame(prepared.scene)
    if found.state is not None and found.state.previous_x0 is not None:
        latents = found.state.previous_x0.to(bundle.device, bundle.dtype)
        pixels = (bundle.codec.decode(latents)[0].float().cpu() + 1) / 2
    else:
        image = torch.full((3, *grid.pixels), GREY) if still is None else still
        pixels = repeat(image, "c h w -> c f h w", f=grid.video_frames)
    return rearrange(pixels * 255, "c f h w -> f h w c").round().clamp(0, 255).to(torch.uint8)


def write_sheet(path: Path, frames: Tensor, masks: Tensor, labels: list[str]) -> None:
    """A few frames side by side, tinted by the masks [N, F, H, W], as a png."""
    count = min(PICTURES, frames.shape[0])
    chosen = torch.linspace(0, frames.shape[0] - 1, count).round().long()
    tinted = overlay_frames(frames[chosen], masks[:, chosen], labels)
    Image.fromarray(np.concatenate(list(tinted), axis=1)).save(path)
