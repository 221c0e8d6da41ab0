"""Synthetic puppet clips, drawn on the fly or written to shards.

python -m training.data.puppet_plan --puppets puppets:n=1-4,frames=17,clips=256 --output runs/puppets
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, get_args

import numpy as np

from bya_core.errors import InputError
from training.command_line import OutputPath, run_command
from training.data.clip import ClipSample, LazyClip
from training.data.shards.writer import ShardWriter
from training.puppets.world import Motion, PuppetClip, Talk, make_clip

EVALUATION_SEEDS = range(1_000_000, 1_001_000)
FPS = 25.0
MAX_PUPPETS = 4  # characters whose positions a prompt can name


def puppet_sample(clip: PuppetClip) -> ClipSample:
    """A drawn clip with its ground truth."""
    return ClipSample(
        key=f"puppet_{clip.seed:07d}",
        frames=clip.frames,
        fps=float(clip.fps),
        speeches=clip.speeches,
        masks=clip.masks,
        portraits=tuple(clip.portraits),
        caption=clip.prompt,
        matrix=clip.matrix,
        measured={"seed": clip.seed, "motion": clip.motion, "drawn": True},
        mouths=np.ascontiguousarray(clip.mouth_centers, np.float32),
    )


@dataclass(frozen=True)
class PuppetPlan:
    """A set of puppet clips; clip i has seed `seed + i`. As text: "puppets:n=1-4,frames=17/49,size=64x96,clips=9".

    Args:
        n: numbers of characters, equally likely; "1-4" or "1/2/2/3" (2 is twice as likely here).
        frames: lengths to choose from.
        size: (height, width) to choose from.
        clips: number of clips.
        seed: seed of the first clip; evaluation seeds (1,000,000 to 1,000,999) are rejected.
        motion, talk: see `make_clip`.
        portrait: side of the portraits in pixels.
    """

    n: tuple[int, ...] = (1, 2, 3, 4)
    frames: tuple[int, ...] = (17,)
    size: tuple[tuple[int, int], ...] = ((64, 96),)
    clips: int = 20_000
    seed: int = 0
    motion: Motion = "mixed"
    talk: Talk = "mixed"
    portrait: int = 48

    def __post_init__(self) -> None:
        numbers = (*self.n, *self.frames, *(side for size in self.size for side in size), self.clips, self.portrait)
        if min(numbers, default=0) < 1 or self.seed < 0 or not (self.n and self.frames and self.size):
            raise InputError(f"puppets {self}", "numbers of at least 1", "use larger numbers")
        if max(self.n) > MAX_PUPPETS:
            raise InputError(f"puppets:n={max(self.n)}", f"at most {MAX_PUPPETS} characters", "use fewer")
        for name, kinds in (("motion", get_args(Motion)), ("talk", get_args(Talk))):
            if getattr(self, name) not in kinds:
                raise InputError(f"puppets:{name}={getattr(self, name)}", " or ".join(kinds), "choose one")
        if self.seed < EVALUATION_SEEDS.stop and self.seed + self.clips > EVALUATION_SEEDS.start:
            problem = f"puppets with seeds {self.seed} to {self.seed + self.clips - 1}"
            raise InputError(problem, "no evaluation seeds", "change the seed or the number of clips")

    @staticmethod
    def parse(text: str) -> PuppetPlan:
        """ "puppets" or "puppets:name=value,...". Raises InputError for other names and values."""
        known = {f.name for f in fields(PuppetPlan)}
        values: dict[str, Any] = {}
        for option in filter(None, text.partition(":")[2].split(",")):
            name, _, value = (piece.strip() for piece in option.partition("="))
            if name not in known:
                raise InputError(f"puppets option {option!r}", f"one of {', '.join(sorted(known))}", "check the name")
            try:
                values[name] = _value(name, value)
            except ValueError as error:
                problem = f"puppets option {option!r}"
                raise InputError(problem, "numbers, as in n=1-4,frames=17/49,size=64x96", "check the value") from error
        return PuppetPlan(**values)

    def __len__(self) -> int:
        return self.clips

    def fingerprint(self) -> str:
        """The values that the clips depend on."""
        return "puppets:" + ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))

    def shape(self, number: int) -> tuple[int, int, int, int, float]:
        """(characters, frames, height, width, fps) of a clip, without drawing it."""
        rng = np.random.default_rng([self.seed + number, 0x5EED])
        n, frames = (int(rng.choice(choices)) for choices in (self.n, self.frames))
        return n, frames, *self.size[int(rng.integers(len(self.size)))], FPS

    def clip(self, number: int) -> ClipSample:
        """Draw clip `number`, deterministically."""
        n, frames, height, width, _ = self.shape(number)
        options: dict[str, Any] = {"motion": self.motion, "talk": self.talk, "portrait_size": self.portrait}
        return puppet_sample(make_clip(self.seed + number, n, height, width, frames, **options))

    def content(self, number: int) -> LazyClip:
        """Clip `number` as a source of `EncodedClips`."""
        return LazyClip.of(self.clip(number))


def _value(name: str, text: str) -> Any:
    """The value of an option of `PuppetPlan`."""
    if name in ("motion", "talk"):
        return text
    if name in ("clips", "seed", "portrait"):
        return int(text)
    if name == "size":
        pairs = [tuple(int(side) for side in part.split("x")) for part in text.split("/")]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(text)
        return tuple(pairs)
    first, dash, last = text.partition("-")
    return tuple(range(int(first), int(last) + 1)) if dash else tuple(int(part) for part in text.split("/"))


@dataclass(frozen=True)
class Arguments:
    """Write puppet clips to shards.

    Args:
        output: output folder.
        puppets: description of the clips, see `PuppetPlan`.
        per_shard: clips per shard.
    """

    output: OutputPath
    puppets: str = "puppets:clips=256"
    per_shard: int = 64


def main(arguments: Arguments) -> None:
    """Draw and write the clips."""
    plan = PuppetPlan.parse(arguments.puppets)
    with ShardWriter(arguments.output, arguments.per_shard) as writer:
        for number in range(plan.clips):
            writer.write(plan.clip(number))
    print(f"wrote {writer.clips} clips in {len(writer.shards)} shards to {arguments.output}")


if __name__ == "__main__":
    run_command(main, Arguments)
