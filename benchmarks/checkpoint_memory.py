"""Host memory of sharded training while weights are loaded and checkpoints are written and read.

    python benchmarks/checkpoint_memory.py                        # two processes with FSDP2 (gloo), a model of 500 MB
    python benchmarks/checkpoint_memory.py --megabytes 1000 --json memory.json

Two processes load a model with random weights from a folder, shard it, fill the optimizer, write a checkpoint, resume
from it and write the final weights. Anonymous memory (without mapped files) of both is added up every few milliseconds.
The table has the peak beyond what they hold anyway, their shards, relative to one copy of the weights in float32.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

ROOT = Path(__file__).resolve().parents[1]
sys.path = [str(ROOT), *(path for path in sys.path if Path(path or ".").resolve() != ROOT / "benchmarks")]

from bya_core.io.atomic import write_json  # noqa: E402
from training.engine.build import build_model  # noqa: E402
from training.engine.checkpointing import Checkpoints, TrainerState, TrainingObjects  # noqa: E402
from training.engine.distributed import build_accelerator, prepare, share_dtypes  # noqa: E402
from training.engine.lora import write_model  # noqa: E402
from training.engine.optim import build_optimizers, select_trainable, unused_prefixes  # noqa: E402
from training.engine.recipe import Recipe, load_recipe  # noqa: E402
from training.engine.settings import RunSettings  # noqa: E402

PHASES = ("load", "save", "resume", "final")
INTERVAL = 0.005  # seconds between readings


def use_fsdp2(accelerator: Accelerator) -> None:
    """Set the plugin of recipes/accelerate/fsdp2.yaml on a CPU accelerator, where accelerate does not offer it."""
    config = yaml.safe_load((ROOT / "training/recipes/accelerate/fsdp2.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config["fsdp_version"],
        auto_wrap_policy=config["fsdp_auto_wrap_policy"].lower(),
        transformer_cls_names_to_wrap=config["fsdp_transformer_layer_cls_to_wrap"].split(","),
        reshard_after_forward=config["fsdp_reshard_after_forward"],
        cpu_ram_efficient_loading=config["fsdp_cpu_ram_efficient_loading"],
        state_dict_type=config["fsdp_state_dict_type"],
    )
    for state in (accelerator.state._shared_state, PartialState._shared_state):
        state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    assert accelerator.is_fsdp2 and accelerator.distributed_type is DistributedType.FSDP


def small_recipe(megabytes: int) -> Recipe:
    """The published recipe, narrower and with as many layers as fill the memory."""
    narrow = (
        "model.num_attention_heads=8", "model.lfe_dim=128", "model.lfe_output_dim=512", "model.audio_dim=64",
        "model.audio_hidden_dim=128", "model.cross_attn_num_heads=4", "model.router_dim=128",
        "model.text_embed_dim=256",
    )  # fmt: skip
    sizes = []
    for layers in (4, 6):
        recipe = load_recipe("cogvideox5b", (*narrow, f"model.num_layers={layers}"))
        with torch.device("meta"):
            sizes.append(_size(build_model(recipe, 1, RunSettings(Path("unused")))))
    layers = 4 + 2 * max(0, round((megabytes * 1e6 - sizes[0]) / (sizes[1] - sizes[0])))
    return load_recipe("cogvideox5b", (*narrow, f"model.num_layers={layers}"))


def _size(model: torch.nn.Module) -> int:
    return sum(p.numel() * 4 for p in model.parameters())


def work(folder: Path, megabytes: int) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    recipe = small_recipe(megabytes)
    settings = RunSettings(folder / "run", init=str(folder / "init"), report_to=())
    accelerator = build_accelerator(settings)
    use_fsdp2(accelerator)
    main = accelerator.is_main_process

    def phase(name: str) -> None:
        dist.barrier()
        if main:
            (folder / "phase").write_text(name)
        dist.barrier()
        time.sleep(20 * INTERVAL)

    (folder / f"pid-{accelerator.process_index}").write_text(str(os.getpid()))
    phase("start")
    phase("load")
    model: Any = build_model(recipe, 1, settings, empty=not main)
    select_trainable(model, ("*",), unused_prefixes(recipe.stages[1]))
    share_dtypes(accelerator, model)
    optimizers = build_optimizers(model, recipe.stages[1].optimizer)
    wrapper, optimizers = prepare(accelerator, model, optimizers, settings)
    model = accelerator.unwrap_model(wrapper).model
    phase("loaded")
    phase("fill")
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    identity = {"stage": 1, "seed": 0, "frozen": "", "init": settings.init}
    run = TrainingObjects(accelerator, model, optimizers, None, identity)
    settings.output.mkdir(exist_ok=True)
    checkpoints = Checkpoints(settings.output)
    phase("ready")
    phase("save")
    checkpoints.save(run, TrainerState(step=1))
    phase("resume")
    assert checkpoints.resume(run).step == 1
    phase("final")
    write_model(settings.output / "final", model, model.state_dict(), None, {}, main=main)
    phase("end")


def anonymous_memory(pid: str) -> int:
    """Bytes of memory of a process that is not mapped from files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(megabytes: int, folder: Path) -> dict[str, float]:
    """Peak host memory of every phase beyond the shards, in copies of the weights; and `megabytes`, their true size."""
    torch.manual_seed(0)
    recipe = small_recipe(megabytes)
    model = build_model(recipe, 1, RunSettings(folder))
    size = _size(model)
    select_trainable(model, ("*",), unused_prefixes(recipe.stages[1]))
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    write_model(folder / "init", model, model.state_dict(), None, {})
    del model
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    words = [*launcher, "--worker", str(folder), "--megabytes", str(megabytes)]
    peaks: dict[str, int] = {}
    log = folder / "log"
    with log.open("w") as output, subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT) as process:
        while process.poll() is None:
            try:
                phase = (folder / "phase").read_text()
                used = sum(anonymous_memory((folder / f"pid-{rank}").read_text()) for rank in (0, 1))
                peaks[phase] = max(peaks.get(phase, 0), used)
            except (OSError, ValueError):
                pass  # not started yet, or just ended
            time.sleep(INTERVAL)
    if process.returncode:
        raise RuntimeError(log.read_text())
    beyond = {name: (peak - peaks["start"]) / size for name, peak in peaks.items()}
    held = {"load": 1}  # the shards; later also two moments of AdamW for each trained weight
    return {"megabytes": size / 1e6} | {name: beyond[name] - held.get(name, 1 + 2 * trained / size) for name in PHASES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the weights in float32")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker, options.megabytes)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.megabytes, Path(folder))
    print(f"weights of {result['megabytes']:.0f} MB on two processes; peak host memory beyond the shards, in copies")
    for name in PHASES:
        print(f"  {name:<8}{result[name]:>6.2f}")
    if options.json is not None:
        write_json(options.json, {name: round(value, 3) for name, value in result.items()})


if __name__ == "__main__":
    main()
