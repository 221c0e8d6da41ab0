"""The denoising loop against three-step runs of the released pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bya_core.config import SamplingConfig
from bya_core.masks import MaskControl, time_union
from bya_core.sampling import Conditions, StepInfo, build_scheduler, denoise
from tests.parity.parity_models import build_transformer, face_tokens, masks
from tests.parity.weight_rule import fill

RUNS = ("cfg", "zero2cond", "no_inpaint", "forced", "no_cfg")
ATOL = 5e-4


def _image_latents(raw: Tensor, scaling: float, frames: int) -> Tensor:
    """One encoded image [1, C, 1, H, W] -> [1, T, C, H, W], zeros after the first latent frame."""
    first = raw.transpose(1, 2) * scaling
    return torch.cat([first, first.new_zeros(1, frames - 1, *first.shape[2:])], dim=1)


@pytest.fixture(scope="module")
def config(settings):
    return settings("pipeline_config")


@pytest.fixture(scope="module")
def stored(tensors):
    return tensors("pipeline")


@pytest.fixture(scope="module")
def model(settings, stored):
    """The recorded pipeline crops its rotary tables from the published grid, not from that of the small model."""
    fixture = settings("transformer_config")
    model = fill(build_transformer(fixture), fixture["salt"])
    model.rotary = lambda grid, device="cpu": (stored["rope_cos"], stored["rope_sin"])
    return model


@pytest.fixture(scope="module")
def conditions(model, stored, config, settings, tensors) -> Callable[[str], Conditions]:
    """Conditions of a run: the second half of the transformer's inputs, and the pipeline's own tensors."""
    grid = settings("transformer_config")["grid"]
    inputs = {name: value[1:] for name, value in tensors("transformer_inputs").items()}
    zeros = {name: torch.zeros_like(value) for name, value in inputs.items()}
    scaling, shape = config["vae_scaling_factor"], tuple(stored["noise.0"].shape[1:])
    with torch.no_grad():
        common = {
            "text": stored["prompt_embeds"],
            "negative_text": stored["negative_prompt_embeds"],
            "latent_shape": shape,
            "face_tokens": face_tokens(model, inputs),
            "dropped_face_tokens": face_tokens(model, zeros),
            "audio_tokens": model.encode_speech(inputs["audio"]),
            "silent_audio_tokens": model.encode_speech(zeros["audio"]),
            "canvas_latents": _image_latents(stored["canvas_latent_raw"], scaling, shape[0]),
        }
    frame = _image_latents(stored["bg_latent_raw"], scaling, shape[0])
    forced = time_union(masks(stored["forced"], grid))

    def of(run: str) -> Conditions:
        return Conditions(
            **common,
            first_frame_latents=None if run == "no_inpaint" else frame,
            mask_control=MaskControl(forced[0]) if run == "forced" else None,
        )

    return of


@pytest.fixture
def check(model, stored, config, conditions) -> Callable[..., None]:
    """Runs one of the pipeline's runs and compares the latents after every step."""

    def run_and_compare(run: str, **given: Tensor) -> None:
        scale = 1.0 if run == "no_cfg" else config["guidance_scale"]
        sampling = SamplingConfig(
            steps=config["steps"],
            guidance_scale=scale,
            audio_guidance_scale=scale,
            seed=config["seed"],
            drop_identity=run == "zero2cond",
        )
        seen: list[StepInfo] = []
        scheduler = build_scheduler("dpm", config["scheduler"])
        denoise(
            model, scheduler, conditions(run), sampling, callback=lambda progress: seen.append(progress.info), **given
        )
        assert [info.timestep for info in seen] == config["timesteps"]
        for i, info in enumerate(seen):
            assert_close(info.latents, stored[f"{run}.latents_after_step{i}"], atol=ATOL, rtol=0)

    return run_and_compare


@pytest.mark.parametrize("run", RUNS)
def test_seed_gives_the_released_latents(check, run: str) -> None:
    check(run)


@pytest.mark.parametrize("run", RUNS)
def test_stored_noise_gives_the_released_latents(check, stored, run: str, monkeypatch) -> None:
    count = sum(1 for name in stored if name.startswith("noise."))
    left: Iterator[Tensor] = iter([stored[f"noise.{i}"] for i in range(1, count)])
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_dpm_cogvideox.randn_tensor", lambda *args, **kwargs: next(left)
    )
    check(run, latents=stored["noise.0"])
    assert next(left, None) is None
