"""Generate a video from a scene.

    scene -> prepare -> route -> sample -> video

`generate` runs all steps. The steps can be called on their own, as the nodes do, to inspect and edit the masks in
between: `prepare` encodes the inputs, `route` predicts the character masks, `sample` denoises and decodes.
"""

from __future__ import annotations

import torch

from bya_core.io.workspace import temporary_folder
from bya_core.pipelines.kept_latents import KeptLatents
from bya_core.pipelines.long_video import generate_long, plan
from bya_core.pipelines.prepare import prepare
from bya_core.pipelines.sample import Video, decode_video, sample
from bya_core.progress import Progress, ProgressCallback, ProgressTracker
from bya_core.routing.route import route
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle

__all__ = ["Progress", "ProgressCallback", "Video", "generate", "prepare", "route", "sample"]


@torch.no_grad()
def generate(
    scene: Scene, model: ModelBundle, callback: ProgressCallback | None = None, kept: KeptLatents | None = None
) -> Video:
    """Generate the video of a scene. A scene longer than one window is generated window by window.

    The windows are stored in a temporary folder; `bya_core.pipelines.long_video.generate_long` keeps them, and reads
    the frames from disk instead of holding the whole video in memory.

    Args:
        scene: the scene, see `bya_core.load_scene`.
        model: the model, see `bya_core.load_model`.
        callback: receives the progress; returning False cancels.
        kept: file of the denoised latents of a scene of one window: written before decoding, and read instead of
            denoising if it is there; None = no file.

    Raises:
        InputError: the scene does not fit the model, or no face was found in an image.
        Cancelled: `callback` returned False.
    """
    if len(plan(scene, model)) > 1:
        with temporary_folder() as folder:
            return generate_long(scene, model, folder, callback).load()
    tracker = ProgressTracker(callback)
    if kept is not None and (denoised := kept.load()) is not None:
        return decode_video(denoised, scene, model, tracker)
    prepared = prepare(scene, model, tracker)
    return sample(prepared, route(prepared, model, tracker), model, tracker, kept)
