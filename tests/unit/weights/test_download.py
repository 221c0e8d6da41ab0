"""Downloads from an HTTP server in this process: resuming, corruption, disk space, offline use."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from bya_core.cli import main as cli
from bya_core.errors import Cancelled, InputError
from bya_core.progress import Progress
from bya_core.weights import cache, registry
from bya_core.weights.cache import (
    MANIFEST,
    changed_files,
    downloaded_folder,
    is_downloaded,
    missing_files,
    repair_nested_folder,
)
from bya_core.weights.components import OFFICIAL, Component, KnownFile
from bya_core.weights.download import RESERVE, DownloadInterrupted, download

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes from which a file is stored in LFS


@dataclass
class FakeHub:
    """Repositories, received requests, and simulated failures."""

    repositories: dict[str, dict[str, bytes]]
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, range
    replaced: dict[str, bytes] = field(default_factory=dict)  # file -> contents sent instead
    broken: set[str] = field(default_factory=set)  # files whose transfer is interrupted at once
    slow: set[str] = field(default_factory=set)  # files sent in pieces, with pauses
    endpoint: str = ""

    def info(self, repository: str, revision: str) -> dict | None:
        files = self.repositories.get(repository)
        if files is None:
            return None
        if revision not in ("main", COMMIT):
            return {}
        return {"id": repository, "sha": COMMIT, "siblings": [self._entry(n, c) for n, c in files.items()]}

    @staticmethod
    def _entry(name: str, content: bytes) -> dict:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict = {"rfilename": name, "size": len(content), "blobId": blob}
        if len(content) >= LARGE:
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return entry


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, _, _ = self.path.partition("?")
            byte_range = self.headers.get("Range")
            hub.requests.append((path, byte_range))
            if path.startswith("/api/models/"):
                repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                info = hub.info(repository, revision or "main")
                if not info:
                    code = "RepoNotFound" if info is None else "RevisionNotFound"
                    self._send(404, b"{}", {"X-Error-Code": code})
                else:
                    self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
                return
            repository, _, rest = path[1:].partition("/resolve/")
            name = rest.partition("/")[2]
            if name not in hub.repositories.get(repository, {}):
                self._send(404, b"", {})
                return
            content = hub.replaced.get(name, hub.repositories[repository][name])
            start = int(byte_range.removeprefix("bytes=").partition("-")[0]) if byte_range else 0
            body = content[start:]
            status = 206 if byte_range else 200
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if byte_range else {}
            if name in hub.broken:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.close_connection = True
                self.connection.close()
                return
            self._send(status, body, headers, slowly=name in hub.slow)

        def _send(self, status: int, body: bytes, headers: dict[str, str], slowly: bool = False) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            pieces = [body[i : i + 50_000] for i in range(0, len(body), 50_000)] if slowly else [body]
            for piece in pieces:
                try:
                    self.wfile.write(piece)
                except OSError:  # client disconnected
                    return
                time.sleep(0.1 * slowly)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


WEIGHTS = bytes(range(256)) * 4000  # about a megabyte
COMPONENT = Component(
    name="weights",
    purpose="weights of a test",
    repository="someone/model",
    revision=None,
    files=(("new/*.bin", "old/*.bin"), ("config.json",)),
    folder="below",
    size="1 MB",
    license="Apache-2.0",
    commercial_use="yes",
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {"old/a.bin": WEIGHTS, "old/b.bin": WEIGHTS[::-1], "config.json": b'{"a": 1}', "deep/er/old/c.bin": b"no"}
    hub = FakeHub({"someone/model": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    no_sleep = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})  # between retries
    monkeypatch.setattr("huggingface_hub.file_download.time", no_sleep)
    yield hub
    server.shutdown()
    server.server_close()


def test_download_writes_files_and_manifest(hub: FakeHub, tmp_path: Path) -> None:
    messages: list[str] = []
    steps: list[tuple[int, int]] = []
    files = download([COMPONENT], tmp_path, notify=messages.append, callback=lambda p: steps.append((p.step, p.total)))
    names = {path.relative_to(tmp_path / "below").as_posix() for path in files}
    assert names == {"old/a.bin", "old/b.bin", "config.json"}
    assert (tmp_path / "below/old/b.bin").read_bytes() == WEIGHTS[::-1]
    entry = json.loads((tmp_path / MANIFEST).read_text())["components"]["weights"]
    assert entry["revision"] == COMMIT
    assert entry["files"]["old/a.bin"] == {"size": len(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    assert steps[-1] == (2 * len(WEIGHTS) + 8, 2 * len(WEIGHTS) + 8)
    assert any("no published hash is known for old/a.bin, old/b.bin, config.json" in text for text in messages)
    assert is_downloaded(COMPONENT, tmp_path) and not missing_files(COMPONENT, tmp_path)


@pytest.mark.parametrize("same", [True, False])
def test_files_of_other_applications_are_not_downloaded(
    same: bool, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If their hash is the published one; others of the same name and size are ignored."""
    known = KnownFile("old/a.bin", len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    component, elsewhere = replace(COMPONENT, known=(known,)), tmp_path / "elsewhere" / "models" / "a.bin"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(WEIGHTS if same else WEIGHTS[::-1])
    monkeypatch.setattr(cache, "_foreign", [tmp_path / "elsewhere"])
    root, before = tmp_path / "official", elsewhere.read_bytes()
    downloaded = {path.name for path in download([component], root)}
    assert downloaded == {"b.bin", "config.json"} | (set() if same else {"a.bin"})
    assert is_downloaded(component, root) and changed_files(component, root) == []
    assert elsewhere.read_bytes() == before
    elsewhere.unlink()
    assert is_downloaded(component, root) is not same


def test_complete_download_makes_no_requests(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download([COMPONENT], tmp_path)
    hub.requests.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # closed port
    assert download([COMPONENT], tmp_path) == [] and hub.requests == []
    (tmp_path / "below/old/a.bin").unlink()
    with pytest.raises(DownloadInterrupted, match="someone/model at http://127.0.0.1:1 .* run the same command again"):
        download([COMPONENT], tmp_path)


def test_cancelled_download_resumes(hub: FakeHub, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step > 300_000:
            raise Cancelled("cancelled by the user")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
        with pytest.raises(Cancelled):
            download([COMPONENT], tmp_path, callback=stop)
    partial = tmp_path / "below/old/a.bin.part"
    size = partial.stat().st_size
    assert 0 < size < len(WEIGHTS) and not (tmp_path / "below/old/a.bin").exists()
    hub.requests.clear()
    download([COMPONENT], tmp_path)
    ranges = {path.rpartition("/")[2]: byte_range for path, byte_range in hub.requests if "/resolve/" in path}
    assert ranges["a.bin"] == f"bytes={size}-" and ranges["b.bin"] is None
    assert (tmp_path / "below/old/a.bin").read_bytes() == WEIGHTS and not partial.exists()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_download_resumes_after_the_process_was_killed(hub: FakeHub, tmp_path: Path) -> None:
    hub.slow.add("old/a.bin")
    program = (
        "import sys, pathlib, huggingface_hub.constants\n"
        "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 50_000\n"
        "from bya_core.weights.download import download\n"
        "from tests.unit.weights.test_download import COMPONENT\n"
        "download([COMPONENT], pathlib.Path(sys.argv[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[3])
    partial = tmp_path / "below/old/a.bin.part"
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not (partial.is_file() and partial.stat().st_size > 100_000):
        time.sleep(0.05)
    process.kill()
    process.wait()
    size = partial.stat().st_size
    assert 100_000 < size < len(WEIGHTS)
    hub.slow.clear()
    hub.requests.clear()
    download([COMPONENT], tmp_path)
    assert any(byte_range == f"bytes={size}-" for _, byte_range in hub.requests)
    assert (tmp_path / "below/old/a.bin").read_bytes() == WEIGHTS


def test_network_failure_can_be_resumed(hub: FakeHub, tmp_path: Path) -> None:
    hub.broken.add("old/a.bin")
    with pytest.raises(DownloadInterrupted, match="old/a.bin of someone/model"):
        download([COMPONENT], tmp_path)
    hub.broken.clear()
    download([COMPONENT], tmp_path)
    assert (tmp_path / "below/old/a.bin").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("name", "sent", "match"),
    [
        ("old/a.bin", WEIGHTS[:-100], f"received with {len(WEIGHTS) - 100} bytes"),
        ("old/a.bin", b"?" + WEIGHTS[1:], "received with different contents"),
        ("config.json", b'{"b": 1}', "received with different contents"),
    ],
)
def test_corrupt_file_raises(hub: FakeHub, tmp_path: Path, name: str, sent: bytes, match: str) -> None:
    hub.replaced[name] = sent
    with pytest.raises(InputError, match=match):
        download([COMPONENT], tmp_path)
    file = tmp_path / "below" / name
    assert not list(file.parent.glob(f"{file.name}*")) and not is_downloaded(COMPONENT, tmp_path)
    hub.replaced.clear()
    download([COMPONENT], tmp_path)
    assert file.read_bytes() == hub.repositories["someone/model"][name]


def test_mirror_with_other_hash_or_size_raises(hub: FakeHub, tmp_path: Path) -> None:
    other = replace(COMPONENT, known=(KnownFile("old/a.bin", len(WEIGHTS), "0" * 64),))
    with pytest.raises(InputError, match="offers old/a.bin .* do not use this mirror"):
        download([other], tmp_path)
    shorter = replace(COMPONENT, known=(KnownFile("old/a.bin", 7, hashlib.sha256(WEIGHTS).hexdigest()),))
    with pytest.raises(InputError, match=f"with {len(WEIGHTS)} bytes; expected 7"):
        download([shorter], tmp_path)
    assert not list(tmp_path.rglob("*.bin*"))


def test_manifest_pins_commit_and_hashes(hub: FakeHub, tmp_path: Path) -> None:
    download([COMPONENT], tmp_path)
    hub.repositories["someone/model"]["old/a.bin"] = b"x" * len(WEIGHTS)  # at the same commit
    (tmp_path / "below/old/a.bin").unlink()
    with pytest.raises(InputError, match="do not use this mirror"):
        download([COMPONENT], tmp_path)
    assert (f"/api/models/someone/model/revision/{COMMIT}", None) in hub.requests


def test_full_disk_raises(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=RESERVE + len(WEIGHTS)))
    with pytest.raises(InputError, match=r"201.0 MB free .* expected 202.0 MB.*--models-dir"):
        download([COMPONENT], tmp_path)
    assert not any("/resolve/" in path for path, _ in hub.requests)


def test_missing_revision_falls_back_to_the_newest(hub: FakeHub, tmp_path: Path) -> None:
    """Known hashes decide whether the files are the right ones."""
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    pinned = replace(COMPONENT, revision="f" * 40, known=(KnownFile("old/a.bin", len(WEIGHTS), digest),))
    messages: list[str] = []
    download([pinned], tmp_path, notify=messages.append)
    assert any("no revision ffffffffff" in message for message in messages)
    assert is_downloaded(pinned, tmp_path) and not is_downloaded(replace(pinned, revision="e" * 40), tmp_path)
    wrong = replace(pinned, known=(KnownFile("old/a.bin", len(WEIGHTS), "0" * 64),))
    with pytest.raises(InputError, match="SHA-256"):
        download([wrong], tmp_path / "other")


def test_optional_files_may_be_absent(hub: FakeHub, tmp_path: Path) -> None:
    component = replace(COMPONENT, optional_files=(("absent.json",), ("deep/er/old/c.bin",)))
    download([component], tmp_path)
    assert is_downloaded(component, tmp_path) and (tmp_path / "below/deep/er/old/c.bin").is_file()


def test_file_selection_in_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    del hub.repositories["someone/model"]["config.json"]
    with pytest.raises(InputError, match="has no config.json; expected the weights of a test"):
        download([COMPONENT], tmp_path)
    with pytest.raises(InputError, match="someone/else .*RepositoryNotFoundError"):
        download([replace(COMPONENT, repository="someone/else")], tmp_path)
    hub.repositories["someone/model"] |= {"new/d.bin": WEIGHTS, "config.json": b"{}"}
    download([COMPONENT], tmp_path)
    assert [p.name for p in (tmp_path / "below").rglob("*.bin")] == ["d.bin"]  # preferred pattern only


def test_existing_files_are_not_overwritten(hub: FakeHub, tmp_path: Path) -> None:
    own = tmp_path / "below/old/a.bin"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"something else")
    with pytest.raises(InputError, match="a different file exists .* move it away"):
        download([COMPONENT], tmp_path)
    own.write_bytes(WEIGHTS)
    download([COMPONENT], tmp_path)
    assert not any("a.bin" in path for path, _ in hub.requests if "/resolve/" in path)
    own.write_bytes(WEIGHTS[::-1])
    assert is_downloaded(COMPONENT, tmp_path) and changed_files(COMPONENT, tmp_path) == ["below/old/a.bin"]


def test_nested_antelopev2_folder_is_repaired(tmp_path: Path) -> None:
    inner = tmp_path / "face_encoder/models/antelopev2/antelopev2"
    inner.mkdir(parents=True)
    (inner / "glintr100.onnx").write_bytes(b"model")
    repair_nested_folder(tmp_path)
    assert (inner.parent / "glintr100.onnx").read_bytes() == b"model" and not inner.exists()


def test_components_are_documented() -> None:
    assert len({component.name for component in OFFICIAL}) == len(OFFICIAL)
    for c in OFFICIAL:
        assert (c.files or c.optional_files) and c.license and c.commercial_use and c.size and c.purpose
        assert c.revision is None or len(c.revision) == 40
        for file in c.known:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert any(file.path in patterns for patterns in c.files)


def test_download_and_models_commands(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = replace(COMPONENT, name="more", folder="beside", required=False)
    entry = replace(registry.MODELS["official"], components=(COMPONENT, more))
    monkeypatch.setitem(registry.MODELS, "official", entry)
    assert cli.main(["models", "--models-dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "missing below/old/*.bin" in output and "bya download official --components weights" in output
    assert cli.main(["download", "official", "--models-dir", str(tmp_path), "--components", "weights"]) == 0
    capsys.readouterr()
    assert cli.main(["models", "--models-dir", str(tmp_path), "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["models"][1]["components"]}
    assert listed["weights"]["installed"] and listed["weights"]["revision"] == COMMIT and listed["more"]["missing"]
    assert listed["weights"]["size"] == "2.05 MB" and listed["more"]["size"] == "1 MB"
    (tmp_path / "official/below/old/a.bin").write_bytes(b"\0" * len(WEIGHTS))
    assert cli.main(["download", "official", "--models-dir", str(tmp_path), "--components", "weights", "--verify"]) == 2
    assert "below/old/a.bin" in capsys.readouterr().err
    assert cli.main(["download", "official", "--components", "wieghts"]) == 2
    assert cli.main(["download", "toy"]) == 2


def test_downloaded_components_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bya_core.evaluation.metric_weights import SYNCNET

    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path))
    components = {component.name: component for component in OFFICIAL}
    repository, folder = components["segmenter"].repository, tmp_path / "official" / components["segmenter"].folder
    folder.mkdir(parents=True)
    assert downloaded_folder(repository) == repository and downloaded_folder("/no/such/folder") == "/no/such/folder"
    (folder / "config.json").touch()
    assert downloaded_folder(repository) == str(folder)
    syncnet = components["syncnet"]
    file = tmp_path / "official" / syncnet.folder / syncnet.known[0].path
    assert SYNCNET.find() is None and "--components syncnet" in SYNCNET.missing
    file.parent.mkdir(parents=True)
    file.touch()
    assert SYNCNET.find() == file
