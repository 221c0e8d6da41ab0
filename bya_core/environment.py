"""Python packages that the project uses, and what is unavailable without each. Imports none of them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A Python package.

    Args:
        module: Name to import.
        project: Name to install.
        feature: What needs it.
        required: Whether nothing works without it.
    """

    module: str
    project: str
    feature: str
    required: bool = False

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


def _required(module: str, project: str | None = None) -> Package:
    return Package(module, project or module, "all features", required=True)


PACKAGES = (
    *map(_required, ("torch", "diffusers", "transformers", "accelerate", "safetensors", "einops")),
    _required("huggingface_hub", "huggingface-hub"),
    *map(_required, ("av", "matplotlib", "numpy")),
    _required("PIL", "pillow"),
    *map(_required, ("pydantic", "scipy", "tqdm", "tyro")),
    Package("timm", "timm", "face features of the released model"),
    Package("onnxruntime", "onnxruntime", "face recognition of the released model"),
    Package("sentencepiece", "sentencepiece", "prompts of the released model"),
    Package("silero_vad", "silero-vad", "voice activity detection (a loudness threshold is used without it)"),
    Package("peft", "peft", "LoRA training"),
)
"""Required packages first. Each is imported by product code."""


def missing_packages() -> list[Package]:
    """Required packages that are not installed."""
    return [package for package in PACKAGES if package.required and not package.installed]
