"""The denoising loop with a stand-in transformer: guidance, schedulers, callbacks, stopping and resuming."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bya_core.config import SamplingConfig
from bya_core.errors import Cancelled, InputError
from bya_core.masks import MaskControl
from bya_core.sampling import Conditions, StepInfo, build_scheduler, denoise, schedulers
from bya_core.sampling.guidance import apply_guidance, guidance_branches

T, C, H, W, N = 2, 3, 4, 6, 2


class StandIn(nn.Module):
    """Its output depends on all inputs; calls are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.calls: list[dict] = []

    def forward(self, hidden_states: Tensor, timestep: Tensor, **kwargs: Tensor | None) -> SimpleNamespace:
        self.calls.append({"hidden_states": hidden_states, "timestep": timestep, **kwargs})
        noisy, canvas, frame = hidden_states.chunk(3, dim=2)
        out = self.scale * noisy + 0.1 * canvas + 0.2 * frame + timestep[:, None, None, None, None] / 1e4
        for name in ("encoder_hidden_states", "face_tokens", "audio_tokens"):
            value = kwargs[name]
            if value is not None:
                out = out + value.flatten(1).mean(1)[:, None, None, None, None]
        override = kwargs["mask_override"]
        masks = torch.full((len(out), N, T, H // 2, W // 2), 0.5) if override is None else override
        return SimpleNamespace(sample=out.tanh(), used_masks=masks, masks=None, router_logits=None)


def _conditions(**changes: object) -> Conditions:
    g = torch.Generator().manual_seed(5)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    given = {
        "text": rand(1, 7, 5),
        "negative_text": rand(1, 7, 5),
        "latent_shape": (T, C, H, W),
        "face_tokens": rand(1, N, 4, 6),
        "dropped_face_tokens": rand(1, N, 4, 6),
        "audio_tokens": rand(1, N, T, 3, 4),
        "silent_audio_tokens": rand(1, N, T, 3, 4),
        "canvas_latents": rand(1, T, C, H, W),
        "first_frame_latents": rand(1, T, C, H, W),
    }
    return Conditions(**{**given, **changes})


def _run(scheduler: str = "dpm", conditions: Conditions | None = None, model: StandIn | None = None, **more):
    names = ("steps", "guidance_scale", "audio_guidance_scale", "seed", "drop_identity")
    settings = {"steps": 4, "guidance_scale": 3.0, "audio_guidance_scale": 3.0}
    settings |= {name: more.pop(name) for name in names if name in more}
    config = SamplingConfig(scheduler=scheduler, **settings)
    return denoise(model or StandIn(), build_scheduler(scheduler), conditions or _conditions(), config, **more)


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
def test_seed(scheduler: str) -> None:
    first, again, other = (_run(scheduler, seed=s).latents for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert first.isfinite().all() and first.shape == (1, T, C, H, W)


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_number_of_steps_and_callback(scheduler: str, steps: int) -> None:
    seen: list[StepInfo] = []
    result = _run(scheduler, steps=steps, callback=lambda progress: seen.append(progress.info))
    assert [(info.step, info.total) for info in seen] == [(k + 1, steps) for k in range(steps)]
    assert all(info.x0.shape == (1, T, C, H, W) for info in seen)
    assert seen[0].timestep == 999 and seen[-1].masks.shape == (N, T, H // 2, W // 2)
    assert result.latents.isfinite().all()
    assert torch.allclose(result.latents, seen[-1].x0, atol=1e-4)  # the last step returns the clean latents


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
def test_resumed_run_equals_uninterrupted_run(scheduler: str) -> None:
    whole, part = _run(scheduler, steps=5), _run(scheduler, steps=5, stop_at=2)
    assert part.state.step == 2 and part.masks is not None
    assert torch.equal(_run(scheduler, steps=5, state=part.state).latents, whole.latents)
    with pytest.raises(InputError, match="5 steps"):
        _run(scheduler, steps=4, state=part.state)


def test_callback_cancels() -> None:
    model = StandIn()
    with pytest.raises(Cancelled, match="after step 2 of 4"):
        _run(model=model, callback=lambda progress: progress.step < 2)
    assert len(model.calls) == 2


def test_stop_condition() -> None:
    seen = []
    result = _run(callback=lambda progress: seen.append(progress.step), stop=lambda info: info.step == 3)
    assert result.state.step == 3 and seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "audio", "names"),
    [
        (7, 7, ["uncond", "full"]),
        (1, 1, ["full"]),
        (1, 4, ["text", "full"]),
        (5, 3, ["uncond", "text", "full"]),
        (0, 2, ["uncond", "text", "full"]),
        (3, 0, ["uncond", "text", "full"]),
    ],
)
def test_guidance_branches(text: float, audio: float, names: list[str]) -> None:
    branches = guidance_branches(text, audio)
    assert [branch.name for branch in branches] == names
    assert sum(branch.weight for branch in branches) == pytest.approx(1)
    silent = [branch.name for branch in guidance_branches(text, audio, has_speech=False)]
    assert silent == (["full"] if text == 1 else ["uncond", "full"])


def test_apply_guidance() -> None:
    free, text, full = torch.randn(3, T, C, H, W)
    got = apply_guidance(torch.stack([free, text, full]), guidance_branches(5.0, 3.0))
    assert torch.allclose(got[0], free + 5 * (text - free) + 3 * (full - text), atol=1e-5)
    joint = apply_guidance(torch.stack([free, full]), guidance_branches(7.0, 7.0))
    assert torch.allclose(joint[0], free + 7 * (full - free), atol=1e-5)


def test_conditions_of_the_branches() -> None:
    model, conditions = StandIn(), _conditions()
    _run(conditions=conditions, model=model, guidance_scale=5.0, audio_guidance_scale=2.0, steps=1)
    call = model.calls[0]
    text, audio = call["encoder_hidden_states"], call["audio_tokens"]
    assert torch.equal(text[0], conditions.negative_text[0]) and torch.equal(text[1], text[2])
    assert torch.equal(audio[0], conditions.silent_audio_tokens[0]) and torch.equal(audio[0], audio[1])
    assert torch.equal(audio[2], conditions.audio_tokens[0])
    assert torch.equal(call["face_tokens"][0], call["face_tokens"][2])
    assert call["hidden_states"].shape == (3, T, 3 * C, H, W)


def test_drop_identity() -> None:
    model, conditions = StandIn(), _conditions()
    _run(conditions=conditions, model=model, drop_identity=True, steps=1)
    call = model.calls[0]
    _, canvas, frame = call["hidden_states"].chunk(3, dim=2)
    assert canvas[0].abs().sum() == 0 and torch.equal(canvas[1], conditions.canvas_latents[0])
    assert torch.equal(frame[0], frame[1])
    assert torch.equal(call["face_tokens"][0], conditions.dropped_face_tokens[0])
    assert torch.equal(call["audio_character_matrix"], torch.stack([torch.zeros(N, N), torch.eye(N)]))


def test_mask_control() -> None:
    masks, model = torch.rand(N, T, H // 2, W // 2), StandIn()
    result = _run(model=model, conditions=_conditions(mask_control=MaskControl(masks)))
    assert all(torch.equal(call["mask_override"], masks.expand(2, -1, -1, -1, -1)) for call in model.calls)
    assert torch.equal(result.masks, masks)
    model = StandIn()
    part = MaskControl(masks, start_percent=torch.tensor([0.0, 0.25]), end_percent=torch.tensor(0.5))
    _run(model=model, conditions=_conditions(mask_control=part))
    strength = [call["mask_override_strength"] for call in model.calls]
    assert strength[0][0, :, 0, 0, 0].tolist() == [1, 0] and strength[1] is None
    assert strength[2] is None and model.calls[2]["mask_override"] is None


@pytest.mark.parametrize(
    ("conditions", "options", "problem"),
    [
        ({"negative_text": None}, {}, "conditions without negative_text"),
        ({"silent_audio_tokens": None}, {}, "conditions without silent_audio_tokens"),
        ({"audio_character_matrix": torch.zeros(1, 3, N)}, {}, "audio-character matrix of shape"),
        ({"canvas_latents": torch.zeros(1, T, C, H, W + 1)}, {}, "canvas_latents of shape"),
        ({}, {"latents": torch.zeros(1, T, C, H, 2)}, "latents of shape"),
        ({}, {"steps": 2000}, "steps"),
    ],
)
def test_invalid_inputs_raise(conditions: dict, options: dict, problem: str) -> None:
    with pytest.raises(InputError) as raised:
        _run(conditions=_conditions(**conditions), **options)
    assert raised.value.problem.startswith(problem)


def test_negative_prompt_is_optional_without_guidance() -> None:
    _run(conditions=_conditions(negative_text=None), guidance_scale=1.0, audio_guidance_scale=1.0, steps=1)


def test_without_speech_and_faces() -> None:
    none = {"audio_tokens": None, "silent_audio_tokens": None, "face_tokens": None, "canvas_latents": None}
    assert _run(conditions=_conditions(**none)).latents.isfinite().all()


@pytest.mark.parametrize("steps", [3, 7, 15, 16, 20])
def test_last_step_returns_the_clean_latents(steps):
    """Also if the number of steps does not divide that of the training timesteps."""
    scheduler = build_scheduler("dpm")
    clean = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    timesteps = schedulers.retrieve_timesteps(scheduler, steps)
    generator = torch.Generator().manual_seed(1)
    x, x0 = torch.randn(clean.shape, generator=generator), None
    for index, timestep in enumerate(timesteps):
        alpha = scheduler.alphas_cumprod[timestep].float()
        error = 0.3 * torch.randn(clean.shape, generator=generator)
        guess = clean + (error if index + 1 < steps else 0)
        velocity = (alpha.sqrt() * x - guess) / (1 - alpha).sqrt()
        x, x0 = schedulers.step(scheduler, velocity, x, timesteps, index, x0, generator)
    assert float((x - clean).abs().mean()) < 0.06


def test_noise_is_drawn_on_the_cpu_in_float32() -> None:
    """The same on any device and in any precision; the release draws on the GPU in bfloat16."""
    drawn = []
    for dtype in (torch.float32, torch.bfloat16):
        model = StandIn().to(dtype)
        denoise(model, build_scheduler("dpm"), _conditions(), SamplingConfig(steps=2, seed=5))
        drawn.append(model.calls[0]["hidden_states"].chunk(3, dim=2)[0][:1])
    noise = torch.randn(1, T, C, H, W, generator=torch.Generator("cpu").manual_seed(5))
    torch.testing.assert_close(drawn[0], noise)
    torch.testing.assert_close(drawn[1].float(), noise.bfloat16().float())
