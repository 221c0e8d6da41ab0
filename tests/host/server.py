"""A ComfyUI server with this pack, and a client that queues, observes and interrupts prompts.

Each server has its own base directory (models, input, output, user), with the pack linked into custom_nodes.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

from tests.host.setup import ROOT, Host

PACK = "bind-your-avatar"  # folder in custom_nodes
ENDS = ("execution_success", "execution_error", "execution_interrupted")
Graph = dict[str, dict[str, Any]]


class PromptRejected(Exception):
    """The server rejected a graph.

    Args:
        answer: Answer of the server: {"error": {...}, "node_errors": {id: {"errors": [...]}}}.
    """

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer)[:2000])
        self.answer = answer

    def errors_of(self, node: str) -> str:
        """Errors of one node in one line."""
        errors = self.answer.get("node_errors", {}).get(node, {}).get("errors", [])
        return " ".join(f"{error['message']} {error['details']}" for error in errors)


@dataclass(frozen=True)
class Preview:
    """A preview image.

    Args:
        node: Id of its node; "" if unknown.
        picture: Encoded image.
    """

    node: str
    picture: bytes


@dataclass
class Run:
    """A queued prompt and its events.

    Args:
        id: Id of the prompt.
        ended: Event it ended with; "" while running.
        end: Data of that event (for errors: node_id, exception_message, ...).
        executed: Ids of executed nodes, in order.
        cached: Ids of cached nodes.
        progress: (node, value, max) of each progress event.
        previews: Preview images.
        outputs: Outputs of the history by node id.
        seconds: Duration.
    """

    id: str
    ended: str = ""
    end: dict[str, Any] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    progress: list[tuple[str, float, float]] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def error(self) -> str:
        """Error message; "" without error."""
        return str(self.end.get("exception_message", "")).strip()

    def steps(self, node: str) -> list[float]:
        """Distinct progress values of a node."""
        return list(dict.fromkeys(value for name, value, _ in self.progress if name == node))


EventCallback = Callable[["Server", Run], object]
"""Called after each event."""


class Server:
    """A ComfyUI process.

    Args:
        host: ComfyUI to run.
        folder: Base directory.
        options: Additional command line options.
    """

    def __init__(self, host: Host, folder: Path, options: Sequence[str] = ()) -> None:
        self.host, self.folder, self.log = host, folder, folder / "server.log"
        for name in ("custom_nodes", "models", "input", "output", "temp", "user/default"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        pack = folder / "custom_nodes" / PACK
        if not pack.exists():
            pack.symlink_to(ROOT, target_is_directory=True)
        # otherwise the page shows a tutorial to new users
        settings = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.47.12"}
        (folder / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings), encoding="utf-8")
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = uuid.uuid4().hex
        command = [host.python, host.root / "main.py", "--cpu", "--listen", "127.0.0.1", "--port", self.port,
                   "--disable-auto-launch", "--disable-api-nodes", "--base-directory", folder,
                   "--database-url", "sqlite:///:memory:", "--preview-method", "auto", *options]  # fmt: skip
        # the pack has to find bya_core without PYTHONPATH
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Server:
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_ready(self, seconds: float = 900) -> None:
        """Wait until the server answers. Raises RuntimeError with the end of its log if it does not."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except OSError:  # refused, or no answer in time
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI did not start:\n{self.tail()}")

    def stop(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def tail(self, characters: int = 4000) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def get(self, path: str) -> Any:
        """GET JSON."""
        return json.loads(self.fetch(path) or b"null")

    def fetch(self, path: str) -> bytes:
        """GET bytes."""
        with urllib.request.urlopen(self.url + path, timeout=300) as answer:
            return answer.read()

    def post(self, path: str, data: Any) -> Any:
        """POST JSON."""
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read() or b"null")

    def queue(self, graph: Graph) -> Run:
        """Queue a graph. Raises PromptRejected if it is invalid."""
        try:
            answer = self.post("/prompt", {"prompt": graph, "client_id": self.client})
        except urllib.error.HTTPError as problem:
            raise PromptRejected(json.loads(problem.read())) from problem
        return Run(answer["prompt_id"])

    def run(self, graph: Graph, seconds: float = 1200, callback: EventCallback | None = None) -> Run:
        """Queue a graph and wait until it ends. Raises TimeoutError, and PromptRejected if it is invalid."""
        connection = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}", timeout=300)
        try:
            flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
            connection.send(json.dumps(flags))
            start = time.monotonic()
            run = self.queue(graph)
            while not run.ended:
                left = start + seconds - time.monotonic()
                if left <= 0:
                    self.interrupt()
                    raise TimeoutError(f"the run took more than {seconds} s; the log ends:\n{self.tail()}")
                connection.settimeout(left)
                try:
                    _record(run, connection.recv())
                except websocket.WebSocketTimeoutException:
                    continue
                if callback is not None:
                    callback(self, run)
            run.seconds = time.monotonic() - start
        finally:
            connection.close()
        run.outputs = self._outputs(run.id)
        return run

    def _outputs(self, prompt: str) -> dict[str, Any]:
        for _ in range(600):  # the history is written after the last event
            if history := self.get(f"/history/{prompt}"):
                return history[prompt]["outputs"]
            time.sleep(0.1)
        return {}

    def interrupt(self) -> None:
        """Interrupt the running prompt."""
        self.post("/interrupt", {})

    def files(self, run: Run, node: str) -> list[Path]:
        """Paths of the files shown by a node."""
        shown = run.outputs.get(node, {})
        entries = [entry for kind in shown.values() if isinstance(kind, list) for entry in kind]
        return [
            self.folder / entry["type"] / entry["subfolder"] / entry["filename"]
            for entry in entries
            if isinstance(entry, dict) and "filename" in entry
        ]

    def cpu_seconds(self) -> float:
        """CPU time of the process."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Resident memory of the process in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def _record(run: Run, message: str | bytes) -> None:
    """Add a websocket event to `run`."""
    if isinstance(message, bytes):
        if preview := _preview(message):
            run.previews.append(preview)
        return
    event = json.loads(message)
    kind, data = event["type"], event["data"]
    if data.get("prompt_id") != run.id:
        return
    if kind == "execution_cached":
        run.cached += data["nodes"]
    elif kind == "executing" and data["node"] is not None:
        run.executed.append(data["node"])
    elif kind == "progress":
        run.progress.append((data["node"], data["value"], data["max"]))
    elif kind in ENDS:
        run.ended, run.end = kind, data


def _preview(message: bytes) -> Preview | None:
    (kind,) = struct.unpack(">I", message[:4])
    if kind == 1:  # PREVIEW_IMAGE: format, picture
        return Preview("", message[8:])
    if kind == 4:  # PREVIEW_IMAGE_WITH_METADATA: length of the JSON, JSON, picture
        (length,) = struct.unpack(">I", message[4:8])
        metadata = json.loads(message[8 : 8 + length])
        return Preview(metadata.get("display_node_id") or metadata.get("node_id") or "", message[8 + length :])
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
