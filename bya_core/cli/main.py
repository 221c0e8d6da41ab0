"""The command line: generate | timeline | probe | report | models | download | convert | doctor | selftest."""

from __future__ import annotations

import json as jsonlib
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import tyro
from tqdm import tqdm

from bya_core.cli.faces import Faces
from bya_core.cli.models import Convert, Download, Models
from bya_core.cli.probe import Probe, go_on
from bya_core.cli.processes import number
from bya_core.cli.report import Report
from bya_core.cli.selftest import Selftest, Vram
from bya_core.config import Preset
from bya_core.errors import Cancelled, InputError, Paused

if TYPE_CHECKING:
    from bya_core.pipelines.generate import Progress, Video

FAILED, BAD_INPUT, STOPPED = 1, 2, 130
logger = logging.getLogger("bya_core")


@dataclass(frozen=True)
class Generate:
    """Make the video of a scene.

    Args:
        scene: the scene file (see docs/reference/scene.md).
        out: mp4 to write.
        model: a name from `python -m bya_core models`, or the path of a model (docs/how-to/released-weights.md).
        vram: GB of GPU memory to make do with; auto = what is free on it now (docs/how-to/memory.md).
        steps: denoising steps, in place of the scene's.
        seed: of all random numbers, in place of the scene's.
        speed: how much work may be left out, in place of the scene's: exact = none, balanced, fast (docs/results/speed.md).
        state: go on from what `probe --state` wrote for this scene.
        work: folder that keeps the windows of a long video; None = beside the video until it is written.
        again: number of a window in that folder to make once more, with another seed; the others stay.
        again_seed: that seed; None = a new one each time.
        masks: npz to write the masks to that acted.
        overlay: mp4 to write to: the video tinted by the masks, with a legend.
        json: report to write: timings, memory, masks per character, warnings.
    """

    scene: tyro.conf.Positional[Path]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    model: str = "toy"
    vram: Vram = "auto"
    steps: int | None = None
    seed: int | None = None
    speed: Preset | None = None
    state: Path | None = None
    work: Path | None = None
    again: int | None = None
    again_seed: int | None = None
    masks: Path | None = None
    overlay: Path | None = None
    json: Path | None = None

    def run(self) -> int:
        from bya_core.cli.processes import joined

        with joined(self) as own:
            return own.make()

    def make(self) -> int:
        """The work of `run`, in this process."""
        from bya_core.cli.long_video import LongRun
        from bya_core.cli.processes import share
        from bya_core.io.media import existing_file
        from bya_core.pipelines.outputs import Outputs

        outputs = Outputs(self.out, self.masks, self.overlay, self.json)
        state = () if self.state is None else (existing_file(self.state, "the state"),)
        outputs.check(inputs=(existing_file(self.scene, "the scene"), *state))
        start = time.perf_counter()
        with Bar() as bar:
            bar.say("Importing libraries")
            from bya_core.pipelines.generate import generate
            from bya_core.pipelines.load import load_model
            from bya_core.pipelines.long_video import LongVideo
            from bya_core.pipelines.run_report import build_report, mask_notices
            from bya_core.scene.loader import load_scene
            from bya_core.scene.schema import read_scene_file

            read_scene_file(self.scene)  # the cheapest mistakes are found before anything heavy is loaded
            bar.say(f"Loading model {self.model}")
            loading = time.perf_counter()
            bundle = load_model(self.model, vram=self.vram)
            seconds = {"Loading model": round(time.perf_counter() - loading, 3)}
            bar.say("Reading scene")
            scene = load_scene(self.scene, bundle.defaults, steps=self.steps, seed=self.seed, speed=self.speed)
            share(scene.sampling, bundle)
            for notice in scene.notices:
                bar.warn(notice)
            long = LongRun(self.out, self.work, self.again, self.again_seed)
            video: Video | LongVideo
            if self.state is None and long.wanted(scene, bundle):
                video = long.make(scene, bundle, bar)
            elif self.state is None:
                video = generate(scene, bundle, bar)
            else:
                video = go_on(scene, bundle, self.state, bar)
            for notice in [
                *video.notices[len(scene.notices) :],
                *mask_notices(scene, video.masks),
            ]:
                bar.warn(notice)
            bar.say("Saving")
            report = build_report(scene, self.scene, bundle, video, seconds, outputs.wanted)
            if isinstance(video, LongVideo):
                report["windows"] = list(video.windows)
            outputs.write(scene, video, report)
            if isinstance(video, LongVideo):
                long.done(video)
        print(f"{scene.seconds:.2f} s of video ({scene.width}x{scene.height}, {scene.fps:g} frames a second)")
        print(f"made by the model {bundle.name} in {time.perf_counter() - start:.1f} s")
        for path in outputs.wanted:
            print(f"wrote {path}")
        return 0


