"""Baselines on the same weights, without other systems (paper sec. 5.3.1 and 5.4.1).

- concat: each character is generated alone, with its own speech and its part of the first frame in the center; the
  centers are concatenated in the order of the characters in the first frame.
- mixed: one audio stream with all speeches, received by all characters.
- halves: the frame is divided into vertical strips of equal width, one per character.
- tokens: each token is classified independently, as in Ingredients: no attention over space and time, no positions, no
  smoothness. The classifier is linear in the scores of face attention (video queries, face keys, per head and face
  token), and additionally in the token itself for the background; it is fitted on training clips. All other weights are
  unchanged.

The fifth baseline, bounding boxes of the first frame, is a variant of the pre router.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from bya_core.grid import TokenGrid
from bya_core.pipelines.generate import prepare, route
from bya_core.pipelines.sample import denoise_latents
from bya_core.progress import ProgressTracker
from bya_core.routing import Routing
from bya_core.scene.types import Character, Scene, Speech
from training.benchmark.scenes import SuiteScene
from training.benchmark.targets import GeneratedVideo, ModelTarget, decode_clips
from training.puppets.world import SAMPLE_RATE, PuppetClip, make_clip

Baseline = Literal["concat", "mixed", "halves", "tokens"]

FIT_SEED, FIT_CLIPS, FIT_STEPS = 900_000, 24, 300  # training clips, never used for evaluation
FIT_SHARES = (0.9, 0.6, 0.3)  # points of the noise schedule


def generate_baseline(name: Baseline, target: ModelTarget, scene: SuiteScene, matrix: np.ndarray) -> GeneratedVideo:
    """Generate a scene by a baseline with an audio-character matrix [M, N]."""
    return _BASELINES[name](target, scene, matrix)


@torch.no_grad()
def _generate(
    target: ModelTarget, scene: Scene, given_masks: Callable[[TokenGrid], Tensor] | None = None
) -> GeneratedVideo:
    bundle = target.bundle
    prepared = prepare(scene, bundle)
    if given_masks is None:
        routing = route(prepared, bundle)
    else:
        routing = Routing.of("manual", given_masks(prepared.grid), prepared.scene.matrix, strength=1.0)
    latents, masks = denoise_latents(prepared, routing, bundle, ProgressTracker())
    return GeneratedVideo(decode_clips(bundle, [latents])[0], masks.numpy())


def _mixed(target: ModelTarget, scene: SuiteScene, matrix: np.ndarray) -> GeneratedVideo:
    mixed = Speech(torch.from_numpy(scene.clip.mix)[None], SAMPLE_RATE)
    all_characters = torch.ones(1, len(scene.clip.portraits))
    separate = target.scene(scene, matrix, scene.first_frame)
    return _generate(target, replace(separate, speeches=[mixed], audio_character_matrix=all_characters))


def _halves(target: ModelTarget, scene: SuiteScene, matrix: np.ndarray) -> GeneratedVideo:
    order = left_to_right(scene.clip)

    def strips(grid: TokenGrid) -> Tensor:
        masks = torch.zeros(len(order), *grid.shape)
        for position, n in enumerate(order):
            begin, end = (round(k * grid.width / len(order)) for k in (position, position + 1))
            masks[n, :, :, begin:end] = 1.0
        return masks

    return _generate(target, target.scene(scene, matrix, scene.first_frame), strips)


def left_to_right(clip: PuppetClip) -> list[int]:
    """Characters in the order of their positions in the first frame."""
    centers = [np.argwhere(mask[0])[:, 1].mean() if mask[0].any() else np.inf for mask in clip.masks]
    return [int(n) for n in np.argsort(centers, kind="stable")]


def _concat(target: ModelTarget, scene: SuiteScene, matrix: np.ndarray) -> GeneratedVideo:
    clip, order = scene.clip, left_to_right(scene.clip)
    full = target.scene(scene, matrix, scene.first_frame)
    count, width, tokens = len(order), target.settings.width, target.grid.width
    strip, token_strip = width // count, tokens // count
    frames, masks = [], np.zeros((count, *target.grid.shape), dtype=np.float32)
    for position, n in enumerate(order):
        first_frame = None if full.first_frame is None else _center(full.first_frame, position * strip, strip)
        speeches = [speech for m, speech in enumerate(full.speeches) if matrix[m, n] > 0][:1]
        single = replace(
            full,
            prompt=_single_prompt(clip, n),
            characters=[Character(full.characters[n].name, full.characters[n].image)],
            speeches=speeches or [None],
            audio_character_matrix=None,
            first_frame=first_frame,
        )
        video = _generate(target, single)
        left, token_left = (width - strip) // 2, (tokens - token_strip) // 2
        frames.append(video.frames[:, :, left : left + strip])
        column = slice(position * token_strip, (position + 1) * token_strip)
        masks[n, :, :, column] = video.masks[0, :, :, token_left : token_left + token_strip]
    joined = np.concatenate(frames, axis=2)
    missing = width - joined.shape[2]  # if the width is not divisible
    return GeneratedVideo(np.pad(joined, ((0, 0), (0, 0), (0, missing), (0, 0)), mode="edge"), masks)


def _center(image: Tensor, left: int, width: int) -> Tensor:
    """Center a vertical strip of an image [3, H, W] and replicate its edges to the full width."""
    strip = image[:, :, left : left + width]
    before = (image.shape[2] - width) // 2
    return F.pad(strip[None], (before, image.shape[2] - width - before, 0, 0), mode="replicate")[0]


def _single_prompt(clip: PuppetClip, n: int) -> str:
    """Prompt of the scene with only character n."""
    place = clip.prompt.split(":")[0].split(" before ", 1)[1]
    return f"One puppet before {place}: in the middle {clip.looks[n].describe()}."


class TokenClassifier(nn.Module):
    """Replacement of the router that classifies each token independently.

    Args:
        layers: number of face attention layers, each with its own classifier.
        features: heads times face tokens.
        width: dimension of a token's query.
    """

    def __init__(self, layers: int, features: int, width: int) -> None:
        super().__init__()
        self.scores_norm = nn.LayerNorm(features, elementwise_affine=False)
        self.token_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.character = nn.ModuleList([nn.Linear(features, 1) for _ in range(layers)])
        self.background = nn.ModuleList([nn.Linear(features + width, 1) for _ in range(layers)])

    def logits(self, scores: Tensor, tokens: Tensor, layer: int) -> Tensor:
        """[B, N, S, features] and [B, S, width] -> [B, N + 1, S], the background last."""
        x = self.scores_norm(scores)
        background = torch.cat([x.mean(dim=1), self.token_norm(tokens)], dim=-1)[:, None]
        return torch.cat([self.character[layer](x), self.background[layer](background)], dim=1).squeeze(-1)

    def forward(self, query: Tensor, key: Tensor, layer: int, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        """Return logits [B, N + 1, T, h, w] and one-hot masks [B, N, T, h, w]."""
        logits = grid.unflatten(self.logits(attention_scores(query, key), flatten_heads(query), layer))
        owner = logits.argmax(dim=1)
        return logits, F.one_hot(owner, logits.shape[1]).movedim(-1, 1)[:, :-1].to(logits)


def flatten_heads(query: Tensor) -> Tensor:
    """[B, H, S, d] -> [B, S, H * d]."""
    return rearrange(query, "b h s d -> b s (h d)")


def attention_scores(query: Tensor, key: Tensor) -> Tensor:
    """Scores of face attention: query [B, H, S, d], key [B, N, H, Q, d] -> [B, N, S, H * Q]."""
    scores = einsum(query, key, "b h s d, b n h q d -> b n s h q") * query.shape[-1] ** -0.5
    return rearrange(scores, "b n s h q -> b n s (h q)")


_classifiers: dict[int, TokenClassifier] = {}


def _tokens(target: ModelTarget, scene: SuiteScene, matrix: np.ndarray) -> GeneratedVideo:
    transformer = target.bundle.transformer
    if id(transformer) not in _classifiers:
        _classifiers.clear()
        _classifiers[id(transformer)] = fit_classifier(target)
    router, transformer.router = transformer.router, _classifiers[id(transformer)]
    try:
        return _generate(target, target.scene(scene, matrix, scene.first_frame))
    finally:
        transformer.router = router


def fit_classifier(target: ModelTarget, clips: int = FIT_CLIPS, steps: int = FIT_STEPS) -> TokenClassifier:
    """Fit a `TokenClassifier` on training clips with noise at several points of the schedule."""
    bundle, settings = target.bundle, target.settings
    noisy_target = ModelTarget(bundle, settings, FIT_SHARES, target.sampling.steps)
    inputs: list[list[tuple[Tensor, Tensor]]] = []
    labels: list[Tensor] = []

    def record(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        query, key = arguments[:2]
        inputs[-1].append((attention_scores(query, key)[0].float().cpu(), flatten_heads(query)[0].float().cpu()))

    hook = bundle.transformer.router.register_forward_pre_hook(record)
    for k in range(clips):
        clip = make_clip(FIT_SEED + k, 2, settings.height, settings.width, settings.num_frames)
        owned = target.grid.pixels_to_tokens(torch.from_numpy(clip.masks)) >= 0.5
        background = ~owned.any(dim=0, keepdim=True)
        label = torch.cat([owned, background]).float().argmax(dim=0).flatten()
        scene = SuiteScene(clip, k % 2 == 0, np.zeros((0,)))
        for point in noisy_target.points:
            inputs.append([])
            labels.append(label)
            noisy_target.predict_masks(scene, point, scene.first_frame)
    hook.remove()
    layers = range(len(inputs[0]))
    scores = [torch.cat([calls[layer][0] for calls in inputs], dim=1) for layer in layers]
    tokens = [torch.cat([calls[layer][1] for calls in inputs]) for layer in layers]
    owner = torch.cat(labels)
    torch.manual_seed(0)
    classifier = TokenClassifier(len(layers), scores[0].shape[-1], tokens[0].shape[-1])
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(steps):
            batch = torch.randint(len(owner), (4096,), generator=generator)
            losses = [
                F.cross_entropy(
                    classifier.logits(scores[layer][None, :, batch], tokens[layer][None, batch], layer)[0].T,
                    owner[batch],
                )
                for layer in layers
            ]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
    return classifier.requires_grad_(False).to(bundle.device, bundle.dtype)


_BASELINES: dict[Baseline, Callable[[ModelTarget, SuiteScene, np.ndarray], GeneratedVideo]] = {
    "concat": _concat,
    "mixed": _mixed,
    "halves": _halves,
    "tokens": _tokens,
}
