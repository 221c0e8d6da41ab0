"""Models in ONNX, run by onnxruntime on the CPU: they are small, and looked at once per picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bya_core.errors import InputError


def open_onnx(path: Path, what: str) -> Any:
    """An inference session.

    Args:
        what: names the file in messages: which, how large, which licence.

    Raises:
        InputError: no such file, no onnxruntime, or a file that is no model.
    """
    if not path.is_file():
        raise InputError(f"no file {path}", what, "python -m bya_core download official fetches it")
    try:
        import onnxruntime
    except ImportError as error:
        came = f"onnxruntime cannot be imported ({error})"
        raise InputError(came, "onnxruntime, which runs face models", "pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes of errors, all derived from RuntimeError or Exception
        raise InputError(f"{path} cannot be read ({error})", what, "download it again") from error
