"""Resumable downloads of model components, with disk space checked before and hashes verified after.

huggingface_hub talks to the hub (or to the mirror set by HF_ENDPOINT) and transfers the data. It does not resume a file
after the process has ended; therefore data is appended to `<file>.part` next to the target, and the next run requests
the remaining bytes. A file is renamed to its final name only after size and hash were verified.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.io.atomic import check_disk_space
from bya_core.io.locks import folder_lock
from bya_core.progress import Progress, ProgressCallback, ProgressTracker
from bya_core.weights.cache import (
    MANIFEST,
    find_file,
    is_downloaded,
    read_manifest,
    repair_nested_folder,
    sha256_of,
    write_manifest,
)
from bya_core.weights.components import Component

log = logging.getLogger(__name__)

PARTIAL = ".part"
RESERVE = 200_000_000  # bytes of disk space to leave free
_NETWORK_PACKAGES = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub")
_NOT_ACCESSIBLE = ("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "EntryNotFoundError")

Notify = Callable[[str], None]


class DownloadInterrupted(OSError):
    """Network or hub failure. Data received so far is kept and the next run resumes."""


class Hub:
    """Client of the Hugging Face hub or a mirror.

    Args:
        endpoint: URL; `None` uses HF_ENDPOINT or the default of the hub.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"

    def list_files(self, repository: str, revision: str | None) -> tuple[str, dict[str, Any]]:
        """(commit, file name -> entry with `size`, `blob_id` and, for large files, `lfs`)."""
        from huggingface_hub import HfApi

        with _network_errors(f"the repository {repository} at {self.endpoint}"):
            info = HfApi(endpoint=self.endpoint).model_info(repository, revision=revision, files_metadata=True)
        return str(info.sha), {entry.rfilename: entry for entry in info.siblings or []}

    def fetch(self, repository: str, commit: str, path: str, output: Any, offset: int, size: int) -> None:
        """Append the bytes of a file from `offset` on to the open file `output`."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(repository, path, revision=commit, endpoint=self.endpoint)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        with _network_errors(f"{path} of {repository} at {self.endpoint}"):
            http_get(url, output, resume_size=offset, headers=headers, expected_size=size, displayed_filename=path)


@contextmanager
def _network_errors(what: str) -> Iterator[None]:
    """Convert errors of any network library to `InputError` or `DownloadInterrupted`."""
    try:
        yield
    except Exception as error:
        name = type(error).__name__
        package = type(error).__module__.partition(".")[0]
        network = package in _NETWORK_PACKAGES or isinstance(error, ConnectionError | TimeoutError)
        if not network or isinstance(error, InputError):
            raise
        if name in _NOT_ACCESSIBLE:
            hint = "check its page; for gated repositories, accept the terms there and run `hf auth login`"
            raise InputError(f"{what} is not accessible ({name})", "a repository you have access to", hint) from error
        reason = (str(error).strip().splitlines() or [name])[0]
        message = f"{what} could not be read ({reason}); run the same command again to resume"
        raise DownloadInterrupted(message) from error


@dataclass(frozen=True)
class _RemoteFile:
    """One file to download.

    Args:
        component: Component it belongs to.
        path: Path in the repository.
        target: Local path.
        size: Size in bytes, as reported by the hub.
        sha256: Expected SHA-256; `None` for small text files, which the hub stores without it.
        blob: Git blob SHA-1 of those.
        known: Whether the hash was known before the hub was queried.
    """

    component: Component
    path: str
    target: Path
    size: int
    sha256: str | None
    blob: str | None
    known: bool

    @property
    def partial(self) -> Path:
        return self.target.with_name(self.target.name + PARTIAL)

    @property
    def remaining(self) -> int:
        """Bytes still to download."""
        if self.target.is_file():
            return 0
        return max(0, self.size - (self.partial.stat().st_size if self.partial.is_file() else 0))

    def matches(self, path: Path) -> bool:
        """Whether the contents of `path` have the expected hash."""
        if self.sha256 is not None:
            return sha256_of(path) == self.sha256
        if self.blob is None:
            return True
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.blob


@dataclass
class _CountingFile:
    """An open file that reports the size of every write."""

    file: Any
    on_write: Callable[[int], None]

    def write(self, data: bytes) -> int:
        self.on_write(len(data))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def download(
    components: Sequence[Component],
    root: Path,
    *,
    hub: Hub | None = None,
    notify: Notify = log.info,
    callback: ProgressCallback | None = None,
) -> list[Path]:
    """Download missing components into `root`. Makes no network requests if everything is present.

    Args:
        components: Components to download.
        root: Model folder.
        hub: Hub client.
        notify: Receives one message per component.
        callback: Progress callback; steps are bytes.

    Returns:
        Files that were downloaded.

    Raises:
        InputError: A repository lacks the files, the disk is too small, a file has the wrong size or hash, or another
            process downloads into `root`.
        DownloadInterrupted: Network failure; received data is kept.
    """
    hub = hub or Hub()
    repair_nested_folder(root)
    todo = [component for component in components if not is_downloaded(component, root)]
    for component in components:
        if component not in todo:
            notify(f"{component.name}: already downloaded")
    if not todo:
        return []
    plans = {component.name: _plan(component, root, hub, notify) for component in todo}
    root.mkdir(parents=True, exist_ok=True)
    with folder_lock(root, "the downloads", "wait for the other download to finish"):
        return _download(todo, plans, root, hub, notify, callback)


def _download(
    todo: Sequence[Component],
    plans: Mapping[str, tuple[str, list[_RemoteFile]]],
    root: Path,
    hub: Hub,
    notify: Notify,
    callback: ProgressCallback | None,
) -> list[Path]:
    every = [file for _, files in plans.values() for file in files]
    hint = "free some space, choose another disk with --models-dir, or select fewer --components"
    check_disk_space(root, sum(file.remaining for file in every) + RESERVE, "the download", hint)
    total = sum(file.size for file in every)
    done = total - sum(file.remaining for file in every)
    downloaded: list[Path] = []
    tracker = ProgressTracker(callback)

    def on_write(count: int) -> None:
        nonlocal done
        done += count
        tracker.report(Progress("Downloading", done, total))

    for component in todo:
        commit, files = plans[component.name]
        size = sum(file.size for file in files)
        license = f"license: {component.license}"
        notify(f"{component.name}: {size / 1e9:.2f} GB from {component.repository} at {commit[:10]}; {license}")
        earlier = set(read_manifest(root).get(component.name, {"files": {}})["files"])
        entries = {}
        for file in files:
            if not _is_present(file, earlier):
                _fetch(file, commit, hub, on_write)
                downloaded.append(file.target)
            entries[file.path] = {"size": file.size, "sha256": file.sha256 or sha256_of(file.target)}
        if unknown := [file.path for file in files if not file.known]:
            notify(
                f"{component.name}: no published hash is known for {_shorten(unknown)}; the hashes reported by the hub "
                f"are stored in {root / MANIFEST} and verified from now on"
            )
        write_manifest(root, component, commit, entries)
    return downloaded


def _plan(component: Component, root: Path, hub: Hub, notify: Notify) -> tuple[str, list[_RemoteFile]]:
    """Commit and files of a component, as listed by the hub."""
    entry = read_manifest(root).get(component.name)
    if entry is not None and entry["repository"] != component.repository:
        entry = None
    pinned = component.revision or (entry["revision"] if entry is not None else None)
    try:
        commit, listing = hub.list_files(component.repository, pinned)
    except InputError as error:
        if pinned is None or type(error.__cause__).__name__ != "RevisionNotFoundError":
            raise
        notify(f"{component.name}: {component.repository} has no revision {pinned[:10]}; the newest one is used")
        commit, listing = hub.list_files(component.repository, None)
    known = {file.path: file for file in component.known}
    earlier = entry["files"] if entry is not None and entry["revision"] == commit else {}
    files = []
    for name in _select(component, commit, listing):
        info = listing[name]
        lfs = info.lfs
        reported = None if lfs is None else str(lfs["sha256"] if isinstance(lfs, Mapping) else lfs.sha256)
        size = int(info.size if info.size is not None else lfs.size)
        expected = known[name].sha256 if name in known else earlier.get(name, {}).get("sha256")
        offer = f"{hub.endpoint} offers {name} of {component.repository}"
        if expected is not None and reported not in (None, expected):
            hint = "do not use this mirror, or check for a new version of this project"
            raise InputError(f"{offer} with SHA-256 {reported}", expected, hint)
        if name in known and known[name].size not in (None, size):
            raise InputError(f"{offer} with {size} bytes", f"{known[name].size}", "do not use this mirror")
        target = root / component.folder / name
        sha256 = expected or reported
        file = _RemoteFile(component, name, target, size, sha256, info.blob_id, expected is not None)
        elsewhere = find_file(component, name, root)
        if elsewhere != target and file.matches(elsewhere):
            notify(f"{component.name}: {elsewhere} is used")
            file = replace(file, target=elsewhere)
        files.append(file)
    return commit, files


def _select(component: Component, commit: str, listing: Mapping[str, Any]) -> list[str]:
    """Names of the files to download."""
    selected: dict[str, None] = {}
    for patterns in component.files:
        found = _first_match(patterns, listing)
        if not found:
            problem = f"the repository {component.repository} at {commit[:10]} has no {' or '.join(patterns)}"
            raise InputError(problem, f"the {component.purpose}", f"check {component.url}; the files may have moved")
        selected |= dict.fromkeys(found)
    for patterns in component.optional_files:
        selected |= dict.fromkeys(_first_match(patterns, listing))
    return list(selected)


def _first_match(patterns: Sequence[str], listing: Iterable[str]) -> list[str]:
    """Names that match the first pattern that matches any; folders have to match exactly."""
    names = sorted(listing)
    matches = ([name for name in names if name.count("/") == p.count("/") and fnmatch(name, p)] for p in patterns)
    return next(filter(None, matches), [])


def _is_present(file: _RemoteFile, earlier: set[str]) -> bool:
    """Whether the target is already correct. An outdated file from an earlier download is replaced."""
    if not file.target.exists():
        return False
    if file.target.is_file() and file.target.stat().st_size == file.size and file.matches(file.target):
        return True
    if file.path not in earlier:
        expected = f"{file.path} of {file.component.repository}"
        raise InputError(f"a different file exists at {file.target}", expected, "move it away, then run this again")
    return False


def _fetch(file: _RemoteFile, commit: str, hub: Hub, on_write: Callable[[int], None]) -> None:
    """Download a file and rename it once it is verified."""
    file.target.parent.mkdir(parents=True, exist_ok=True)
    offset = file.partial.stat().st_size if file.partial.is_file() else 0
    if offset > file.size:
        file.partial.unlink()
        offset = 0
    with file.partial.open("ab") as opened:
        output = _CountingFile(opened, on_write)
        try:
            hub.fetch(file.component.repository, commit, file.path, output, offset, file.size)
        except OSError as error:
            if not str(error).startswith("Consistency check failed"):
                raise  # disk or network
    size = file.partial.stat().st_size
    if size == file.size and file.matches(file.partial):
        os.replace(file.partial, file.target)
        return
    file.partial.unlink()
    received, expected = f"{size} bytes", f"{file.size}"
    if size == file.size:
        received, expected = "different contents", f"the hash {file.sha256 or file.blob}"
    problem = f"{file.path} of {file.component.repository} was received with {received}"
    raise InputError(problem, expected, "run this again; if it persists, do not use this source")


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")
