"""The post router: a first pass without speech, masks from it, and a second pass with these masks."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bya_core.config import RouterConfig
from bya_core.encoders.segmentation import SAM2_WEIGHTS, Sam2Segmenter, Segmenter, load_sam2
from bya_core.errors import InputError
from bya_core.masks import MaskControl
from bya_core.pipelines.generate import generate, prepare, sample
from bya_core.progress import ProgressTracker
from bya_core.routing import post
from bya_core.routing.route import route
from bya_core.sampling import build_scheduler, denoise
from bya_core.weights.loader import load_bundle
from tests.fakes import fake_bundle
from tests.torchvision_shim import importable
from tests.unit.routing.calls import record_calls
from tests.unit.routing.puppet_scene import VALIDATION, needs_toy, puppet_scene, two_puppets

STEPS = 5
LATENTS = torch.randn(1, 3, 3, 8, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def fake():
    return fake_bundle()


def with_post_router(prepared, **routing):
    return replace(prepared, scene=replace(prepared.scene, routing=RouterConfig(mode="post", **routing)))


@pytest.fixture(scope="module")
def prepared(fake):
    scene = puppet_scene(fake, two_puppets(), STEPS, guidance_scale=2.0, audio_guidance_scale=3.0)
    return with_post_router(prepare(scene, fake))


def test_two_passes(fake, prepared):
    silence, speech = prepared.conditions.silent_audio_tokens, prepared.conditions.audio_tokens
    with record_calls(fake.transformer) as calls:
        routing = route(prepared, fake)
        assert len(calls) == routing.calls == STEPS + 1  # the last call predicts the masks
        for call in calls.kwargs:
            assert torch.equal(call["audio_tokens"], silence.expand_as(call["audio_tokens"]))
            assert call.get("mask_override") is None
        assert {len(latents) for latents in calls.latents[:-1]} == {2}  # no branch is computed twice
        noise = calls.latents[0][:1, :, :3]
        calls.clear()

        video = sample(prepared, routing, fake)
        assert len(calls) == STEPS
        assert torch.equal(calls.latents[0][:1, :, :3], noise)
        for call in calls.kwargs:
            assert torch.equal(call["audio_tokens"][-1:], speech) and call["mask_override_strength"] is None
            assert torch.equal(call["mask_override"][:1], routing.masks[None])
    assert routing.origin == "post" and routing.state is None and (routing.control.strength == 1).all()
    assert torch.equal(video.masks, routing.masks)


def test_first_pass_needs_no_speech_branch(fake, prepared):
    conditions, sampling = post.without_speech(prepared.conditions), prepared.scene.sampling
    latents = [
        denoise(
            fake.transformer, build_scheduler("dpm"), conditions, replace(sampling, audio_guidance_scale=scale)
        ).latents
        for scale in (sampling.audio_guidance_scale, sampling.guidance_scale)
    ]
    assert torch.allclose(*latents, atol=1e-3)


def test_router_masks_reset_step_caches(prepared):
    hooks = pytest.importorskip("diffusers.hooks")
    if not hasattr(hooks, "FirstBlockCacheConfig"):
        pytest.skip("diffusers < 0.35 has no First-Block Cache")
    bundle = fake_bundle()
    plain = post.router_masks(LATENTS, prepared.conditions, prepared.scene.sampling, bundle)
    bundle.transformer.enable_cache(hooks.FirstBlockCacheConfig(threshold=1e9))
    first = post.route_post(prepared, bundle, ProgressTracker())
    assert torch.equal(post.route_post(prepared, bundle, ProgressTracker()).masks, first.masks)
    assert torch.allclose(post.router_masks(LATENTS, prepared.conditions, prepared.scene.sampling, bundle), plain)


def test_mask_control_acts_in_the_first_pass(fake, prepared):
    given = torch.rand(2, *prepared.grid.shape)
    scene = replace(prepared.scene, mask_control=MaskControl(given, torch.tensor([1.0, 0.0])))
    with record_calls(fake.transformer) as calls:
        found = route(replace(prepared, scene=scene), fake)
    assert all(torch.equal(call["mask_override"][0, 0], given[0]) for call in calls.kwargs[:-1])
    assert calls.kwargs[-1].get("mask_override") is None  # the prediction of masks
    assert torch.equal(found.masks[0], given[0]) and not torch.equal(found.masks[1], given[1])


@needs_toy
def test_router_masks_cover_the_characters():
    """Masks predicted for an encoded synthetic clip and for a first pass."""
    bundle = load_bundle("toy")
    clip = two_puppets(VALIDATION + 5, 9)
    prepared = with_post_router(prepare(puppet_scene(bundle, clip, STEPS), bundle))
    truth = prepared.grid.pixels_to_tokens(torch.from_numpy(clip.masks))
    video = (torch.from_numpy(clip.frames).float() / 127.5 - 1).permute(3, 0, 1, 2)[None]
    encoded = post.router_masks(bundle.codec.encode(video), prepared.conditions, prepared.scene.sampling, bundle)
    found = post.route_post(prepared, bundle, ProgressTracker())
    for masks in (encoded, found.masks):
        assert (overlap(masks, truth) > 0.6).all()
        assert (overlap(masks, truth.flip(0)) < 0.2).all()
    assert (found.confidence > 0.6).all()


def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union, [N]."""
    a, b = a > 0.5, b > 0.5
    return (a & b).sum((-3, -2, -1)) / (a | b).sum((-3, -2, -1))


# --- SAM 2


