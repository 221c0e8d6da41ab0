r"""Measure the binding report on clips of real people with known truth.

    python -m training.lip_sync.clips ../shared/clips -o runs/clips

The folder holds manifest.json with "sources" (videos of one person each, "file" and "voice") and "videos" (their
"kind", "characters", "scene", "truth"). People of tests/assets/grid, whom the lip-sync model of the package was trained
on, are judged by a model that was trained without them. Writes clips.md and clips.json.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tyro.conf import Positional

from bya_core.encoders.face.mesh import FaceMesh
from bya_core.encoders.face.tracking import track_faces
from bya_core.errors import InputError
from bya_core.evaluation.face_report import FaceTools
from bya_core.evaluation.lip_sync import FPS, RATE, LipSyncModel, MouthTrack, compare, load_lip_sync
from bya_core.evaluation.lip_verdict import LipScores
from bya_core.evaluation.speakers import find_speakers_in
from bya_core.evaluation.verdict import speech_loudness
from bya_core.evaluation.video_file import measure_file
from bya_core.io.atomic import write_json, write_text
from bya_core.io.media import read_video
from bya_core.scene.types import Speech
from training.benchmark.tables import markdown_table
from training.command_line import OutputPath, run_command
from training.lip_sync.__main__ import (
    CLIPS,
    LENGTHS,
    Evaluation,
    Person,
    cut_mouth,
    cut_wave,
    fit_model,
    read_person,
)

log = logging.getLogger(__name__)

GOOD = ("own", "still")
UNRELATED = 200  # random groups whose mouths follow no voice


@dataclass(frozen=True)
class Arguments:
    """Measure the binding report on clips with known truth.

    Args:
        folder: of the clips, with manifest.json.
        output: folder for clips.md and clips.json.
        groups: also judge all groups of 2 and 3 people of the sources, in windows of 3 s and 49 frames, and groups
            whose mouths follow no voice.
    """

    folder: Positional[Path]
    output: OutputPath
    groups: bool = True


@dataclass(frozen=True)
class Share:
    """`good` of `total` cases."""

    name: str
    good: int
    total: int

    @property
    def row(self) -> list[str]:
        """Cells of a table."""
        return [self.name, f"{self.good} of {self.total}", f"{self.good / self.total:.1%}" if self.total else "-"]


KINDS = {"right": ("n2", "n3", "listen", "turns", "cross"), "swapped": ("swapped",), "shifted": ("shifted",)}


def read_people(folder: Path, sources: dict[str, Any]) -> tuple[list[Person], list[Person]]:
    """People of tests/assets/grid, and those of the manifest who are not among them."""
    trained = [read_person(path, True) for path in sorted(CLIPS.glob("*.mp4"))]
    if not trained:
        raise InputError(f"no clips in {CLIPS}", "the training data of the lip-sync model", "restore the folder")
    others: dict[str, Person] = {}
    for name, entry in sources.items():
        if not any(name.endswith(person.name) for person in trained):
            others.setdefault(entry.get("person", name), read_person(folder / entry["file"], False))
    return trained, list(others.values())


def judge(folder: Path, name: str, clip: dict[str, Any], tools: FaceTools) -> dict[str, Any]:
    """Report on one clip: verdicts, and whether they are right."""
    report = measure_file(folder / clip.get("video", name), folder / clip["scene"], tools=tools)
    return {"clip": name, "kind": clip["kind"]} | {
        key: report.metrics[key] for key in ("passed", "verdicts", "offset", "score")
    }


def shares(results: Sequence[dict[str, Any]], clips: dict[str, dict[str, Any]]) -> list[Share]:
    """Shares of right reports by kind of clip."""
    by_kind = {kind: [each for each in results if each["kind"] in kinds] for kind, kinds in KINDS.items()}
    right, wrong, shifted = by_kind["right"], by_kind["swapped"], by_kind["shifted"]
    lags = [abs(lag - clips[each["clip"]]["truth"]["lag_frames"]) for each in shifted for lag in each["offset"]]
    listeners = [
        verdict
        for each in results
        if each["kind"] in ("listen", "turns")
        for verdict, speaks in zip(each["verdicts"], clips[each["clip"]]["truth"]["speaks"], strict=True)
        if not speaks
    ]
    return [
        Share("right clips passed", sum(each["passed"] is True for each in right), len(right)),
        Share("right clips failed", sum(each["passed"] is False for each in right), len(right)),
        Share("swapped clips failed", sum(each["passed"] is False for each in wrong), len(wrong)),
        Share("shifted clips failed", sum(each["passed"] is False for each in shifted), len(shifted)),
        Share("shifts measured within 1 frame", sum(lag <= 1 for lag in lags), len(lags)),
        Share("listeners recognized", sum(verdict == "still" for verdict in listeners), len(listeners)),
    ]


def faces(folder: Path, manifest: dict[str, Any], mesh: FaceMesh) -> list[Share]:
    """Faces found, frames with more faces than people, and turns given to the right person."""
    videos = {entry["file"]: 1 for entry in manifest["sources"].values()}
    videos |= {name: len(clip["characters"]) for name, clip in manifest["videos"].items() if "video" not in clip}
    found = wanted = invented = total = 0
    for name, count in videos.items():
        frames = read_video(folder / name)[0].numpy()
        visible = np.sum([track.visible for track in track_faces(frames, mesh)], axis=0) + np.zeros(len(frames))
        if not manifest["videos"].get(name, {}).get("truth", {}).get("crosses"):  # people hide each other there
            found, wanted = found + int(np.minimum(visible, count).sum()), wanted + count * len(frames)
        invented, total = invented + int((visible > count).sum()), total + len(frames)
    return [Share("faces found, all frames", found, wanted), Share("frames with an invented face", invented, total)]


def turns(folder: Path, name: str, clip: dict[str, Any], tools: FaceTools) -> Share:
    """Share of the frames with speech that `bya speakers` gives to the person who speaks, and to nobody else."""
    found = find_speakers_in(folder / name, tools=tools)
    truth = np.zeros_like(found.lanes)
    for n, (start, end) in enumerate(clip["truth"]["turns"]):
        truth[n, start:end] = True
    right = (found.lanes == truth).all(axis=0) & found.speech
    return Share(f"speaker of each frame, {name}", int(right.sum()), int(found.speech.sum()))


def groups(people: Sequence[Person]) -> Iterator[Share]:
    """Reports on groups of 2 and 3 people who speak at once, with right, swapped and unrelated voices."""
    evaluation = Evaluation(people, fit_model)
    for count, length in itertools.product((2, 3), LENGTHS):
        tables: dict[str, list[bool | None]] = {"right": [], "swapped": [], "unrelated": []}
        order = np.arange(count)
        for _, mouths, waves, model in evaluation.windows(count, length):
            tables["right"].append(verdict(mouths, waves, order, model))
            tables["swapped"].append(verdict(mouths, waves, np.roll(order, 1), model))
        for mouths, waves, model in unrelated(evaluation, count, length):
            tables["unrelated"].append(verdict(mouths, waves, order, model))
        for kind, passed in tables.items():
            for result, words in ((True, "passed"), (False, "failed")):
                name = f"{count} people, {length} frames, {kind} voices: {words}"
                yield Share(name, sum(each is result for each in passed), len(passed))


def verdict(
    mouths: Sequence[MouthTrack], waves: Sequence[np.ndarray], targets: np.ndarray, model: LipSyncModel
) -> bool | None:
    """Whether the report passes; None = inconclusive."""
    length = len(mouths[0].shape)
    lips = compare(mouths, [model.predict(wave, length) for wave in waves], model)
    speeches = [Speech(torch.from_numpy(np.float32(wave))[None], RATE) for wave in waves]
    loudness = np.stack([speech_loudness(speech, length, FPS) for speech in speeches])
    scores = LipScores(lips, loudness, targets, FPS)
    names = [str(n) for n in range(len(mouths))]
    verdicts = {scores.verdict(n, name, names)[0] for n, name in enumerate(names)}
    return None if "unclear" in verdicts and verdicts <= {"unclear", *GOOD} else verdicts <= set(GOOD)


def unrelated(
    evaluation: Evaluation, count: int, length: int
) -> Iterator[tuple[list[MouthTrack], list[np.ndarray], LipSyncModel]]:
    """Mouths of `count` people with the voices of as many others, at random; the model has not seen the mouths."""
    rng, people = np.random.default_rng(0), evaluation.people
    if len(people) < 2 * count:
        return
    for _ in range(UNRELATED):
        drawn = [people[k] for k in rng.permutation(len(people))[: 2 * count]]
        starts = [int(rng.integers(max(1, person.length - length + 1))) for person in drawn]
        span = min(length, *(person.length for person in drawn))
        mouths = [cut_mouth(p.mouth, k, k + span) for p, k in zip(drawn[:count], starts, strict=False)]
        waves = [cut_wave(p.waveform, k, k + span) for p, k in zip(drawn[count:], starts[count:], strict=True)]
        yield mouths, waves, evaluation.fit(frozenset(p.name for p in drawn[:count] if p.trained))


def main(arguments: Arguments) -> None:
    folder = arguments.folder
    file = folder / "manifest.json"
    if not file.is_file():
        raise InputError(f"no {file}", "a folder of clips with manifest.json", "name another folder")
    manifest = json.loads(file.read_text(encoding="utf-8"))
    trained, others = read_people(folder, manifest["sources"])
    fit, tools = Evaluation(trained, fit_model).fit, FaceTools.load()
    results, table = [], []
    for name, clip in manifest["videos"].items():
        left_out = {person.name for person in trained if any(each.endswith(person.name) for each in clip["characters"])}
        tools.lip_sync = fit(frozenset(left_out)) if left_out else load_lip_sync()
        results.append(judge(folder, name, clip, tools))
        log.info("%s: %s", name, results[-1]["verdicts"])
        if "turns" in clip["truth"]:
            table.append(turns(folder, name, clip, tools))
    table = [*shares(results, manifest["videos"]), *table, *faces(folder, manifest, tools.mesh or FaceMesh())]
    if arguments.groups:
        table += groups([*trained, *others])
    rows = [share.row for share in table]
    page = markdown_table(["measure", "cases", "share"], rows) + "\n"
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "clips.json", results)
    write_text(arguments.output / "clips.md", page)
    print(page)


if __name__ == "__main__":
    run_command(main, Arguments)
