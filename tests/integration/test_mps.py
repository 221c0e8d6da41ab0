"""The whole path on a device without float64, as Apple's MPS: a tensor class stands for its tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bya_core import load_model
from bya_core.pipelines.generate import generate
from bya_core.scene.loader import load_scene
from bya_core.weights.registry import MODELS
from tests.unit.memory.test_planner import call, small

ROOT = Path(__file__).resolve().parents[2]
WIDE = (torch.float64, torch.complex128)


class Device(Tensor):
    """A tensor on the device: results of operations are as well, and float64 and NumPy are refused."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (Tensor.numpy, Tensor.__array__):
            raise TypeError("a tensor on the device is converted to NumPy")
        result = super().__torch_function__(function, types, args, kwargs or {})
        to_cpu = function is Tensor.cpu or (function is Tensor.to and "cpu" in [str(each) for each in args[1:]])
        if to_cpu:
            return result.as_subclass(Tensor)
        for leaf in tree_leaves(result):
            if isinstance(leaf, cls) and leaf.dtype in WIDE and leaf.ndim:
                raise TypeError(f"{function} makes float64 on the device")
        return result


def place(module: nn.Module) -> nn.Module:
    """Move the weights to the device."""
    for owner in module.modules():
        for name, weight in list(owner._parameters.items()):
            if weight is not None:
                owner._parameters[name] = nn.Parameter(weight.detach().as_subclass(Device), requires_grad=False)
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None:
                owner._buffers[name] = buffer.as_subclass(Device)
    return module


def test_the_device_refuses_float64() -> None:
    """Otherwise the other tests could not fail."""
    tensor = torch.ones(2).as_subclass(Device)
    for wrong in (lambda: tensor.double(), lambda: tensor + torch.ones(2, dtype=torch.float64), lambda: tensor.numpy()):
        with pytest.raises(TypeError):
            wrong()
    assert type(tensor.cpu()) is Tensor and tensor.cpu().double().numpy().sum() == 2
    assert type(nn.Linear(2, 2)(tensor)) is Device


@pytest.mark.parametrize("flavour", ["official", "paper"])
def test_a_step_of_each_flavour(flavour: str) -> None:
    expected = call(small(flavour))
    found = call(place(small(flavour)))
    assert type(found) is Device
    torch.testing.assert_close(found.as_subclass(Tensor), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not MODELS["toy"].available, reason="toy weights are missing")
@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
def test_a_scene_is_generated(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders, router, denoising and decoding."""
    model = load_model("toy")
    for component in (model.transformer, model.text, model.face, model.speech, model.codec):
        for module in (component, *vars(component).values()):
            if isinstance(module, nn.Module):
                place(module)
    assert isinstance(next(model.transformer.parameters()), Device)
    scene = load_scene(ROOT / "demo" / "scene.json", model, steps=2)
    scene = replace(scene, num_frames=5, sampling=replace(scene.sampling, scheduler=scheduler))
    decoded = []
    decode = model.codec.decode
    monkeypatch.setattr(model.codec, "decode", lambda latents: decoded.append(decode(latents)) or decoded[-1])
    assert generate(scene, model).frames.shape[0] == 5
    assert type(decoded[0]) is Device
