"""Downloading from a hub that runs in this process and speaks HTTP: interruption, corruption, room, offline."""

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
from bya_core.weights import download as module
from bya_core.weights import registry
from bya_core.weights.cache import MANIFEST, changed_files, downloaded_folder, is_downloaded, missing_files
from bya_core.weights.components import OFFICIAL, Component, KnownFile
from bya_core.weights.download import DownloadInterrupted, download, repair_nested_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes from which a file is kept as a large one


@dataclass
class FakeHub:
    """Repositories, what was asked of them, and what goes wrong."""

    repositories: dict[str, dict[str, bytes]]
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    lies: dict[str, bytes] = field(default_factory=dict)  # file -> what arrives in its place
    cut: dict[str, int] = field(default_factory=dict)  # file -> bytes after which the line breaks
    slow: set[str] = field(default_factory=set)  # files that arrive a piece at a time, with pauses
    endpoint: str = ""

    def info(self, repository: str, revision: str) -> dict | None:
        files = self.repositories.get(repository)
        if files is None or revision not in ("main", COMMIT):
            return None
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
            wanted = self.headers.get("Range")
            hub.asked.append(("GET", path, wanted))
            if path.startswith("/api/models/"):
                repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                info = hub.info(repository, revision or "main")
                if info is None:
                    self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                else:
                    self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
                return
            repository, _, rest = path[1:].partition("/resolve/")
            name = rest.partition("/")[2]
            if name not in hub.repositories.get(repository, {}):
                self._send(404, b"", {})
                return
            content = hub.lies.get(name, hub.repositories[repository][name])
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            body = content[start:]
            status = 206 if wanted else 200
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
            if name in hub.cut:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: hub.cut[name]])
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
                except OSError:  # whoever asked is gone
                    return
                time.sleep(0.1 * slowly)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


WEIGHTS = bytes(range(256)) * 4000  # about a megabyte
PART = Component(
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
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})  # it waits between its tries
    monkeypatch.setattr("huggingface_hub.file_download.time", hasty)
    yield hub
    server.shutdown()
    server.server_close()


