"""All checks and measurements that need a GPU, ordered by value, for one short session on a borrowed machine.

    python benchmarks/gpu_session.py --output results            # about 9 minutes on an H200; random weights
    python benchmarks/gpu_session.py --output results --only doctor tests
    python benchmarks/gpu_session.py --output results --small    # the same commands on a CPU, to see that they start

Every part is a process of its own with a time limit. Its output is written to OUTPUT/PART.txt, and results.json is
rewritten after each part, so that nothing is lost if the machine is taken away.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
BYA = (PYTHON, "-m", "bya_core")
PROFILE = (PYTHON, "benchmarks/profile.py")


@dataclass(frozen=True)
class Part:
    """One process of the session.

    Args:
        name: Name of the part.
        command: What runs; `{output}` is replaced by the output folder.
        small: The same on a machine without a GPU.
        limit: Time limit in seconds.
    """

    name: str
    command: tuple[str, ...]
    small: tuple[str, ...]
    limit: int


PARTS = (
    Part(
        "doctor",
        (*BYA, "doctor", "--gpu", "--output", "{output}/doctor.json"),
        (*BYA, "doctor", "--output", "{output}/doctor.json"),
        150,
    ),
    Part(
        "tests", (PYTHON, "-m", "pytest", "-q", "-m", "gpu", "tests/unit"), (PYTHON, "-m", "pytest", "--version"), 120
    ),
    Part(
        "step",
        (*PROFILE, "--model", "full-size", "--steps", "3", "--json", "{output}/step.json"),
        (*PROFILE, "--presets", "exact", "--steps", "1", "--json", "{output}/step.json"),
        150,
    ),
    Part("selftest", (*BYA, "selftest", "--full-size"), (*BYA, "selftest"), 60),
    Part("selftest_24gb", (*BYA, "selftest", "--full-size", "--vram", "24"), (*BYA, "selftest"), 60),
    Part("selftest_12gb", (*BYA, "selftest", "--full-size", "--vram", "12"), (*BYA, "selftest"), 60),
)


@dataclass(frozen=True)
class Result:
    """Result of a part.

    Args:
        name: Name of the part.
        command: What ran.
        exit_code: Exit code; None if the time limit was reached.
        seconds: Duration.
    """

    name: str
    command: str
    exit_code: int | None
    seconds: float


def run_part(part: Part, output: Path, small: bool) -> Result:
    """Run one part and write what it printed. The small form has ten times the time."""
    limit = part.limit * (10 if small else 1)
    command = [word.replace("{output}", str(output)) for word in (part.small if small else part.command)]
    start = time.monotonic()
    with (output / f"{part.name}.txt").open("w", encoding="utf-8") as log:
        try:
            process = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=limit)
            exit_code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            exit_code = None
    words = ("python" if word == PYTHON else word for word in command)
    return Result(part.name, " ".join(words), exit_code, round(time.monotonic() - start, 1))


def main(arguments: argparse.Namespace) -> int:
    """Run the parts; returns 1 if any failed."""
    output: Path = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for part in PARTS:
        if arguments.only and part.name not in arguments.only:
            continue
        results.append(run_part(part, output, arguments.small))
        state = "time limit" if results[-1].exit_code is None else f"exit code {results[-1].exit_code}"
        print(f"{part.name}: {state} after {results[-1].seconds:.0f} s", flush=True)
        (output / "results.json").write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return int(any(result.exit_code != 0 for result in results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="run these parts only")
    parser.add_argument("--small", action="store_true", help="run short commands that need no GPU")
    sys.exit(main(parser.parse_args()))
