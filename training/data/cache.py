"""Features kept on disk, keyed by what they were made of and by what made them.

A changed content or a changed encoder has another key, so nothing old is ever used; a file that was damaged is made
again. Files appear atomically, so any number of processes can share a folder. Where the folder cannot be written to
(read-only, full disk), work goes on without it and says so once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


class FeatureCache:
    """Dictionaries of tensors on disk.

    Args:
        folder: made when something is written; None = nothing is kept.

    `counts` tells per kind what happened: "text hit", "text miss", "text damaged", and "unwritten".
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.counts: Counter[str] = Counter()

    def get(self, kind: str, key: tuple[Any, ...], make: Callable[[], Tensors]) -> Tensors:
        """The tensors of this key: read, or made and kept.

        Args:
            kind: a word for folder and counts, such as "text".
            key: everything the tensors depend on; JSON can hold it.
            make: called where they are not there, or damaged.
        """
        name = hashlib.sha256(json.dumps([kind, *key]).encode()).hexdigest()
        path = None if self.folder is None else self.folder / kind / name[:2] / f"{name}.safetensors"
        found = None if path is None else self._read(path, kind)
        if found is not None:
            self.counts[f"{kind} hit"] += 1
            return found
        self.counts[f"{kind} miss"] += 1
        made = {part: tensor.detach().cpu().contiguous() for part, tensor in make().items()}
        if path is not None:
            self._write(path, made)
        return made

    def _read(self, path: Path, kind: str) -> Tensors | None:
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {part: file.get_tensor(part).clone() for part in file.keys()}  # noqa: SIM118 - not a dict
                whole = (file.metadata() or {}).get("sha256") == digest_of(tensors)
        except (SafetensorError, OSError, ValueError):
            whole = False
        if whole:
            return tensors
        self.counts[f"{kind} damaged"] += 1
        log.warning("%s is damaged; its content is made again", path)
        return None

    def _write(self, path: Path, tensors: Tensors) -> None:
        part = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
            os.close(handle)
            save_file(tensors, part, metadata={"sha256": digest_of(tensors)})
            os.replace(part, path)
        except (SafetensorError, OSError) as error:  # safetensors wraps what the disk says
            if part:
                with contextlib.suppress(OSError):
                    os.unlink(part)
            if not self.counts["unwritten"]:
                log.warning("nothing can be kept in %s (%s); going on without", self.folder, error)
            self.counts["unwritten"] += 1


def digest_of(*content: Any) -> str:
    """SHA-256 of tensors, arrays, numbers, texts, paths (what the files hold) and nested lists and dicts of them."""
    found = hashlib.sha256()
    for piece in _pieces(content):
        found.update(piece)
    return found.hexdigest()


def version_of(encoder: Any) -> str:
    """What an encoder's results depend on, as one text: its own `version`, or a digest of its class and all it holds.

    Weights count with every bit and their kind of number, files by their content, other public attributes by value;
    the device does not count. What begins with an underscore is taken for something made from the rest (such as
    weights that are loaded on first use).
    """
    own = getattr(encoder, "version", None)
    name = type(encoder).__qualname__
    return f"{name} {own}" if isinstance(own, str) else f"{name} {digest_of(encoder)[:32]}"


def _pieces(value: Any, seen: tuple[int, ...] = ()) -> Iterator[bytes | memoryview]:
    """What a digest reads of any value; an object that holds itself ends the walk."""
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
