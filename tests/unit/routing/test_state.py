"""A routing on disk: gone on with in another process, refused where it does not belong."""

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
bundle, made = fake_bundle(), {}
for scheduler in ("dpm", "ddim"):
    prepared = prepare(scene_of(bundle, scheduler), bundle)
    video = sample(prepared, load_routing(f"{sys.argv[1]}/{scheduler}.safetensors", prepared), bundle)
    made[scheduler] = (video.frames, video.masks)
torch.save(made, f"{sys.argv[1]}/made.pt")
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
def state(routing, prepared, tmp_path):
    path = tmp_path / "state.safetensors"
    save_routing(routing, path, prepared)
    return path


def same(a: Video, b: Video) -> bool:
    return torch.equal(a.frames, b.frames) and torch.equal(a.masks, b.masks)


def test_another_process_goes_on_bit_equally(fake, tmp_path):
    whole = {}
    for scheduler in ("dpm", "ddim"):
        prepared = prepare(scene_of(fake, scheduler), fake)
        save_routing(probe(prepared, fake, ProgressTracker()), tmp_path / f"{scheduler}.safetensors", prepared)
        whole[scheduler] = generate(prepared.scene, fake)
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for scheduler, (frames, masks) in torch.load(tmp_path / "made.pt", weights_only=True).items():
        video = whole[scheduler]
        assert torch.equal(frames, video.frames) and torch.equal(masks, video.masks), scheduler


def test_everything_comes_back(fake, prepared, routing, tmp_path):
    edited = routing.override(
        MaskControl(torch.rand_like(routing.masks), torch.tensor([0.25, 0.0]), end_percent=torch.tensor(0.7))
    )
    edited = replace(edited, origin="post", calls=11, notices=("One thing.", "Größe: ü"))
    path = tmp_path / "state.safetensors"
    save_routing(edited, path, prepared)
    loaded = load_routing(path, prepared)
    for name in ("masks", "confidence", "matrix"):
        assert torch.equal(getattr(loaded, name), getattr(edited, name)), name
    for name in ("strength", "start_percent", "end_percent"):
        assert torch.equal(getattr(loaded.control, name), getattr(edited.control, name)), name
    assert (loaded.origin, loaded.calls, loaded.notices) == (edited.origin, edited.calls, edited.notices)
    assert edited.state is not None and loaded.state is not None
    assert (loaded.state.step, loaded.state.total) == (2, STEPS)
    assert same(sample(prepared, loaded, fake), sample(prepared, edited, fake))


def test_masks_without_a_half_done_run(prepared, routing, tmp_path):
    path = tmp_path / "state.safetensors"
    save_routing(Routing.of("pre", routing.masks, routing.matrix, strength=1.0), path, prepared)
    loaded = load_routing(path, prepared)
    assert loaded.state is None and (loaded.control.strength == 1).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: replace(s, sampling=replace(s.sampling, steps=6)), "steps 5; expected 6"),
        (lambda s: replace(s, sampling=replace(s.sampling, seed=7)), "seed 2000000; expected 7"),
        (lambda s: replace(s, sampling=replace(s.sampling, scheduler="ddim")), "scheduler dpm; expected ddim"),
        (lambda s: replace(s, height=96), "size 96x64; expected 96x96"),
        (lambda s: replace(s, num_frames=5), "frames 9; expected 5"),
        (lambda s: replace(s, characters=s.characters[::-1]), "expected puppet 2, puppet 1"),
        (lambda s: replace(s, characters=s.characters[:1], speeches=s.speeches[:1]), "expected puppet 1, as"),
    ],
)
def test_a_file_of_another_scene_is_refused(fake, prepared, state, change, words):
    with pytest.raises(InputError, match=words) as raised:
        load_routing(state, prepare(change(prepared.scene), fake))
    assert str(raised.value).count(". ") == 0, "one sentence"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: replace(s, prompt="They sing"), "prompts"),
        (lambda s: replace(s, prompts=(PromptSpan(0, 0.1, "They sing"),)), "prompts"),
        (lambda s: replace(s, speeches=(s.speeches[0], None)), "voices"),
        (lambda s: replace(s, first_frame=None), "pictures"),
        (lambda s: replace(s, sampling=replace(s.sampling, audio_guidance_scale=5.0)), "guidance"),
    ],
)
def test_what_may_change_is_told(fake, prepared, state, change, what):
    """Going on with another prompt is a way to work, and nothing that should happen unseen."""
    loaded = load_routing(state, prepare(change(prepared.scene), fake))
    assert len(loaded.notices) == 1 and f"other {what}:" in loaded.notices[0]
    assert load_routing(state, prepared).notices == ()


