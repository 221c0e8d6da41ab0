"""Metrics of a run: `log.jsonl`, the console, and the experiment trackers of accelerate.

`log.jsonl` and TensorBoard hold every step once: when a run resumes, entries after its checkpoint are removed.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


def available_trackers(names: Sequence[str]) -> list[str]:
    """The requested trackers that are installed; a missing TensorBoard is a warning.

    Raises:
        InputError: W&B is requested and not installed.
    """
    if "wandb" in names and not is_wandb_available():
        raise InputError("--report-to wandb without the package wandb", "it installed", "run: pip install wandb")
    if "tensorboard" in names and not is_tensorboard_available():
        log.warning("TensorBoard is not installed (pip install tensorboard); log.jsonl has all metrics")
        return [name for name in names if name != "tensorboard"]
    return list(names)


class MetricLog:
    """Logs metrics and images of one run. Only the main process writes.

    Args:
        output: folder of the run; None = write no files.
        accelerator: provides the experiment trackers.
        step: step at which the run starts or resumes; later entries are removed.
        project: project name for the trackers.
        config: settings to store with the trackers.
        text: the same as readable text, for TensorBoard.
    """

    def __init__(
        self,
        output: Path | None,
        accelerator: Accelerator,
        step: int = 0,
        project: str = "bind-your-avatar",
        config: Mapping[str, Any] | None = None,
        text: str = "",
    ) -> None:
        self.output, self.accelerator, self.active = output, accelerator, accelerator.is_main_process
        if self.active and output is not None:
            output.mkdir(parents=True, exist_ok=True)
            _truncate(output / "log.jsonl", step)
        kwargs: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": step + 1},
            "wandb": {"id": _run_id(output) if self.active and output else None, "resume": "allow", "dir": str(output)},
        }
        settings = {
            key: value if isinstance(value, int | float | str) else str(value) for key, value in (config or {}).items()
        }
        accelerator.init_trackers(project, settings or None, kwargs)
        for tracker in accelerator.trackers if text else ():
            if tracker.name == "tensorboard":
                tracker.writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), step)

    def log(self, values: Mapping[str, float], step: int, group: str = "train") -> None:
        """Log the metrics of a step under `group`, "train" or "validation".

        Raises:
            InputError: the disk is full.
        """
        if not self.active:
            return
        kind = {} if group == "train" else {"kind": group}
        try:
            if self.output is not None:
                self._append({"step": step, **kind, **values})
            self.accelerator.log({f"{group}/{name}": value for name, value in values.items()}, step=step)
        except OSError as error:
            problem = f"the log in {self.output} cannot be written ({error})"
            raise InputError(problem, "free disk space", "free some space and resume the run") from error
        shown = {name: value for name, value in values.items() if name != "minutes_left"}
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        remaining = f"  remaining {_duration(values['minutes_left'])}" if "minutes_left" in values else ""
        log.info("step %d  %s%s", step, text, remaining)

    def _append(self, entry: Mapping[str, Any]) -> None:
        assert self.output is not None
        with (self.output / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def log_image(self, name: str, image: Image, step: int) -> None:
        """Write `images/step-00001234/NAME.png` and pass the image to the trackers."""
        if not self.active or self.output is None:
            return
        path = self.output / "images" / f"step-{step:08d}" / f"{name.replace('/', '-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            image.save(temporary)
        pixels = np.asarray(image.convert("RGB"))[None]
        for tracker in self.accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels}, step=step, **options)

    def close(self) -> None:
        """Flush and close the trackers; entries that a full disk does not hold are lost with a warning."""
        for tracker in self.accelerator.trackers:
            try:
                tracker.finish()
            except OSError as error:
                log.warning("%s could not write its last entries to %s (%s)", tracker.name, self.output, error)
        self.accelerator.trackers = []


def _truncate(path: Path, step: int) -> None:
    """Remove the entries after `step`, and an incomplete last line."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    write_text(path, "".join(line + "\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _run_id(output: Path) -> str:
    """The W&B id of this run, kept in its folder so that a restart continues the same W&B run."""
    path = output / "wandb_id"
    if not path.is_file():
        write_text(path, uuid.uuid4().hex[:8])
    return path.read_text().strip()


def _duration(minutes: float) -> str:
    """1 h 05 min, 12 min, 40 s."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"
