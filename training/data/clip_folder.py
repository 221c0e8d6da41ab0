"""Encoded clips in files."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Set
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from bya_core.errors import InputError
from training.data.batches import Batch, local_part, stack, trim_padding
from training.data.files import files_fingerprint, list_files

Group = tuple[int, int, int, int]  # shape of a batch: characters, latent frames, latent height and width
MAX_OPEN_FILES = 256


class ClipFolder:
    """Encoded clips in the `*.safetensors` files of a folder and its subfolders.

    All clips of a file have the same shapes. Files are memory-mapped, and only the clips of a batch are read.

    Args:
        folder: folder of the files.
        length_fractions: fraction of the batches by number of video frames; other lengths are ignored. Empty = in
            proportion to the latent cells.
        in_memory: load all clips at once.
        text_multiple: trim the zero padding of prompts to a multiple of this length, as the toy text encoder does with
            `pad_to_multiple_of`.

    Raises:
        InputError: no such file, an unreadable one, or a length without clips.
    """

    def __init__(
        self,
        folder: Path | str,
        length_fractions: Mapping[int, float] | None = None,
        in_memory: bool = False,
        text_multiple: int | None = None,
    ) -> None:
        paths = list_files(folder, ".safetensors")
        if not paths:
            raise InputError(f"data folder {str(folder)!r} without shards", "*.safetensors files", "create them first")
        self._folder, self._paths, self._held_out = Path(folder), paths, 0.0
        self.groups: dict[Group, list[tuple[Path, int]]] = {}
        fractions = {length: fraction for length, fraction in (length_fractions or {}).items() if fraction > 0}
        lengths: dict[int, int] = {}  # latent frames -> video frames
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    clips, frames, _, height, width = file.get_slice("latents").get_shape()
                    characters = file.get_slice("masks").get_shape()[1]
                    if fractions:
                        lengths[frames] = file.get_slice("speech").get_shape()[2] - 4
            except (SafetensorError, OSError, ValueError) as error:
                problem = f"{path} cannot be read ({error})"
                raise InputError(problem, "encoded clips", "create it again or remove it") from error
            if not fractions or lengths[frames] in fractions:
                group = self.groups.setdefault((characters, frames, height, width), [])
                group.extend((path, row) for row in range(clips))
        if missing := fractions.keys() - set(lengths.values()):
            problem = f"length_fractions with clips of {min(missing)} frames"
            known = ", ".join(map(str, sorted(set(lengths.values()))))
            raise InputError(problem, f"one of the lengths in {str(folder)!r}: {known}", "create such clips first")
        self._fractions = {frames: fractions[length] for frames, length in lengths.items() if length in fractions}
        self._text_multiple = text_multiple
        self._loaded: dict[Group, Batch] = {}
        for key, clips in self.groups.items() if in_memory else ():
            parts = [load_file(path) for path in dict.fromkeys(path for path, _ in clips)]
            self._loaded[key] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self._open = lru_cache(MAX_OPEN_FILES)(lambda path: safe_open(path, framework="pt"))

    def names(self) -> list[str]:
        """A name of each clip, the same wherever the folder is."""
        return [self._name(path, row) for clips in self.groups.values() for path, row in clips]

    def _name(self, path: Path, row: int) -> str:
        inside = path.relative_to(self._folder) if path.is_relative_to(self._folder) else path
        return f"{inside.as_posix()}:{row}"

    def subset(self, names: Set[str], held_out: float) -> ClipFolder:
        """The clips with these names; `held_out` is the share of another part, for the description."""
        part = copy.copy(self)
        part._held_out = held_out
        kept = {
            key: [k for k, (path, row) in enumerate(clips) if self._name(path, row) in names]
            for key, clips in self.groups.items()
        }
        part.groups = {key: [self.groups[key][k] for k in rows] for key, rows in kept.items() if rows}
        part._loaded = {
            key: {name: tensor[torch.tensor(kept[key])] for name, tensor in batch.items()}
            for key, batch in self._loaded.items()
            if kept[key]
        }
        return part

    @property
    def description(self) -> dict[str, Any]:
        """What the batches depend on, for the record of a run."""
        content: dict[str, Any] = {
            "source": str(self._folder),
            "fingerprint": files_fingerprint(self._folder, self._paths),
        }
        held = {"held_out": self._held_out} if self._held_out else {}
        fractions = {str(frames): fraction for frames, fraction in self._fractions.items()}
        return {
            **content,
            "clips": self.clips,
            "length_fractions": fractions,
            "text_multiple": self._text_multiple,
            **held,
        }

    @property
    def clips(self) -> int:
        """Number of clips."""
        return sum(map(len, self.groups.values()))

    def batches(self, size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See `Clips`. Groups are sampled in proportion to their latent cells, clips with replacement.

        Characters are not shuffled: the data must not tie slots to positions.
        """
        keys = sorted(self.groups)
        cells = {key: math.prod(key[1:]) for key in keys}
        weights = torch.tensor([len(self.groups[key]) * cells[key] for key in keys], dtype=torch.float64)
        for frames, fraction in self._fractions.items():
            same_length = torch.tensor([key[1] == frames for key in keys])
            weights[same_length] *= fraction / weights[same_length].sum()
        for number in count(start):
            rng = torch.Generator().manual_seed(seed * 1_000_003 + number)
            key = keys[int(torch.multinomial(weights, 1, generator=rng))]
            samples = max(1, round(size * min(cells.values()) / cells[key]))
            chosen = local_part(
                torch.randint(len(self.groups[key]), (samples,), generator=rng).tolist(), rank, world_size
            )
            if self._loaded and chosen:
                batch = {name: tensor[torch.tensor(chosen)] for name, tensor in self._loaded[key].items()}
            else:
                batch = stack([self._clip(*self.groups[key][clip]) for clip in chosen])
            if self._text_multiple is not None and batch:
                batch["text"] = trim_padding(batch["text"], self._text_multiple)
            yield batch

    def _clip(self, path: Path, row: int) -> Batch:
        """The tensors of one clip of a file."""
        file = self._open(path)
        return {name: file.get_slice(name)[row : row + 1][0] for name in file.keys()}  # noqa: SIM118 - not a dict
