"""`bya dub`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from bya_core.cli.common import (
    ProgressBar,
    Runtime,
    RuntimeOptions,
    Sampling,
    SamplingOptions,
    group,
    optional,
    output,
    report_saved,
    setting,
    windows_beside,
)
from bya_core.cli.generate import WindowOptions
from bya_core.config import DubConfig, DubRegion
from bya_core.errors import Cancelled, InputError, Paused

if TYPE_CHECKING:
    from bya_core.pipelines.dub.dub import Dub as PreparedDub
    from bya_core.pipelines.dub.dub import DubbedFilm
    from bya_core.weights.bundle import ModelBundle


@dataclass(frozen=True)
class DubOptions:
    """Override the key "dub" of the scene file."""

    region: Annotated[DubRegion | None, setting(DubConfig, "region")] = None
    feather: Annotated[int | None, setting(DubConfig, "feather")] = None
    strength: Annotated[float | None, setting(DubConfig, "strength")] = None

    def apply_to(self, config: DubConfig) -> DubConfig:
        """The options of a scene file with these."""
        return replace(config, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class DubOutputs:
    """Additional output files."""

    overlay: Annotated[Path | None, optional("Save the film with the generated regions in color (mp4).")] = None
    json: Annotated[Path | None, optional("Save a report (json): regions, timings, warnings.")] = None


@dataclass(frozen=True)
class Dub:
    """Give people in a film new voices: their mouths are generated again.

    The speech of the scene is the new voice of its character; characters without speech keep voice and mouth. They are
    found in the film by their reference images. Everything outside of the generated regions stays as it is
    (docs/how-to/dub.md).
    """

    film: Annotated[Positional[Path], arg(help="Video file.", metavar="FILM")]
    scene: Annotated[Path, arg(help="Scene file (json) with the characters and their new speech.", metavar="SCENE")]
    output: Annotated[Path, output("Video to save (mp4).")]
    masks: Annotated[
        Path | None, optional("Masks of the characters in the film (npz). Default: found by likeness.")
    ] = None
    lossless: Annotated[
        bool, arg(help="Store the exact pixels (H.264 in RGB): large files, which few players show.")
    ] = False
    regions: Annotated[DubOptions, OmitArgPrefixes, group("dubbing", "Override the scene file.")] = DubOptions()
    runtime: Runtime = RuntimeOptions()
    sampling: Sampling = SamplingOptions()
    long_video: Annotated[WindowOptions, OmitArgPrefixes, group("long video")] = WindowOptions()
    files: Annotated[DubOutputs, OmitArgPrefixes, group("output")] = DubOutputs()

    def run(self) -> int:
        from bya_core.io.files import existing_file
        from bya_core.io.outputs import check_distinct, check_output
        from bya_core.scene.schema import read_scene_file

        self.long_video.check()
        self.runtime.check()
        existing_file(self.film, "the film")
        self.sampling.check(existing_file(self.scene, "the scene"))
        if self.masks is not None:
            existing_file(self.masks, "the masks")
        config = self.regions.apply_to(read_scene_file(self.scene).dub.config())
        wanted = {"video": self.output, "overlay": self.files.overlay, "report": self.files.json}
        paths = {name: path for name, path in wanted.items() if path is not None}
        for name, path in paths.items():
            check_output(path, (".json",) if name == "report" else (".mp4",), f"the {name}")
        check_distinct(list(paths.values()))
        start = time.perf_counter()
        with ProgressBar() as bar, ExitStack() as stack:
            bar.stage("Loading model")
            bundle = self.runtime.load()
            bar.stage("Reading film")
            dub = self._prepare(bundle, config, bar)
            bar.warn(dub.notices)
            done = self._generate(dub, bundle, bar, stack)
            bar.warn(done.notices)
            bar.stage("Saving")
            self._write(done, paths, bundle)
            if self.long_video.is_temporary(self.output, done.video):  # type: ignore[arg-type]
                done.video.files.remove(len(done.video.windows))  # type: ignore[union-attr]
        film = dub.film
        print(
            f"Dubbed {film.seconds:.2f} s of film ({film.size[1]}x{film.size[0]}, {film.fps:g} frames per second) in "
            f"{time.perf_counter() - start:.1f} s"
        )
        report_saved(*paths.values())
        return 0

    def _prepare(self, bundle: ModelBundle, config: DubConfig, bar: ProgressBar) -> PreparedDub:
        """Read film, scene and masks, and find the people."""
        from bya_core.evaluation.video_file import read_video_masks
        from bya_core.pipelines.dub.dub import padded_length, prepare_dub
        from bya_core.pipelines.dub.film import open_film
        from bya_core.progress import ProgressTracker
        from bya_core.scene.loader import load_scene
        from bya_core.scene.original_voices import read_original_voices
        from bya_core.scene.schema import read_scene_file

        film = open_film(self.film)
        if not self.lossless and (film.size[0] % 2 or film.size[1] % 2):
            problem = f"a film of {film.size[1]}x{film.size[0]} pixels"
            raise InputError(problem, "even sizes", "add --lossless, or crop it")
        options = vars(self.sampling)
        scene = load_scene(self.scene, bundle.defaults, **options, length=padded_length(film, bundle))
        voices = read_original_voices(read_scene_file(self.scene).dub, self.scene.parent, scene.names, film.seconds)
        masks, notices = None, list(scene.notices)
        if self.masks is not None:
            found, more = read_video_masks(self.masks, scene.names, film.video)
            masks, notices = found.numpy() > 0.5, notices + more
        elif scene.mask_control is not None:
            notices.append("The masks of the scene file are not used: give those of the film with --masks.")
        dub = prepare_dub(film, scene, bundle, config, masks=masks, voices=voices, tracker=ProgressTracker(bar))
        return replace(dub, notices=tuple(dict.fromkeys([*notices, *dub.notices])))

    def _generate(self, dub: PreparedDub, bundle: ModelBundle, bar: ProgressBar, stack: ExitStack) -> DubbedFilm:
        """Generate all windows; `stack` keeps their folder locked. Raises Paused if the run is cancelled."""
        from bya_core.pipelines.dub.dub import generate_dub
        from bya_core.pipelines.window_files import locked_windows

        options = self.long_video
        folder = options.work_dir or windows_beside(self.output)
        stack.enter_context(locked_windows(folder))
        try:
            return generate_dub(
                dub, bundle, folder, bar, regenerate=options.regenerate, regenerate_seed=options.regenerate_seed
            )
        except (Cancelled, KeyboardInterrupt) as stopped:
            count = len(list(folder.glob("window_*.safetensors")))
            if not count:
                raise
            windows = f"{count} finished window{'' if count == 1 else 's'} kept in {folder}"
            raise Paused(f"{windows}; run the same command again to resume") from stopped

    def _write(self, done: DubbedFilm, paths: dict[str, Path], bundle: ModelBundle) -> None:
        """Write all files; they appear together once all are complete."""
        from bya_core.io.atomic import AtomicFiles, write_json
        from bya_core.io.media import write_video

        fps = done.dub.film.fps
        with AtomicFiles() as files:
            write_video(files.at(paths["video"]), done.frames, fps, done.audio, lossless=self.lossless)
            if "overlay" in paths:
                write_video(files.at(paths["overlay"]), done.overlay, fps, done.audio, lossless=self.lossless)
            if "report" in paths:
                write_json(files.at(paths["report"]), self._report(done, bundle, list(paths.values())))

    def _report(self, done: DubbedFilm, bundle: ModelBundle, files: list[Path]) -> dict[str, Any]:
        from dataclasses import asdict

        from bya_core.pipelines.run_report import build_report

        dub = done.dub
        report = build_report(dub.scene, self.scene, bundle, done.video, {}, files)
        film = {"file": str(self.film), "size": [dub.film.size[1], dub.film.size[0]], "fps": dub.film.fps}
        return report | {
            "film": film | {"frames": dub.film.num_frames},
            "dub": asdict(dub.regions.config)
            | {
                "characters": [dub.scene.names[n] for n in dub.regions.dubbed],
                "seen_by_model": asdict(dub.box),
                "lossless": self.lossless,
            },
            "windows": list(done.video.windows),  # type: ignore[union-attr]
            "warnings": list(done.notices),
        }