def test_the_matrix_of_the_scene_acts(fake, prepared, state):
    swapped = replace(prepared.scene, audio_character_matrix=torch.eye(2).flip(0))
    loaded = load_routing(state, prepare(swapped, fake))
    assert torch.equal(loaded.matrix, torch.eye(2).flip(0)) and "other audio-character matrix:" in loaded.notices[0]


def test_a_matrix_changed_in_the_routing_stays(prepared, routing, tmp_path):
    path = tmp_path / "state.safetensors"
    save_routing(replace(routing, matrix=torch.eye(2).flip(0)), path, prepared)
    loaded = load_routing(path, prepared)
    assert torch.equal(loaded.matrix, torch.eye(2).flip(0)) and loaded.notices == ()


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _text(path: Path) -> None:
    path.write_text("no tensors")


def _foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def _edit(path: Path, **tensors: torch.Tensor | None) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    kept = {name: value for name, value in (load_file(path) | tensors).items() if value is not None}
    save_file(kept, path, about)


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        _text,
        _foreign,
        lambda path: path.write_bytes(b""),
        lambda path: _edit(path, masks=None),
        lambda path: _edit(path, masks=torch.full((2, 3, 4, 6), 2.0)),
        lambda path: _edit(path, latents=torch.zeros(1, 3, 3, 8, 10)),
        lambda path: _edit(path, latents=torch.full((1, 3, 3, 8, 12), torch.nan)),
        lambda path: _edit(path, generator=torch.zeros(10, dtype=torch.uint8)),
        lambda path: _edit(path, strength=torch.zeros(3)),
    ],
)
def test_broken_and_foreign_files_are_refused(prepared, state, damage):
    damage(state)
    with pytest.raises(InputError, match="damaged or not a routing state"):
        load_routing(state, prepared)


def test_paths_that_cannot_be(prepared, routing, tmp_path):
    with pytest.raises(InputError, match="safetensors"):
        save_routing(routing, tmp_path / "state.pt", prepared)
    with pytest.raises(InputError, match="the state"):
        load_routing(tmp_path / "none.safetensors", prepared)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_older_file(prepared, routing, state, monkeypatch):
    before = state.read_bytes()

    def full(self: Path, data: bytes) -> int:
        self.open("wb").close()
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="space"):
        save_routing(routing, state, prepared)
    monkeypatch.undo()
    assert state.read_bytes() == before and list(state.parent.iterdir()) == [state]


def test_a_preset_of_speed_goes_on_as_if_never_stopped(fake, tmp_path, monkeypatch):
    everything = Acceleration(RouterSchedule(freeze=True), mask_change=1e9, cache_threshold=1e9, max_skipped=STEPS)
    monkeypatch.setitem(PRESETS, "fast", everything)
    scene = scene_of(fake)
    sampling = replace(scene.sampling, preset="fast")
    scene = replace(scene, sampling=sampling, routing=RouterConfig(probe=ProbeConfig(steps=3)))
    prepared, path = prepare(scene, fake), tmp_path / "fast.safetensors"
    routing = probe(prepared, fake, ProgressTracker())
    assert routing.state.step_cache.converged and routing.state.step_cache.full_steps[0].step == 1, (
        "the third step was skipped"
    )
    save_routing(routing, path, prepared)
    back = load_routing(path, prepared)
    assert torch.equal(back.state.step_cache.masks, routing.state.step_cache.masks)
    assert same(sample(prepared, back, fake), generate(scene, fake))
    _edit(path, **{"step_cache_latents_0": torch.zeros(1, 2, 3, 4, 5)})
    with pytest.raises(InputError):
        load_routing(path, prepared)