@dataclass(frozen=True)
class Timeline:
    """Draw who speaks when: a lane per character, prompts, windows, and what is wrong with the voices.

    Args:
        scene: the scene file (see docs/reference/scene.md).
        out: png to write.
        model: a name from `python -m bya_core models`; its sizes are used where the scene names none.
    """

    scene: tyro.conf.Positional[Path]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    model: str = "toy"

    def run(self) -> int:
        from bya_core.io.atomic import AtomicFiles, check_output
        from bya_core.io.media import existing_file

        out = check_output(self.out, (".png",), "the timeline")
        from bya_core.evaluation.timeline_plot import draw_timeline, window_spans
        from bya_core.scene.loader import load_scene
        from bya_core.scene.schema import read_scene_file
        from bya_core.weights.loader import load_defaults

        read_scene_file(existing_file(self.scene, "the scene"))
        defaults = load_defaults(self.model)
        scene = load_scene(self.scene, defaults)
        for notice in scene.notices:
            print(f"warning: {notice}", file=sys.stderr)
        picture = draw_timeline(scene, windows=window_spans(scene, defaults))
        with AtomicFiles() as files:
            picture.save(files.at(out))
        print(f"wrote {out}")
        return 0


@dataclass(frozen=True)
class Doctor:
    """Look over this machine: Python, torch, device, memory, what is missing and how to get it.

    Args:
        json: print JSON.
    """

    json: bool = False

    def run(self) -> int:
        from bya_core.cli.doctor import as_text, examine

        report = examine()
        print(jsonlib.dumps(report, indent=2) if self.json else as_text(report))
        return 0 if report["healthy"] else 1


Command = (
    Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Timeline, tyro.conf.subcommand("timeline")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Faces, tyro.conf.subcommand("faces")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Models, tyro.conf.subcommand("models")]
    | Annotated[Download, tyro.conf.subcommand("download")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Selftest, tyro.conf.subcommand("selftest")]
)


class Bar:
    """The progress bar on stderr: what is being done, the step, the time gone and left."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, progress: Progress) -> None:
        """A watcher for `generate`."""
        if progress.total == 1:
            if progress.step == 0:
                self.say(progress.stage)
            return
        if progress.step == 0:
            self._close()
            form = "{desc}: step {n}/{total} |{bar}| {elapsed} gone, {remaining} left"
            self._bar = tqdm(total=progress.total, desc=progress.stage, bar_format=form, leave=True)
        if self._bar is not None:
            self._bar.update(progress.step - self._bar.n)

    def say(self, doing: str) -> None:
        """A part without steps."""
        self._close()
        print(f"{doing} ...", file=sys.stderr, flush=True)

    def warn(self, notice: str) -> None:
        self._close()
        print(f"warning: {notice}", file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _stop(number: int, frame: FrameType | None) -> None:
    """A polite end from outside is a cancelled run: nothing half-written stays."""
    raise Cancelled(f"stopped by signal {number}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 unusable input, 130 stopped."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    command = tyro.cli(Command, prog="python -m bya_core", description=__doc__, args=arguments)  # type: ignore
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        if number() > 1 and not isinstance(command, Generate):
            raise InputError(f"{number()} processes", "one, except for generate", "start it without torchrun")
        return command.run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # a full disk, a drive that went away
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except Paused as paused:
        print(f"stopped; {paused}", file=sys.stderr)
        return STOPPED
    except (Cancelled, KeyboardInterrupt):
        print("stopped; nothing was written", file=sys.stderr)
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, previous)
