"""Audio-visual target speaker extraction by AV_MossFormer2_TSE_16K of clearvoice, run in a subprocess."""

from __future__ import annotations

import atexit
import json
import logging
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np

from bya_core.errors import InputError
from bya_core.io.workspace import temporary_folder
from training.curation.models import SpeechMixture

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("clearvoice_worker.py")
_MAX_ATTEMPTS = 2
_LOAD_TIMEOUT = 600.0  # seconds


class ClearVoiceExtractor:
    """`SpeechExtractor` that sends requests to `clearvoice_worker.py` and restarts it once if it dies.

    Args:
        python: interpreter of the environment in which clearvoice is installed.
        checkpoints: folder that contains AV_MossFormer2_TSE_16K.
        device: "auto" or "cpu".
        timeout: maximum time per request in seconds.
        worker: path of the worker script.

    Raises:
        InputError: the interpreter, clearvoice or its weights are missing.
    """

    def __init__(
        self, python: str, checkpoints: str, device: str = "auto", timeout: float = 600.0, worker: str = str(WORKER)
    ) -> None:
        self.python = Path(python).expanduser()
        if not self.python.is_file():
            problem = f"no Python interpreter at {self.python} for speech extraction with clearvoice (Apache-2.0)"
            raise InputError(problem, "a separate environment", f"create one with the commands in {WORKER.name}")
        folder = Path(checkpoints).expanduser().absolute()
        self.command = [str(self.python), worker, "--checkpoints", str(folder), "--device", device]
        self.timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)
        self._start()

    def extract(self, mixture: SpeechMixture) -> np.ndarray:
        """See `SpeechExtractor`. Raises RuntimeError if the worker reports an error or dies twice."""
        with temporary_folder() as folder:
            inputs, outputs = folder / "in.npz", folder / "out.npy"
            np.savez(inputs, mix=mixture.waveform, faces=mixture.faces)
            for attempt in range(_MAX_ATTEMPTS):
                try:
                    self._request({"input": str(inputs), "output": str(outputs)})
                    break
                except (BrokenPipeError, EOFError, TimeoutError) as error:
                    log.warning("the clearvoice worker died (%s)", error or type(error).__name__)
                    self.close()
                    if attempt + 1 == _MAX_ATTEMPTS:
                        problem = f"the clearvoice worker died {_MAX_ATTEMPTS} times on this clip"
                        raise RuntimeError(problem) from error
            return np.load(outputs, allow_pickle=False)

    def close(self) -> None:
        """Stop the worker."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _start(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        try:
            reply = self._read_reply(self._process, max(self.timeout, _LOAD_TIMEOUT))
        except (EOFError, TimeoutError, ValueError) as error:
            reply = {"error": f"it exited at startup ({error or type(error).__name__})"}
        if "error" in reply:
            self.close()
            problem = f"clearvoice in {self.python} cannot be used ({reply['error']})"
            hint = f"see {WORKER.name}; weights: hf download alibabasglab/AV_MossFormer2_TSE_16K (Apache-2.0)"
            raise InputError(problem, "clearvoice 0.1.2 and its weights", hint)
        return self._process

    def _request(self, request: dict[str, str]) -> None:
        process = self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        reply = self._read_reply(process, self.timeout)
        if "error" in reply:
            raise RuntimeError(f"clearvoice: {reply['error']}")

    def _read_reply(self, process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
        """Read one line; the worker is killed if none arrives in time."""
        assert process.stdout is not None
        timed_out = threading.Event()

        def kill() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(timeout, kill)
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if timed_out.is_set():
            raise TimeoutError(f"no reply within {timeout:g} s")
        if not line:
            raise EOFError(f"exit code {process.poll()}")
        return json.loads(line)
