"""Long videos: resuming, regenerating, carry-over, and inputs at their absolute time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bya_core.pipelines.long_video as long_video
from bya_core.config import RouterConfig, WindowConfig
from bya_core.errors import Cancelled, InputError
from bya_core.masks import MaskControl
from bya_core.pipelines.generate import generate
from bya_core.pipelines.long_video import LongVideo, generate_long, plan
from bya_core.progress import Progress
from bya_core.scene.types import PromptSpan, Scene, Speech
from bya_core.weights.bundle import ModelBundle
from tests.fakes import RATE, tone

LongScene = Callable[..., Scene]


def frames_of(video: LongVideo) -> Tensor:
    return torch.stack(list(video.frames))


@pytest.fixture(scope="module")
def whole(bundle: ModelBundle, long_scene: LongScene, tmp_path_factory: pytest.TempPathFactory) -> LongVideo:
    """One uninterrupted run."""
    return generate_long(long_scene(), bundle, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copy(whole: LongVideo, tmp_path: Path) -> Path:
    """A copy of the windows of that run."""
    return Path(shutil.copytree(whole.files.folder, tmp_path / "copy"))


def test_shapes(whole: LongVideo, bundle: ModelBundle, long_scene: LongScene) -> None:
    assert len(whole.windows) == len(plan(long_scene(), bundle)) == 4
    assert frames_of(whole).shape == (45, 64, 96, 3) and len(whole.frames) == 45
    assert whole.masks.shape == (2, *whole.grid.shape) and whole.grid.frames == 12
    assert whole.audio is not None and whole.audio[0].shape[1] == round(45 / 25 * RATE)
    assert len({row["seed"] for row in whole.windows}) == 4, "windows have different noise"


def test_single_window_equals_generate(bundle: ModelBundle, long_scene: LongScene, tmp_path: Path) -> None:
    scene = long_scene(num_frames=17)
    video = generate(scene, bundle)
    made = generate_long(scene, bundle, tmp_path)
    assert torch.equal(frames_of(made), video.frames) and torch.equal(made.masks, video.masks)


def test_generate_uses_windows_for_a_long_scene(
    whole: LongVideo, bundle: ModelBundle, long_scene: LongScene, tmp_path: Path
) -> None:
    video = generate(long_scene(), bundle)
    assert torch.equal(video.frames, frames_of(whole)) and torch.equal(video.masks, whole.masks)
    video.save(tmp_path / "long.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["long.mp4"]


@pytest.mark.parametrize("where", [("Window 1/4", "Decoding"), ("Window 3/4", "Denoising")])
def test_cancelled_run_resumes_to_the_same_video(
    whole: LongVideo, bundle: ModelBundle, long_scene: LongScene, tmp_path: Path, where: tuple[str, str]
) -> None:
    def stop(progress: Progress) -> bool:
        return not (progress.stage.startswith(where[0]) and progress.stage.endswith(where[1]))

    with pytest.raises(Cancelled):
        generate_long(long_scene(), bundle, tmp_path, stop)
    finished = len(list(tmp_path.glob("window_*")))
    assert finished == int(where[0][7]) - 1
    assert not list(tmp_path.glob(".*")), "no partial file"
    resumed = generate_long(long_scene(), bundle, tmp_path)
    assert [row["generated"] for row in resumed.windows] == [index >= finished for index in range(4)]
    assert torch.equal(frames_of(resumed), frames_of(whole))
    assert torch.equal(resumed.masks, whole.masks)


def test_regenerated_window_fits_its_neighbors(bundle: ModelBundle, long_scene: LongScene, tmp_path: Path) -> None:
    scene = long_scene(windows=WindowConfig(17, 5, match_colors=False))
    before = generate_long(scene, bundle, tmp_path)
    frames, files = frames_of(before), {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    old = before.files.read(1)
    again = generate_long(scene, bundle, tmp_path, regenerate=2)
    changed = {path.name for path in tmp_path.iterdir() if path.read_bytes() != files[path.name]}
    assert changed == {"window_0002.safetensors"}
    assert [row["generated"] for row in again.windows] == [False, True, False, False]
    assert again.windows[1]["take"] == 1 and again.windows[1]["seed"] != before.windows[1]["seed"]
    window, new, made = plan(scene, bundle)[1], frames_of(again), again.files.read(1)
    assert torch.equal(new[: window.start], frames[: window.start])
    assert torch.equal(new[window.stop :], frames[window.stop :])
    middle = slice(window.start + window.lead, window.stop - window.tail)
    assert not torch.equal(new[middle], frames[middle])
    lead, tail = window.latent_lead, window.latent_tail
    assert torch.equal(made.latents[:, -tail:], old.latents[:, -tail:]), "the next window continues from these"
    first = again.files.read(0)
    assert torch.equal(made.latents[:, 1:lead], first.latents[:, 1 - lead :]), "continues the previous window"


def test_regenerate_seed(copy: Path, bundle: ModelBundle, long_scene: LongScene) -> None:
    first, second = (generate_long(long_scene(), bundle, copy, regenerate=4, regenerate_seed=77) for _ in range(2))
    assert first.windows[3]["seed"] == 77 and second.windows[3]["take"] == 2
    assert torch.equal(frames_of(first), frames_of(second))
    with pytest.raises(InputError, match="1 to 4"):
        generate_long(long_scene(), bundle, copy, regenerate=5)


@pytest.mark.parametrize("change", ["prompt", "gain", "weights"])
def test_folder_of_another_scene_raises(copy: Path, bundle: ModelBundle, long_scene: LongScene, change: str) -> None:
    louder = [replace(speech, gain=3.0) for speech in long_scene().speeches]
    other = long_scene(**{"prompt": {"prompt": "else"}, "gain": {"speeches": louder}}.get(change, {}))
    if change == "weights":  # trained further under the same name
        bundle = replace(bundle, weights="other")
    with pytest.raises(InputError, match="another scene"):
        generate_long(other, bundle, copy)


def test_remove_keeps_other_files(copy: Path, bundle: ModelBundle, long_scene: LongScene) -> None:
    (copy / "mine.txt").touch()
    video = generate_long(long_scene(), bundle, copy)
    video.files.remove(len(video.windows))
    assert [path.name for path in copy.iterdir()] == ["mine.txt"]
    (copy / "mine.txt").unlink()
    video.files.remove(len(video.windows))
    assert not copy.exists()


def test_full_disk_raises_before_the_run(
    bundle: ModelBundle, long_scene: LongScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="1.0 kB free .* expected 1.1 MB"):
        generate_long(long_scene(), bundle, tmp_path)


@pytest.fixture
def received(bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Speech features [M, F + 4] of each window, in order."""
    features_of_windows: list[Tensor] = []
    original = long_video.prepare

    def spy(scene: Scene, model: ModelBundle, tracker: Any, features: Tensor) -> Any:
        features_of_windows.append(features[:, :, 0, 0])
        return original(scene, model, tracker, features)

    monkeypatch.setattr(long_video, "prepare", spy)
    return features_of_windows


