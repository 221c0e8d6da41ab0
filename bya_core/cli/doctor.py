"""`bya doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from bya_core.cli.common import output, report_saved
from bya_core.environment import PACKAGES, Package

MIN_PYTHON = (3, 11)


@dataclass(frozen=True)
class Doctor:
    """Check Python, packages, device, memory and models of this machine.

    With --gpu, every kernel, attention backend, preset and memory plan that generation can select is run on the GPU
    with random weights of the released architecture (two of 42 blocks) and compared with float32. Nothing is
    downloaded. The exit code is 1 if anything fails.
    """

    json: Annotated[bool, arg(help="Print JSON.")] = False
    gpu: Annotated[bool, arg(help="Run the released architecture on the GPU.")] = False
    output: Annotated[Path | None, output("Also save the report (json), for an issue.", "")] = None

    def run(self) -> int:
        from bya_core.io.atomic import write_json
        from bya_core.io.outputs import check_output

        saved = None if self.output is None else check_output(self.output, (".json",), "the report")
        if self.gpu:
            _check_cuda()
        report = examine()
        healthy = report["healthy"]
        if not self.json:
            print(as_text(report))
        if self.gpu:
            report["gpu"] = _check_gpu(table=not self.json)
            healthy = healthy and report["gpu"]["healthy"]
        if self.json:
            print(json.dumps(report, indent=2))
        if saved is not None:
            write_json(saved, report)
            if not self.json:
                report_saved(saved)
        return 0 if healthy else 1


def _check_cuda() -> None:
    """Raise InputError if `--gpu` has no GPU to check."""
    import torch

    from bya_core.errors import InputError

    if not torch.cuda.is_available():
        built = torch.version.cuda is not None or torch.version.hip is not None
        hint = "leave out --gpu" if built else "install PyTorch with CUDA (pytorch.org/get-started), or leave out --gpu"
        raise InputError("--gpu on a machine without a CUDA GPU", "a CUDA GPU visible to PyTorch", hint)


def _check_gpu(table: bool) -> dict[str, Any]:
    """Run `check_gpu` on the first GPU, with a table row printed after each check."""
    from bya_core.pipelines.gpu_check import GpuCheck, check_gpu

    def row(check: GpuCheck) -> None:
        numbers = (("{:8.3f} s", check.seconds), ("error {:7.2%}", check.error), ("{:5.1f} GB", check.peak_gb))
        columns = [form.format(value) for form, value in numbers if value is not None]
        print(f"{check.state:<14} {check.name:<36} {'  '.join([*columns, check.detail])}".rstrip(), flush=True)

    report = check_gpu(notify=row if table else lambda _: None)
    if table:
        recommended = ", ".join(f"{key} {value}" for key, value in report.recommended.items())
        print(f"Matrix products run at {report.machine['matmul_tflops']} TFLOP/s. Recommended: {recommended}.")
    return report.as_json()


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        name: What was checked.
        state: "missing" disables a feature, "problem" disables everything.
        detail: Version or size, or what is unavailable.
        advice: How to fix it; empty for "ok".
    """

    name: str
    state: Literal["ok", "missing", "problem"]
    detail: str
    advice: str = ""


def examine() -> dict[str, Any]:
    """All findings and the properties of the machine, ready for JSON."""
    findings = [_python(), *map(_package, PACKAGES), _codecs(), *_models()]
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


def as_text(report: dict[str, Any]) -> str:
    """A report as text, one line per finding."""
    lines = [", ".join(f"{key} {value}" for key, value in report["machine"].items())]
    for finding in report["findings"]:
        advice = f" -> {finding['advice']}" if finding["advice"] else ""
        lines.append(f"{finding['state']:<7}  {finding['name']}: {finding['detail']}{advice}")
    problems = sum(finding["state"] == "problem" for finding in report["findings"])
    lines.append(f"{problems} problem{'' if problems == 1 else 's'} found" if problems else "No problems found")
    return "\n".join(lines)


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] >= MIN_PYTHON:
        return Finding("python", "ok", version)
    return Finding("python", "problem", version, "install Python 3.11 or newer")


def _package(package: Package) -> Finding:
    if not package.installed:
        state: Literal["missing", "problem"] = "problem" if package.required else "missing"
        return Finding(package.project, state, f"needed for {package.feature}", f"pip install {package.project}")
    try:
        return Finding(package.project, "ok", importlib.metadata.version(package.project))
    except importlib.metadata.PackageNotFoundError:  # such as onnxruntime-gpu in place of onnxruntime
        return Finding(package.project, "ok", "version unknown")


def _codecs() -> Finding:
    """Whether videos can be written. PyAV is imported: a broken installation is a problem, too."""
    try:
        available = importlib.import_module("av").codecs_available
    except ImportError as error:
        return Finding("video writing", "problem", f"PyAV cannot be imported ({error})", "pip install av")
    missing = [codec for codec in ("libx264", "aac") if codec not in available]
    if not missing:
        return Finding("video writing", "ok", "h264 and aac")
    advice = "install the wheel of PyAV: pip install --force-reinstall --no-deps av"
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
    """Memory in GB of the machine, or of the container if it is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return round(total / 1e9, 1)


def _device() -> dict[str, Any]:
    """The device that models run on; None if torch cannot be imported."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return {"device": None}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return {"device": properties.name, "gpu_gb": round(properties.total_memory / 1e9, 1)}
    return {"device": "cpu"}
