"""Evaluation targets: a model, and references that validate the metrics themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from bya_core.config import RouterConfig
from bya_core.grid import TokenGrid
from bya_core.pipelines.generate import prepare, route
from bya_core.pipelines.sample import denoise_latents
from bya_core.progress import ProgressTracker
from bya_core.sampling import build_scheduler
from bya_core.sampling.conditions import build_branch_inputs
from bya_core.sampling.guidance import guidance_branches
from bya_core.sampling.schedulers import retrieve_timesteps
from bya_core.scene.types import Character, Scene, Speech
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.comparison import weights_fingerprint
from training.benchmark.scenes import SceneSettings, SuiteScene, draw, redrawn
from training.puppets.world import SAMPLE_RATE, PuppetClip

_MAX_HASHED_PARAMETERS = 500_000_000


@dataclass(frozen=True)
class NoisePoint:
    """A point of the sampling schedule.

    Args:
        share: remaining fraction of the schedule.
        timestep: nearest timestep of the sampling run.
        noise: standard deviation of the noise, relative to a signal of sqrt(1 - noise^2).
    """

    share: float
    timestep: int
    noise: float


@dataclass(frozen=True)
class GeneratedVideo:
    """A generated video: frames uint8 [F, H, W, 3], and the masks used [N, T, h, w] in 0..1."""

    frames: np.ndarray
    masks: np.ndarray


class EvaluationTarget(Protocol):
    """What is evaluated."""

    name: str
    grid: TokenGrid
    points: Sequence[NoisePoint]

    def generate(self, scene: SuiteScene, matrices: Sequence[np.ndarray]) -> list[GeneratedVideo]:
        """Generate a scene with each audio-character matrix [M, N], starting from the same noise."""
        ...

    def predict_masks(self, scene: SuiteScene, point: NoisePoint, first_frame: bool) -> np.ndarray:
        """Predict the router masks [R, N, T, h, w] on the scene's own clip with noise at `point`."""
        ...

    def describe(self) -> dict[str, Any]:
        """Settings for the report."""
        ...


