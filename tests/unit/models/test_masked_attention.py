"""Masked attention: the PyTorch implementation against a sum over characters, and the Triton kernel against it."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.models import masked_attention as module
from bya_core.models.masked_attention import masked_attention, torch_attention

ROOT = Path(__file__).resolve().parents[3]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def random_inputs(leading: tuple[int, ...], tokens: int, characters: int, keys: int, dim: int) -> tuple[Tensor, ...]:
    """Query, scaled key, value and mask; masks are zero for the first third of the tokens, and that of the first
    character also for the second third."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(*leading, tokens, dim, generator=draw)
    key, value = torch.randn(2, *leading, characters, keys, dim, generator=draw)
    mask = torch.rand(*leading, tokens, characters, generator=draw)
    mask[..., : tokens // 3, :] = 0
    mask[..., : 2 * tokens // 3, 0] = 0
    return query, key * dim**-0.5, value, mask


def sum_over_characters(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same with torch's attention, one character after the other."""
    total = torch.zeros_like(query)
    for n in range(key.shape[-3]):
        each = torch.nn.functional.scaled_dot_product_attention(query, key[..., n, :, :], value[..., n, :, :], scale=1)
        total += mask[..., n, None] * each
    return total


@pytest.mark.parametrize("characters", [1, 2, 5])
def test_torch_attention(characters: int) -> None:
    given = random_inputs((2, 3), 30, characters, 7, 12)
    torch.testing.assert_close(torch_attention(*given), sum_over_characters(*given))
    with torch.no_grad():
        assert torch.equal(torch_attention(*given), torch_attention(*(x.clone().requires_grad_() for x in given)))
    shared = given[3][:, :1]  # one mask for all heads
    torch.testing.assert_close(
        torch_attention(*given[:3], shared), sum_over_characters(*given[:3], shared.expand(-1, 3, -1, -1))
    )


def test_gradients() -> None:
    given = [x.double().requires_grad_() for x in random_inputs((2,), 5, 2, 3, 4)]
    assert torch.autograd.gradcheck(masked_attention, given)


def test_backend_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    given = random_inputs((2,), 6, 2, 3, 16)
    expected = torch_attention(*given)
    assert torch.equal(masked_attention(*given), expected)
    monkeypatch.setenv("BYA_ATTENTION", "torch")
    assert torch.equal(masked_attention(*given), expected)
    monkeypatch.setenv("BYA_ATTENTION", "fastest")
    with pytest.raises(InputError, match="BYA_ATTENTION=fastest"):
        masked_attention(*given)
    monkeypatch.setenv("BYA_ATTENTION", "triton")
    missing = "package triton" if importlib.util.find_spec("triton") is None else "an NVIDIA GPU"
    with pytest.raises(InputError, match=missing):
        masked_attention(*given)


@needs_triton
def test_failing_kernel_falls_back_to_torch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from bya_core.models import masked_attention_triton as kernel

    calls = []

    def triton_attention(*given: Tensor) -> Tensor:
        calls.append(given)
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(kernel, "triton_attention", triton_attention)
    monkeypatch.setattr(module, "_failed_devices", [])
    monkeypatch.setattr(module, "_use_kernel", lambda query, *_: query.device not in module._failed_devices)
    given = random_inputs((2,), 6, 2, 3, 16)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(masked_attention(*given), torch_attention(*given))
    assert len(calls) == 1 and len(caplog.records) == 1 and "no C compiler" in caplog.text

    def exhausted(*given: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(kernel, "triton_attention", exhausted)
    monkeypatch.setattr(module, "_failed_devices", [])
    with pytest.raises(torch.OutOfMemoryError):  # handled by the caller
        masked_attention(*given)


def run_in_subprocess(code: str, **environment: str) -> None:
    """Run code with environment variables that must be set before the first import."""
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **threads, **environment}, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


INTERPRETED = """
import torch
import pytest
from bya_core.errors import InputError
from bya_core.models import masked_attention_triton as kernel
from bya_core.models.masked_attention import masked_attention, torch_attention
from tests.unit.models.test_masked_attention import random_inputs

assert kernel.INTERPRETED
launches = []
original = kernel.triton_attention
kernel.triton_attention = lambda *given: launches.append(1) or original(*given)
shapes = [  # leading axes, tokens, characters, keys, channels of a head
    ((2, 3), 70, 2, 32, 32), ((1, 2, 2), 33, 3, 5, 64), ((2,), 17, 1, 70, 128), ((), 9, 4, 1, 16),
    ((1,), 130, 2, 33, 64),
]
for leading, *size in shapes:
    given = random_inputs(leading, *size)
    expected = torch_attention(*given)
    torch.testing.assert_close(masked_attention(*given), expected, atol=2e-6, rtol=1e-5)
    half = [x.half() for x in given]
    made = masked_attention(*half)
    assert made.dtype == torch.float16
    torch.testing.assert_close(made.float(), torch_attention(*(x.float() for x in half)), atol=2e-3, rtol=2e-3)
    assert (made[..., : size[0] // 3, :] == 0).all()  # background tokens
assert len(launches) == 2 * len(shapes)

# strides as in face and speech attention, one mask for all heads
query, key, value, mask = random_inputs((2, 3), 40, 2, 6, 16)
mask = mask[:, :1]
expected = torch_attention(query, key, value, mask)
strided = [x.transpose(*axes).contiguous().transpose(*axes) for x, axes in
          ((query, (1, 2)), (key, (1, 2)), (value, (-1, -2)), (mask, (-1, -2)))]
assert not any(x.is_contiguous() for x in strided)
torch.testing.assert_close(masked_attention(*strided), expected, atol=2e-6, rtol=1e-5)

# keys of a character are not read in tiles outside its mask
key[:, :, 0], mask[..., 0] = torch.nan, 0
made = masked_attention(query, key, value, mask)
assert made.isfinite().all()
others = torch_attention(query, key[:, :, 1:], value[:, :, 1:], mask[..., 1:])
torch.testing.assert_close(made, others, atol=2e-6, rtol=1e-5)

# unsupported inputs
given = random_inputs((2,), 6, 2, 3, 16)
for changed, words in (
    ([x.clone().requires_grad_() for x in given], "with gradients"),
    ([x.double() for x in given], "float64"),
    (random_inputs((2,), 6, 2, 3, 24), "heads of 24 channels"),
):
    with pytest.raises(InputError, match=words):
        masked_attention(*changed)
"""

TRANSFORMER = """
import os
import torch
from tests.unit.models.test_conditioning import given, left_and_right
from tests.unit.models.test_transformer import build

model = build("official", cross_attn_dim_head=16, audio_dim_head=16, num_layers=2)
with torch.no_grad():
    inputs = given(model, batch=1)
    for more in ({}, {"mask_override": left_and_right()[:1], "prune_tokens": True, "inflate_audio_masks": False}):
        os.environ["BYA_ATTENTION"] = "torch"
        expected = model(**inputs, **more).sample
        os.environ["BYA_ATTENTION"] = "triton"
        torch.testing.assert_close(model(**inputs, **more).sample, expected, atol=2e-5, rtol=1e-4)
"""

COMPILED = """
import sys
from bya_core.models.masked_attention import masked_attention
from tests.unit.models.test_masked_attention import random_inputs

masked_attention(*random_inputs((2,), 6, 2, 3, 16))
assert "triton" not in sys.modules and "bya_core.models.masked_attention_triton" not in sys.modules

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bya_core.models.masked_attention_triton import _kernel, launch_config

for capability, dim in ((80, 64), (90, 128)):
    size = launch_config(17550, 32, dim)
    warps = size.pop("num_warps")
    constants = size | {"PRECISION": "tf32", "q_channel": 1, "k_channel": 1, "v_channel": 1, "o_channel": 1}
    tensors = ("query", "key", "value", "mask", "out")
    names = _kernel.arg_names
    signature = {n: "*bf16" if n in tensors else "constexpr" if n in constants else "i32" for n in names}
    source = ASTSource(fn=_kernel, signature=signature, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert made.asm["cubin"] and made.asm["ptx"].count("mma") > 0
    assert made.metadata.shared <= 48 * 1024  # available on every GPU
"""


@needs_triton
@pytest.mark.parametrize(
    ("code", "environment"),
    [(INTERPRETED, {"TRITON_INTERPRET": "1", "BYA_ATTENTION": "triton"}), (TRANSFORMER, {"TRITON_INTERPRET": "1"})],
    ids=["kernel", "transformer"],
)
def test_kernel_in_the_interpreter(code: str, environment: dict[str, str]) -> None:
    run_in_subprocess(code, **environment)


@needs_triton
def test_kernel_compiles_and_is_imported_lazily(tmp_path: Path) -> None:
    run_in_subprocess(COMPILED, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_kernel_on_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the default on a GPU and at least as accurate as PyTorch in half precision."""
    pytest.importorskip("triton")
    for leading, *size in (((2, 3), 1000, 2, 32, 128), ((2, 13, 4), 333, 3, 32, 64), ((1, 2), 65, 1, 70, 32)):
        given = [x.to("cuda", dtype) for x in random_inputs(leading, *size)]
        exact = torch_attention(*(x.float() for x in given))
        monkeypatch.delenv("BYA_ATTENTION", raising=False)
        assert module._use_kernel(*given)
        made = (masked_attention(*given).float() - exact).abs().max()
        assert not module._failed_devices
        assert made <= (torch_attention(*given).float() - exact).abs().max() + 2 * torch.finfo(dtype).eps
