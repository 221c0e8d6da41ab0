"""Who can be examined: a model, and two stand-ins that test the examination itself."""

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
from bya_core.pipelines.generate import denoised, prepare, route
from bya_core.progress import ProgressTracker
from bya_core.sampling import build_scheduler
from bya_core.sampling.conditions import build_branch_inputs
from bya_core.sampling.guidance import branches
from bya_core.sampling.schedulers import schedule
from bya_core.scene.types import Character, Scene, Speech
from bya_core.weights.bundle import ModelBundle
from training.benchmark.scenes import SceneSettings, SuiteScene, draw, redrawn
from training.puppets.world import SAMPLE_RATE, PuppetClip

LARGEST_HASHED = 500_000_000  # parameters; taking the hash of more would take longer than it is worth


@dataclass(frozen=True)
class NoisePoint:
    """A place on the sampling schedule.

    Args:
        share: of the schedule still ahead.
        timestep: of the sampling run, nearest to it.
        noise: standard deviation of the noise, beside a signal of sqrt(1 - noise^2).
    """

    share: float
    timestep: int
    noise: float


@dataclass(frozen=True)
class Made:
    """A generated video: frames [F, H, W, 3] uint8, masks that acted [N, T, h, w] in 0..1."""

    frames: np.ndarray
    masks: np.ndarray


class Subject(Protocol):
    """What is examined."""

    name: str
    grid: TokenGrid
    points: Sequence[NoisePoint]

    def make(self, scene: SuiteScene, matrix: np.ndarray) -> Made:
        """The video of a scene under an audio-character matrix [M, N]."""
        ...

    def make_all(self, scene: SuiteScene, matrices: Sequence[np.ndarray]) -> list[Made]:
        """`make` with each of several matrices, from the same noise."""
        ...

    def find(self, scene: SuiteScene, point: NoisePoint, first_frame: bool) -> np.ndarray:
        """Masks [R, N, T, h, w] the router finds in the scene's own clip, noised to `point`."""
        ...

    def describe(self) -> dict[str, Any]:
        """Settings, for the record."""
        ...


class ModelSubject:
    """A model bundle.

    Args:
        bundle: on the device where it shall run.
        settings: size of the scenes; must fit the model.
        shares: points of the sampling schedule, 1 = all noise.
        steps: sampling steps; None = the bundle's.
        routing: where the masks come from.
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
        self.points: Sequence[NoisePoint] = [self._point(share) for share in shares]
        self._prepared: tuple[tuple[int, bool], Any] | None = None

    def _point(self, share: float) -> NoisePoint:
        """The timestep of the schedule that is nearest to `share` of all noise."""
        total = self.scheduler.config.num_train_timesteps
        timestep = min(schedule(self.scheduler, self.sampling.steps), key=lambda t: abs(t - share * total))
        noise = float((1.0 - self.scheduler.alphas_cumprod[timestep]).clamp_min(0.0).sqrt())
        return NoisePoint(share, timestep, round(noise, 4))

    def make(self, scene: SuiteScene, matrix: np.ndarray) -> Made:
        return self.make_all(scene, [matrix])[0]

    @torch.no_grad()
    def make_all(self, scene: SuiteScene, matrices: Sequence[np.ndarray]) -> list[Made]:
        bundle, latents, masks = self.bundle, [], []
        for matrix in matrices:
            prepared = prepare(self.scene(scene, matrix, scene.first_frame), bundle)
            clean, acted = denoised(prepared, route(prepared, bundle), bundle, ProgressTracker())
            latents.append(clean)
            masks.append(acted.numpy())
        return [Made(seen, acted) for seen, acted in zip(decode_clips(bundle, latents), masks, strict=True)]

    @torch.no_grad()
    def find(self, scene: SuiteScene, point: NoisePoint, first_frame: bool) -> np.ndarray:
        transformer, device, dtype = self.bundle.transformer, self.bundle.device, self.bundle.dtype
        clean, inputs = self._probe(scene, first_frame)
        generator = torch.Generator("cpu").manual_seed(scene.clip.seed)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = self.scheduler.add_noise(clean, noise, torch.tensor([point.timestep]))
        output = transformer(
            hidden_states=torch.cat([noisy.to(device, dtype), inputs.images], dim=2),
            timestep=torch.full((1,), point.timestep, device=device, dtype=torch.long),
            **inputs.fixed,
        )
        return output.masks[:, 0].float().cpu().numpy()

    def _probe(self, scene: SuiteScene, first_frame: bool) -> Any:
        """Clean latents [1, T, C, H, W] on the CPU and the laid out conditions; the last ones are kept."""
        key = (scene.clip.seed, first_frame)
        if self._prepared is None or self._prepared[0] != key:
            device, dtype = self.bundle.device, self.bundle.dtype
            conditions = prepare(self.scene(scene, scene.clip.matrix, first_frame), self.bundle).conditions
            known = self._prepared
            if known is not None and known[0][0] == scene.clip.seed:
                clean = known[1][0]
            else:  # twice the same clip is encoded faster than one, see `decode_clips`
                video = as_video(scene.clip).to(device, dtype)
                clean = self.bundle.codec.encode(video.expand(2, -1, -1, -1, -1))[:1].float().cpu()
            inputs = build_branch_inputs(conditions, branches(1.0, 1.0), drop_identity=False, device=device, dtype=dtype)
            self._prepared = key, (clean, inputs)
        return self._prepared[1]

    def scene(
        self, scene: SuiteScene, matrix: np.ndarray, first_frame: bool, routing: RouterConfig | None = None
    ) -> Scene:
        """What the model is asked for; `routing` in place of the subject's own."""
        clip = scene.clip
        return Scene(
            prompt=clip.prompt,
            characters=[Character(f"puppet {n + 1}", _image(p)) for n, p in enumerate(clip.portraits)],
            speeches=[Speech(torch.from_numpy(s)[None], SAMPLE_RATE) for s in clip.speeches],
            height=self.settings.height,
            width=self.settings.width,
            num_frames=self.settings.num_frames,
            audio_character_matrix=torch.from_numpy(np.ascontiguousarray(matrix)),
            first_frame=_image(clip.first_frame) if first_frame else None,
            fps=clip.fps,
            sampling=replace(self.sampling, seed=clip.seed),
            routing=routing or self.routing,
        )

    def describe(self) -> dict[str, Any]:
        codec = getattr(self.bundle.codec, "vae", None)
        return {
            "sampling": {**asdict(self.sampling), "seed": "that of the scene"},
            "routing": asdict(self.routing),
            "device": str(self.bundle.device),
            "dtype": str(self.bundle.dtype).removeprefix("torch."),
            "transformer_sha256": weights_hash(self.bundle.transformer),
            "codec_sha256": weights_hash(codec) if isinstance(codec, torch.nn.Module) else None,
        }


