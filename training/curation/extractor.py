"""Audio-visual target speaker extraction by AV_MossFormer2_TSE_16K of clearvoice, in a process of its own."""

from __future__ import annotations

import atexit
import json
import logging
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from bya_core.errors import InputError
from training.curation.models import Talk

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("clearvoice_worker.py")
_TRIES = 2
_START = 600.0  # seconds that loading may take


class ClearVoiceExtractor:
    """`SpeechExtractor` that talks to `clearvoice_worker.py`; a worker that dies is started again once.

    Args:
        python: of the environment that clearvoice is installed in.
        checkpoints: folder with AV_MossFormer2_TSE_16K in it.
        device: "auto" or "cpu".
        seconds: longest time for one answer.
        worker: the worker's file.

    Raises:
        InputError: no such Python, no clearvoice in it, or no weights.
    """

    def __init__(
        self,
        python: str,
        checkpoints: str,
        device: str = "auto",
        seconds: float = 600.0,
        worker: str = str(WORKER),
    ) -> None:
        self.python = Path(python).expanduser()
        if not self.python.is_file():
            came = f"no Python at {self.python}, which should have clearvoice (Apache-2.0) for speech extraction"
            raise InputError(came, "an environment of its own", f"see {WORKER.name} for the two commands that make it")
        folder = Path(checkpoints).expanduser().absolute()
        self.command = [str(self.python), worker, "--checkpoints", str(folder), "--device", device]
        self.seconds = seconds
        self._worker: subprocess.Popen[str] | None = None
        atexit.register(self.close)
        self._started()

    def extract(self, talk: Talk) -> np.ndarray:
        """See `SpeechExtractor`. Raises RuntimeError where the worker says no or dies twice."""
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "in.npz", Path(folder) / "out.npy"
            np.savez(given, mix=talk.mix, faces=talk.faces)
            for attempt in range(_TRIES):
                try:
                    self._ask({"input": str(given), "output": str(made)})
                    break
                except (BrokenPipeError, EOFError, TimeoutError) as error:
                    log.warning("clearvoice's process ended (%s)", error or type(error).__name__)
                    self.close()
                    if attempt + 1 == _TRIES:
                        raise RuntimeError(f"clearvoice's process ended {_TRIES} times on this clip") from error
            return np.load(made, allow_pickle=False)

    def close(self) -> None:
        """End the worker."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    pipe.close()

    def _started(self) -> subprocess.Popen[str]:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self.close()
        self._worker = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        try:
            answer = self._answer(self._worker, max(self.seconds, _START))
        except (EOFError, TimeoutError, ValueError) as error:
            self.close()
            answer = {"error": f"it ended at its start ({error or type(error).__name__})"}
        if "error" in answer:
            self.close()
            came = f"clearvoice in {self.python} cannot be used ({answer['error']})"
            do = f"see {WORKER.name}; weights: hf download alibabasglab/AV_MossFormer2_TSE_16K (Apache-2.0)"
            raise InputError(came, "clearvoice 0.1.2 and its weights", do)
        return self._worker

    def _ask(self, request: dict[str, str]) -> None:
        worker = self._started()
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        answer = self._answer(worker, self.seconds)
        if "error" in answer:
            raise RuntimeError(f"clearvoice: {answer['error']}")

    def _answer(self, worker: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
        """The next line; the worker is ended where none comes in time."""
        assert worker.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            worker.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            line = worker.stdout.readline()
        finally:
            timer.cancel()
        if late.is_set():
            raise TimeoutError(f"no answer in {seconds:g} s")
        if not line:
            raise EOFError(f"exit code {worker.poll()}")
        return json.loads(line)
