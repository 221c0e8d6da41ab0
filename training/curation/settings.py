"""Settings of all curation stages, read from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated

from bya_core.errors import InputError
from bya_core.validation import Field, from_mapping, validated
from training.curation.captions import CaptionSettings, FeatureSettings
from training.curation.faces import FaceSettings
from training.curation.masks import MaskSettings
from training.curation.probe import ProbeSettings
from training.curation.segments import DistanceSettings, SegmentSettings
from training.curation.shots import ShotSettings
from training.curation.speech import ExtractSettings, MatrixSettings, SyncSettings
from training.curation.stage import Resources


@validated
class ShardSettings:
    """Options of shard writing.

    Args:
        clips_per_shard: clips in a tar file.
        reference_size: side of reference images in pixels.
        reference_margin: fraction of a face box added on each side.
    """

    clips_per_shard: Annotated[int, Field(ge=1)] = 64
    reference_size: Annotated[int, Field(ge=16)] = 480
    reference_margin: Annotated[float, Field(ge=0)] = 0.35


@validated
class CurationSettings:
    """Settings of all stages, in order.

    Args:
        timeout: maximum time in seconds for one record (file, shot or clip) in one job of the local engine.
        resources: resources of one worker by stage; they do not affect results.
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
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    resources: Mapping[str, Resources] = field(default_factory=dict)


def load_settings(path: Path) -> CurationSettings:
    """Read settings from a YAML file.

    Raises:
        InputError: missing file, invalid YAML, unknown keys or invalid values.
    """
    try:
        import yaml
    except ImportError as error:
        raise InputError("pyyaml is not installed", "pyyaml", "run pip install -e .[data]") from error
    if not path.is_file():
        raise InputError(f"--config {path} does not exist", "a YAML file", "use training/recipes/curation.yaml")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML ({error})", "a mapping", "correct it") from error
    return from_mapping(CurationSettings, data, path.name)