def test_speech_is_at_its_absolute_time(
    bundle: ModelBundle, long_scene: LongScene, tmp_path: Path, received: list[Tensor]
) -> None:
    """A word from 1.00 to 1.20 s is in frames 25 to 29 of each window that contains them or has them as context."""
    word = Speech(torch.from_numpy(tone(0.2)).float()[None], RATE, offset=1.0)
    scene = long_scene(speeches=[None, word])
    generate_long(scene, bundle, tmp_path)
    assert len(received) == 4
    found = 0
    for window, features in zip(plan(scene, bundle), received, strict=True):
        assert features.shape == (2, window.frames + 4)
        frames = torch.arange(window.start - 2, window.stop + 2)
        assert torch.equal(features[1] > 0.01, (frames >= 25) & (frames < 30))
        assert not features[0].any()
        found += int((features[1] > 0.01).any())
    assert found >= 2, "the word is where two windows overlap"


def test_each_window_has_the_prompt_that_covers_most_of_it(
    bundle: ModelBundle, long_scene: LongScene, tmp_path: Path
) -> None:
    encoded: list[str] = []

    class Recorder:
        def encode(self, prompts: list[str]) -> Tensor:
            encoded.extend(prompts)
            return bundle.text.encode(prompts)

    scene = long_scene(prompts=(PromptSpan(0.9, 1.8, "now they laugh"),), negative_prompt="blur")
    generate_long(scene, replace(bundle, text=Recorder()), tmp_path)
    assert encoded == ["Ada talks to Bo", "blur", "now they laugh"], "each once, in order"


def test_masks_of_the_previous_window_override_the_first_steps(
    bundle: ModelBundle, long_scene: LongScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = long_scene(sampling=replace(long_scene().sampling, steps=6), num_frames=29)
    conditions = []
    original = long_video.denoise_latents

    def spy(prepared: Any, routing: Any, *rest: Any) -> Any:
        conditions.append(routing.apply_to(prepared.conditions))
        return original(prepared, routing, *rest)

    monkeypatch.setattr(long_video, "denoise_latents", spy)
    video = generate_long(scene, bundle, tmp_path)
    assert conditions[0].mask_control is None and conditions[0].known_mask is None
    window, second = plan(scene, bundle)[1], conditions[1]
    lead = window.latent_lead
    early, late = second.mask_override(0, 6), second.mask_override(5, 6)
    expected = video.files.read(0).masks[:, -lead:]
    assert torch.equal(early["mask_override"][0, :, :lead], expected)
    weight = early["mask_override_strength"].expand(1, 2, window.latent.stop - window.latent.start, 1, 1)
    assert bool((weight[:, :, :lead] == 1).all()) and not weight[:, :, lead:].any()
    assert late["mask_override"] is None


def test_mask_control_is_split_into_windows(bundle: ModelBundle, long_scene: LongScene, tmp_path: Path) -> None:
    masks = torch.rand(2, 12, 4, 6, generator=torch.Generator().manual_seed(3))
    scene = long_scene(mask_control=MaskControl(masks), routing=RouterConfig(mode="manual"))
    assert torch.allclose(generate_long(scene, bundle, tmp_path).masks, masks, atol=1e-6)


def test_colors_match_the_first_window(whole: LongVideo) -> None:
    means = [whole.files.read(index).latents.mean(dim=(0, 1, 3, 4)) for index in range(4)]
    for mean in means[1:]:
        assert torch.allclose(mean, means[0], atol=1e-4)


def test_masks_of_a_single_character(bundle: ModelBundle, long_scene: LongScene, tmp_path: Path) -> None:
    """Its strength is one number for all characters, which has no memory of its own."""
    scene = long_scene(num_frames=17)
    masks = MaskControl(torch.ones(1, *bundle.grid(17, 64, 96).shape))
    people = {"characters": scene.characters[:1], "speeches": scene.speeches[:1], "mask_control": masks}
    video = generate_long(replace(scene, routing=RouterConfig(mode="manual"), **people), bundle, tmp_path)
    assert len(video.frames) == 17
