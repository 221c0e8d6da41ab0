"""The CLIP vision tower against the released one: pooled feature, hidden states and key names."""

from __future__ import annotations

import pytest
import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.testing import assert_close

from bya_core.encoders.face.clip import EvaVision
from bya_core.errors import InputError
from tests import torchvision_shim
from tests.parity.weight_rule import weight

if not torchvision_shim.importable():
    pytest.skip("torchvision cannot be imported, and timm needs it", allow_module_level=True)
pytest.importorskip("timm")


def _published(config: dict) -> dict[str, Tensor]:
    """A state dict under published names; rotary tables are not drawn and not needed."""
    return {
        key: weight(key, tuple(shape), config["salt"])
        for key, shape in config["state_dict"].items()
        if ".freqs_" not in key
    }


@pytest.fixture(scope="module")
def config(settings) -> dict:
    return settings("eva_config")


@pytest.fixture(scope="module")
def tower(config) -> EvaVision:
    model = EvaVision(
        img_size=config["img"],
        patch_size=config["patch"],
        embed_dim=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_ratio=config["mlp"],
        num_classes=config["ncls"],
        ref_feat_shape=(config["pt"], config["pt"]),
    )
    model.load_published(_published(config))
    return model.eval()


def test_pooled_feature_and_hidden_states(tower, config, tensors) -> None:
    stored = tensors("eva_visual")
    with torch.no_grad():
        pooled, hidden = tower(stored["image"])
    assert_close(pooled, stored["out"], atol=3e-5, rtol=0)
    count = sum(1 for name in stored if name.startswith("hidden_"))
    theirs = torch.stack([stored[f"hidden_{k}"] for k in range(count)], dim=1)
    assert_close(hidden, theirs, atol=5e-4, rtol=0)


def test_whole_clip_files_load(tower, config, tensors) -> None:
    whole = {f"visual.{key}": value for key, value in _published(config).items()}
    whole |= {"text.token_embedding.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(())}
    tower.load_published(whole)


def test_other_sizes_raise(tower, config) -> None:
    wrong = _published(config)
    wrong["norm.weight"] = torch.zeros(3)
    with pytest.raises(InputError, match="does not fit"):
        tower.load_published(wrong)


def test_published_names_and_shapes(manifest) -> None:
    """Those of the published file, from the manifest."""
    entries = next(value for name, value in manifest["files"].items() if name.startswith("EVA02_CLIP_L_336"))
    from timm.models.eva import checkpoint_filter_fn

    with init_empty_weights():
        model = EvaVision()
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in entries.items()}
    renamed = checkpoint_filter_fn(state, model.tower)
    ours = {key: tuple(value.shape) for key, value in model.tower.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in renamed.items()} == ours
