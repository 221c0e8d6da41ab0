"""Failing writes of one of two processes: `torchrun --nproc_per_node 2 failing_write.py FOLDER`.

Prints "PROCESS CASE: MESSAGE" for every failure, and ends normally.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from bya_core.errors import InputError
from bya_core.weights import single_file
from training.engine.checkpointing import shared_atomic_folder
from training.engine.tensor_files import write_tensors

CASES = ("tensors", "between", "other", "folder", "none")


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def main(output: str) -> None:
    accelerator = Accelerator(cpu=True)
    main, write = accelerator.is_main_process, single_file._write_at
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.arange(24.0).view(8, 3)
    tensors = {name: distribute_tensor(whole + number, mesh, [Shard(0)]) for number, name in enumerate("abcd")}

    def failing(out: object, offset: int, tensor: torch.Tensor) -> None:
        if tensor[0, 0] == 1.0:  # the second tensor
            raise full()
        write(out, offset, tensor)

    for case in CASES:
        single_file._write_at = failing if case == "tensors" else write
        target = Path(output) / ("file" if case == "folder" else "") / case
        (Path(output) / "file").touch()
        try:
            with shared_atomic_folder(target, accelerator, f"checkpoint {case}") as folder:
                write_tensors(folder / "first.safetensors", tensors, main)
                write_tensors(folder / "second.safetensors", tensors, main)
                if (case == "between" and main) or (case == "other" and not main):
                    raise full()
        except InputError as error:
            print(f"{accelerator.process_index} {case}: {error.problem}", flush=True)
        both = torch.ones(())
        dist.all_reduce(both)  # the processes are still in step
        assert both == 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
