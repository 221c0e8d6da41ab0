"""Output files of `generate` and `probe`: video, masks, overlay, report, routing state; all or none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from bya_core.encoders.canvas import first_frame
from bya_core.io.atomic import AtomicFiles, write_json
from bya_core.io.media import write_video
from bya_core.io.outputs import check_distinct, check_output
from bya_core.io.overlay import render_overlay, render_sheet
from bya_core.pipelines.long_video import PreparedWindow
from bya_core.pipelines.run_report import MadeVideo
from bya_core.routing.result import Routing
from bya_core.routing.state import save_routing
from bya_core.sampling.conditions import Prepared
from bya_core.scene.mask_archive import save_archive
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle


class _OutputPaths:
    """Base of dataclasses whose fields are output paths; None = not written."""

    suffixes: ClassVar[dict[str, tuple[str, ...]]]

    @property
    def wanted(self) -> list[Path]:
        """All paths that are written."""
        return [path for name in self.suffixes if (path := getattr(self, name)) is not None]

    def check(self) -> None:
        """Check all paths before a run. Raises InputError if a file cannot be written or would replace an input."""
        for name, suffixes in self.suffixes.items():
            if (path := getattr(self, name)) is not None:
                check_output(path, suffixes, f"the {name}")
        check_distinct(self.wanted)


@dataclass(frozen=True)
class Outputs(_OutputPaths):
    """Output files of `generate`.

    Args:
        video: mp4 with the input audio.
        masks: npz with "masks" [N, T, h, w] in 0..1 and "names" [N]; a scene's `router.masks` can read it.
        overlay: mp4 of the video with a mask overlay.
        report: json, see `bya_core.pipelines.run_report`.
    """

    video: Path
    masks: Path | None = None
    overlay: Path | None = None
    report: Path | None = None

    suffixes = {"video": (".mp4",), "masks": (".npz",), "overlay": (".mp4",), "report": (".json",)}

    def write(self, scene: Scene, video: MadeVideo, report: dict[str, Any]) -> None:
        """Write all files; they appear together once all are complete."""
        names = [character.name for character in scene.characters]
        with AtomicFiles() as files:
            write_video(files.at(self.video), video.frames, scene.fps, video.audio)
            if self.masks is not None:
                save_archive(files.at(self.masks), video.masks, names)
            if self.overlay is not None:
                overlay = render_overlay(video.frames, video.masks, video.grid, names)
                write_video(files.at(self.overlay), overlay, scene.fps, video.audio)
            if self.report is not None:
                write_json(files.at(self.report), report)


@dataclass(frozen=True)
class RoutingOutputs(_OutputPaths):
    """Output files of `probe`.

    Args:
        state: safetensors, see `bya_core.routing.state`.
        masks: npz as in `Outputs`; of one window, with "start", its first latent frame in the video.
        overlay: png (a few frames side by side) or mp4 of the mask overlay.
    """

    state: Path | None = None
    masks: Path | None = None
    overlay: Path | None = None

    suffixes = {"state": (".safetensors",), "masks": (".npz",), "overlay": (".png", ".mp4")}

    def write(self, found: Routing, refined: Routing, window: PreparedWindow, bundle: ModelBundle) -> None:
        """Write all files; they appear together once all are complete.

        Args:
            found: masks as predicted by the router; saved as the state.
            refined: masks after the refinement of the scene; saved as masks and overlay.
            window: the encoded scene, or window of it.
            bundle: decodes the preview frames.
        """
        prepared, place = window.prepared, window.window
        names = prepared.scene.names
        with AtomicFiles() as files:
            if self.state is not None:
                numbers = (place.index + 1, window.count, place.start)
                save_routing(found, files.at(self.state), prepared, numbers, window.continues)
            if self.masks is not None and window.count == 1:
                save_archive(files.at(self.masks), refined.masks, names)
            elif self.masks is not None:  # without the frames of the previous window, which are finished
                lead = place.latent_lead
                save_archive(files.at(self.masks), refined.masks[:, lead:], names, place.latent.start + lead)
            if self.overlay is not None:
                frames = preview_frames(found, prepared, bundle)
                if self.overlay.suffix.lower() == ".mp4":
                    overlay = render_overlay(frames, refined.masks, prepared.grid, names)
                    write_video(files.at(self.overlay), overlay, prepared.scene.fps)
                else:
                    sheet = render_sheet(frames, refined.masks, prepared.grid, names)
                    Image.fromarray(sheet).save(files.at(self.overlay))


@torch.no_grad()
def preview_frames(routing: Routing, prepared: Prepared, bundle: ModelBundle) -> Tensor:
    """Frames that show the scene before it is generated: uint8 [F, H, W, 3].

    Decoded from the predicted clean latents of a partially denoised run; without one, the first frame repeated;
    without that, gray.
    """
    grid, still = prepared.grid, first_frame(prepared.scene)
    if routing.state is not None and routing.state.previous_x0 is not None:
        latents = routing.state.previous_x0.to(bundle.device, bundle.dtype)
        pixels = (bundle.codec.decode(latents)[0].float().cpu() + 1) / 2
    else:
        image = torch.full((3, *grid.pixels), 0.5) if still is None else still
        pixels = repeat(image, "c h w -> c f h w", f=grid.video_frames)
    return rearrange(pixels * 255, "c f h w -> f h w c").round().clamp(0, 255).to(torch.uint8)
