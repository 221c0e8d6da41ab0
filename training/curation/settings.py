"""A whole curation as data: every number of every stage, read from a YAML file and checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from training.curation.describe import CaptionSettings, FeatureSettings
from training.curation.faces import FaceSettings
from training.curation.masks import MaskSettings
from training.curation.probe import ProbeSettings
from training.curation.segments import DistanceSettings, SegmentSettings
from training.curation.shots import ShotSettings
from training.curation.speech import ExtractSettings, MatrixSettings, SyncSettings
from training.curation.stage import Resources


@dataclass(frozen=True)
class ShardSettings:
    """How finished clips are written.

    Args:
        per_shard: clips in a tar file.
        portrait: pixels of the side of reference pictures.
        portrait_margin: share of a face box added on each side.
    """

    per_shard: int = 64
    portrait: int = 480
    portrait_margin: float = 0.35

    def __post_init__(self) -> None:
        if self.per_shard < 1 or self.portrait < 16 or self.portrait_margin < 0:
            raise InputError(f"{self}", "at least 1 clip in a shard and portraits of 16 pixels", "change the recipe")


@dataclass(frozen=True)
class CurationSettings:
    """Settings of all stages, in their order.

    Args:
        patience: seconds that one stage may take for one record (a file, a shot, a clip) before it is given up.
        resources: what a worker of a stage occupies, by the stage's name; not part of any result.
    """

    probe: ProbeSettings = field(default_factory=ProbeSettings)
    shots: ShotSettings = field(default_factory=ShotSettings)
    faces: FaceSettings = field(default_factory=FaceSettings)
    segments: SegmentSettings = field(default_factory=SegmentSettings)
    distance: DistanceSettings = field(default_factory=DistanceSettings)
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    sync: SyncSettings = field(default_factory=SyncSettings)
    matrix: MatrixSettings = field(default_factory=MatrixSettings)
    masks: MaskSettings = field(default_factory=MaskSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    shards: ShardSettings = field(default_factory=ShardSettings)
    patience: float = 3600.0
    resources: Mapping[str, Resources] = field(default_factory=dict)


def load_settings(path: Path) -> CurationSettings:
    """Raises InputError where the file is missing, is no YAML, or names what does not exist."""
    try:
        import yaml
    except ImportError as error:
        raise InputError("no pyyaml", "pyyaml", 'pip install "bind-your-avatar[data]"') from error
    if not path.is_file():
        raise InputError(f"--config {path}, which does not exist", "a YAML file", "take training/recipes/curation.yaml")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}, which is no YAML ({error})", "a mapping", "correct it") from error
    return _built(CurationSettings, given, path.name)


def _built(kind: Any, given: Any, where: str) -> Any:
    """`given` (from YAML) as an object of this type."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        if isinstance(given, str) and "name" in (f.name for f in dataclasses.fields(kind)):
            given = {"name": given}  # a model without options
        if not isinstance(given, Mapping):
            raise InputError(f"{where}: {given!r}", "a mapping", "correct the recipe")
        hints = typing.get_type_hints(kind)
        unknown = set(given) - set(hints)
        if unknown:
            came = f"{where}: {', '.join(sorted(map(str, unknown)))}"
            raise InputError(came, ", ".join(sorted(hints)), "correct the recipe")
        return kind(**{name: _built(hints[name], value, f"{where}: {name}") for name, value in given.items()})
    if origin is tuple:
        inner = typing.get_args(kind)[0]
        if not isinstance(given, list):
            raise InputError(f"{where}: {given!r}", "a list", "correct the recipe")
        return tuple(_built(inner, value, where) for value in given)
    if origin is not None and _is_kind_of(origin, Mapping):
        inner = typing.get_args(kind)[1]
        return {str(name): _built(inner, value, f"{where}: {name}") for name, value in (given or {}).items()}
    if origin in (typing.Union, types.UnionType):
        rest = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if given is None else _built(rest[0], given, where)
    if kind is float and isinstance(given, int) and not isinstance(given, bool):
        return float(given)
    if kind in (int, float, str, bool) and type(given) is not kind:
        raise InputError(f"{where}: {given!r}", f"{kind.__name__}", "correct the recipe")
    return given


def _is_kind_of(kind: Any, base: type) -> bool:
    """`issubclass` for what may be no class at all."""
    return isinstance(kind, type) and issubclass(kind, base)
