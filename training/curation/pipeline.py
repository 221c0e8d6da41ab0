"""The stages in order, their settings (read from a YAML file), and the traversal of records through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated

from bya_core.errors import InputError
from bya_core.validation import Field, from_mapping, validated
from training.curation.captions import Captions, CaptionSettings, Features, FeatureSettings
from training.curation.faces import MESH_DETECTOR, Faces, FaceSettings
from training.curation.masks import Masks, MaskSettings
from training.curation.models import MODELS
from training.curation.probe import Probe, ProbeSettings
from training.curation.record import Record, hash_source
from training.curation.segments import Distance, DistanceSettings, Segments, SegmentSettings
from training.curation.shots import Shots, ShotSettings
from training.curation.speech import Extract, ExtractSettings, Matrix, MatrixSettings, SyncFilter, SyncSettings
from training.curation.stage import Resources, Stage, result_key, run_stage
from training.curation.store import Store

_STAGES: tuple[type[Stage], ...] = (
    Probe, Shots, Faces, Segments, Distance, Extract, SyncFilter, Masks, Matrix, Features, Captions,
)  # fmt: skip
STAGE_NAMES = tuple(stage.name for stage in _STAGES)


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
        until: last stage to run; None = all. Shards are written by complete runs only.
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
    masks: MaskSettings = field(default_factory=MaskSettings)
    matrix: MatrixSettings = field(default_factory=MatrixSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    shards: ShardSettings = field(default_factory=ShardSettings)
    until: str | None = None
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    resources: Mapping[str, Resources] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [("until", self.until)] if self.until is not None else []
        for key, name in [*named, *(("resources", stage) for stage in self.resources)]:
            if name not in STAGE_NAMES:
                raise InputError(f"{key}: unknown stage {name}", ", ".join(STAGE_NAMES), "correct the curation config")
        mesh = [("extract.extractor", self.extract.extractor, "lips"), ("sync.scorer", self.sync.scorer, "lips")]
        for option, choice, name in [*mesh, ("masks.segmenter", self.masks.segmenter, "mesh")]:
            if choice.name == name and self.faces.detector.name != MESH_DETECTOR:
                problem = f"{option} {name} with faces.detector {self.faces.detector.name}"
                raise InputError(problem, f"the detector {MESH_DETECTOR}, which fits face meshes", "change one of them")
        runs_extract = self.until is None or STAGE_NAMES.index(self.until) >= STAGE_NAMES.index(Extract.name)
        if runs_extract and self.extract.extractor.name == "none" and self.segments.characters != 1:
            problem = f"extract.extractor none with segments.characters {self.segments.characters}"
            raise InputError(problem, "one character", "choose an extractor, or stop earlier (until: distance)")

    @property
    def complete(self) -> bool:
        """Whether clips of this run have everything that shards need."""
        return self.until in (None, STAGE_NAMES[-1]) and self.masks.segmenter.name != "none"


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
        hint = "use training/recipes/curation_local.yaml"
        raise InputError(f"--config {path} does not exist", "a YAML file", hint)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML ({error})", "a mapping", "correct it") from error
    return from_mapping(CurationSettings, data, path.name)


def build_stages(settings: CurationSettings) -> list[Stage]:
    """Build the stages of paper sec. 4.1 and 4.2 up to `settings.until`, without loading models."""
    last = len(_STAGES) if settings.until is None else STAGE_NAMES.index(settings.until) + 1
    return [stage(getattr(settings, stage.name), settings.resources.get(stage.name)) for stage in _STAGES[:last]]


def puppet_only_models(settings: CurationSettings) -> list[str]:
    """Selected models that work on synthetic puppets only, such as "sync: puppet"."""
    chosen = [
        (task, getattr(stage.settings, option).name)
        for stage in build_stages(settings)
        for task, option in stage.models.items()
    ]
    return [f"{task}: {name}" for task, name in chosen if name in MODELS[task] and MODELS[task][name].puppet_only]


def advance(stages: list[Stage], record: Record, index: int, store: Store) -> tuple[list[Record], int]:
    """Apply stages from `index` on until the record is split, rejected or finished.

    Returns:
        The resulting records and the index of their next stage; len(stages) = finished.
    """
    records = [_with_hash(record, store) if index == 0 else record]
    while index < len(stages) and len(records) == 1 and records[0].rejected is None:
        records = run_stage(stages[index], records[0], store)
        index += 1
    return records, index


def process(stages: list[Stage], record: Record, index: int, store: Store) -> Iterator[tuple[list[Record], int, int]]:
    """Apply stages from `index` on to a record and to all its parts, depth first.

    Yields:
        For each step of `advance`: the resulting records, and the index of its first and of the next stage.
    """
    pending = [(record, index)]
    while pending:
        record, first = pending.pop()
        records, last = advance(stages, record, first, store)
        yield records, first, last
        if last < len(stages):
            pending += [(child, last) for child in reversed(records) if child.rejected is None]


def cached_leaves(stages: list[Stage], record: Record, store: Store, index: int = 0) -> Iterator[tuple[Record, int]]:
    """Follow cached results of a record depth first, starting before stage `index`.

    Yields:
        Finished and rejected records with len(stages); records without a cached result with the index of their next
        stage.
    """
    pending = [(_with_hash(record, store), index)]
    while pending:
        record, index = pending.pop()
        if record.rejected is not None or index == len(stages):
            yield record, len(stages)
            continue
        cached = store.get(stages[index].name, result_key(stages[index], record), record)
        if cached is None:
            yield record, index
        else:
            pending += [(child, index + 1) for child in reversed(cached[0])]


def _with_hash(record: Record, store: Store) -> Record:
    return record if record.lineage or record.rejected else hash_source(record, store)
