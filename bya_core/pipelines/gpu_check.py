"""Check of a GPU: every kernel, attention backend, preset and memory plan that generation can select.

The released architecture is built at full width with two blocks and random weights, so that nothing is downloaded.
Each check runs denoising steps and compares the change of the latents with that of a run in float32 on the same device.
"""

from __future__ import annotations

import copy
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bya_core.config import Preset
from bya_core.errors import InputError
from bya_core.memory.planner import (
    MEMORY_PLANS,
    apply_memory_plan,
    enable_tiling,
    free_host_memory,
    free_vram,
    plan_memory,
)
from bya_core.memory.sizes import ENCODER_BYTES, build_meta_transformer, component_sizes
from bya_core.pipelines.full_size import NATIVE, SALT, build_full_size, run_steps, synchronize
from bya_core.sampling.acceleration import attention, attention_works, compiled
from bya_core.sampling.fp8 import block_linears, fp8_matmul
from bya_core.weights.bundle import ModelBundle, NativeSize
from bya_core.weights.random_weights import draw_input

log = logging.getLogger(__name__)

PUBLISHED_LAYERS = 42
LAYERS, STEPS = 2, 2  # the step cache needs two blocks and two steps
TOLERANCE = 0.25
"""Largest relative error of a check. Guidance of 7 multiplies the rounding errors of bfloat16."""
BACKENDS = ("native", "_native_cudnn", "_native_flash", "_native_efficient", "flash", "_flash_3", "sage")
"""Attention backends of diffusers that presets or users select."""

UNAVAILABLE = "a package or the hardware is missing; the warning states the reason"

State = Literal["ok", "inaccurate", "failed", "not available"]


