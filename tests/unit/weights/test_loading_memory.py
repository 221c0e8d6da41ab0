"""Peak host memory of loading released files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.state_dict_adapter import model_arguments, to_released
from bya_core.weights.weight_files import build_empty

CONFIG = {
    "num_attention_heads": 24, "num_layers": 4, "sample_width": 24, "sample_height": 16, "sample_frames": 9,
    "cross_attn_interval": 2, "use_learned_positional_embeddings": True, "audio_dim": 256, "audio_heads": 8,
    "audio_context_tokens": 8,
}  # fmt: skip
PROGRAM = """
import json, sys, threading, torch
from pathlib import Path
from bya_core.weights.state_dict_adapter import load_released

def own():  # without pages of files, of which the kernel keeps as many as it likes
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])

def watch():
    while not done.wait(0.002):
        peaks.append(own())

before, peaks, done = own(), [], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
model = load_released(Path(sys.argv[1]), torch.bfloat16)
done.set()
watcher.join()
held = sum(value.numel() * value.itemsize for value in model.state_dict().values())
print(json.dumps(max(peaks) - before - held))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_peak_memory_stays_below_the_largest_file(tmp_path: Path) -> None:
    """1.7 GB in float32, with real sizes of face and router modules, loaded as bfloat16 in a new process."""
    shell = build_empty(lambda: BindYourAvatarTransformer3DModel(**model_arguments(CONFIG)))
    torch.manual_seed(0)
    weights = {name: 0.02 * torch.randn(value.shape) for name, value in shell.state_dict().items()}
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text(json.dumps(CONFIG))
    for file, content in to_released(weights).items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        if file == "transformer":
            for shard in range(2):
                part = dict(list(content.items())[shard::2])
                save_file(part, tmp_path / f"transformer/diffusion_pytorch_model-{shard}.safetensors")
        else:
            torch.save(content, tmp_path / file)
    files = [p.stat().st_size for p in tmp_path.rglob("*") if p.suffix in (".pt", ".safetensors")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert sum(files) > 1.5e9 and json.loads(done.stdout.splitlines()[-1]) < 0.6 * max(files)
