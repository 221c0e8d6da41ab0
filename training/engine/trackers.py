"""What a run tells while it runs: lines in a file and on the screen, TensorBoard, and W&B if asked for.

Only the main process writes. `log.jsonl` and the TensorBoard files hold every step once, also where a killed run
went back to its last checkpoint: what was written after that checkpoint is taken out again when the run goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from bya_core.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


class Tracker:
    """Writes figures and pictures of one run; a context manager.

    Args:
        output: folder of the run; lines go to `log.jsonl`, TensorBoard files to `tensorboard/`.
        step: the step the run goes on from; whatever an earlier start wrote after it is dropped.
        active: False in all processes but the main one: nothing is written.
        tensorboard: write TensorBoard files (a warning, and nothing else, where it is not installed).
        wandb: name of a W&B project, or None.
        config: settings of the run, shown by W&B.

    Raises:
        InputError: W&B asked for and not installed.
    """

    def __init__(
        self,
        output: Path,
        step: int = 0,
        *,
        active: bool = True,
        tensorboard: bool = True,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.active, self.output = active, output
        self._board: Any = None
        self._wandb: Any = None
        if not active:
            return
        output.mkdir(parents=True, exist_ok=True)
        self._keep_until(step)
        self._record = (output / "log.jsonl").open("a")
        if tensorboard:
            self._board = _summary_writer(output / "tensorboard", step)
        if wandb is not None:
            self._wandb = _wandb_run(wandb, output, config or {})

    def line(self, values: Mapping[str, float], step: int) -> None:
        """Figures of the training itself: kept in log.jsonl as they are, told on the screen, shown as curves."""
        if not self.active:
            return
        self._write({"step": step, **values})
        told = dict(values)
        left = told.pop("minutes_left", None)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in told.items())
        log.info("step %d  %s%s", step, shown, "" if left is None else f"  left {_duration(left)}")
        self._curves("train", values, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Figures of anything else (validation), kept in log.jsonl with `"kind": "validation"` and shown as curves."""
        if not self.active:
            return
        self._write({"step": step, "kind": "validation", **values})
        log.info("step %d  %s", step, "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self._curves("validation", values, step)

    def image(self, name: str, picture: Image, step: int) -> None:
        """A picture: `pictures/step-00001234/NAME.png` beside the log, and in TensorBoard and W&B."""
        if not self.active:
            return
        path = self.output / "pictures" / f"step-{step:08d}" / f"{name.replace('/', '-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        if self._board is not None:
            self._board.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.log({name: _wandb().Image(picture), "step": step})

    def close(self) -> None:
        """Write out what is still held back."""
        if not self.active:
            return
        self._record.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._record.write(json.dumps(line) + "\n")
            self._record.flush()
        except OSError as error:
            came = f"{self.output / 'log.jsonl'} could not be written ({error})"
            do = "make room and start again: the run goes on from its last checkpoint"
            raise InputError(came, "room on the disk", do) from error

    def _curves(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)
        if self._wandb is not None:
            # W&B refuses steps that go back, as they do after a restart: the step is an ordinary figure there.
            self._wandb.log({f"{group}/{name}": value for name, value in values.items()} | {"step": step})

    def _keep_until(self, step: int) -> None:
        """Drop the lines after `step` (and a half-written last one) of an earlier start."""
        path = self.output / "log.jsonl"
        if not path.is_file():
            return
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(line + "\n" for line in kept))
        fresh.replace(path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off by a kill


def _summary_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("no TensorBoard curves: it is not installed (pip install tensorboard); log.jsonl has all figures")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError("--wandb without the package wandb", "it installed", "run: pip install wandb") from error
    return wandb


def _wandb_run(project: str, output: Path, config: Mapping[str, Any]) -> Any:
    """A W&B run that a restart goes on with: its id is kept in the run's folder."""
    wandb, known = _wandb(), output / "wandb_id"
    run = wandb.init(
        project=project,
        dir=str(output),
        id=known.read_text().strip() if known.is_file() else None,
        resume="allow",
        config=dict(config),
    )
    known.write_text(run.id)
    return run


def _duration(minutes: float) -> str:
    """1 h 05 min, 12 min, 40 s."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"
