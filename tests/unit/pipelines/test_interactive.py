"""What the nodes are made of, without ComfyUI: casts, mask pictures, previews, preflight, the binding report."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bya_core.config import SamplingConfig
from bya_core.errors import InputError
from bya_core.evaluation.report import binding_report
from bya_core.grid import TokenGrid
from bya_core.io.media import fit_image
from bya_core.pipelines.estimate import ModelFolder, estimate
from bya_core.pipelines.interactive import (
    character_index,
    images_to_masks,
    masks_to_images,
    overlay_images,
    still_frame,
)
from bya_core.pipelines.preflight import preflight
from bya_core.pipelines.preview import latent_colors, preview_picture
from bya_core.scene.compose import (
    CastMember,
    SceneOptions,
    combine_casts,
    compose,
    override_sampling,
    parse_matrix,
    parse_prompts,
)
from bya_core.scene.types import SceneDefaults, Speech, rotate_speeches
from bya_core.toy import meter
from bya_core.toy.demo import demo_names, load_demo
from bya_core.toy.meter import PuppetMeter
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from training.puppets import MOUTH_RGB, make_clip

GRID = TokenGrid(3, 4, 6, patch=2, space_factor=4)
DEFAULTS = SceneDefaults(height=64, width=96, max_frames=49, size_unit=8, time_factor=4)
RATE = 16_000


def voice(seconds: float = 1.0, seed: int = 0, **more: float) -> Speech:
    noise = torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))
    return Speech(noise * 0.1, RATE, **more)


def member(name: str, speech: Speech | None = None, strength: float = 1.0) -> CastMember:
    image = torch.ones(3, 40, 40)
    image[:, 10:30, 12:28] = torch.rand(3, 1, 1)
    return CastMember(name, image, speech, strength)


def test_a_scene_from_a_cast() -> None:
    cast = combine_casts((member("Ada", voice(1.0)),), (member("Bo", None, 0.5),))
    scene = compose(cast, SceneOptions("a talk", width=48, timed_prompts="0 - 1: Ada laughs"), DEFAULTS)
    assert (scene.width, scene.height, scene.num_frames) == (48, 64, 25)  # one second
    assert scene.speeches[1] is None and scene.speech_strength is not None
    assert scene.speech_strength.tolist() == [1.0, 0.5]
    assert [span.prompt for span in scene.prompts] == ["Ada laughs"]
    assert compose(cast, SceneOptions("a talk", frames=9), DEFAULTS).notices  # speech is cut
    twins = (member("Ada", voice(seed=1)), member("Bo", voice(seed=1)))
    assert any("same recording" in notice for notice in compose(twins, SceneOptions(""), DEFAULTS).notices)


def test_casts_that_cannot_be() -> None:
    with pytest.raises(InputError, match='two characters named "Ada"'):
        combine_casts((member("Ada"),), (member("Ada"),))
    with pytest.raises(InputError, match="no speech"):
        compose((member("Ada"),), SceneOptions(""), DEFAULTS)
    with pytest.raises(InputError, match="at least 1"):
        compose((), SceneOptions("", frames=9), DEFAULTS)


def test_settings_that_are_left_to_the_model() -> None:
    base = SamplingConfig(steps=16, guidance_scale=1.0, audio_guidance_scale=2.0, scheduler="ddim")
    nothing = {"steps": 0, "guidance_scale": 0.0, "audio_guidance_scale": 0.0, "scheduler": "as the model", "seed": 3}
    assert override_sampling(base, **nothing) == replace(base, seed=3)  # type: ignore[arg-type]
    text = override_sampling(base, **{**nothing, "guidance_scale": 6.0})  # type: ignore[arg-type]
    assert (text.guidance_scale, text.audio_guidance_scale) == (6.0, 6.0)
    both = override_sampling(base, **{**nothing, "audio_guidance_scale": 4.0, "scheduler": "dpm"})  # type: ignore[arg-type]
    assert (both.guidance_scale, both.audio_guidance_scale, both.scheduler) == (1.0, 4.0, "dpm")


def test_a_written_matrix() -> None:
    assert parse_matrix("  ", 2, 2) is None
    given = parse_matrix("1, 0.5; 0 1", 2, 2)
    assert given is not None and given.tolist() == [[1, 0.5], [0, 1]]
    assert rotate_speeches(torch.eye(3)).argmax(1).tolist() == [1, 2, 0]
    for wrong in ("1 0", "1 0; 0 1; 1 1", "1 0; 1"):
        with pytest.raises(InputError, match="2 rows of 2 numbers"):
            parse_matrix(wrong, 2, 2)
    for wrong in ("1 x; 0 1", "1 0; 0 2", "1 0; 0 nan"):
        with pytest.raises(InputError, match=r"0\.\.1"):
            parse_matrix(wrong, 2, 2)


def test_written_prompts() -> None:
    spans = parse_prompts("0-1.5: Ada laughs\n\n 1.5 to 3 s : both: silent")
    assert [(span.start, span.end, span.prompt) for span in spans] == [
        (0, 1.5, "Ada laughs"),
        (1.5, 3, "both: silent"),
    ]
    for wrong in ("Ada laughs", "1.2.3 - 4: Ada laughs", "2 - 1: Ada laughs"):
        with pytest.raises(InputError):
            parse_prompts(wrong)


def test_masks_as_pictures_and_back() -> None:
    masks = torch.rand(2, *GRID.shape)
    pictures = masks_to_images(masks, GRID)
    assert pictures.shape == (6, *GRID.pixels)
    assert torch.allclose(images_to_masks(pictures, GRID, 2), masks, atol=1e-6)
    assert torch.equal(images_to_masks(torch.ones(2, 7, 5), GRID, 2), torch.ones(2, *GRID.shape))
    every = torch.zeros(2 * GRID.video_frames, 8, 8)
    every[: GRID.video_frames] = 1
    assert images_to_masks(every, GRID, 2).mean((1, 2, 3)).tolist() == [1, 0]
    for count in (1, 4, 7):
        with pytest.raises(InputError, match=r"2 images \(static\), 6 \(one per latent frame\) or 18"):
            images_to_masks(torch.ones(count, 8, 8), GRID, 2)


def test_characters_by_name_or_number() -> None:
    assert character_index("Bo", ["Ada", "Bo"]) == character_index(" 2 ", ["Ada", "Bo"]) == 1
    assert character_index("1", ["2", "1"]) == 1  # a name goes before a number
    with pytest.raises(InputError, match=r"1 \(Ada\), 2 \(Bo\)"):
        character_index("0", ["Ada", "Bo"])


def test_overlay_has_a_picture_for_every_frame() -> None:
    masks = torch.zeros(2, *GRID.shape)
    masks[0, :, :, :3] = 1
    grey = still_frame(None, GRID)
    shown = overlay_images(masks, GRID, grey, [], opacity=1.0)
    assert shown.shape[0] == GRID.video_frames and shown.shape[1] * 6 == shown.shape[2] * 4
    assert tuple(shown[4, 5, 5].tolist()) == (230, 120, 0) and tuple(shown[4, 5, -5].tolist()) == (128, 128, 128)
    assert overlay_images(masks, GRID, grey, ["Ada", "Bo"]).shape[1] > shown.shape[1]
    with pytest.raises(InputError, match="2 images for masks of 9 frames"):
        overlay_images(masks, GRID, grey.expand(2, -1, -1, -1), [])


def test_previews_have_the_colours_of_the_picture() -> None:
    """What the linear rule learned from the portraits shows the first frame, which it has not seen."""
    bundle, demo = load_bundle("toy"), load_demo(demo_names()[0])
    assert demo.first_frame is not None
    factors = latent_colors(bundle.codec, [picture for picture, _ in demo.characters], (64, 96))
    frame = fit_image(demo.first_frame, 64, 96)
    latents = bundle.codec.encode((frame * 2 - 1)[None, :, None])
    picture = preview_picture(latents, None, factors)
    made = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    small = torch.nn.functional.adaptive_avg_pool2d
    error = (small(made, (8, 12)) - small(frame, (8, 12))).abs().mean()
    flat = (small(frame, (8, 12)) - frame.mean((1, 2), keepdim=True)).abs().mean()
    assert error < 0.5 * flat
    marked = preview_picture(latents, torch.eye(2).reshape(2, 1, 1, 2).expand(2, 1, 8, 2), factors)
    assert marked.size == picture.size and marked.tobytes() != picture.tobytes()


def test_demos_are_complete() -> None:
    for name in demo_names():
        demo = load_demo(name)
        assert demo.first_frame is not None and demo.frames % 4 == 1 and 1 <= len(demo.characters) <= 3
        assert all(sound is not None and sound[0].abs().max() > 0.05 for _, sound in demo.characters)


def test_estimates_grow_as_the_work_does() -> None:
    folder = MODELS["toy"].folder
    assert folder is not None
    model = ModelFolder(folder)
    assert (model.defaults.height, model.defaults.size_unit, model.max_characters) == (64, 8, 4)
    sampling = model.defaults.sampling
    small, large = model.grid(17, 64, 96), model.grid(17, 128, 192)
    once = estimate(model, small, 2, sampling)
    more = estimate(model, large, 2, replace(sampling, steps=5 * sampling.steps))
    assert 0.1 < once.seconds < 1000 and more.seconds > 4 * once.seconds  # 20 times the tokens that are denoised
    assert once.gigabytes < more.gigabytes < 10


def test_preflight() -> None:
    talkers = (member("Ada", voice(seed=1)), member("Bo", voice(seed=1)))
    result = preflight(talkers, ("toy", None), frames=25)
    assert result.ok and "same recording" in result.text and "cost: about" in result.text
    faceless = replace(member("Cy", Speech(torch.zeros(1, RATE), RATE)), image=torch.ones(3, 32, 32))
    result = preflight((faceless,), ("toy", None), frames=25, masks=torch.ones(3, 8, 8))
    levels = {finding.subject: finding.level for finding in result.findings}
    assert levels["Cy"] == levels["masks"] == "error" and levels["speech of Cy"] == "warning"
    with pytest.raises(InputError, match="no face detected"):
        result.raise_errors()
    result = preflight(talkers, ("official", None))
    assert not result.ok and MODELS["official"].how_to_get in result.text
    assert not preflight(talkers, ("no such model", None)).ok


def test_a_model_folder_must_be_complete(tmp_path) -> None:
    (tmp_path / "bundle.json").touch()
    with pytest.raises(InputError, match=r"lacks transformer, vae"):
        load_bundle(tmp_path)


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor, list[Speech]]:
    """A drawn clip: frames, exact masks, and the voices its mouths were drawn to."""
    clip = make_clip(2_000_100, n=2, num_frames=49, motion="still", talk="overlap")
    frames, masks = torch.from_numpy(clip.frames), torch.from_numpy(clip.masks).float()
    return frames, masks, [Speech(torch.from_numpy(wave)[None], RATE) for wave in clip.speeches]


def test_the_report_knows_a_puppets_mouth() -> None:
    assert meter.MOUTH_RGB == MOUTH_RGB


NAMES = ["Ada", "Bo"]


def test_report_on_the_drawn_truth(drawn: tuple[Tensor, Tensor, list[Speech]]) -> None:
    frames, masks, speeches = drawn
    right = binding_report(frames, masks, speeches, 25.0, NAMES, meter=PuppetMeter())
    assert right.figures["verdicts"] == ["own", "own"], right.text
    assert "Ada follows its own voice" in right.text
    crossed = binding_report(frames, masks, speeches[::-1], 25.0, NAMES, meter=PuppetMeter())
    assert crossed.figures["verdicts"] == ["wrong", "wrong"], crossed.text
    bound = binding_report(frames, masks, speeches[::-1], 25.0, NAMES, matrix=torch.eye(2).flip(0), meter=PuppetMeter())
    assert bound.figures["verdicts"] == ["own", "own"]
    assert right.picture.size == crossed.picture.size and right.picture.tobytes() != crossed.picture.tobytes()


def test_report_on_listeners(drawn: tuple[Tensor, Tensor, list[Speech]]) -> None:
    frames, masks, speeches = drawn
    moves = binding_report(frames, masks, [speeches[0], None], 25.0, NAMES, meter=PuppetMeter())
    assert moves.figures["verdicts"][1] == "moves"  # this one was drawn talking
    shut = torch.where(masks[1][..., None] > 0.5, frames[:1], frames)
    still_one = binding_report(shut, masks, [speeches[0], None], 25.0, NAMES, meter=PuppetMeter())
    assert still_one.figures["verdicts"][1] == "still" and "keeps still" in still_one.text


def test_report_on_people_by_movement() -> None:
    """Two grey faces whose lower halves flicker in turn."""
    torch.manual_seed(0)
    loud = torch.zeros(2, 50)
    loud[0, 5:20], loud[1, 28:45] = 1, 1
    waves = loud.repeat_interleave(RATE // 25, dim=1) * torch.randn(2, 2 * RATE) * 0.1
    frames = torch.full((50, 64, 96, 3), 128)
    noise = torch.randint(-60, 60, (50, 16, 24, 1))
    frames[:, 36:52, 12:36] += noise * loud[0].long().view(-1, 1, 1, 1)
    frames[:, 36:52, 60:84] += noise * loud[1].long().view(-1, 1, 1, 1)
    masks = torch.zeros(2, 50, 64, 96)
    masks[0, :, 12:56, 8:40], masks[1, :, 12:56, 56:88] = 1, 1
    made = binding_report(frames.to(torch.uint8), masks, [Speech(w[None], RATE) for w in waves], 25.0, NAMES)
    assert made.figures["verdicts"] == ["own", "own"] and "weak measure" in made.text


def test_report_does_not_say_more_than_it_can(drawn: tuple[Tensor, Tensor, list[Speech]]) -> None:
    frames, masks, speeches = drawn
    short = binding_report(frames[:9], masks[:, :9], speeches, 25.0, NAMES, meter=PuppetMeter())
    assert set(short.figures["verdicts"]) <= {"unclear", "still", "moves"}
    nowhere = binding_report(frames, masks * torch.tensor([0.0, 1]).view(2, 1, 1, 1), speeches, 25.0, NAMES)
    assert nowhere.figures["verdicts"][0] == "unclear" and "no region in the masks" in nowhere.text
    nobody = binding_report(frames, masks, [None, None], 25.0, NAMES)
    assert nobody.figures["verdicts"] == ["unclear", "unclear"]
    with pytest.raises(InputError, match="masks of 1 characters"):
        binding_report(frames, masks[:1], speeches, 25.0, NAMES)
