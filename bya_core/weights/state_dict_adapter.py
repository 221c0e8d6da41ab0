"""The released files of Bind-Your-Avatar: their layout, their names, and how they become our transformer.

Our parameters carry the published names, so a released file differs from ours by a prefix only:

| file under the released folder | holds | ours begin with |
|---|---|---|
| transformer/*.safetensors | base video transformer (and sometimes all the rest) | |
| audio_module/audio_modules.pt | speech path, flat | audio_model. |
| face_module/face_modules.pt | extractor; list of cross-attentions | local_facial_extractor., ... |
| router/router_modules.pt | router with its position table, flat | router. |
| lora_weight/pytorch_lora_weights.safetensors | update of the attention's q and k | (merged) |

Names may carry what wrappers left before them ("module.", "transformer.module."); it is taken off.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.loader import WeightFile, complain_about_differences, empty, fill
from bya_core.weights.lora import lora_pairs, plain_name

log = logging.getLogger(__name__)

__all__ = ["complain_about_differences", "load_released", "model_arguments", "to_released"]

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
"""What is not in the transformer's own file."""
PROJECTION = "patch_embed.proj.weight"
TABLE = "patch_embed.pos_embedding"
LEARNED = "use_learned_positional_embeddings"
RENAMED = {"is_train_face": "use_face", "is_train_audio": "use_audio"}
HARD_CODED = ("LFE_", "cross_attn_dim_head", "cross_attn_num_heads")
"""Entries of a released config.json that its own code never reads."""
OVERRIDES = {"flavour": "official", "in_channels": 48, "use_face": True, "use_audio": True}
"""What the released code sets whatever config.json says."""


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of our transformer for a released config.json; what means nothing to it is left out."""
    known = inspect.signature(BindYourAvatarTransformer3DModel.__init__).parameters
    renamed = {RENAMED.get(k, k): v for k, v in config.items() if not k.startswith(HARD_CODED)}
    return {k: v for k, v in renamed.items() if k in known} | OVERRIDES


def audio_to_ours(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """audio_modules.pt -> our names."""
    return {AUDIO + plain_name(key).removeprefix(AUDIO): value for key, value in released.items()}


def face_to_ours(released: Mapping[str, Any]) -> dict[str, Tensor]:
    """face_modules.pt -> our names. Raises InputError where it is laid out otherwise."""
    try:
        extractor, layers = released["local_facial_extractor"], released["perceiver_cross_attention"]
    except (KeyError, TypeError) as error:
        came = f"face modules without an entry {error}"
        expected = "local_facial_extractor and perceiver_cross_attention"
        raise InputError(came, expected, "fetch the file again") from error
    ours = {EXTRACTOR + plain_name(key): value for key, value in extractor.items()}
    for layer, weights in enumerate(layers):
        ours |= {f"{CROSS}{layer}.{plain_name(key)}": value for key, value in weights.items()}
    return ours


def router_to_ours(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """router_modules.pt -> our names."""
    return {ROUTER + plain_name(key).removeprefix(ROUTER): value for key, value in released.items()}


def to_released(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our state dict -> contents of the released files, by the name they have in the released folder.

    "transformer" holds the base.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in _under(ours, CROSS):
        layer, _, name = key.partition(".")
        layers.setdefault(int(layer), {})[name] = value
    return {
        "transformer": {key: value for key, value in ours.items() if not key.startswith(MODULES)},
        AUDIO_FILE: dict(_under(ours, AUDIO)),
        FACE_FILE: {
            "local_facial_extractor": dict(_under(ours, EXTRACTOR)),
            "perceiver_cross_attention": [layers[layer] for layer in sorted(layers)],
        },
        ROUTER_FILE: dict(_under(ours, ROUTER)),
    }


def _under(weights: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((key.removeprefix(prefix), value) for key, value in weights.items() if key.startswith(prefix))


@dataclass(frozen=True)
class Recipe:
    """How a transformer is put together from files.

    Args:
        arguments: of `BindYourAvatarTransformer3DModel`.
        files: with its weights, in the order in which later ones win.
        lora: name of a weight -> (A, B), on the CPU.
        sources: files that went in, LoRA included.
    """

    arguments: dict[str, Any]
    files: tuple[WeightFile, ...]
    lora: dict[str, tuple[Tensor, Tensor]]
    sources: tuple[Path, ...]

    def build(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> BindYourAvatarTransformer3DModel:
        """The transformer, filled straight on its device.

        Raises:
            InputError: names or shapes do not fit.
        """
        model = empty(lambda: BindYourAvatarTransformer3DModel(**self.arguments))
        expected = model.state_dict()
        for name, (a, b) in self.lora.items():
            if name not in expected or tuple(expected[name].shape) != (b.shape[0], a.shape[1]):
                came = f"a LoRA for {name!r} of shape {(b.shape[0], a.shape[1])}"
                has = f"the model's own shape {tuple(expected[name].shape)}" if name in expected else "a weight it has"
                raise InputError(came, has, "use the LoRA that was made for this model")
        fill(model, self.files, dtype=dtype, device=device, lora=self.lora, widen=PROJECTION)
        if self.lora:
            log.info("merged %d LoRA updates", len(self.lora))
        return model


def is_released(folder: Path) -> bool:
    """Whether a folder is laid out as the released one."""
    return (folder / AUDIO_FILE).parent.is_dir() and _base(folder).is_dir()


def _base(folder: Path) -> Path:
    """The averaged transformer counts where there is one, as in the released code."""
    return folder / ("transformer_ema" if (folder / "transformer_ema").is_dir() else "transformer")


def released_recipe(folder: Path) -> Recipe:
    """The recipe of a released folder.

    The separate files win over what the transformer's own file may also hold, and so does the separate LoRA.

    Raises:
        InputError: a file is missing or broken.
    """
    base = _base(folder)
    config = json.loads(_present(base / "config.json").read_text(encoding="utf-8"))
    arguments = model_arguments(config)
    shards = [WeightFile(path, rename=ours) for path in sorted(base.glob("*.safetensors"))]
    if not shards:
        _present(base / "*.safetensors")
    modules = [
        WeightFile(_only(folder / AUDIO_FILE), lambda content: audio_to_ours(content).items()),
        WeightFile(_only(folder / FACE_FILE), lambda content: face_to_ours(content).items()),
        WeightFile(_only(folder / ROUTER_FILE), lambda content: router_to_ours(content).items()),
    ]
    lora = folder / LORA_FILE
    return recipe(arguments, shards, modules, _only(lora) if lora.parent.is_dir() else lora, table=LEARNED in config)


def recipe(
    arguments: dict[str, Any],
    shards: list[WeightFile],
    modules: list[WeightFile],
    lora_file: Path,
    table: bool = True,
) -> Recipe:
    """The recipe of those files.

    Args:
        table: whether the arguments say if there is a learned table of positions; else the files do.
    """
    inside: dict[str, Tensor] = {}
    found: set[str] = set()
    for shard in shards:
        with shard.open() as stored:
            found |= stored.keys()
            inside |= {name: tensor.whole().clone() for name, tensor in stored.items() if ".lora_" in name}
    if not table:
        arguments = arguments | {LEARNED: TABLE in found}
    lora = inside
    sources = [file.path for file in (*shards, *modules)]
    if lora_file.is_file():
        with WeightFile(lora_file).open() as stored:
            lora = {name: tensor.whole().clone() for name, tensor in stored.items()}
        sources.append(lora_file)
    kept = [replace(shard, without=".lora_") for shard in shards]
    return Recipe(arguments, (*kept, *modules), lora_pairs(lora), tuple(sources))


def ours(name: str) -> str:
    """Name in a file of the transformer -> ours."""
    return plain_name(name).replace(".base_layer.", ".")


def load_released(
    folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> BindYourAvatarTransformer3DModel:
    """Our transformer with the released weights, LoRA merged; never more than a piece of them is held twice.

    Raises:
        InputError: a file is missing, or names or shapes do not fit.
    """
    return released_recipe(folder).build(dtype, device)


def _only(path: Path) -> Path:
    """A file under its published name, or the only one of its kind in its folder."""
    others = [path] if path.is_file() else sorted(path.parent.glob(f"*{path.suffix}"))
    if len(others) > 1:
        came = f"several files in {path.parent} ({', '.join(other.name for other in others[:4])})"
        raise InputError(came, f"one, or one that is called {path.name}", "move the others away")
    return others[0] if others else _present(path)


def _present(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"no file {path}", "the released folder with all its files", "download it again")
    return path