def test_files_arrive_whole_and_are_recorded(hub: FakeHub, tmp_path: Path) -> None:
    told: list[str] = []
    seen: list[tuple[int, int]] = []
    fetched = download([PART], tmp_path, notify=told.append, callback=lambda p: seen.append((p.step, p.total)))
    assert {path.relative_to(tmp_path / "below").as_posix() for path in fetched} == {
        "old/a.bin",
        "old/b.bin",
        "config.json",
    }
    assert (tmp_path / "below/old/b.bin").read_bytes() == WEIGHTS[::-1]
    record = json.loads((tmp_path / MANIFEST).read_text())["components"]["weights"]
    assert record["revision"] == COMMIT
    assert record["files"]["old/a.bin"] == {"size": len(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    assert seen[-1] == (2 * len(WEIGHTS) + 8, 2 * len(WEIGHTS) + 8)
    assert any("no published hash is known for old/a.bin, old/b.bin, config.json" in text for text in told)
    assert is_downloaded(PART, tmp_path) and not missing_files(PART, tmp_path)


def test_where_all_is_here_nobody_is_asked(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download([PART], tmp_path)
    hub.asked.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nobody listens there
    assert download([PART], tmp_path) == [] and hub.asked == []
    (tmp_path / "below/old/a.bin").unlink()
    with pytest.raises(DownloadInterrupted, match="someone/model at http://127.0.0.1:1 .* run the same command again"):
        download([PART], tmp_path)


def test_a_stopped_download_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step > 300_000:
            raise Cancelled("the user has had enough")

    # the library hands over the bytes in pieces of 10 MB; smaller ones let it be stopped in the middle of a file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
        with pytest.raises(Cancelled):
            download([PART], tmp_path, callback=stop)
    unfinished = tmp_path / "below/old/a.bin.part"
    have = unfinished.stat().st_size
    assert 0 < have < len(WEIGHTS) and not (tmp_path / "below/old/a.bin").exists()
    hub.asked.clear()
    download([PART], tmp_path)
    ranges = {path.rpartition("/")[2]: wanted for _, path, wanted in hub.asked if "/resolve/" in path}
    assert ranges["a.bin"] == f"bytes={have}-" and ranges["b.bin"] is None
    assert (tmp_path / "below/old/a.bin").read_bytes() == WEIGHTS and not unfinished.exists()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_process_loses_nothing(hub: FakeHub, tmp_path: Path) -> None:
    hub.slow.add("old/a.bin")
    program = (
        "import sys, pathlib, huggingface_hub.constants\n"
        "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 50_000\n"
        "from bya_core.weights.download import download\n"
        "from tests.unit.weights.test_download import PART\n"
        "download([PART], pathlib.Path(sys.argv[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[3])
    unfinished = tmp_path / "below/old/a.bin.part"
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not (unfinished.is_file() and unfinished.stat().st_size > 100_000):
        time.sleep(0.05)
    process.kill()
    process.wait()
    have = unfinished.stat().st_size
    assert 100_000 < have < len(WEIGHTS)
    hub.slow.clear()
    hub.asked.clear()
    download([PART], tmp_path)
    assert any(wanted == f"bytes={have}-" for _, _, wanted in hub.asked)
    assert (tmp_path / "below/old/a.bin").read_bytes() == WEIGHTS


def test_a_broken_line_keeps_what_arrived(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut["old/a.bin"] = 0  # it breaks at once, again and again
    with pytest.raises(DownloadInterrupted, match="old/a.bin of someone/model"):
        download([PART], tmp_path)
    del hub.cut["old/a.bin"]
    download([PART], tmp_path)
    assert (tmp_path / "below/old/a.bin").read_bytes() == WEIGHTS


def test_an_endless_or_short_file_is_not_taken(hub: FakeHub, tmp_path: Path) -> None:
    hub.lies["old/a.bin"] = WEIGHTS[:-100]
    with pytest.raises(InputError, match=rf"old/a.bin .* arrived with {len(WEIGHTS) - 100} bytes; expected"):
        download([PART], tmp_path)
    assert not list((tmp_path / "below").rglob("a.bin*")) and not is_downloaded(PART, tmp_path)


@pytest.mark.parametrize("name", ["old/a.bin", "config.json"])
def test_a_changed_content_is_not_taken(hub: FakeHub, tmp_path: Path, name: str) -> None:
    content = bytearray(hub.repositories["someone/model"][name])
    content[3] ^= 1
    hub.lies[name] = bytes(content)
    with pytest.raises(InputError, match="arrived with different contents"):
        download([PART], tmp_path)
    assert not (tmp_path / "below" / name).exists() and not is_downloaded(PART, tmp_path)
    hub.lies.clear()
    download([PART], tmp_path)
    assert (tmp_path / "below" / name).read_bytes() == hub.repositories["someone/model"][name]


def test_a_mirror_that_offers_something_else_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    other = replace(PART, known=(KnownFile("old/a.bin", len(WEIGHTS), "0" * 64),))
    with pytest.raises(InputError, match="offers old/a.bin .* do not use this mirror"):
        download([other], tmp_path)
    shorter = replace(PART, known=(KnownFile("old/a.bin", 7, hashlib.sha256(WEIGHTS).hexdigest()),))
    with pytest.raises(InputError, match=f"with {len(WEIGHTS)} bytes; expected 7"):
        download([shorter], tmp_path)
    assert not list(tmp_path.rglob("*.bin*"))


def test_later_downloads_keep_to_what_was_recorded(hub: FakeHub, tmp_path: Path) -> None:
    download([PART], tmp_path)
    hub.repositories["someone/model"]["old/a.bin"] = b"x" * len(WEIGHTS)  # at the same commit: forged
    (tmp_path / "below/old/a.bin").unlink()
    with pytest.raises(InputError, match="do not use this mirror"):
        download([PART], tmp_path)
    assert ("GET", f"/api/models/someone/model/revision/{COMMIT}", None) in hub.asked  # pinned by the record


def test_a_full_disk_is_told_before_anything_arrives(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=module.RESERVE + len(WEIGHTS)))
    with pytest.raises(InputError, match=r"0.2 GB free .* expected 0.2 GB .* --models-dir"):
        download([PART], tmp_path)
    assert not any("/resolve/" in path for _, path, _ in hub.asked)


def test_a_repository_without_the_files_is_told(hub: FakeHub, tmp_path: Path) -> None:
    del hub.repositories["someone/model"]["config.json"]
    with pytest.raises(InputError, match="has no config.json; expected the weights of a test"):
        download([PART], tmp_path)
    with pytest.raises(InputError, match="someone/else .*RepositoryNotFoundError"):
        download([replace(PART, repository="someone/else")], tmp_path)
    hub.repositories["someone/model"] |= {"new/d.bin": WEIGHTS, "config.json": b"{}"}
    download([PART], tmp_path)
    assert [p.name for p in (tmp_path / "below").rglob("*.bin")] == ["d.bin"]  # the preferred kind alone


def test_own_files_are_used_and_never_overwritten(hub: FakeHub, tmp_path: Path) -> None:
    own = tmp_path / "below/old/a.bin"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"something else")
    with pytest.raises(InputError, match="a different file exists .* move it away"):
        download([PART], tmp_path)
    own.write_bytes(WEIGHTS)
    download([PART], tmp_path)
    assert not any("a.bin" in path for _, path, _ in hub.asked if "/resolve/" in path)
    own.write_bytes(WEIGHTS[::-1])
    assert is_downloaded(PART, tmp_path) and changed_files(PART, tmp_path) == ["below/old/a.bin"]


def test_the_nested_folder_of_antelopev2_is_repaired(tmp_path: Path) -> None:
    inner = tmp_path / "face_encoder/models/antelopev2/antelopev2"
    inner.mkdir(parents=True)
    (inner / "glintr100.onnx").write_bytes(b"model")
    repair_nested_folder(tmp_path)
    assert (inner.parent / "glintr100.onnx").read_bytes() == b"model" and not inner.exists()


def test_every_part_tells_what_it_is() -> None:
    assert len({part.name for part in OFFICIAL}) == len(OFFICIAL)
    for part in OFFICIAL:
        assert part.files and part.license and part.commercial_use and part.size and part.purpose
        assert part.revision is None or len(part.revision) == 40
        for file in part.known:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert any(file.path in options for options in part.files)


def test_the_command_downloads_and_models_lists(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = replace(PART, name="more", folder="beside", required=False)
    entry = replace(registry.MODELS["official"], components=(PART, more))
    monkeypatch.setitem(registry.MODELS, "official", entry)
    assert cli.main(["models", "--models-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "no, missing below/old/*.bin" in said and "bya download official --components weights" in said
    assert cli.main(["download", "official", "--models-dir", str(tmp_path), "--components", "weights"]) == 0
    assert "not needed" not in capsys.readouterr().err
    assert cli.main(["models", "--models-dir", str(tmp_path), "--json"]) == 0
    parts = {part["name"]: part for part in json.loads(capsys.readouterr().out)["models"][1]["components"]}
    assert parts["weights"]["installed"] and parts["weights"]["revision"] == COMMIT and parts["more"]["missing"]
    assert parts["weights"]["size"] == "2.05 MB" and parts["more"]["size"] == "1 MB"
    (tmp_path / "official/below/old/a.bin").write_bytes(b"\0" * len(WEIGHTS))
    assert cli.main(["download", "official", "--models-dir", str(tmp_path), "--components", "weights", "--verify"]) == 2
    assert "below/old/a.bin" in capsys.readouterr().err
    assert cli.main(["download", "official", "--components", "wieghts"]) == 2
    assert cli.main(["download", "toy"]) == 2


def test_a_fetched_part_is_found_by_the_name_of_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path))
    part = next(part for part in OFFICIAL if part.name == "segmenter")
    folder = tmp_path / "official" / part.folder
    folder.mkdir(parents=True)
    assert (
        downloaded_folder(part.repository) == part.repository
        and downloaded_folder("/no/such/folder") == "/no/such/folder"
    )
    (folder / "config.json").touch()
    assert downloaded_folder(part.repository) == str(folder)


def test_what_was_fetched_is_found_by_what_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bya_core.evaluation.metric_weights import SYNCNET

    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path))
    part = next(part for part in OFFICIAL if part.name == "syncnet")
    file = tmp_path / "official" / part.folder / part.known[0].path
    assert SYNCNET.find() is None and "--components syncnet" in SYNCNET.missing
    file.parent.mkdir(parents=True)
    file.touch()
    assert SYNCNET.find() == file
