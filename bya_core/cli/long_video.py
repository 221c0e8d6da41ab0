"""What `generate` does with a video that is longer than a window."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bya_core.errors import Cancelled, Paused

if TYPE_CHECKING:
    from bya_core.pipelines.long_video import LongVideo
    from bya_core.progress import ProgressCallback
    from bya_core.scene.types import Scene
    from bya_core.weights.bundle import ModelBundle


@dataclass(frozen=True)
class LongRun:
    """Where windows are kept, and which one is made again.

    Args:
        out: the video; its windows lie beside it while it is made.
        work: folder that keeps them afterwards too; None = they are deleted once the video is written.
        again: number of a window to make once more.
        again_seed: for that one.
    """

    out: Path
    work: Path | None = None
    again: int | None = None
    again_seed: int | None = None

    @property
    def folder(self) -> Path:
        return self.out.with_suffix(".windows") if self.work is None else self.work

    def wanted(self, scene: Scene, bundle: ModelBundle) -> bool:
        """Whether this video is made in windows: where it is longer than one, or they are to be kept."""
        from bya_core.pipelines.long_video import plan

        return len(plan(scene, bundle)) > 1 or self.work is not None or self.again is not None

    def make(self, scene: Scene, bundle: ModelBundle, watch: ProgressCallback) -> LongVideo:
        """Raises Paused where it is stopped: what is finished is kept."""
        from bya_core.pipelines.long_video import generate_long

        try:
            return generate_long(scene, bundle, self.folder, watch, again=self.again, again_seed=self.again_seed)
        except (Cancelled, KeyboardInterrupt) as stopped:
            kept = len(list(self.folder.glob("window_*.safetensors")))
            raise Paused(
                f"{kept} finished window{'' if kept == 1 else 's'} kept in {self.folder}; "
                "the same command goes on from there"
            ) from stopped

    def done(self, video: LongVideo) -> None:
        """Call once the video is written."""
        if self.work is None:
            video.files.remove(len(video.windows))
