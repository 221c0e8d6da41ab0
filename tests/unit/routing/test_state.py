"""Saving and loading a routing: exact resuming, changed inputs, invalid files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bya_core.config import ProbeConfig, RouterConfig, RouterSchedule
from bya_core.errors import InputError
from bya_core.masks import MaskControl
from bya_core.pipelines.generate import Video, generate, prepare, sample
from bya_core.progress import ProgressTracker
from bya_core.routing import Routing
from bya_core.routing.intra import probe
from bya_core.routing.state import load_routing, save_routing
from bya_core.sampling.acceleration import PRESETS, Acceleration
from bya_core.scene.types import PromptSpan, Scene
from tests.fakes import fake_bundle
from tests.unit.routing.puppet_scene import puppet_scene, two_puppets

ROOT = Path(__file__).resolve().parents[3]
STEPS = 5

OTHER_PROCESS = """
import sys, torch
from tests.fakes import fake_bundle
from tests.unit.routing.test_state import scene_of
from bya_core.pipelines.generate import prepare, sample
from bya_core.routing.state import load_routing
bundle, results = fake_bundle(), {}
for scheduler in ("dpm", "ddim"):
    prepared = prepare(scene_of(bundle, scheduler), bundle)
    video = sample(prepared, load_routing(f"{sys.argv[1]}/{scheduler}.safetensors", prepared), bundle)
    results[scheduler] = (video.frames, video.masks)
