"""Our denoising loop against three-step runs of the released pipeline."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bya_core.config import SamplingConfig
from bya_core.masks import time_union
from bya_core.sampling import Conditions, build_scheduler, denoise
from tests.parity.support import (
    columns_to_masks,
    faces,
    largest_error,
    needs_fixtures,
    read_json,
    read_tensors,
    tiny_transformer,
)

pytestmark = needs_fixtures

RUNS = ("cfg", "zero2cond", "no_inpaint", "forced", "no_cfg")
ATOL = 5e-4


def _image_latents(raw: Tensor, scaling: float, frames: int) -> Tensor:
    """One encoded picture [1, C, 1, H, W] -> [1, T, C, H, W], zeros after the first latent frame."""
    first = raw.transpose(1, 2) * scaling
    return torch.cat([first, first.new_zeros(1, frames - 1, *first.shape[2:])], dim=1)


@torch.no_grad()
def _conditions(run: str) -> Conditions:
    stored, inputs, config = (
        read_tensors("pipeline"),
        read_tensors("transformer_inputs"),
        read_json("pipeline_config"),
    )
    model, grid = tiny_transformer(), read_json("transformer_config")["grid"]
    identity, hidden = faces({k: v[1:] for k, v in inputs.items() if k.startswith("id_")})
    audio = inputs["audio"][1:]
    forced = None
    if run == "forced":
        forced = time_union(columns_to_masks(stored["forced"], (grid["T"], grid["H"], grid["W"])))
    scaling, shape = config["vae_scaling_factor"], tuple(stored["noise.0"].shape[1:])
    frame = None if run == "no_inpaint" else _image_latents(stored["bg_latent_raw"], scaling, shape[0])
    return Conditions(
        text=stored["prompt_embeds"],
        negative_text=stored["negative_prompt_embeds"],
        latent_shape=shape,
        face_tokens=model.encode_faces(identity, hidden),
        dropped_face_tokens=model.encode_faces(torch.zeros_like(identity), torch.zeros_like(hidden)),
        audio_tokens=model.encode_speech(audio),
        silent_audio_tokens=model.encode_speech(torch.zeros_like(audio)),
        canvas_latents=_image_latents(stored["canvas_latent_raw"], scaling, shape[0]),
        first_frame_latents=frame,
        image_rotary_emb=(stored["rope_cos"], stored["rope_sin"]),
        forced_masks=forced,
    )


def _check(run: str, **given: object) -> None:
    stored, config = read_tensors("pipeline"), read_json("pipeline_config")
    scale = 1.0 if run == "no_cfg" else config["guidance_scale"]
    settings = SamplingConfig(
        steps=config["steps"],
        guidance_text=scale,
        guidance_speech=scale,
        seed=config["seed"],
        drop_identity=run == "zero2cond",
    )
    seen = []
    denoise(
        tiny_transformer(),
        build_scheduler("dpm", config["scheduler"]),
        _conditions(run),
        settings,
        callback=lambda info: seen.append((info.timestep, info.latents)),
        **given,
    )
    assert [timestep for timestep, _ in seen] == config["timesteps"]
    for i, (_, latents) in enumerate(seen):
        assert largest_error(latents, stored[f"{run}.latents_after_step{i}"]) < ATOL, (run, i)


@pytest.mark.parametrize("run", RUNS)
def test_the_seed_alone_gives_the_released_latents(run: str) -> None:
    _check(run)


@pytest.mark.parametrize("run", RUNS)
def test_stored_noise_gives_the_released_latents(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = read_tensors("pipeline")
    count = sum(1 for name in stored if name.startswith("noise."))
    left: Iterator[Tensor] = iter([stored[f"noise.{i}"] for i in range(1, count)])
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_dpm_cogvideox.randn_tensor", lambda *args, **kwargs: next(left)
    )
    _check(run, latents=stored["noise.0"])
    assert next(left, None) is None, "every stored draw is used"
