"""A feature cache on disk, keyed by the content and by the encoder.

Any change of the content or of the encoder changes the key, so entries are never stale; damaged files are recomputed.
Files are written atomically, so that processes can share a folder. If the folder is not writable, features are
recomputed and a warning is logged once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


class FeatureCache:
    """Dictionaries of tensors on disk.

    `counts` has the number of events per kind, such as "text hit", "text miss" and "text damaged", and "unwritten".

    Args:
        folder: cache folder, created on the first write; None = no caching.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.counts: Counter[str] = Counter()

    def get(self, kind: str, key: tuple[Any, ...], make: Callable[[], Tensors]) -> Tensors:
        """The tensors of a key, read from the cache or computed and stored.

        Args:
            kind: kind of feature, such as "text"; names the folder and the counts.
            key: everything the tensors depend on, JSON-serializable.
            make: computes them if they are missing or damaged.
        """
        name = hashlib.sha256(json.dumps([kind, *key]).encode()).hexdigest()
        path = None if self.folder is None else self.folder / kind / name[:2] / f"{name}.safetensors"
        cached = None if path is None else self._read(path, kind)
        if cached is not None:
            self.counts[f"{kind} hit"] += 1
            return cached
        self.counts[f"{kind} miss"] += 1
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
        if path is not None:
            self._write(path, tensors)
        return tensors

    def _read(self, path: Path, kind: str) -> Tensors | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
                intact = (file.metadata() or {}).get("sha256") == digest(tensors)
        except (SafetensorError, OSError, ValueError):
            intact = False
        if intact:
            return tensors
        self.counts[f"{kind} damaged"] += 1
        log.warning("%s is damaged and will be recomputed", path)
        return None

    def _write(self, path: Path, tensors: Tensors) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                save_file(tensors, temporary, metadata={"sha256": digest(tensors)})
        except (SafetensorError, OSError, InputError) as error:  # safetensors and atomic_write wrap OSError
            if not self.counts["unwritten"]:
                log.warning("cannot write to %s (%s); continuing without a cache", self.folder, error)
            self.counts["unwritten"] += 1


def digest(*content: Any) -> str:
    """SHA-256 of tensors, arrays, numbers, strings, files (by content) and nested lists and dicts of them."""
    hasher = hashlib.sha256()
    for piece in _pieces(content):
        hasher.update(piece)
    return hasher.hexdigest()


def encoder_version(encoder: Any) -> str:
    """A string that changes with the results of an encoder: its `version`, or a digest of its class and its state.

    Weights count with values and dtype, files by content, other public attributes by value. The device does not count.
    Private attributes are assumed to be derived from the others (such as lazily loaded weights).
    """
    version = getattr(encoder, "version", None)
    name = type(encoder).__qualname__
    return f"{name} {version}" if isinstance(version, str) else f"{name} {digest(encoder)[:32]}"


def _pieces(value: Any, seen: tuple[int, ...] = ()) -> Iterator[bytes | memoryview]:
    """The bytes that represent a value; recursion stops at objects that contain themselves."""
    if id(value) in seen:
        return
    seen = (*seen, id(value))
    if isinstance(value, nn.Module):
        yield f"module {type(value).__qualname__}".encode()
        for name, module in value.named_modules():
            plain = {k: v for k, v in vars(module).items() if k != "training" and isinstance(v, int | float)}
            yield from _pieces((name, type(module).__qualname__, plain), seen)
        yield from _pieces(dict(value.state_dict()), seen)
        yield from _pieces(dict(value.named_buffers()), seen)
    elif isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield flat.view(torch.uint8).numpy().data if flat.numel() else b""
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Path):
        for path in [value] if value.is_file() else sorted(p for p in value.rglob("*") if p.is_file()):
            yield str(path.relative_to(value)).encode()
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    yield block
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield f"{key}=".encode()
            yield from _pieces(value[key], seen)
    elif isinstance(value, list | tuple | set | frozenset):
        yield f"{len(value)}:".encode()
        for item in sorted(value, key=str) if isinstance(value, set | frozenset) else value:
            yield from _pieces(item, seen)
    elif value is None or isinstance(value, str | bytes | int | float | complex | torch.dtype | np.generic):
        yield f"{type(value).__name__} {value!r};".encode()
    elif not isinstance(value, torch.device):
        yield f"object {type(value).__qualname__}".encode()
        yield from _pieces({k: v for k, v in getattr(value, "__dict__", {}).items() if k[:1] != "_"}, seen)