torch.save(results, f"{sys.argv[1]}/results.pt")
"""


def scene_of(bundle, scheduler: str = "dpm") -> Scene:
    scene = puppet_scene(bundle, two_puppets(), STEPS, scheduler=scheduler)
    return replace(scene, routing=RouterConfig(probe=ProbeConfig(steps=2)))


@pytest.fixture(scope="module")
def fake():
    return fake_bundle()


@pytest.fixture(scope="module")
def prepared(fake):
    return prepare(scene_of(fake), fake)


@pytest.fixture(scope="module")
def routing(fake, prepared):
    return probe(prepared, fake, ProgressTracker())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.safetensors"


@pytest.fixture
def state(routing, prepared, path):
    save_routing(routing, path, prepared)
    return path


def same(a: Video, b: Video) -> bool:
    return torch.equal(a.frames, b.frames) and torch.equal(a.masks, b.masks)


def test_another_process_resumes_bit_exactly(fake, tmp_path):
    whole = {}
    for scheduler in ("dpm", "ddim"):
        prepared = prepare(scene_of(fake, scheduler), fake)
        save_routing(probe(prepared, fake, ProgressTracker()), tmp_path / f"{scheduler}.safetensors", prepared)
        whole[scheduler] = generate(prepared.scene, fake)
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for scheduler, (frames, masks) in torch.load(tmp_path / "results.pt", weights_only=True).items():
        video = whole[scheduler]
        assert torch.equal(frames, video.frames) and torch.equal(masks, video.masks), scheduler


def test_round_trip(fake, prepared, routing, path):
    control = MaskControl(torch.rand_like(routing.masks), torch.tensor([0.25, 0.0]), end_percent=torch.tensor(0.7))
    matrix = torch.eye(2).flip(0)
    edited = replace(
        routing.override(control), origin="post", calls=11, notices=("A notice.", "Größe: ü"), matrix=matrix
    )
    save_routing(edited, path, prepared)
    loaded = load_routing(path, prepared)
    for name in ("masks", "confidence", "matrix"):
        assert torch.equal(getattr(loaded, name), getattr(edited, name)), name
    for name in ("strength", "start_percent", "end_percent"):
        assert torch.equal(getattr(loaded.control, name), getattr(edited.control, name)), name
    assert (loaded.origin, loaded.calls, loaded.notices) == (edited.origin, edited.calls, edited.notices)
    assert (loaded.state.step, loaded.state.total) == (2, STEPS)
    assert same(sample(prepared, loaded, fake), sample(prepared, edited, fake))


def test_round_trip_without_latents(prepared, routing, path):
    save_routing(Routing.of("pre", routing.masks, routing.matrix, strength=1.0), path, prepared)
    loaded = load_routing(path, prepared)
    assert loaded.state is None and (loaded.control.strength == 1).all()


def test_characters_are_matched_by_name(fake, routing, state):
    """In a scene with its characters in another order, each keeps its mask."""
    scene = scene_of(fake)
    other = prepare(replace(scene, characters=scene.characters[::-1], speeches=scene.speeches[::-1]), fake)
    loaded = load_routing(state, other)
    assert not torch.equal(routing.masks[0], routing.masks[1])
    assert torch.equal(loaded.masks, routing.masks.flip(0)) and torch.equal(loaded.matrix, other.scene.matrix)
    (notice,) = loaded.notices
    assert "matched by name" in notice
    assert sample(other, loaded, fake).frames.shape[0] == other.grid.video_frames


def change_sampling(**changes):
    return lambda scene: replace(scene, sampling=replace(scene.sampling, **changes))


@pytest.mark.parametrize(
    ("change", "property"),
    [
        (change_sampling(steps=6), "steps"),
        (change_sampling(seed=7), "seed"),
        (change_sampling(scheduler="ddim"), "scheduler"),
        (lambda s: replace(s, height=96), "size"),
        (lambda s: replace(s, num_frames=5), "frames"),
        (lambda s: replace(s, characters=s.characters[:1], speeches=s.speeches[:1]), "characters"),
    ],
)
def test_other_scenes_raise(fake, prepared, state, change, property):
    with pytest.raises(InputError) as raised:
        load_routing(state, prepare(change(prepared.scene), fake))
    assert f"was saved with {property} " in raised.value.problem


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda s: replace(s, prompt="They sing"), "prompts"),
        (lambda s: replace(s, prompts=(PromptSpan(0, 0.1, "They sing"),)), "prompts"),
        (lambda s: replace(s, speeches=(s.speeches[0], None)), "speech"),
        (lambda s: replace(s, first_frame=None), "images"),
        (change_sampling(audio_guidance_scale=5.0), "guidance"),
        (lambda s: replace(s, audio_character_matrix=torch.eye(2).flip(0)), "audio-character matrix"),
    ],
)
def test_changed_inputs_are_used_with_a_notice(fake, prepared, state, change, name):
    scene = change(prepared.scene)
    loaded = load_routing(state, prepare(scene, fake))
    assert len(loaded.notices) == 1 and f"other {name}:" in loaded.notices[0]
    assert torch.equal(loaded.matrix, scene.matrix)
    assert load_routing(state, prepared).notices == ()


def _edit(path: Path, **tensors: torch.Tensor | None) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    edited = {name: value for name, value in (load_file(path) | tensors).items() if value is not None}
    save_file(edited, path, about)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_text("no tensors"),
        lambda path: path.write_bytes(b""),
        lambda path: save_file({"weight": torch.zeros(3)}, path),
        lambda path: _edit(path, masks=None),
        lambda path: _edit(path, masks=torch.full((2, 3, 4, 6), 2.0)),
        lambda path: _edit(path, latents=torch.zeros(1, 3, 3, 8, 10)),
        lambda path: _edit(path, latents=torch.full((1, 3, 3, 8, 12), torch.nan)),
        lambda path: _edit(path, generator=torch.zeros(10, dtype=torch.uint8)),
        lambda path: _edit(path, strength=torch.zeros(3)),
    ],
)
def test_damaged_files_raise(prepared, state, damage):
    damage(state)
    with pytest.raises(InputError, match="damaged or not a routing state"):
        load_routing(state, prepared)


def test_invalid_paths_raise(prepared, routing, tmp_path):
    with pytest.raises(InputError):
        save_routing(routing, tmp_path / "state.pt", prepared)
    with pytest.raises(InputError):
        load_routing(tmp_path / "none.safetensors", prepared)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_previous_file(prepared, routing, state, monkeypatch):
    before = state.read_bytes()

    def full(self: Path, data: bytes) -> int:
        self.open("wb").close()
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="space"):
        save_routing(routing, state, prepared)
    monkeypatch.undo()
    assert state.read_bytes() == before and list(state.parent.iterdir()) == [state]


def test_step_cache_round_trip(fake, path, monkeypatch):
    skipping = Acceleration(RouterSchedule(freeze=True), mask_change=1e9, cache_threshold=1e9, max_skipped=STEPS)
    monkeypatch.setitem(PRESETS, "fast", skipping)
    scene = replace(scene_of(fake), routing=RouterConfig(probe=ProbeConfig(steps=3)))
    scene = change_sampling(preset="fast")(scene)
    prepared = prepare(scene, fake)
    routing = probe(prepared, fake, ProgressTracker())
    cache = routing.state.step_cache
    assert cache.converged and cache.full_steps[0].step == 1  # the third step was skipped
    save_routing(routing, path, prepared)
    loaded = load_routing(path, prepared)
    assert torch.equal(loaded.state.step_cache.masks, cache.masks)
    assert same(sample(prepared, loaded, fake), generate(scene, fake))
    _edit(path, **{"step_cache_latents_0": torch.zeros(1, 2, 3, 4, 5)})
    with pytest.raises(InputError):
        load_routing(path, prepared)
