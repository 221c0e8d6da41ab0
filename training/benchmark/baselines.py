"""What others do, on the same weights: baselines that need no other system (paper sec. 5.3.1 and 5.4.1).

- concat: each character alone, with its own voice and its part of the first frame in the middle of the picture; the
  middles are pasted side by side, from left to right as the people stand in the first frame.
- mixed: one recording of everybody, heard by all faces.
- halves: the picture cut into upright strips of one width, one per character, as most tools ask for them.
- tokens: each token by itself is given to the character whose face it goes with best, or to nobody, as Ingredients
  does it: no attention over space and time, no positions, no smoothness. The classifier is linear over the scores of
  face attention (queries of the video, keys of the faces, per head and face token), and over the token itself for
  whether it is anybody's; it is fitted on drawn training clips. Everything else of the model is as it was trained.

Bounding boxes of the first frame, the fifth of them, are a way of the pre router.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from bya_core.grid import TokenGrid
from bya_core.pipelines.generate import denoised, prepare, route
from bya_core.progress import ProgressTracker
from bya_core.routing import Routing
from bya_core.scene.types import Character, Scene, Speech
from bya_core.weights.bundle import ModelBundle
from training.benchmark.scenes import SuiteScene
from training.benchmark.subjects import Made, ModelSubject, decode_clips
from training.puppets.world import SAMPLE_RATE, PuppetClip, make_clip

Baseline = Literal["concat", "mixed", "halves", "tokens"]

FIT_SEED, FIT_CLIPS, FIT_STEPS = 900_000, 24, 300  # training clips, never evaluated on
FIT_SHARES = (0.9, 0.6, 0.3)  # of the noise schedule


def make_baseline(name: Baseline, subject: ModelSubject, scene: SuiteScene, matrix: np.ndarray) -> Made:
    """The video of a scene as that baseline makes it, under an audio-character matrix [M, N]."""
    return _MAKERS[name](subject, scene, matrix)


@torch.no_grad()
def _run(subject: ModelSubject, asked: Scene, forced: Callable[[TokenGrid], Tensor] | None = None) -> Made:
    bundle = subject.bundle
    prepared = prepare(asked, bundle)
    if forced is None:
        routing = route(prepared, bundle)
    else:
        routing = Routing.of("manual", forced(prepared.grid), prepared.scene.matrix, strength=1.0)
    latents, masks = denoised(prepared, routing, bundle, ProgressTracker())
    return Made(decode_clips(bundle, [latents])[0], masks.numpy())


def _mixed(subject: ModelSubject, scene: SuiteScene, matrix: np.ndarray) -> Made:
    asked = subject.scene(scene, matrix, scene.first_frame)
    together = Speech(torch.from_numpy(scene.clip.mix)[None], SAMPLE_RATE)
    everybody = torch.ones(1, len(scene.clip.portraits))
    return _run(subject, replace(asked, speeches=[together], audio_character_matrix=everybody))


def _halves(subject: ModelSubject, scene: SuiteScene, matrix: np.ndarray) -> Made:
    order = left_to_right(scene.clip)

    def strips(grid: TokenGrid) -> Tensor:
        masks = torch.zeros(len(order), *grid.shape)
        for place, n in enumerate(order):
            begin, end = (round(k * grid.width / len(order)) for k in (place, place + 1))
            masks[n, :, :, begin:end] = 1.0
        return masks

    return _run(subject, subject.scene(scene, matrix, scene.first_frame), strips)


def left_to_right(clip: PuppetClip) -> list[int]:
    """Characters by where they stand in the first frame."""
    middles = [np.argwhere(mask[0])[:, 1].mean() if mask[0].any() else np.inf for mask in clip.masks]
    return [int(n) for n in np.argsort(middles, kind="stable")]


def _concat(subject: ModelSubject, scene: SuiteScene, matrix: np.ndarray) -> Made:
    clip, order = scene.clip, left_to_right(scene.clip)
    whole = subject.scene(scene, matrix, scene.first_frame)
    count, width, tokens = len(order), subject.settings.width, subject.grid.width
    part, piece = width // count, tokens // count
    frames, masks = [], np.zeros((count, *subject.grid.shape), dtype=np.float32)
    for place, n in enumerate(order):
        start = None if whole.first_frame is None else _centred(whole.first_frame, place * part, part)
        heard = [speech for m, speech in enumerate(whole.speeches) if matrix[m, n] > 0][:1]
        alone = replace(
            whole,
            prompt=_alone(clip, n),
            characters=[Character(whole.characters[n].name, whole.characters[n].image)],
            speeches=heard or [None],
            audio_character_matrix=None,
            first_frame=start,
        )
        made = _run(subject, alone)
        left = (width - part) // 2
        frames.append(made.frames[:, :, left : left + part])
        from_ = (tokens - piece) // 2
        masks[n, :, :, place * piece : (place + 1) * piece] = made.masks[0, :, :, from_ : from_ + piece]
    joined = np.concatenate(frames, axis=2)
    missing = width - joined.shape[2]  # where the width cannot be divided evenly
    return Made(np.pad(joined, ((0, 0), (0, 0), (0, missing), (0, 0)), mode="edge"), masks)


def _centred(picture: Tensor, left: int, width: int) -> Tensor:
    """A strip of a picture [3, H, W] in the middle of one as wide, its edges drawn out."""
    strip = picture[:, :, left : left + width]
    before = (picture.shape[2] - width) // 2
    return F.pad(strip[None], (before, picture.shape[2] - width - before, 0, 0), mode="replicate")[0]


def _alone(clip: PuppetClip, n: int) -> str:
    """The prompt of a scene with one of its people in it."""
    place = clip.prompt.split(":")[0].split(" before ", 1)[1]
    return f"One puppet before {place}: in the middle {clip.looks[n].describe()}."


class TokenClassifier(nn.Module):
    """In place of a router: which face each token goes with, token by token.

    Args:
        layers: face layers with a classifier of their own.
        features: heads times face tokens.
        width: of a token's query.
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
        seen = torch.cat([x.mean(dim=1), self.token_norm(tokens)], dim=-1)[:, None]
        return torch.cat([self.character[layer](x), self.background[layer](seen)], dim=1).squeeze(-1)

    def forward(self, query: Tensor, key: Tensor, layer: int, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        """As a router: logits [B, N + 1, T, h, w] and masks [B, N, T, h, w], each token to one."""
        logits = grid.unflatten(self.logits(relevance(query, key), flat(query), layer))
        owner = logits.argmax(dim=1)
        return logits, F.one_hot(owner, logits.shape[1]).movedim(-1, 1)[:, :-1].to(logits)


def flat(query: Tensor) -> Tensor:
    """[B, H, S, d] -> [B, S, H * d]."""
    return rearrange(query, "b h s d -> b s (h d)")


def relevance(query: Tensor, key: Tensor) -> Tensor:
    """Scores of face attention: query [B, H, S, d], key [B, N, H, Q, d] -> [B, N, S, H * Q]."""
    scores = einsum(query, key, "b h s d, b n h q d -> b n s h q") * query.shape[-1] ** -0.5
    return rearrange(scores, "b n s h q -> b n s (h q)")


@contextmanager
def _routed_by(transformer: Any, router: Any) -> Iterator[None]:
    own = transformer.router
    transformer.router = router
    try:
        yield
    finally:
        transformer.router = own


_fitted: dict[int, TokenClassifier] = {}


def _tokens(subject: ModelSubject, scene: SuiteScene, matrix: np.ndarray) -> Made:
    transformer = subject.bundle.transformer
    if id(transformer) not in _fitted:
        _fitted.clear()
        _fitted[id(transformer)] = fit_classifier(subject)
    with _routed_by(transformer, _fitted[id(transformer)]):
        return _run(subject, subject.scene(scene, matrix, scene.first_frame))


class _Recorder(nn.Module):
    """The router, keeping what it is asked."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router, self.seen = router, []  # type: ignore[var-annotated]

    def forward(self, query: Tensor, key: Tensor, layer: int, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        self.seen.append((relevance(query, key)[0].float().cpu(), flat(query)[0].float().cpu()))
        return self.router(query, key, layer, grid)


def fit_classifier(subject: ModelSubject, clips: int = FIT_CLIPS, steps: int = FIT_STEPS) -> TokenClassifier:
    """Fit a `TokenClassifier` on drawn training clips, noised to a few points of the schedule."""
    bundle: ModelBundle = subject.bundle
    probe = ModelSubject(bundle, subject.settings, FIT_SHARES, subject.sampling.steps)
    recorder = _Recorder(bundle.transformer.router)
    rows: list[list[tuple[Tensor, Tensor]]] = []
    labels: list[Tensor] = []
    settings = subject.settings
    with _routed_by(bundle.transformer, recorder):
        for k in range(clips):
            clip = make_clip(FIT_SEED + k, 2, settings.height, settings.width, settings.num_frames)
            owned = subject.grid.pixels_to_tokens(torch.from_numpy(clip.masks)) >= 0.5
            nobody = ~owned.any(dim=0, keepdim=True)
            label = torch.cat([owned, nobody]).float().argmax(dim=0).flatten()
            scene = SuiteScene(clip, k % 2 == 0, np.zeros((0,)))
            for point in probe.points:
                recorder.seen.clear()
                probe.find(scene, point, scene.first_frame)
                rows.append([*recorder.seen])
                labels.append(label)
    layers = len(rows[0])
    scores = [torch.cat([row[layer][0] for row in rows], dim=1) for layer in range(layers)]
    tokens = [torch.cat([row[layer][1] for row in rows]) for layer in range(layers)]
    target = torch.cat(labels)
    torch.manual_seed(0)
    classifier = TokenClassifier(layers, scores[0].shape[-1], tokens[0].shape[-1])
    optimiser = torch.optim.Adam(classifier.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(steps):
            chosen = torch.randint(len(target), (4096,), generator=generator)
            losses = [
                F.cross_entropy(
                    classifier.logits(scores[layer][None, :, chosen], tokens[layer][None, chosen], layer)[0].T,
                    target[chosen],
                )
                for layer in range(layers)
            ]
            optimiser.zero_grad()
            torch.stack(losses).mean().backward()
            optimiser.step()
    return classifier.requires_grad_(False).to(bundle.device, bundle.dtype)


_MAKERS: dict[Baseline, Callable[[ModelSubject, SuiteScene, np.ndarray], Made]] = {
    "concat": _concat,
    "mixed": _mixed,
    "halves": _halves,
    "tokens": _tokens,
}
