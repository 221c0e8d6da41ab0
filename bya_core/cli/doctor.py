"""What this machine has and what it lacks. Imports nothing heavy before it is known to be there."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LEAST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Package:
    """One Python package, and what is lost without it."""

    module: str
    project: str
    needed_for: str
    required: bool = True


PACKAGES = (
    Package("torch", "torch", "everything"),
    Package("diffusers", "diffusers", "everything"),
    Package("transformers", "transformers", "everything"),
    Package("safetensors", "safetensors", "everything"),
    Package("einops", "einops", "everything"),
    Package("av", "av", "reading sound, writing video"),
    Package("PIL", "pillow", "reading pictures"),
    Package("numpy", "numpy", "everything"),
    Package("tyro", "tyro", "the command line"),
    Package("tqdm", "tqdm", "the progress bar"),
    Package("accelerate", "accelerate", "training", required=False),
    Package("peft", "peft", "LoRA", required=False),
    Package("timm", "timm", "the face path of the official model", required=False),
    Package("onnxruntime", "onnxruntime", "the face path of the official model", required=False),
    Package("sentencepiece", "sentencepiece", "the prompts of the official model", required=False),
    Package("librosa", "librosa", "loudness and pitch of recordings", required=False),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Args:
        name: what was looked at.
        state: "ok", "missing" (costs a feature) or "problem" (nothing works without it).
        detail: version or figure, or what is lost.
        advice: what to do; empty where all is well.
    """

    name: str
    state: str
    detail: str
    advice: str = ""


def examine() -> dict[str, Any]:
    """All findings, and figures of the machine, ready for JSON."""
    findings = [_python(), *(_package(package) for package in PACKAGES), _codecs(), *_models()]
    return {
        "healthy": all(finding.state != "problem" for finding in findings),
        "machine": {
            "system": platform.platform(terse=True),
            "cpus": os.cpu_count(),
            "ram_gb": _ram(),
            "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
            **_device(),
        },
        "findings": [asdict(finding) for finding in findings],
    }


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] >= LEAST_PYTHON:
        return Finding("python", "ok", version)
    return Finding("python", "problem", version, "install Python 3.11 or newer")


def _package(package: Package) -> Finding:
    if importlib.util.find_spec(package.module) is not None:
        try:
            version = importlib.metadata.version(package.project)
        except importlib.metadata.PackageNotFoundError:
            version = "version unknown"
        return Finding(package.project, "ok", version)
    state = "problem" if package.required else "missing"
    return Finding(package.project, state, f"needed for {package.needed_for}", f"pip install {package.project}")


def _codecs() -> Finding:
    if importlib.util.find_spec("av") is None:
        return Finding("video writing", "problem", "PyAV is missing", "pip install av")
    available = importlib.import_module("av").codecs_available
    missing = [codec for codec in ("libx264", "aac") if codec not in available]
    if not missing:
        return Finding("video writing", "ok", "h264 and aac")
    advice = "install PyAV's own wheel: pip install --force-reinstall --no-deps av"
    return Finding("video writing", "problem", "PyAV lacks " + ", ".join(missing), advice)


def _models() -> list[Finding]:
    from bya_core.weights.registry import MODELS

    return [
        Finding(f"model {entry.name}", "ok", entry.size)
        if entry.available
        else Finding(f"model {entry.name}", "missing", entry.purpose, entry.how_to_get)
        for entry in MODELS.values()
    ]


def _ram() -> float | None:
    """Memory of the machine in GB, or of the container where it is smaller."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return round(total / 1e9, 1)


def _device() -> dict[str, Any]:
    """What the model would run on."""
    if importlib.util.find_spec("torch") is None:
        return {"device": None}
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return {"device": properties.name, "gpu_gb": round(properties.total_memory / 1e9, 1)}
    return {"device": "cpu"}


def as_text(report: dict[str, Any]) -> str:
    """The same for people: one line each."""
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = [machine]
    for finding in report["findings"]:
        mark = {"ok": "ok     ", "missing": "missing", "problem": "PROBLEM"}[finding["state"]]
        advice = f" -> {finding['advice']}" if finding["advice"] else ""
        lines.append(f"{mark}  {finding['name']}: {finding['detail']}{advice}")
    lines.append("All that is needed is here." if report["healthy"] else "Something that is needed is missing.")
    return "\n".join(lines)
