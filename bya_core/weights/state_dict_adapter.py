"""Mapping between the files of the released Bind-Your-Avatar model and our transformer.

Our parameters keep the published names, so released files differ by a prefix only:

| file in the released folder | contents | prefix of our names |
|---|---|---|
| transformer/*.safetensors | base video transformer (sometimes all modules) | |
| audio_module/audio_modules.pt | audio path, flat | audio_model. |
| face_module/face_modules.pt | extractor; list of cross-attention layers | local_facial_extractor., ... |
| router/router_modules.pt | router with its position table, flat | router. |
| lora_weight/pytorch_lora_weights.safetensors | update of attention q and k | (merged) |

Prefixes added by wrappers ("module.", "transformer.module.") are stripped.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.files import read_json_object
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.lora import check_lora_shape, lora_pairs, strip_prefixes
from bya_core.weights.weight_files import WeightFile, build_empty, load_weights

log = logging.getLogger(__name__)

AUDIO_FILE = "audio_module/audio_modules.pt"
FACE_FILE = "face_module/face_modules.pt"
ROUTER_FILE = "router/router_modules.pt"
LORA_FILE = "lora_weight/pytorch_lora_weights.safetensors"

AUDIO, EXTRACTOR, CROSS, ROUTER = (
    "audio_model.",
    "local_facial_extractor.",
    "perceiver_cross_attention.",
    "router.",
)
MODULES = (AUDIO, EXTRACTOR, CROSS, ROUTER)
"""Prefixes of weights that are stored outside of the transformer's own files."""
PATCH_PROJECTION = "patch_embed.proj.weight"
POSITION_TABLE = "patch_embed.pos_embedding"
LEARNED_POSITIONS = "use_learned_positional_embeddings"
RENAMED_ARGUMENTS = {"is_train_face": "use_face", "is_train_audio": "use_audio"}
IGNORED_ARGUMENTS = ("LFE_", "cross_attn_dim_head", "cross_attn_num_heads")
"""Prefixes of entries of the released config.json that the released code never reads."""
OVERRIDES = {"flavour": "official", "in_channels": 48, "use_face": True, "use_audio": True}
"""Arguments that the released code sets regardless of config.json."""
NEVER_READ = ("router.layer_merge.", "audio_model.learnable_scale", "audio_model.mute_learnable_tokens")
"""Prefixes of released weights that no computation reads."""


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of our transformer for a released config.json; unknown entries are dropped."""
    known = inspect.signature(BindYourAvatarTransformer3DModel.__init__).parameters
    renamed = {RENAMED_ARGUMENTS.get(k, k): v for k, v in config.items() if not k.startswith(IGNORED_ARGUMENTS)}
    return {k: v for k, v in renamed.items() if k in known} | OVERRIDES


def map_transformer_name(name: str) -> str:
    """Name in a transformer file -> our name."""
    return strip_prefixes(name).replace(".base_layer.", ".")


def map_audio(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """audio_modules.pt -> our names."""
    return {AUDIO + strip_prefixes(key).removeprefix(AUDIO): value for key, value in released.items()}


def map_face(released: Mapping[str, Any]) -> dict[str, Tensor]:
    """face_modules.pt -> our names. Raises `InputError` if it is laid out differently."""
    try:
        extractor, layers = released["local_facial_extractor"], released["perceiver_cross_attention"]
    except (KeyError, TypeError) as error:
        problem = f"face modules without an entry {error}"
        expected = "local_facial_extractor and perceiver_cross_attention"
        raise InputError(problem, expected, "download the file again") from error
    ours = {EXTRACTOR + strip_prefixes(key): value for key, value in extractor.items()}
    for layer, weights in enumerate(layers):
        ours |= {f"{CROSS}{layer}.{strip_prefixes(key)}": value for key, value in weights.items()}
    return ours


def map_router(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """router_modules.pt -> our names."""
    return {ROUTER + strip_prefixes(key).removeprefix(ROUTER): value for key, value in released.items()}


def to_released(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our state dict -> contents of the released files by file name; "transformer" holds the base model."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in _with_prefix(ours, CROSS):
        layer, _, name = key.partition(".")
        layers.setdefault(int(layer), {})[name] = value
    return {
        "transformer": {key: value for key, value in ours.items() if not key.startswith(MODULES)},
        AUDIO_FILE: dict(_with_prefix(ours, AUDIO)),
        FACE_FILE: {
            "local_facial_extractor": dict(_with_prefix(ours, EXTRACTOR)),
            "perceiver_cross_attention": [layers[layer] for layer in sorted(layers)],
        },
        ROUTER_FILE: dict(_with_prefix(ours, ROUTER)),
    }


def _with_prefix(weights: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((key.removeprefix(prefix), value) for key, value in weights.items() if key.startswith(prefix))


@dataclass(frozen=True)
class TransformerSource:
    """Files and arguments that a transformer is built from.

    Args:
        arguments: Arguments of `BindYourAvatarTransformer3DModel`.
        files: Weight files; later files override earlier ones.
        lora: Weight name -> (A, B), on the CPU.
        paths: All source files, including LoRA.
        released: Whether these are files of a release, which may contain additional entries and lack weights that no
            computation reads.
    """

    arguments: dict[str, Any]
    files: tuple[WeightFile, ...]
    lora: dict[str, tuple[Tensor, Tensor]]
    paths: tuple[Path, ...]
    released: bool = False

    @property
    def never_read(self) -> tuple[str, ...] | None:
        """Argument `never_read` of `iter_weights`."""
        return NEVER_READ if self.released else None

    def build(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> BindYourAvatarTransformer3DModel:
        """Build the transformer and load its weights directly to `device`.

        Raises:
            InputError: Names or shapes do not match.
        """
        model = build_empty(lambda: BindYourAvatarTransformer3DModel(**self.arguments))
        weights = model.state_dict()
        for name, (a, b) in self.lora.items():
            check_lora_shape(name, a, b, tuple(weights[name].shape) if name in weights else None)
        load_weights(
            model,
            self.files,
            dtype=dtype,
            device=device,
            lora=self.lora,
            widen=PATCH_PROJECTION,
            never_read=self.never_read,
        )
        if self.lora:
            log.info("merged %d LoRA updates", len(self.lora))
        return model


def is_released_folder(folder: Path) -> bool:
    """Whether a folder has the released layout."""
    return (folder / AUDIO_FILE).parent.is_dir() and _transformer_folder(folder).is_dir()


def _transformer_folder(folder: Path) -> Path:
    """The EMA transformer if there is one, as in the released code."""
    return folder / ("transformer_ema" if (folder / "transformer_ema").is_dir() else "transformer")


def released_source(folder: Path) -> TransformerSource:
    """Source of a released folder. Separate modules and LoRA override those inside the transformer's own files.

    Raises:
        InputError: A file is missing or broken.
    """
    base = _transformer_folder(folder)
    config = read_json_object(_require(base / "config.json"), "the configuration")
    shards = [WeightFile(path, rename=map_transformer_name) for path in sorted(base.glob("*.safetensors"))]
    if not shards:
        _require(base / "*.safetensors")
    modules = [
        WeightFile(_single_match(folder / AUDIO_FILE), lambda content: map_audio(content).items()),
        WeightFile(_single_match(folder / FACE_FILE), lambda content: map_face(content).items()),
        WeightFile(_single_match(folder / ROUTER_FILE), lambda content: map_router(content).items()),
    ]
    lora = folder / LORA_FILE
    source = transformer_source(
        model_arguments(config),
        shards,
        modules,
        _single_match(lora) if lora.parent.is_dir() else lora,
        infer_positions=LEARNED_POSITIONS not in config,
    )
    return replace(source, released=True)


def transformer_source(
    arguments: dict[str, Any],
    shards: list[WeightFile],
    modules: list[WeightFile],
    lora_file: Path,
    infer_positions: bool = False,
) -> TransformerSource:
    """Source made of those files.

    Args:
        arguments: Arguments of the transformer.
        shards: Files of the transformer, possibly with LoRA entries.
        modules: Separate modules, which override the shards.
        lora_file: Separate LoRA, which overrides the LoRA in the shards. May not exist.
        infer_positions: Use a learned position table if and only if the shards have one.
    """
    inner: dict[str, Tensor] = {}
    names: set[str] = set()
    for shard in shards:
        with shard.open() as stored:
            names |= stored.keys()
            inner |= {name: tensor.load().clone() for name, tensor in stored.items() if ".lora_" in name}
    if infer_positions:
        arguments = arguments | {LEARNED_POSITIONS: POSITION_TABLE in names}
    elif POSITION_TABLE in names and not arguments.get(LEARNED_POSITIONS):
        expected = f"{LEARNED_POSITIONS}: true in config.json"
        raise InputError(f"weights with a learned position table ({POSITION_TABLE})", expected, "correct config.json")
    lora, paths = inner, [file.path for file in (*shards, *modules)]
    if lora_file.is_file():
        with WeightFile(lora_file).open() as stored:
            lora = {name: tensor.load().clone() for name, tensor in stored.items()}
        paths.append(lora_file)
    without_lora = [replace(shard, exclude=".lora_") for shard in shards]
    return TransformerSource(arguments, (*without_lora, *modules), lora_pairs(lora), tuple(paths))


def load_released(
    folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> BindYourAvatarTransformer3DModel:
    """Load the released weights into our transformer, with LoRA merged and bounded extra memory.

    Raises:
        InputError: A file is missing, or names or shapes do not match.
    """
    return released_source(folder).build(dtype, device)


def _single_match(path: Path) -> Path:
    """A file of the published name, or the only file of its type in its folder."""
    matches = [path] if path.is_file() else sorted(path.parent.glob(f"*{path.suffix}"))
    if len(matches) > 1:
        problem = f"several files in {path.parent} ({', '.join(match.name for match in matches[:4])})"
        raise InputError(problem, f"one file, or one called {path.name}", "move the others away")
    return matches[0] if matches else _require(path)


def _require(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"no file {path}", "the released folder with all its files", "download it again")
    return path
