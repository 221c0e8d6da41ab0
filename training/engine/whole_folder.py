"""A folder that appears when all of it is on the disk, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from bya_core.errors import InputError


@contextmanager
def written_whole(target: Path, accelerator: Accelerator, what: str, kept: list[Path] | None = None) -> Iterator[Path]:
    """Yields an empty folder beside `target` and renames it when the block is through; called by all processes.

    Args:
        target: its final name; what is there is replaced.
        accelerator: for its processes.
        what: is written, for the error.
        kept: checkpoint that remains if this fails.

    Raises:
        InputError: it could not be written; nothing half-written is left.
    """
    fresh, old = target.with_suffix(".partial"), target.with_suffix(".old")
    main = accelerator.is_main_process
    try:
        if main:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        accelerator.wait_for_everyone()
        yield fresh
        accelerator.wait_for_everyone()
        if not main:
            return
        for path in (*fresh.rglob("*"), fresh):
            _to_disk(path)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        _to_disk(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        if main:
            shutil.rmtree(fresh, ignore_errors=True)
        # torch reports a full disk as an error of its own
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        free = shutil.disk_usage(target.parent if target.parent.is_dir() else Path.cwd()).free / 1e9
        came = f"{what} could not be written to {target.parent} ({free:.1f} GB free there): {error}"
        after = f"start again: the run goes on from {kept[0].name}" if kept else "start again"
        raise InputError(came, "room on the disk", f"make room and {after}") from error


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
