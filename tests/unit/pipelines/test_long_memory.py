"""The memory of a long video does not depend on its length."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import tempfile
from pathlib import Path
import torch
import bya_core.pipelines.long_video as long_video
from bya_core.pipelines.outputs import Outputs
from bya_core.pipelines.run_report import peak_ram
from bya_core.routing import Routing
from bya_core.scene.types import Character, Scene, Speech
from tests.fakes import RATE, fake_bundle, tone

torch.set_num_threads(1)
bundle = fake_bundle()
# random masks and latents instead of the model
long_video.route = lambda prepared, *_: Routing.of(
    "intra", torch.rand(1, *prepared.grid.shape), torch.eye(1), strength=0.0
)
long_video.denoise_latents = lambda prepared, routing, *_: (
    torch.rand(1, *prepared.conditions.latent_shape), routing.masks
)
for windows in (8, 8, 32):  # enough to fill the look-ahead of the encoder; the first run is a warm-up
    frames = 8 * windows + 1
    scene = Scene(
        prompt="Ada", characters=[Character("Ada", torch.rand(3, 40, 32))],
        speeches=[Speech(torch.from_numpy(tone(frames / 25)).float()[None], RATE)],
        height=384, width=576, num_frames=frames, sampling=bundle.sampling,
    )
    with tempfile.TemporaryDirectory() as folder:
        video = long_video.generate_long(scene, bundle, Path(folder) / "windows")
        assert len(video.windows) == windows
        Outputs(Path(folder) / "a.mp4").write(scene, video, {})
    print(peak_ram() // 1_000_000, frames * 384 * 576 * 3 // 1_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_length() -> None:
    """32 windows against 8, whose frames would need 127 MB more in memory."""
    # make malloc return freed blocks to the system at once
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command, environment = [sys.executable, "-c", SCRIPT], {**os.environ, **malloc}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, (short, few), (long, many) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert many - few > 120
    assert long - short < 30, f"{short} MB for 8 windows, {long} MB for 32"
