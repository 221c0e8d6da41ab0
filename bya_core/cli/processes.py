"""`generate` in several processes on one machine: each computes one of the versions of the video that guidance needs.

    torchrun --nproc_per_node 2 -m bya_core generate scene.json -o out.mp4 --model official

Every process does the same work from the same seed and differs only in the version that it computes in each step
(`bya_core.sampling.cfg_parallel`). The first one writes and speaks; the others write into folders that are deleted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bya_core.errors import InputError

if TYPE_CHECKING:
    from bya_core.cli.main import Generate
    from bya_core.config import SamplingConfig
    from bya_core.weights.bundle import ModelBundle


def number() -> int:
    """Processes that torchrun or accelerate started; 1 without them."""
    launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def share(sampling: SamplingConfig, bundle: ModelBundle) -> None:
    """Guidance of this model is computed by all processes together, where there are several.

    Raises:
        InputError: there are not as many as versions of the video.
    """
    from bya_core.sampling.cfg_parallel import set_guidance_mode
    from bya_core.sampling.guidance import branches

    many, count = number(), len(branches(sampling.guidance_scale, sampling.audio_guidance_scale))
    if many == 1:
        return
    if many != count:
        came = f"{many} processes for guidance that needs {count} version{'' if count == 1 else 's'} of the video"
        do = "start it without torchrun" if count == 1 else f"start it with --nproc_per_node {count}"
        raise InputError(came, "one process" if count == 1 else f"{count} processes, or one", do)
    set_guidance_mode(bundle.transformer, "distributed")


@contextlib.contextmanager
def joined(command: Generate) -> Iterator[Generate]:
    """The command as this process has to run it, with the others found."""
    if number() == 1:
        yield command
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    dist.init_process_group()  # gloo between processors, nccl between graphics cards
    try:
        if dist.get_rank() == 0:
            dist.barrier()  # the others have read what it is about to change
            yield command
            return
        with tempfile.TemporaryDirectory(prefix="bya_") as folder:
            own = _elsewhere(command, Path(folder))
            dist.barrier()
            with _silence():
                yield own
    finally:
        dist.destroy_process_group()


def _elsewhere(command: Generate, folder: Path) -> Generate:
    """The same command with all that it writes in `folder`, and finished windows to go on from copied there."""
    from bya_core.cli.long_video import LongRun

    def there(path: Path | None) -> Path | None:
        return None if path is None else folder / path.name

    own = replace(
        command,
        out=folder / command.out.name,
        work=None if command.work is None else folder / "windows",
        masks=there(command.masks),
        overlay=there(command.overlay),
        json=there(command.json),
    )
    windows = LongRun(command.out, command.work).folder
    if windows.is_dir():
        shutil.copytree(windows, LongRun(own.out, own.work).folder)
    return own


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing is said twice: what a person did wrong, the first process says."""
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as no, contextlib.redirect_stdout(no), contextlib.redirect_stderr(no):
            yield
    except InputError:
        sys.exit(2)
    finally:
        logging.disable(logging.NOTSET)
