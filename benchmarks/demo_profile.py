"""Where the time of the demo goes: the command as a user runs it, between the things it says.

    python benchmarks/demo_profile.py                 # fills in the table of docs/results/speed.md
    python benchmarks/demo_profile.py -- --steps 4    # more for the command; then only prints

The command runs in a process of its own and is only listened to. Processor seconds count all of its threads and say
what it costs on a busy machine too; seconds of the clock depend on what else runs.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.memory_ladder import write_between  # noqa: E402

DOCUMENT = ROOT / "docs" / "results" / "speed.md"
SAYS = re.compile(r"(?P<part>[^:]+?)(?: \.\.\.|: step \d+/\d+.*)")
START = "Python and the command line"


@dataclass
class Part:
    """What a part of the command took.

    Args:
        name: as the command calls it.
        clock: seconds.
        processor: seconds, of all threads.
    """

    name: str
    clock: float = 0.0
    processor: float = 0.0


def profile(command: list[str]) -> list[Part]:
    """Run a command of `python -m bya_core` and take the time between what it says.

    Raises:
        RuntimeError: it failed.
    """
    parts, said = [Part(START)], []
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bya_core", *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    watched = psutil.Process(process.pid)
    last = start, 0.0
    for line in _lines(process.stderr.fileno()):
        said.append(line)
        found = SAYS.fullmatch(line.strip())
        if found is None or found["part"] == parts[-1].name:
            continue
        now = time.perf_counter(), _processor(watched)
        _add(parts[-1], last, now)
        parts, last = [*parts, Part(found["part"])], now
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError("\n".join(said[-5:]))
    _add(parts[-1], last, (time.perf_counter(), used.ru_utime + used.ru_stime))
    return parts


def _lines(pipe: int) -> Iterator[str]:
    """What is written there, as it comes; progress bars end lines with a carriage return."""
    rest = ""
    while piece := os.read(pipe, 4096):
        *whole, rest = re.split(r"[\r\n]+", rest + piece.decode(errors="replace"))
        yield from whole
    yield rest


def _processor(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _add(part: Part, before: tuple[float, float], now: tuple[float, float]) -> None:
    part.clock += now[0] - before[0]
    part.processor += now[1] - before[1]


def table(parts: list[Part], about: str) -> str:
    """Markdown."""
    lines = [about, "", "| part | processor seconds | seconds |", "|---|---|---|"]
    whole = Part("all of it", sum(part.clock for part in parts), sum(part.processor for part in parts))
    lines += [f"| {part.name} | {part.processor:.1f} | {part.clock:.1f} |" for part in (*parts, whole)]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("more", nargs="*", help="for the command")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [word for name, file in (("-o", "talk.mp4"), ("--overlay", "masks.mp4"), ("--json", "report.json"))
                   for word in (name, f"{folder}/{file}")]  # fmt: skip
        parts = profile(["generate", "demo/scene.json", *outputs, *given.more])
    threads = os.environ.get("OMP_NUM_THREADS", "as many as cores")
    about = f"{os.cpu_count()} cores, OMP_NUM_THREADS: {threads}; load about {os.getloadavg()[0]:.0f}."
    text = table(parts, about)
    print(text)
    if not given.more:
        write_between(DOCUMENT, "demo", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
