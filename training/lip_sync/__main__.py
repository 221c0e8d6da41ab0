r"""Train the lip-sync model of the binding report, and evaluate it on people left out of the training.

    python -m training.lip_sync -o runs/lip_sync
    python -m training.lip_sync -o runs/lip_sync --others ../shared/clips/base/vr_1.mp4 ...

Writes lip_sync.safetensors (shipped in bya_core/encoders/weights), mouths.npz (tests/assets/grid) and lip-sync.md
(docs/results). Every group of people is judged by a model that was trained on the other people; those of --others are
never trained on.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.torch import save

from bya_core.encoders.face.tracking import track_faces
from bya_core.errors import InputError
from bya_core.evaluation.lip_sync import (
    FPS,
    RATE,
    LipSync,
    LipSyncModel,
    MouthTrack,
    best_pairs,
    compare,
    fit_model,
    mouth_shapes,
    speech_features,
)
from bya_core.io.atomic import atomic_write
from bya_core.io.media import read_audio, read_video, resample_mono
from training.benchmark.tables import markdown_table
from training.command_line import OutputPath, run_command
from training.lip_sync.network import fit_network

log = logging.getLogger(__name__)

CLIPS = Path(__file__).resolve().parents[2] / "tests/assets/grid"
STEP = 13  # frames between the starts of two windows of a clip
SHIFTS = (-5, -3, 3, 5)
LENGTHS = (75, 49)


@dataclass(frozen=True)
class Arguments:
    """Train and evaluate the lip-sync model.

    Args:
        output: folder for the weights and the table.
        clips: videos of one speaking person each, with sound; one person per file. Default: tests/assets/grid.
        others: videos of further people, for the evaluation only; sound is read from NAME.wav if that exists.
        network: evaluate the small temporal network, too.
    """

    output: OutputPath
    clips: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    network: bool = True


@dataclass(frozen=True)
class Person:
    """A speaking person over L frames.

    Args:
        name: of the file.
        mouth: seen.
        waveform: mono at 16 kHz.
        trained: whether models may be trained on this person.
    """

    name: str
    mouth: MouthTrack
    waveform: np.ndarray
    trained: bool

    @property
    def length(self) -> int:
        return len(self.mouth.shape)


def read_person(path: Path, trained: bool) -> Person:
    """Read a clip. Raises InputError if it does not show exactly one face."""
    frames, fps = read_video(path)
    tracks = track_faces(frames.numpy())
    if len(tracks) != 1:
        raise InputError(f"{len(tracks)} faces in {path}", "one person per clip", "cut it to one person")
    sound = path.with_suffix(".wav")
    waveform, rate = read_audio(sound if sound.is_file() else path)
    length = round(len(frames) / fps * FPS)
    mouth = mouth_shapes(tracks[0].points, np.arange(len(frames)) / fps, length)
    log.info("%s: %d frames", path.name, length)
    return Person(path.stem, mouth, resample_mono(waveform, rate, RATE).numpy(), trained)


class Evaluation:
    """Windows of groups of people who speak at the same time, judged by models trained on other people."""

    def __init__(self, people: Sequence[Person], fit: Callable[..., LipSyncModel]) -> None:
        self.people, self.fit = people, lru_cache(maxsize=None)(self._fit)
        self._method = fit

    def _fit(self, left_out: frozenset[str]) -> LipSyncModel:
        chosen = [person for person in self.people if person.trained and person.name not in left_out]
        features = [speech_features(person.waveform, person.length) for person in chosen]
        return self._method(features, [person.mouth.shape for person in chosen])

    def windows(
        self, count: int, length: int, shift: int = 0
    ) -> Iterator[tuple[tuple[Person, ...], list[MouthTrack], list[np.ndarray], LipSyncModel]]:
        """Mouths and waveforms of all groups of `count` people; `shift` > 0 shows the mouths late."""
        for group in itertools.combinations(self.people, count):
            model = self.fit(frozenset(person.name for person in group if person.trained))
            shortest = min(person.length for person in group)
            for start in range(0, max(1, shortest - length - abs(shift) + 1), STEP):
                span = min(length, shortest - abs(shift))
                first, heard = start + max(-shift, 0), start + max(shift, 0)
                mouths = [cut_mouth(person.mouth, first, first + span) for person in group]
                waves = [cut_wave(person.waveform, heard, heard + span) for person in group]
                yield group, mouths, waves, model

    def matching(self, count: int, length: int) -> tuple[float, float, int]:
        """Fraction of windows with all voices right, of mouths that fit their own voice best, and their number."""
        groups, mouths = [], []
        for _, seen, waves, model in self.windows(count, length):
            scores = _compared(seen, waves, model).scores
            groups.append(all(n == m for n, m in best_pairs(scores)))
            mouths += (scores.argmax(axis=1) == np.arange(count)).tolist()
        return float(np.mean(groups)), float(np.mean(mouths)), len(groups)

    def shifts(self, length: int) -> tuple[float, int]:
        """Fraction of pairs of training people whose shift is measured within one frame, and their number."""
        right = []
        for shift in SHIFTS:
            for group, seen, waves, model in self.windows(2, length, shift):
                if all(person.trained for person in group):
                    offsets = np.diag(_compared(seen, waves, model).offsets)
                    right += (np.abs(offsets - shift) <= 1).tolist()
        return float(np.mean(right)), len(right)


def _compared(mouths: Sequence[MouthTrack], waves: Sequence[np.ndarray], model: LipSyncModel) -> LipSync:
    return compare(mouths, [model.predict(wave, len(mouths[0].shape)) for wave in waves], model)


def cut_wave(waveform: np.ndarray, start: int, end: int) -> np.ndarray:
    """Samples of the frames `start` to `end` of a waveform at 16 kHz."""
    return waveform[start * RATE // FPS : end * RATE // FPS]


def cut_mouth(mouth: MouthTrack, start: int, end: int) -> MouthTrack:
    """The frames `start` to `end` of a mouth."""
    return MouthTrack(mouth.shape[start:end], mouth.visible[start:end])


def results(people: Sequence[Person], methods: dict[str, Callable[..., LipSyncModel]]) -> str:
    """The page of results in Markdown."""
    rows = []
    for name, fit in methods.items():
        evaluation = Evaluation(people, fit)
        for count, length in itertools.product((2, 3), LENGTHS):
            groups, mouths, number = evaluation.matching(count, length)
            rows.append([name, str(count), f"{length / FPS:.1f}", f"{groups:.1%}", f"{mouths:.1%}", str(number)])
            log.info(" ".join(rows[-1]))
        share, number = evaluation.shifts(LENGTHS[0] - max(SHIFTS))
        rows.append([name, "2, shifted", f"{(LENGTHS[0] - max(SHIFTS)) / FPS:.1f}", f"{share:.1%}", "-", str(number)])
    others = sum(not person.trained for person in people)
    return "\n".join(
        [
            "# Lip sync without SyncNet",
            "",
            "    python -m training.lip_sync -o runs/lip_sync --others CLIP ...",
            "",
            f"{len(people) - others} people of `tests/assets/grid` (the training data, 3 s each) and {others} people "
            "that are not in the repository, never used for training. Each row lists all groups of that many people "
            "who speak at the same time, in windows of that length; a group is judged by a model trained without its "
            "people. In the shifted rows the mouths are 3 or 5 frames early or late, and the share is that of mouths "
            "whose shift is measured within one frame (people of `tests/assets/grid` only, whose timing is exact).",
            "",
            markdown_table(["model", "people", "seconds", "all voices right", "mouths right", "windows"], rows),
            "",
        ]
    )


def main(arguments: Arguments) -> None:
    clips = arguments.clips or tuple(sorted(CLIPS.glob("*.mp4")))
    if len(clips) < 4:
        raise InputError(f"{len(clips)} clips", "at least 4 people", "name more with --clips")
    people = [read_person(path, True) for path in clips] + [read_person(path, False) for path in arguments.others]
    methods: dict[str, Callable[..., LipSyncModel]] = {"ridge regression": fit_model}
    if arguments.network:
        methods["temporal network"] = fit_network
    page = results(people, methods)
    model = Evaluation(people, fit_model).fit(frozenset())
    arguments.output.mkdir(parents=True, exist_ok=True)
    with atomic_write(arguments.output / "lip_sync.safetensors") as temporary:
        temporary.write_bytes(save(model.state(), {"trained_on": ", ".join(path.stem for path in clips)}))
    with atomic_write(arguments.output / "mouths.npz") as temporary:
        shapes = {person.name: person.mouth.shape.astype(np.float32) for person in people if person.trained}
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **shapes)  # type: ignore[arg-type]  # a flaw of the stubs of NumPy
    with atomic_write(arguments.output / "lip-sync.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    run_command(main, Arguments)
