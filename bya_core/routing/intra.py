"""Intra-denoise router (paper sec. 3.3.1): masks predicted in the first denoising steps, which sampling resumes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from bya_core.config import ProbeConfig
from bya_core.progress import ProgressTracker
from bya_core.routing.layout import LayoutScore, layout_score, missing_characters
from bya_core.routing.result import Routing
from bya_core.sampling import StepInfo, build_scheduler, denoise
from bya_core.sampling.conditions import Prepared
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle


def probe(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker) -> Routing:
    """Denoise until the masks have converged, as configured by `scene.routing.probe`.

    Sampling resumes from the result; with unchanged masks this equals an uninterrupted run. If a character has no
    region, further seeds are tried and the best one is returned.

    Raises:
        Cancelled: the progress callback cancelled.
    """
    scene = prepared.scene
    seed = scene.sampling.seed
    if scene.routing.probe.num_takes > 1 and prepared.conditions.known_latents is None:
        takes = probe_takes(prepared, bundle, tracker)
        table = "; ".join(f"seed {take.seed}: {take.text(scene.names)}" for take in takes)
        notices = (f"Seed {takes[0].seed} was used, the best of {len(takes)} by masks ({table}).",)
        return replace(takes[0].routing, calls=sum(take.routing.calls for take in takes), notices=notices)
    best = _probe(prepared, bundle, tracker, seed)
    if not layout_is_free(prepared):
        return best
    calls, missing = best.calls, missing_characters(best.masks)
    for other in range(seed + 1, seed + scene.routing.probe.num_seeds):
        if not missing:
            break
        routing = _probe(prepared, bundle, tracker, other)
        calls, still_missing = calls + routing.calls, missing_characters(routing.masks)
        if len(still_missing) < len(missing):
            best, missing, seed = routing, still_missing, other
    return replace(best, calls=calls, notices=(*best.notices, *_seed_notices(scene, missing, seed)))


@dataclass(frozen=True)
class ProbedTake:
    """The masks that one seed leads to.

    Args:
        seed: random seed.
        routing: masks and partially denoised latents.
        score: of the masks.
    """

    seed: int
    routing: Routing
    score: LayoutScore

    def text(self, names: Sequence[str]) -> str:
        """The score in words."""
        missing = ", ".join(names[n] for n in self.score.missing)
        place = f"no region for {missing}" if missing else "a region for everybody"
        return f"{place}, confidence {self.score.confidence:.2f}, overlap {self.score.overlap:.2f}"


def probe_takes(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker) -> list[ProbedTake]:
    """Probe `num_takes` consecutive seeds; the best masks first. Raises as `probe` does."""
    scene, takes = prepared.scene, []
    for seed in range(scene.sampling.seed, scene.sampling.seed + scene.routing.probe.num_takes):
        routing = _probe(prepared, bundle, tracker.within(f"Seed {seed}"), seed)
        takes.append(ProbedTake(seed, routing, layout_score(routing.masks)))
    return sorted(takes, key=lambda take: take.score.rank, reverse=True)


def _probe(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker, seed: int) -> Routing:
    """Probe with one seed."""
    scene = prepared.scene
    with tracker.stage("Predicting masks", scene.sampling.steps) as step:
        result = denoise(
            bundle.transformer,
            build_scheduler(scene.sampling.scheduler, bundle.scheduler_config),
            prepared.conditions,
            replace(scene.sampling, seed=seed),
            callback=step,
            stop_at=max_probe_steps(scene.routing.probe, scene.sampling.steps),
            stop=MaskConvergence(scene.routing.probe),
        )
    assert result.masks is not None  # a scene has at least one character
    state = result.state
    return Routing.of("intra", result.masks, scene.matrix, strength=0.0, state=state, calls=state.step)


def layout_is_free(prepared: Prepared) -> bool:
    """Whether the position of the characters is left to the model: no first frame, known frames or given masks."""
    conditions = prepared.conditions
    return (
        conditions.first_frame_latents is None and conditions.known_latents is None and conditions.mask_control is None
    )


def _seed_notices(scene: Scene, missing: list[int], seed: int) -> Iterator[str]:
    """Notices about the seed that was used and characters without a region."""
    if seed != scene.sampling.seed:
        yield f"Seed {seed} was used: with seed {scene.sampling.seed}, a character had no region."
    if missing:
        names = ", ".join(scene.characters[n].name for n in missing)
        yield f"No region was assigned to {names}: try another seed or a first frame."


def max_probe_steps(config: ProbeConfig, total: int) -> int:
    """Largest number of steps of a probe in a run of `total` steps."""
    if config.steps is not None:
        return min(config.steps, total)
    return max(1, math.floor(config.max_fraction * total + 1e-9))  # 0.3 of 10 is 3 despite rounding


@dataclass
class MaskConvergence:
    """Stop condition of a probe: the masks have converged. See `sampling.denoise.StopCondition`.

    Args:
        config: with a fixed number of steps, the condition is never met.
        change: mean absolute change of the masks [N, T, h, w] since the previous step; None at the first step.
    """

    config: ProbeConfig
    change: float | None = None
    _previous: Tensor | None = None

    def __call__(self, info: StepInfo) -> bool:
        if info.masks is not None and self._previous is not None:
            self.change = float((info.masks.float() - self._previous).abs().mean())
        self._previous = None if info.masks is None else info.masks.float()
        return self.config.steps is None and self.change is not None and self.change < self.config.threshold