class TruthSubject:
    """Answers with the drawn truth: figures must come out near 1. Shows what the measurement allows."""

    def __init__(self, settings: SceneSettings, shares: Sequence[float], grid: TokenGrid) -> None:
        self.name, self.settings, self.grid = "truth", settings, grid
        self.points: Sequence[NoisePoint] = [NoisePoint(share, 0, 0.0) for share in shares]

    def make(self, scene: SuiteScene, matrix: np.ndarray) -> Made:
        return self._made(redrawn(scene, self.settings, matrix))

    def make_all(self, scene: SuiteScene, matrices: Sequence[np.ndarray]) -> list[Made]:
        return [self.make(scene, matrix) for matrix in matrices]

    def find(self, scene: SuiteScene, point: NoisePoint, first_frame: bool) -> np.ndarray:
        return self._made(scene.clip).masks[None]

    def _made(self, clip: PuppetClip) -> Made:
        return Made(clip.frames, self.grid.pixels_to_tokens(torch.from_numpy(clip.masks)).numpy())

    def describe(self) -> dict[str, Any]:
        return {}


class CodecSubject(TruthSubject):
    """Answers with the drawn truth after the video codec: the best that a transformer behind it can reach."""

    def __init__(self, bundle: ModelBundle, settings: SceneSettings, shares: Sequence[float]) -> None:
        super().__init__(settings, shares, bundle.grid(settings.num_frames, settings.height, settings.width))
        self.name, self.bundle = "codec", bundle

    @torch.no_grad()
    def _made(self, clip: PuppetClip) -> Made:
        made = super()._made(clip)
        codec, video = self.bundle.codec, as_video(clip).to(self.bundle.device, self.bundle.dtype)
        seen = codec.decode(codec.encode(video.expand(2, -1, -1, -1, -1)))[0].float().cpu()
        return Made(_frames(seen), made.masks)


class ShuffledSubject(TruthSubject):
    """Answers with the truth of some other scene: every figure must come out at chance."""

    def __init__(self, settings: SceneSettings, shares: Sequence[float], grid: TokenGrid) -> None:
        super().__init__(settings, shares, grid)
        self.name = "shuffled"

    def make(self, scene: SuiteScene, matrix: np.ndarray) -> Made:
        return self._made(self._other(scene))

    def find(self, scene: SuiteScene, point: NoisePoint, first_frame: bool) -> np.ndarray:
        return self._made(self._other(scene)).masks[None]

    def _other(self, scene: SuiteScene) -> PuppetClip:
        return draw(self.settings, scene.clip.seed + 500_000, "overlap", people=len(scene.clip.portraits))


def as_video(clip: PuppetClip) -> Tensor:
    """Frames of a clip as [1, 3, F, H, W] in -1..1."""
    return rearrange(torch.from_numpy(clip.frames).float() / 127.5 - 1, "f h w c -> 1 c f h w")


@torch.no_grad()
def decode_clips(bundle: ModelBundle, latents: Sequence[Tensor]) -> list[np.ndarray]:
    """Latents [1, T, C, H, W] each -> frames uint8 [F, H, W, 3] each.

    Never one at a time: torch takes a slow path for the 3D convolutions of a single small clip on a CPU, two are done
    in half the time of one.
    """
    joined = torch.cat([*latents, *latents[: 2 - len(latents)]] if len(latents) < 2 else [*latents])
    seen = bundle.codec.decode(joined.to(bundle.device, bundle.dtype)).float().cpu()
    return [_frames(video) for video in seen[: len(latents)]]


def _frames(video: Tensor) -> np.ndarray:
    """A decoded clip [3, F, H, W] in -1..1 as uint8 [F, H, W, 3]."""
    return rearrange((video + 1) * 127.5, "c f h w -> f h w c").round().clamp(0, 255).to(torch.uint8).numpy()


def weights_hash(module: torch.nn.Module) -> str | None:
    """SHA-256 over names and values of all parameters; None for very large models."""
    if sum(p.numel() for p in module.parameters()) > LARGEST_HASHED:
        return None
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _image(pixels: np.ndarray) -> Tensor:
    """[H, W, 3] uint8 -> [3, H, W] in 0..1."""
    return rearrange(torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255.0, "h w c -> c h w")
