r"""How much memory of the host it takes to load released files: measured, on random weights.

    python benchmarks/loading_memory.py --folder /tmp/loading

writes released files of about 2 GB (the real layout and the real face and router sizes, a narrower and shorter
transformer), loads them in a process of its own, and prints JSON. What counts is the highest resident memory of that
process, mapped files included, less what it held before and, where the model stays on the CPU, less the model itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file

from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.loader import empty
from bya_core.weights.state_dict_adapter import load_released, model_arguments, to_released

CONFIG = {
    "num_attention_heads": 24,
    "num_layers": 4,
    "sample_width": 24,
    "sample_height": 16,
    "sample_frames": 9,
    "cross_attn_interval": 2,
    "use_learned_positional_embeddings": True,
    "audio_dim": 256,
    "audio_heads": 8,
    "audio_context_tokens": 8,
}
SHARDS = 2


@dataclass(frozen=True)
class Arguments:
    """Measure it.

    Args:
        folder: for the files; they are made where they are not there, and stay.
        stored: number format of the files.
        dtype: number format to load them in.
        device: where to.
        load: load, in this process, and print what was held.
    """

    folder: Path
    stored: str = "float32"
    dtype: str = "bfloat16"
    device: str = "cpu"
    load: bool = False


def make(folder: Path, stored: torch.dtype) -> None:
    """Write random released files."""
    shell = empty(lambda: BindYourAvatarTransformer3DModel(**model_arguments(CONFIG)))
    torch.manual_seed(0)
    weights = {n: 0.02 * torch.randn(v.shape).to(stored) for n, v in shell.state_dict().items()}
    (folder / "transformer").mkdir(parents=True)
    for file, content in to_released(weights).items():
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        if file != "transformer":
            torch.save(content, path)
            continue
        names = list(content)
        for shard in range(SHARDS):
            part = {name: content[name] for name in names[shard::SHARDS]}
            save_file(part, folder / f"transformer/diffusion_pytorch_model-{shard}.safetensors")
    (folder / "transformer/config.json").write_text(json.dumps(CONFIG))


def load(folder: Path, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Load, and tell what was held."""
    if device != "cpu":
        torch.zeros(1, device=device)  # what the driver takes is not ours
    before = _status("VmRSS")
    start = time.perf_counter()
    model = load_released(folder, dtype, device)
    seconds = time.perf_counter() - start
    held = sum(value.numel() * value.itemsize for value in model.state_dict().values())
    return {"seconds": seconds, "model": held, "peak": _status("VmHWM") - before}


def _status(what: str) -> int:
    """Bytes of this process, as Linux tells."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what + ":")).split()[1])


def main() -> None:
    arguments = tyro.cli(Arguments)
    folder = arguments.folder / arguments.stored
    if arguments.load:
        print(json.dumps(load(folder, getattr(torch, arguments.dtype), arguments.device)))
        return
    if not folder.is_dir():
        make(folder, getattr(torch, arguments.stored))
    again = [sys.executable, __file__, *sys.argv[1:], "--load"]
    found = json.loads(subprocess.run(again, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    files = [path.stat().st_size for path in folder.rglob("*") if path.suffix in (".pt", ".safetensors")]
    beside = found["peak"] - (found["model"] if arguments.device == "cpu" else 0)
    report = {
        "files_gb": round(sum(files) / 1e9, 3),
        "largest_file_gb": round(max(files) / 1e9, 3),
        "model_gb": round(found["model"] / 1e9, 3),
        "host_memory_beside_the_model_gb": round(beside / 1e9, 3),
        "times_the_largest_file": round(beside / max(files), 3),
        "seconds": round(found["seconds"], 1),
        "device": arguments.device,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