class BoxSegmenter:
    """Returns the boxes as masks of every frame."""

    def segment(self, frames: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        self.frames, self.boxes = frames, boxes
        masks = torch.zeros(len(boxes), *frames.shape[:3])
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[:, y0:y1, x0:x1] = 1
        return masks


def test_segmenter_receives_video_and_character_boxes(fake, prepared, monkeypatch):
    segmenter, images = BoxSegmenter(), []
    boxes = torch.tensor([[0.0, 0, 48, 64], [48, 32, 96, 64]])

    def character_boxes(frame, scene, bundle):
        images.append(frame)
        return boxes

    monkeypatch.setattr(post, "load_sam2", lambda *_: segmenter)
    monkeypatch.setitem(sys.modules, "bya_core.routing.pre", SimpleNamespace(character_boxes=character_boxes))
    with record_calls(fake.transformer) as calls:
        found = route(with_post_router(prepared, segmenter="sam2"), fake)
    assert len(calls) == found.calls == STEPS
    assert segmenter.frames.shape == (9, 64, 96, 3) and segmenter.frames.dtype == torch.uint8
    assert images[0].shape == (3, 64, 96)
    assert torch.allclose(images[0].permute(1, 2, 0) * 255, segmenter.frames[0].float(), atol=0.51)
    assert torch.equal(segmenter.boxes, boxes)
    expected = torch.zeros(2, 3, 4, 6)
    expected[0, :, :, :3], expected[1, :, 2:, 3:] = 1, 1
    assert torch.equal(found.masks, expected) and (found.control.strength == 1).all()


SIDE = 128


@pytest.fixture(scope="module")
def sam2() -> Sam2Segmenter:
    """SAM 2 of transformers with a small configuration and random weights."""
    pytest.importorskip("transformers", minversion="4.56")
    if not importable():
        pytest.skip("torchvision cannot be imported")
    import transformers
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VideoProcessor, Sam2VisionConfig

    # renamed in transformers 5
    image_processor = getattr(transformers, "Sam2ImageProcessor", None) or transformers.Sam2ImageProcessorFast
    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=16, image_size=[SIDE, SIDE], blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4, 4, 4, 4], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]], fpn_hidden_size=128,
    )  # fmt: skip
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 128, "image_size": SIDE, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
        image_size=SIDE, memory_attention_hidden_size=128, memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32, memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=128, mask_downsampler_embed_dim=128, memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32, memory_fuser_num_layers=1,
    )  # fmt: skip
    size = {"height": SIDE, "width": SIDE}
    image = image_processor(size=size, mask_size={"height": SIDE // 4, "width": SIDE // 4})
    processor = Sam2VideoProcessor(image, transformers.Sam2VideoVideoProcessor(size=size))
    return Sam2Segmenter(Sam2VideoModel(config), processor)


FRAMES = torch.randint(0, 256, (3, 64, 96, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
BOXES = torch.tensor([[10.0, 10, 40, 50], [50, 16, 90, 64]])


def test_sam2_prompts_and_masks(sam2, monkeypatch):
    sessions = []
    start = sam2.processor.init_video_session
    monkeypatch.setattr(sam2.processor, "init_video_session", lambda **k: sessions.append(start(**k)) or sessions[-1])
    assert isinstance(sam2, Segmenter)
    masks = sam2.segment(FRAMES, BOXES)
    assert masks.shape == (2, 3, 64, 96) and set(masks.unique().tolist()) <= {0.0, 1.0}
    assert masks.sum(0).max() <= 1
    point = sessions[0].point_inputs_per_obj[1][0]
    corners = torch.tensor([[50 * SIDE / 96, 16 * SIDE / 64], [90 * SIDE / 96, 64 * SIDE / 64]])
    assert torch.allclose(point["point_coords"].float().reshape(2, 2), corners, atol=0.01)
    assert point["point_labels"].flatten().tolist() == [2, 3]  # corners of a box
    assert torch.equal(sam2.segment(FRAMES, BOXES.flip(0)), masks.flip(0))
    with pytest.raises(InputError, match="boxes of shape"):
        sam2.segment(FRAMES, BOXES[0])


def test_sam2_from_a_folder_and_from_the_download_cache(sam2, tmp_path, monkeypatch):
    repository = tmp_path / "models--some--sam2"
    snapshot = repository / "snapshots" / "abc"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    sam2.model.save_pretrained(snapshot)
    sam2.processor.save_pretrained(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    expected = sam2.segment(FRAMES, BOXES)
    loaded = load_sam2(str(snapshot))
    assert torch.equal(loaded.segment(FRAMES, BOXES), expected) and load_sam2(str(snapshot)) is loaded
    assert torch.equal(load_sam2("some/sam2").segment(FRAMES, BOXES), expected)
    half = load_sam2(str(snapshot), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and half.segment(FRAMES, BOXES).shape == (2, 3, 64, 96)


@pytest.mark.parametrize(
    ("weights", "text"),
    [(SAM2_WEIGHTS, "bya download official --components segmenter"), ("/no/such/folder", "no usable weights")],
)
def test_missing_weights_raise(weights, text, monkeypatch, tmp_path):
    if not importable():
        pytest.skip("torchvision cannot be imported")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("tried to download"))
    with pytest.raises(InputError, match=text):
        load_sam2(weights)


def test_missing_torchvision_raises(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match="torchvision"):
        load_sam2(str(tmp_path))


def test_missing_weights_raise_before_the_first_pass(fake, prepared, monkeypatch):
    with record_calls(fake.transformer) as calls, pytest.raises(InputError, match="SAM 2"):
        generate(with_post_router(prepared, segmenter="sam2", segmenter_weights="/no/such/folder").scene, fake)
    assert len(calls) == 0