class ModelTarget:
    """A model bundle.

    Args:
        bundle: model on its device.
        settings: scenes; their size must fit the model.
        shares: points of the sampling schedule, 1 = pure noise.
        steps: number of sampling steps; None = default of the bundle.
        routing: router options.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        settings: SceneSettings,
        shares: Sequence[float],
        steps: int | None = None,
        routing: RouterConfig | None = None,
    ) -> None:
        self.name, self.bundle, self.settings = bundle.name, bundle, settings
        self.routing = routing or RouterConfig()
        self.sampling = replace(bundle.sampling, steps=steps or bundle.sampling.steps)
        self.grid = bundle.grid(settings.num_frames, settings.height, settings.width)
        self.scheduler = build_scheduler(self.sampling.scheduler, bundle.scheduler_config)
        self.points: Sequence[NoisePoint] = [self._noise_point(share) for share in shares]
        self._cache: tuple[tuple[int, bool], Any] | None = None

    def _noise_point(self, share: float) -> NoisePoint:
        total = self.scheduler.config.num_train_timesteps
        timestep = min(retrieve_timesteps(self.scheduler, self.sampling.steps), key=lambda t: abs(t - share * total))
        noise = float((1.0 - self.scheduler.alphas_cumprod[timestep]).clamp_min(0.0).sqrt())
        return NoisePoint(share, timestep, round(noise, 4))

    @torch.no_grad()
    def generate(self, scene: SuiteScene, matrices: Sequence[np.ndarray]) -> list[GeneratedVideo]:
        bundle, latents, masks = self.bundle, [], []
        for matrix in matrices:
            prepared = prepare(self.scene(scene, matrix, scene.first_frame), bundle)
            clean, used = denoise_latents(prepared, route(prepared, bundle), bundle, ProgressTracker())
            latents.append(clean)
            masks.append(used.numpy())
        frames = decode_clips(bundle, latents)
        return [GeneratedVideo(*pair) for pair in zip(frames, masks, strict=True)]

    @torch.no_grad()
    def predict_masks(self, scene: SuiteScene, point: NoisePoint, first_frame: bool) -> np.ndarray:
        transformer, device, dtype = self.bundle.transformer, self.bundle.device, self.bundle.dtype
        clean, inputs = self._encode(scene, first_frame)
        generator = torch.Generator("cpu").manual_seed(scene.clip.seed)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = self.scheduler.add_noise(clean, noise, torch.tensor([point.timestep]))
        output = transformer(
            hidden_states=torch.cat([noisy.to(device, dtype), inputs.image_latents], dim=2),
            timestep=torch.full((1,), point.timestep, device=device, dtype=torch.long),
            **inputs.kwargs,
        )
        return output.masks[:, 0].float().cpu().numpy()

    def _encode(self, scene: SuiteScene, first_frame: bool) -> Any:
        """Clean latents [1, T, C, H, W] on the CPU, and transformer inputs; the most recent result is cached."""
        key, cached = (scene.clip.seed, first_frame), self._cache
        if cached is None or cached[0] != key:
            device, dtype = self.bundle.device, self.bundle.dtype
            conditions = prepare(self.scene(scene, scene.clip.matrix, first_frame), self.bundle).conditions
            if cached is not None and cached[0][0] == scene.clip.seed:
                clean = cached[1][0]
            else:  # a batch of two is encoded faster than one clip, see `decode_clips`
                video = as_video(scene.clip).to(device, dtype)
                clean = self.bundle.codec.encode(video.expand(2, -1, -1, -1, -1))[:1].float().cpu()
            inputs = build_branch_inputs(
                conditions, guidance_branches(1.0, 1.0), drop_identity=False, device=device, dtype=dtype
            )
            self._cache = cached = key, (clean, inputs)
        return cached[1]

    def scene(
        self, scene: SuiteScene, matrix: np.ndarray, first_frame: bool, routing: RouterConfig | None = None
    ) -> Scene:
        """Build the scene to generate; `routing` overrides the options of the target."""
        clip = scene.clip
        return Scene(
            prompt=clip.prompt,
            characters=[Character(f"puppet {n + 1}", as_image(p)) for n, p in enumerate(clip.portraits)],
            speeches=[Speech(torch.from_numpy(s)[None], SAMPLE_RATE) for s in clip.speeches],
            height=self.settings.height,
            width=self.settings.width,
            num_frames=self.settings.num_frames,
            audio_character_matrix=torch.from_numpy(np.ascontiguousarray(matrix)),
            first_frame=as_image(clip.first_frame) if first_frame else None,
            fps=clip.fps,
            sampling=replace(self.sampling, seed=clip.seed),
            routing=routing or self.routing,
        )

    def describe(self) -> dict[str, Any]:
        vae = getattr(self.bundle.codec, "vae", None)
        return {
            "sampling": {**asdict(self.sampling), "seed": "that of the scene"},
            "routing": asdict(self.routing),
            "device": str(self.bundle.device),
            "dtype": str(self.bundle.dtype).removeprefix("torch."),
            "transformer_sha256": weights_hash(self.bundle.transformer),
            "codec_sha256": weights_hash(vae) if isinstance(vae, torch.nn.Module) else None,
        }


class GroundTruthTarget:
    """Returns the ground truth. Its metrics should be close to 1 and are the upper bound of the measurement."""

    def __init__(self, settings: SceneSettings, shares: Sequence[float], grid: TokenGrid) -> None:
        self.name, self.settings, self.grid = "truth", settings, grid
        self.points: Sequence[NoisePoint] = [NoisePoint(share, 0, 0.0) for share in shares]

    def generate(self, scene: SuiteScene, matrices: Sequence[np.ndarray]) -> list[GeneratedVideo]:
        return [self._video(redrawn(scene, self.settings, matrix)) for matrix in matrices]

    def predict_masks(self, scene: SuiteScene, point: NoisePoint, first_frame: bool) -> np.ndarray:
        return self._video(scene.clip).masks[None]

    def _video(self, clip: PuppetClip) -> GeneratedVideo:
        return GeneratedVideo(clip.frames, self.grid.pixels_to_tokens(torch.from_numpy(clip.masks)).numpy())

    def describe(self) -> dict[str, Any]:
        return {}


class ReconstructionTarget(GroundTruthTarget):
    """Returns the ground truth reconstructed by the VAE, the upper bound for its transformer."""

    def __init__(self, bundle: ModelBundle, settings: SceneSettings, shares: Sequence[float]) -> None:
        super().__init__(settings, shares, bundle.grid(settings.num_frames, settings.height, settings.width))
        self.name, self.bundle = "codec", bundle

    @torch.no_grad()
    def _video(self, clip: PuppetClip) -> GeneratedVideo:
        codec, video = self.bundle.codec, as_video(clip).to(self.bundle.device, self.bundle.dtype)
        decoded = codec.decode(codec.encode(video.expand(2, -1, -1, -1, -1)))[0].float().cpu()
        return GeneratedVideo(_to_frames(decoded), super()._video(clip).masks)


class ShuffledTarget(GroundTruthTarget):
    """Returns the ground truth of another scene. Its metrics should be at chance level."""

    def __init__(self, settings: SceneSettings, shares: Sequence[float], grid: TokenGrid) -> None:
        super().__init__(settings, shares, grid)
        self.name = "shuffled"

    def generate(self, scene: SuiteScene, matrices: Sequence[np.ndarray]) -> list[GeneratedVideo]:
        return [self._video(self._other_clip(scene)) for _ in matrices]

    def predict_masks(self, scene: SuiteScene, point: NoisePoint, first_frame: bool) -> np.ndarray:
        return self._video(self._other_clip(scene)).masks[None]

    def _other_clip(self, scene: SuiteScene) -> PuppetClip:
        return draw(self.settings, scene.clip.seed + 500_000, "overlap", num_characters=len(scene.clip.portraits))


def as_video(clip: PuppetClip) -> Tensor:
    """Frames of a clip as [1, 3, F, H, W] in -1..1."""
    return rearrange(torch.from_numpy(clip.frames).float() / 127.5 - 1, "f h w c -> 1 c f h w")


def as_image(pixels: np.ndarray) -> Tensor:
    """[H, W, 3] uint8 -> [3, H, W] in 0..1."""
    return rearrange(torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255.0, "h w c -> c h w")


@torch.no_grad()
def decode_clips(bundle: ModelBundle, latents: Sequence[Tensor]) -> list[np.ndarray]:
    """Decode latents [1, T, C, H, W] each to frames uint8 [F, H, W, 3] each.

    A single clip is duplicated: on a CPU, torch uses a slow path for the 3D convolutions of a batch of one, and decodes
    two clips in half the time.
    """
    batch = torch.cat([*latents, *latents] if len(latents) == 1 else [*latents])
    decoded = bundle.codec.decode(batch.to(bundle.device, bundle.dtype)).float().cpu()
    return [_to_frames(video) for video in decoded[: len(latents)]]


def _to_frames(video: Tensor) -> np.ndarray:
    """[3, F, H, W] in -1..1 -> uint8 [F, H, W, 3]."""
    return rearrange((video + 1) * 127.5, "c f h w -> f h w c").round().clamp(0, 255).to(torch.uint8).numpy()


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of the names and values of all parameters; for very large models of a few values of each."""
    if sum(p.numel() for p in module.parameters()) > _MAX_HASHED_PARAMETERS:
        return weights_fingerprint(module)
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
