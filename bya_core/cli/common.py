"""Options, progress and messages shared by the commands."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm

from bya_core.config import Preset, SamplingConfig
from bya_core.errors import InputError, one_line
from bya_core.validation import option

if TYPE_CHECKING:
    from bya_core.progress import Progress
    from bya_core.scene.types import Scene, SceneDefaults
    from bya_core.weights.bundle import ModelBundle

MODEL = "Model name (see `bya models`) or path of a model."
SceneFile = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="Scene file (json).", metavar="SCENE")]
Vram = Annotated[
    Literal["auto", "8", "12", "16", "24", "48", "80"],
    tyro.conf.arg(help="VRAM budget in GB: auto, 8, 12, 16, 24, 48 or 80.", metavar="GB"),
]

Lora = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        help="LoRA file (safetensors) to merge, with a strength: FILE or FILE:0.8. May be repeated.",
        metavar="FILE",
        help_behavior_hint="",
    ),
]


def output(help: str, hint: str = "(required)") -> Any:
    """The option -o/--output."""
    return tyro.conf.arg(help=help, aliases=["-o"], metavar="PATH", help_behavior_hint=hint)


def optional(help: str, metavar: str = "PATH") -> Any:
    """An option whose default is None."""
    return tyro.conf.arg(help=help, metavar=metavar, help_behavior_hint="")


def setting(kind: type, name: str) -> Any:
    """An option with the description and range of a field of a config class."""
    found = option(kind, name)
    text = found.description
    if found.maximum is not None and found.maximum < 1e6:
        text = f"{text.rstrip('.')} ({found.minimum:g} to {found.maximum:g})."
    if found.type is bool:
        return tyro.conf.arg(help=text, help_behavior_hint="")
    return optional(text, (name if found.choices else found.type.__name__).upper())


def group(title: str, help: str = "") -> Any:
    """A group of options, a box titled "TITLE options" in the help."""
    return tyro.conf.arg(name=title, help=help)


@dataclass(frozen=True)
class RuntimeOptions:
    """Model and memory."""

    model: Annotated[str, tyro.conf.arg(help=MODEL, metavar="MODEL")] = "toy"
    vram: Vram = "auto"
    lora: Lora = ()

    def check(self) -> None:
        """Record the files of the model as inputs; raise InputError for a VRAM budget without a GPU."""
        from bya_core.io.inputs import note_input
        from bya_core.weights.lora import parse_lora
        from bya_core.weights.registry import find_path

        find_path(self.model)
        for spec in self.lora:
            note_input(parse_lora(spec)[0])
        if self.vram == "auto":
            return
        import torch

        if not torch.cuda.is_available():
            raise InputError(f"--vram {self.vram} without a GPU", "a GPU that torch can use", "remove --vram")

    def load(self) -> ModelBundle:
        """Load the model."""
        from bya_core.pipelines.load import load_model

        return load_model(self.model, vram=self.vram, lora=self.lora)


@dataclass(frozen=True)
class SamplingOptions:
    """Override the options of the scene file."""

    steps: Annotated[int | None, setting(SamplingConfig, "steps")] = None
    seed: Annotated[int | None, setting(SamplingConfig, "seed")] = None
    preset: Annotated[Preset | None, setting(SamplingConfig, "preset")] = None
    force: Annotated[
        bool, tyro.conf.arg(help="Accept reference images of a kind that the model was not trained on.")
    ] = False
    reference_video: Annotated[
        Path | None,
        optional("Video of the characters saying the speeches: each voice drives whom its lips follow.", "FILE"),
    ] = None

    def check(self, path: Path) -> None:
        """Raise InputError for an option out of range or an invalid scene file, before the model is loaded."""
        from bya_core.io.files import existing_file
        from bya_core.scene.schema import read_scene_file

        options: dict[str, Any] = {"steps": self.steps, "seed": self.seed, "preset": self.preset}
        SamplingConfig(**{name: value for name, value in options.items() if value is not None})
        if self.reference_video is not None:
            existing_file(self.reference_video, "the reference video")
        read_scene_file(path)

    def load_scene(self, path: Path, defaults: SceneDefaults) -> Scene:
        """Read a scene file with these options."""
        from bya_core.scene.loader import load_scene

        return load_scene(path, defaults, **vars(self))


Runtime = Annotated[RuntimeOptions, tyro.conf.OmitArgPrefixes, group("model and memory")]
Sampling = Annotated[SamplingOptions, tyro.conf.OmitArgPrefixes, group("sampling", "Override the scene file.")]


class ProgressBar:
    """A progress callback that shows stages, steps and remaining time on stderr, and each warning once.

    Warnings that bya_core logs are shown when they are logged.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._shown: set[str] = set()
        self._log = _LoggedWarnings(self.warn)

    def __enter__(self) -> ProgressBar:
        logger = logging.getLogger("bya_core")
        logger.addHandler(self._log)
        logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("bya_core")
        logger.removeHandler(self._log)
        logger.propagate = True
        self._close()

    def __call__(self, progress: Progress) -> None:
        if progress.total == 1:
            if progress.step == 0:
                self.stage(progress.stage)
            return
        if progress.step == 0:
            self._close()
            form = "{desc}: step {n}/{total} |{bar}| {elapsed} elapsed, {remaining} left"
            self._bar = tqdm(total=progress.total, desc=progress.stage, bar_format=form, leave=True)
        if self._bar is not None:
            self._bar.set_description_str(progress.stage, refresh=False)
            self._bar.update(progress.step - self._bar.n)

    def stage(self, name: str) -> None:
        """Show a stage without steps."""
        self._close()
        print(f"{name} ...", file=sys.stderr, flush=True)

    def warn(self, notices: Iterable[str]) -> None:
        """Show the warnings that were not shown before."""
        new = [notice for notice in dict.fromkeys(notices) if notice not in self._shown]
        self._shown.update(new)
        with tqdm.external_write_mode(file=sys.stderr):
            warn(new)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _LoggedWarnings(logging.Handler):
    """Passes the messages of logged warnings to `show`."""

    def __init__(self, show: Callable[[list[str]], object]) -> None:
        super().__init__(logging.WARNING)
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        self.show([record.getMessage()])


def warn(notices: Iterable[str]) -> None:
    """Print warnings to stderr."""
    for notice in notices:
        print(f"warning: {one_line(notice)}", file=sys.stderr, flush=True)


def windows_beside(path: Path) -> Path:
    """The folder for the windows of a long video, beside one of its files."""
    return path.with_suffix(".windows")


def check_work_folder(path: Path) -> None:
    """Raise InputError if windows cannot be written to the folder of --work-dir, before a model is loaded."""
    from bya_core.io.outputs import check_folder

    check_folder(path, "the windows")


def report_saved(*paths: Path) -> None:
    """Print the files that a command wrote."""
    for path in paths:
        print(f"Saved {path}")
