"""Strict loading of published weights: PyTorch and safetensors state dicts, and ONNX models."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bya_core.errors import InputError

_DOWNLOAD = "run bya download official"


def read_weights(path: Path, description: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors, .pth or .pt file; a "module." prefix is removed from all names.

    Args:
        path: The file. Pickled files are loaded with `weights_only=True`.
        description: Name, size and license of the expected file, for error messages.

    Raises:
        InputError: If the file is missing, cannot be read or does not hold a state dict.
    """
    if not path.is_file():
        raise InputError(f"no file {path}", description, _DOWNLOAD)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error})", description, "download it again") from error
    for key in ("model", "module", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} does not hold a state dict", description, "download it again")
    return {name.removeprefix("module."): value for name, value in content.items()}


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor], description: str) -> None:
    """Load a state dict into `network`, which may be on the meta device, and freeze it in float32.

    Raises:
        InputError: If names or shapes differ.
    """
    try:
        network.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).replace("\n", " ").replace("\t", " ")
        raise InputError(f"weights that do not fit ({reason[:300]})", description, "use the published file") from error
    network.float().requires_grad_(False).eval()


def open_onnx(path: Path, description: str) -> Any:
    """Open an ONNX model as an onnxruntime session on the CPU.

    Args:
        path: The file.
        description: Name, size and license of the expected file, for error messages.

    Raises:
        InputError: If the file is missing, onnxruntime is not installed, or the file is not a valid model.
    """
    if not path.is_file():
        raise InputError(f"no file {path}", description, _DOWNLOAD)
    try:
        import onnxruntime
    except ImportError as error:
        problem = f"onnxruntime cannot be imported ({error})"
        raise InputError(problem, "onnxruntime, which runs face models", "pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's error classes share no other base class
        raise InputError(f"{path} cannot be read ({error})", description, "download it again") from error
