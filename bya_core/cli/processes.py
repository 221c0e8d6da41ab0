"""`bya generate` in several processes on one machine: each computes one branch of classifier-free guidance.

    torchrun --nproc_per_node 2 -m bya_core generate scene.json -o out.mp4 --model official

All processes do the same work with the same seed and differ only in the guidance branch that they compute
(`bya_core.sampling.cfg_parallel`). The first one saves files and prints; the others write into temporary folders.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bya_core.errors import InputError
from bya_core.io.workspace import temporary_folder

if TYPE_CHECKING:
    from bya_core.cli.generate import Generate
    from bya_core.config import SamplingConfig
    from bya_core.weights.bundle import ModelBundle


def world_size() -> int:
    """Number of processes started by torchrun or accelerate; 1 without them.

    Raises:
        InputError: An environment variable of torchrun that is not a number.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
    numbers = {name: _number(name) for name in names if name in os.environ}
    launched = {"RANK", "WORLD_SIZE"} <= numbers.keys() and "MASTER_ADDR" in os.environ
    return max(1, numbers["WORLD_SIZE"]) if launched else 1


def _number(name: str) -> int:
    """An environment variable of torchrun."""
    text = os.environ[name]
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise InputError(f'the environment variable {name} is "{text}"', "an integer", "unset it, or use torchrun")
    return int(text)


def distribute_guidance(sampling: SamplingConfig, bundle: ModelBundle) -> None:
    """Distribute the guidance branches over all processes.

    Raises:
        InputError: A number of processes that differs from the number of branches.
    """
    from bya_core.sampling.cfg_parallel import set_guidance_mode
    from bya_core.sampling.guidance import guidance_branches

    processes, count = world_size(), len(guidance_branches(sampling.guidance_scale, sampling.audio_guidance_scale))
    if processes == 1:
        return
    if processes != count:
        problem = f"{processes} processes for guidance with {count} branch{'' if count == 1 else 'es'}"
        hint = "start it without torchrun" if count == 1 else f"start it with --nproc_per_node {count}"
        raise InputError(problem, "one process" if count == 1 else f"{count} processes, or one", hint)
    set_guidance_mode(bundle.transformer, "distributed")


@contextlib.contextmanager
def joined(command: Generate) -> Iterator[Generate]:
    """Join the process group, if there is one, and yield the command for this process."""
    if world_size() == 1:
        yield command
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    dist.init_process_group()  # gloo on CPUs, nccl on GPUs
    try:
        if dist.get_rank() == 0:
            dist.barrier()  # the others have copied the finished windows
            yield command
            return
        with temporary_folder() as folder:
            redirected = _redirected(command, folder)
            dist.barrier()
            with _silence():
                yield redirected
    finally:
        dist.destroy_process_group()


def _redirected(command: Generate, folder: Path) -> Generate:
    """The command with all outputs in `folder`; finished windows are copied there."""
    files = {name: path and folder / path.name for name, path in vars(command.files).items()}
    redirected = replace(command, output=folder / command.output.name, files=replace(command.files, **files))
    if command.best_take.takes > 1:  # a video of one window, for which --work-dir is refused
        return redirected
    windows, finished = folder / "windows", command.long_video.folder(command.output, command.resume_from)
    if finished.is_dir():
        shutil.copytree(finished, windows)
    return replace(redirected, long_video=replace(command.long_video, work_dir=windows))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress all output: the first process reports input errors."""
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            yield
    except InputError:
        sys.exit(2)
    finally:
        logging.disable(logging.NOTSET)
