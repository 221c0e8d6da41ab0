"""Speech extraction in a subprocess."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from training.curation.clearvoice import ClearVoiceExtractor
from training.curation.models import SpeechMixture

WORKER = """
import json, os, sys
import numpy as np
print(json.dumps({"ok": True}), flush=True)
state = sys.argv[2]
for line in sys.stdin:
    request = json.loads(line)
    inputs = np.load(request["input"])
    mode = float(inputs["mix"][0])
    if mode == 2.0 and not os.path.exists(state + "/died"):
        open(state + "/died", "w").close()
        os._exit(9)
    if mode == 3.0:
        os._exit(9)
    if mode == 4.0:
        print(json.dumps({"error": "ValueError: no lips"}), flush=True)
        continue
    if mode == 5.0:
        import time
        time.sleep(60)
    with open(request["output"], "wb") as out:
        np.save(out, np.repeat(inputs["mix"][None], len(inputs["faces"]), 0) / 2)
    print(json.dumps({"ok": True}), flush=True)
"""


def test_clearvoice_worker_failures(tmp_path):
    """A worker with the protocol of clearvoice_worker.py that crashes, reports errors and hangs."""
    (tmp_path / "worker.py").write_text(WORKER)
    extractor = ClearVoiceExtractor(sys.executable, str(tmp_path), timeout=20.0, worker=str(tmp_path / "worker.py"))

    def extract(mode: float) -> np.ndarray:
        faces = np.zeros((2, 1, 224, 224, 3), np.uint8)
        return extractor.extract(SpeechMixture(np.full(640, mode, np.float32), faces, "x", 0))

    assert extract(1.0).shape == (2, 640) and extract(1.0)[0, 0] == 0.5
    assert extract(2.0)[1, 5] == 1.0  # restarted after a crash
    with pytest.raises(RuntimeError, match="died 2 times"):
        extract(3.0)
    with pytest.raises(RuntimeError, match="no lips"):
        extract(4.0)
    assert extract(1.0)[0, 0] == 0.5
    extractor.timeout = 0.5
    with pytest.raises(RuntimeError, match="died 2 times"):
        extract(5.0)
    extractor.close()


@pytest.mark.weights
@pytest.mark.skipif("BYA_CLEARVOICE" not in os.environ, reason="BYA_CLEARVOICE names no environment with clearvoice")
def test_clearvoice():
    """BYA_CLEARVOICE = PYTHON:CHECKPOINTS; random weights are sufficient."""
    python, checkpoints = os.environ["BYA_CLEARVOICE"].split(":")
    extractor = ClearVoiceExtractor(python, checkpoints, device="cpu")
    rng = np.random.default_rng(0)
    mix = rng.standard_normal(25 * 640).astype(np.float32) * 0.1
    faces = rng.integers(0, 255, (2, 25, 224, 224, 3)).astype(np.uint8)
    speeches = extractor.extract(SpeechMixture(mix, faces, "x", 0.0))
    assert speeches.shape == (2, 16_000) and speeches.dtype == np.float32 and np.isfinite(speeches).all()
    extractor.close()