@dataclass(frozen=True)
class GpuCheck:
    """Result of one check.

    Args:
        name: What was checked.
        state: "inaccurate" differs from float32 by more than `TOLERANCE`; "not available" lacks a package or hardware.
        seconds: Duration of the second, warm run; None if it did not run.
        error: Error of the latents relative to float32; None where there is no reference.
        peak_gb: Peak GPU memory in GB; None without a GPU.
        detail: Reason if the state is not "ok".
    """

    name: str
    state: State
    seconds: float | None = None
    error: float | None = None
    peak_gb: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class GpuReport:
    """Results of all checks on one machine.

    Args:
        machine: Device, memory, versions, and the speed of a matrix product in TFLOP/s measured in the same run.
        checks: The results, in order.
        recommended: Preset and memory plan for this machine.
    """

    machine: dict[str, Any]
    checks: tuple[GpuCheck, ...]
    recommended: dict[str, str]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed or was inaccurate."""
        return all(check.state in ("ok", "not available") for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {"healthy": self.healthy, **asdict(self)}


def check_gpu(
    device: torch.device | str = "cuda",
    config: dict[str, Any] | None = None,
    native: NativeSize = NATIVE,
    notify: Callable[[GpuCheck], object] = lambda _: None,
) -> GpuReport:
    """Run all checks.

    Args:
        device: Device to check.
        config: Arguments of the transformer that replace the published ones.
        native: Resolution and length.
        notify: Receives each result as soon as it is known.

    Raises:
        InputError: Too little host memory for the weights (about 17 GB in float32).
    """
    return _GpuChecks(torch.device(device), config, native, notify).run()


class _GpuChecks:
    """The checks of one device; arguments as in `check_gpu`."""

    def __init__(
        self,
        device: torch.device,
        config: dict[str, Any] | None,
        native: NativeSize,
        notify: Callable[[GpuCheck], object],
    ) -> None:
        self.device, self.config, self.native, self.notify = device, config, native, notify
        self.checks: list[GpuCheck] = []
        self.reference: Tensor | None = None
        self.noise: Tensor | None = None

    def run(self) -> GpuReport:
        tflops = measure_matmul(self.device)
        bundle = build_full_size(LAYERS, torch.float32, self.config, native=self.native)
        grid = bundle.grid(self.native.num_frames, self.native.height, self.native.width)
        self.noise = draw_input("noise", (1, *grid.latent_shape(bundle.transformer.config.out_channels)), SALT)
        bundle.transformer.to(self.device)
        self._check("float32", lambda: self._steps(bundle))
        for module in (bundle.transformer, bundle.codec.vae):  # type: ignore[attr-defined]
            module.to("cpu", torch.bfloat16)
        stored = copy.deepcopy(bundle) if self.device.type == "cuda" else None
        bundle.to(self.device)
        self._check_presets(bundle)
        self._check_kernels(bundle)
        self._check_decoding(bundle)
        plan = "full"
        if stored is not None:
            del bundle
            self._check_memory_plans(stored)
            torch.cuda.empty_cache()
            plan = plan_memory(free_vram(self.device) or 0, _published_sizes(stored), free_host_memory()).name
        presets = [c for c in self.checks if c.name.startswith("preset ") and c.state == "ok" and c.seconds is not None]
        fastest = min(presets, key=lambda check: check.seconds or 0.0).name.removeprefix("preset ") if presets else ""
        return GpuReport(
            {**describe_device(self.device), "matmul_tflops": round(tflops, 1)},
            tuple(self.checks),
            {"preset": fastest, "memory plan": plan},
        )

    def _check_presets(self, bundle: ModelBundle) -> None:
        for preset in get_args(Preset):
            self._check(f"preset {preset}", partial(self._steps, bundle, preset))

    def _check_kernels(self, bundle: ModelBundle) -> None:
        transformer, head_dim = bundle.transformer, int(bundle.transformer.config.attention_head_dim)
        for backend in BACKENDS:
            name = f"attention {backend}"
            if attention_works(backend, head_dim, torch.bfloat16, self.device):
                self._check(name, lambda: self._steps(bundle), attention(transformer, backend))
            else:
                self._add(GpuCheck(name, "not available", detail=UNAVAILABLE))
        self._check("compiled blocks", lambda: self._steps(bundle), compiled(transformer))
        layers = block_linears(transformer.transformer_blocks)
        with fp8_matmul(layers) if self.device.type == "cuda" else nullcontext(False) as used:
            if used:
                self._check("FP8 matrix products", lambda: self._steps(bundle))
            else:
                self._add(GpuCheck("FP8 matrix products", "not available", detail=UNAVAILABLE))
        for backend in ("torch", "triton"):
            with _environment(BYA_ATTENTION=backend):
                self._check(f"masked attention {backend}", lambda: self._steps(bundle))

    def _check_decoding(self, bundle: ModelBundle) -> None:
        assert self.noise is not None
        latents = self.noise.to(self.device, torch.bfloat16)
        with torch.no_grad():
            self._check("decoding", lambda: bundle.codec.decode(latents), compare=False)
            if enable_tiling(bundle.codec):
                self._check("decoding in tiles", lambda: bundle.codec.decode(latents), compare=False)

    def _check_memory_plans(self, stored: ModelBundle) -> None:
        for plan in MEMORY_PLANS:
            bundle = copy.deepcopy(stored)
            try:
                apply_memory_plan(bundle, plan, self.device)
            except Exception as error:
                self._add(GpuCheck(f"memory plan {plan.name}", "failed", detail=_describe(error)))
                continue
            self._check(f"memory plan {plan.name}", partial(self._steps, bundle))

    def _steps(self, bundle: ModelBundle, preset: Preset = "exact") -> Tensor:
        return run_steps(bundle, branches=2, steps=STEPS, preset=preset)

    def _check(self, name: str, function: Callable[[], Tensor], context: Any = None, compare: bool = True) -> None:
        """Run twice, and compare the second result with the reference, which the first check sets."""
        cuda = self.device.type == "cuda"
        try:
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)
            with context or nullcontext():
                function()
                synchronize(self.device)
                start = time.perf_counter()
                result = function()
                synchronize(self.device)
            seconds = time.perf_counter() - start
        except InputError as problem:
            self._add(GpuCheck(name, "not available", detail=str(problem)))
            return
        except Exception as problem:  # any failure is a finding
            self._add(GpuCheck(name, "failed", detail=_describe(problem)))
            return
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9 if cuda else None
        values = result.detach().float().cpu()
        state: State = "ok" if values.isfinite().all() else "inaccurate"
        detail = "" if state == "ok" else "values that are not finite"
        error = None
        if compare and state == "ok":
            assert self.noise is not None
            change = values - self.noise
            if self.reference is None:
                self.reference = change
            error = float((change - self.reference).norm() / self.reference.norm())
            if error > TOLERANCE:
                state, detail = "inaccurate", f"differs from float32 by more than {TOLERANCE:.0%}"
        self._add(GpuCheck(name, state, seconds, error, peak, detail))

    def _add(self, check: GpuCheck) -> None:
        self.checks.append(check)
        self.notify(check)


def _published_sizes(bundle: ModelBundle) -> dict[str, int]:
    """Sizes of the released model: all blocks, and the encoders that the bundle lacks."""
    transformer = build_meta_transformer({**bundle.transformer.config, "num_layers": PUBLISHED_LAYERS})
    complete = replace(bundle, transformer=transformer.to(torch.bfloat16))
    return component_sizes(complete) | ENCODER_BYTES


def measure_matmul(device: torch.device, size: int | None = None) -> float:
    """Speed of a matrix product in bfloat16, in TFLOP/s."""
    size = size or (8192 if device.type == "cuda" else 512)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronize(device)
    start = time.perf_counter()
    for _ in range(10):
        a @ b
    synchronize(device)
    return 10 * 2 * size**3 / (time.perf_counter() - start) / 1e12


def describe_device(device: torch.device) -> dict[str, Any]:
    """Device, memory and versions."""
    described: dict[str, Any] = {
        "device": str(device),
        "torch": torch.__version__,
        "system": platform.platform(terse=True),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        described |= {
            "device": properties.name,
            "gpu_gb": round(properties.total_memory / 1e9, 1),
            "capability": capability,
            "cuda": torch.version.cuda,
        }
    return described


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
