"""The denoising loop with a stand-in transformer: guidance, schedulers, watching, stopping, resuming."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bya_core.config import SamplingConfig
from bya_core.errors import Cancelled, InputError
from bya_core.masks import MaskControl
from bya_core.progress import Progress
from bya_core.sampling import Conditions, StepInfo, build_scheduler, denoise, schedulers
from bya_core.sampling.guidance import apply_guidance, guidance_branches

T, C, H, W, N = 2, 3, 4, 6, 2


class StandIn(nn.Module):
    """Answers with something that depends on everything it is given, and remembers its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.calls: list[dict] = []

    def forward(self, hidden_states: Tensor, timestep: Tensor, **given: Tensor | None) -> SimpleNamespace:
        self.calls.append({"hidden_states": hidden_states, "timestep": timestep, **given})
        noisy, canvas, frame = hidden_states.chunk(3, dim=2)
        out = self.scale * noisy + 0.1 * canvas + 0.2 * frame + timestep[:, None, None, None, None] / 1e4
        for name in ("encoder_hidden_states", "face_tokens", "audio_tokens"):
            value = given[name]
            if value is not None:
                out = out + value.flatten(1).mean(1)[:, None, None, None, None]
        forced = given["mask_override"]
        masks = torch.full((len(out), N, T, H // 2, W // 2), 0.5) if forced is None else forced
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
def test_the_seed_decides(scheduler: str) -> None:
    first, again, other = (_run(scheduler, seed=s).latents for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert first.isfinite().all() and first.shape == (1, T, C, H, W)


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_any_number_of_steps_ends_in_finite_latents(scheduler: str, steps: int) -> None:
    seen: list[StepInfo] = []
    result = _run(scheduler, steps=steps, callback=lambda progress: seen.append(progress.info))
    assert [info.step for info in seen] == list(range(1, steps + 1))
    assert all(info.total == steps and info.x0.shape == (1, T, C, H, W) for info in seen)
    assert seen[0].timestep == 999
    assert seen[-1].masks is not None and seen[-1].masks.shape == (N, T, H // 2, W // 2)
    assert result.latents.isfinite().all()
    assert torch.allclose(result.latents, seen[-1].x0, atol=1e-4), "the last step ends on the clean latents"


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
def test_a_stopped_run_goes_on_as_if_never_stopped(scheduler: str) -> None:
    whole = _run(scheduler, steps=5)
    half = _run(scheduler, steps=5, stop_at=2)
    assert half.state.step == 2 and half.masks is not None
    rest = _run(scheduler, steps=5, state=half.state)
    assert torch.equal(rest.latents, whole.latents)
    with pytest.raises(InputError, match="5 steps"):
        _run(scheduler, steps=4, state=half.state)


def test_the_callback_can_stop_the_run() -> None:
    model = StandIn()
    with pytest.raises(Cancelled, match="after step 2 of 4"):
        _run(model=model, callback=lambda progress: progress.step < 2)
    assert len(model.calls) == 2

    def raises(progress: Progress) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        _run(callback=raises)


def test_only_the_branches_that_count_are_computed() -> None:
    assert [(b.prompt, b.speech) for b in guidance_branches(7, 7)] == [(False, False), (True, True)]
    assert [(b.prompt, b.speech) for b in guidance_branches(1, 1)] == [(True, True)]
    assert [(b.prompt, b.speech) for b in guidance_branches(1, 4)] == [(True, False), (True, True)]
    assert len(guidance_branches(5, 3)) == 3
    assert [(b.prompt, b.speech) for b in guidance_branches(5, 3, has_speech=False)] == [(False, False), (True, True)]
    for text, speech in ((7, 7), (5, 3), (1, 4), (0, 2), (3, 0)):
        assert sum(b.weight for b in guidance_branches(text, speech)) == pytest.approx(1)
        assert guidance_branches(text, speech)[-1].speech


def test_guidance_is_the_sum_it_claims_to_be() -> None:
    free, text, full = torch.randn(3, T, C, H, W)
    got = apply_guidance(torch.stack([free, text, full]), guidance_branches(5.0, 3.0))
    assert torch.allclose(got[0], free + 5 * (text - free) + 3 * (full - text), atol=1e-5)
    joint = apply_guidance(torch.stack([free, full]), guidance_branches(7.0, 7.0))
    assert torch.allclose(joint[0], free + 7 * (full - free), atol=1e-5)


def test_each_branch_gets_its_own_conditions() -> None:
    model, conditions = StandIn(), _conditions()
    _run(conditions=conditions, model=model, guidance_scale=5.0, audio_guidance_scale=2.0, steps=1)
    call = model.calls[0]
    text, audio = call["encoder_hidden_states"], call["audio_tokens"]
    assert torch.equal(text[0], conditions.negative_text[0]) and torch.equal(text[1], text[2])
    assert torch.equal(audio[0], conditions.silent_audio_tokens[0]) and torch.equal(audio[0], audio[1])
    assert torch.equal(audio[2], conditions.audio_tokens[0])
    assert torch.equal(call["face_tokens"][0], call["face_tokens"][2])
    assert call["hidden_states"].shape == (3, T, 3 * C, H, W)


def test_drop_identity_empties_the_free_branch_but_keeps_its_first_frame() -> None:
    model, conditions = StandIn(), _conditions()
    _run(conditions=conditions, model=model, drop_identity=True, steps=1)
    call = model.calls[0]
    _, canvas, frame = call["hidden_states"].chunk(3, dim=2)
    assert canvas[0].abs().sum() == 0 and torch.equal(canvas[1], conditions.canvas_latents[0])
    assert torch.equal(frame[0], frame[1])
    assert torch.equal(call["face_tokens"][0], conditions.dropped_face_tokens[0])
    assert torch.equal(call["audio_character_matrix"], torch.stack([torch.zeros(N, N), torch.eye(N)]))


def test_forced_masks_reach_every_branch_and_only_in_their_part_of_the_run() -> None:
    masks = torch.rand(1, N, T, H // 2, W // 2)
    model = StandIn()
    result = _run(model=model, conditions=_conditions(mask_control=MaskControl(masks[0])))
    assert all(torch.equal(call["mask_override"], masks.expand(2, -1, -1, -1, -1)) for call in model.calls)
    assert torch.equal(result.masks, masks[0])
    model = StandIn()
    half = MaskControl(masks[0], start_percent=torch.tensor([0.0, 0.25]), end_percent=torch.tensor(0.5))
    _run(model=model, conditions=_conditions(mask_control=half))
    weights = [call["mask_override_strength"] for call in model.calls]
    assert weights[0][0, :, 0, 0, 0].tolist() == [1, 0] and weights[1] is None
    assert weights[2] is None and model.calls[2]["mask_override"] is None


def test_what_is_missing_or_does_not_fit_is_said() -> None:
    with pytest.raises(InputError, match="negative_text"):
        _run(conditions=_conditions(negative_text=None))
    _run(conditions=_conditions(negative_text=None), guidance_scale=1.0, audio_guidance_scale=1.0, steps=1)
    with pytest.raises(InputError, match="silent_audio_tokens"):
        _run(conditions=_conditions(silent_audio_tokens=None))
    with pytest.raises(InputError, match="matrix of shape"):
        _conditions(audio_character_matrix=torch.zeros(1, 3, N))
    with pytest.raises(InputError, match="canvas_latents"):
        _conditions(canvas_latents=torch.zeros(1, T, C, H, W + 1))
    with pytest.raises(InputError, match="latents of shape"):
        _run(latents=torch.zeros(1, T, C, H, 2))
    with pytest.raises(InputError, match="steps is 2000"):
        _run(steps=2000)


def test_it_runs_without_speech_and_without_faces() -> None:
    none = {"audio_tokens": None, "silent_audio_tokens": None, "face_tokens": None, "canvas_latents": None}
    assert _run(conditions=_conditions(**none)).latents.isfinite().all()


@pytest.mark.parametrize("steps", [3, 7, 15, 16, 20])
def test_the_last_step_ends_in_the_clean_latents_for_any_number_of_steps(steps):
    """A perfect model must end in the clean latents, also where the steps do not divide the schedule."""
    scheduler = build_scheduler("dpm")
    clean = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    timesteps = schedulers.retrieve_timesteps(scheduler, steps)
    generator = torch.Generator().manual_seed(1)
    x, x0 = torch.randn(clean.shape, generator=generator), None
    for index, timestep in enumerate(timesteps):
        alpha = scheduler.alphas_cumprod[timestep].float()
        wobble = 0.3 * torch.randn(clean.shape, generator=generator)  # guesses that differ from step to step
        guess = clean + (wobble if index + 1 < steps else 0)
        velocity = (alpha.sqrt() * x - guess) / (1 - alpha).sqrt()
        x, x0 = schedulers.step(scheduler, velocity, x, timesteps, index, x0, generator)
    assert float((x - clean).abs().mean()) < 0.06
