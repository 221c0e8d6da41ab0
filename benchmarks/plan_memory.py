"""Compute the memory plans of the released model: sizes, activations, and the plan selected for each GPU.

    python benchmarks/plan_memory.py                                    # prints the tables; needs no GPU
    python benchmarks/plan_memory.py --document docs/how-to/memory.md   # writes them between two marks of the page

Weights are counted on the meta device, activations with fake tensors. Workspaces of kernels are not counted. To measure
a plan on a GPU, run `bya selftest --full-size --vram 12` or `python benchmarks/profile.py --model full-size --vram 12`.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path = [str(ROOT), *(path for path in sys.path if Path(path or ".").resolve() != ROOT / "benchmarks")]

from bya_core.io.atomic import write_text  # noqa: E402
from bya_core.memory.planner import (  # noqa: E402
    MEMORY_PLANS,
    plan_memory,
    required_memory,
    required_pinned_memory,
)
from bya_core.memory.sizes import ENCODER_BYTES, component_sizes  # noqa: E402
from bya_core.models import rope, router  # noqa: E402
from bya_core.models.transformer import BindYourAvatarTransformer3DModel  # noqa: E402
from bya_core.pipelines.full_size import NATIVE, VAE  # noqa: E402

GPUS = ("80", "48", "24", "16", "12", "8")
GB = 1e9
BEGIN, END = "<!-- computed -->", "<!-- end of computed -->"
WEIGHTS = {
    "text": "text encoder (T5-XXL)",
    "face": "face encoders (EVA02-CLIP, ArcFace, parser)",
    "speech": "wav2vec2",
    "codec": "video VAE",
    "blocks": "transformer: 42 blocks, 21 face and 42 audio layers",
    "block": "... the largest block with its layers",
    "projection": "transformer: audio projection, once per clip",
    "extractor": "transformer: face extractor, once per clip",
    "other": "transformer: router, input and output",
}


class LiveBytes(TorchDispatchMode):
    """Context in which `peak` is the maximum of bytes alive at one time. Use it in `FakeTensorMode`.

    Args:
        known: Tensors that do not count (weights, inputs), nor do views of them.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # kept, so that no address is reused
        self._counted = {storage._cdata for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._counted:
                    self._counted.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return out

    def _free(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.now -= size


def released_sizes() -> dict[str, int]:
    """Sizes of the released model in bfloat16, in bytes."""
    from diffusers import AutoencoderKLCogVideoX

    from bya_core.weights.bundle import ModelBundle

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            transformer: Any = BindYourAvatarTransformer3DModel()
            vae = AutoencoderKLCogVideoX(**VAE)
    finally:
        torch.set_default_dtype(default)
    codec: Any = SimpleNamespace(vae=vae, space_factor=8, time_factor=4)
    none: Any = SimpleNamespace()
    return component_sizes(ModelBundle("official", transformer, none, none, none, codec, {}, NATIVE)) | ENCODER_BYTES


def count_activations() -> dict[str, int]:
    """Peak bytes of activations at 720x480, 49 frames, two characters, bfloat16."""
    from diffusers import AutoencoderKLCogVideoX
    from torch._subclasses.fake_tensor import FakeTensorMode

    peaks: dict[str, int] = {}
    default = torch.get_default_dtype()
    _clear_tables()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(), torch.no_grad():
            model = BindYourAvatarTransformer3DModel(num_layers=2).eval()  # all blocks are alike
            for branches in (2, 1):
                inputs = {
                    "hidden_states": torch.zeros(branches, 13, 48, 60, 90),
                    "encoder_hidden_states": torch.zeros(branches, 226, 4096),
                    "timestep": torch.zeros(branches, dtype=torch.long),
                    "face_tokens": torch.zeros(branches, 2, 32, 2048),
                    "audio_tokens": torch.zeros(branches, 2, 13, 32, 768),
                }
                with LiveBytes([*model.parameters(), *model.buffers(), *inputs.values()]) as live:
                    model(**inputs)
                peaks[f"denoising step, {branches} guidance branch{'es' if branches > 1 else ''}"] = live.peak
            vae = AutoencoderKLCogVideoX(**VAE).eval()
            latents, image = torch.zeros(1, 16, 13, 60, 90), torch.zeros(1, 3, 1, 480, 720)
            with LiveBytes([*vae.parameters(), image]) as live:
                vae.encode(image)
            peaks["encoding an image"] = live.peak
            for tiling in (False, True):
                if tiling:
                    vae.enable_tiling()
                with LiveBytes([*vae.parameters(), latents]) as live:
                    vae.decode(latents)
                peaks["decoding 49 frames" + (" with tiling" if tiling else "")] = live.peak
    finally:
        torch.set_default_dtype(default)
        _clear_tables()
    return peaks


def _clear_tables() -> None:
    """Cached position tables must not be fake tensors, and the other way around."""
    rope._tables.cache_clear()
    router._cached_table.cache_clear()


def tables(sizes: dict[str, int], activations: dict[str, int]) -> str:
    """Weights, activations and plans as Markdown."""
    lines = ["| weights | GB |", "|---|---|"]
    lines += [f"| {text} | {sizes[name] / GB:.2f} |" for name, text in WEIGHTS.items()]
    lines += ["", "| activations | GB |", "|---|---|"]
    lines += [f"| {name} | {size / GB:.2f} |" for name, size in activations.items()]
    lines += [f"| KV cache of the clip, with the plan full | {sizes['kv_cache'] / GB:.2f} |"]
    stages = list(required_memory(MEMORY_PLANS[1], sizes))
    lines += ["", f"| plan | {' | '.join(stages)} | pinned host memory | selected for GPUs of |"]
    lines += ["|---|" + "---|" * (len(stages) + 2)]
    selected = {gpu: plan_memory(gpu, sizes) for gpu in GPUS}
    for plan in MEMORY_PLANS:
        gpus = ", ".join(f"{gpu} GB" for gpu, chosen in selected.items() if chosen.name == plan.name) or "-"
        required = required_memory(replace(plan, text_encoder_on_cpu=False), sizes)
        cells = [f"{required[stage] / GB:.1f}" if stage in required else "-" for stage in stages]
        lines.append(f"| {plan.name} | {' | '.join(cells)} | {required_pinned_memory(plan, sizes) / GB:.1f} | {gpus} |")
    on_cpu = [gpu for gpu, chosen in selected.items() if chosen.text_encoder_on_cpu]
    if on_cpu:
        lines += ["", f"On GPUs of {' and '.join(on_cpu)} GB the text encoder runs on the CPU."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", type=Path, help=f"Markdown file with the marks {BEGIN} and {END}")
    options = parser.parse_args(arguments)
    text = tables(released_sizes(), count_activations())
    print(text)
    if options.document:
        page = options.document.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        write_text(options.document, f"{before}{BEGIN}\n{text}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
