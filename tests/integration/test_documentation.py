"""Commands in README and docs: every one parses with the options of the real command, and blocks marked quick run.

A block is marked by the comment `<!-- quick -->` before it. It runs as written in a folder that has the files of the
repository; `slow` blocks take minutes and are left out with -m "not slow".
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bya_core.cli.main import COMMANDS
from bya_core.cli.parsing import parse
from bya_core.errors import InputError
from training.engine.plan import Arguments as PlanArguments
from training.engine.settings import RecipeOptions

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bya_core/toy/weights/README.md"]
PAGES += [path for path in sorted((ROOT / "docs").rglob("*.md")) if "adr" not in path.parts]
SHELL = ("pip", "cd", "git", "make", "bash", "source", "cp", "tensorboard", "python3.11")
COMMAND = re.compile(r"^(?:[A-Z]+=\S+ )*(?:\S*/)?(python\S*|bya|accelerate|torchrun|" + "|".join(SHELL) + r")(\s|$)")
MARK = re.compile(r"<!-- (quick|slow) -->")


@dataclass(frozen=True)
class Block:
    """A code block.

    Args:
        page: file.
        line: number of its first line.
        language: of a fenced block; "" = indented or without a language.
        text: content without indentation.
        mark: "quick", "slow" or "".
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The command lines, joined where they are continued."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return [line.strip() for line in lines if COMMAND.match(line.strip())]


def blocks(page: Path) -> list[Block]:
    """The code blocks of a Markdown file: indented by four spaces, or fenced."""
    lines, found, number = page.read_text(encoding="utf-8").splitlines(), [], 0
    while number < len(lines):
        before = next((line for line in reversed(lines[:number]) if line.strip()), "")
        mark = match[1] if (match := MARK.fullmatch(before.strip())) else ""
        if lines[number].startswith("```"):
            end = next(k for k in range(number + 1, len(lines)) if lines[k].startswith("```"))
            found.append(Block(page, number + 1, lines[number][3:].strip(), "\n".join(lines[number + 1 : end]), mark))
            number = end + 1
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(line[4:] for line in lines[number:end]).rstrip()
            found.append(Block(page, number + 1, "", text, mark))
            number = end
        else:
            number += 1
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
MARKED = [block for block in BLOCKS if block.mark]


class Parsed(Exception):
    """The command line of a script has been parsed."""


def check_command(command: str) -> None:
    """Parse a command with the parser of the program that it names; raises InputError."""
    words = shlex.split(command, comments=True)
    while "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
    program = words[0].rpartition("/")[2]
    if program == "bya":
        check_bya(words[1:])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), words
    elif program == "bash":
        assert (ROOT / words[1]).is_file(), words[1]
    elif program in ("accelerate", "torchrun") or program.startswith("python"):
        check_python(words)


def check_bya(words: list[str]) -> None:
    """Parse a command of `bya`."""
    assert words[0] in COMMANDS or words[0].startswith("-"), words
    if words[0] in COMMANDS:
        parse(COMMANDS[words[0]], words[1:], prog="bya")


def check_python(words: list[str]) -> None:
    """Parse the options of a script or module of this repository."""
    at = next((k for k, word in enumerate(words) if word.endswith(".py") or word == "-m" and k > 0), None)
    if at is None:
        return
    name = words[at + 1] if words[at] == "-m" else ".".join(Path(words[at]).with_suffix("").parts)
    rest = words[at + 1 + (words[at] == "-m") :]
    if name == "bya_core":
        check_bya(rest)
    elif name.partition(".")[0] in ("training", "benchmarks", "tools"):
        check_script(name, [word for word in rest if word != "..."], "..." in rest)


def check_script(name: str, words: list[str], partial: bool) -> None:
    """Parse the options of one script; `partial` if the required ones are left out."""
    path = ROOT.joinpath(*name.split("."))
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    if name == "training.run_stage" and {"--plan", "--print-config"} & set(words):
        kind = PlanArguments if "--plan" in words else RecipeOptions
        words = [word for word in words if word not in ("--plan", "--print-config", "--help")]
        parse(kind, words if "--stage" in words else [*words, "--stage", "1"])
        return
    if partial and name == "training.run_stage":
        words = ["--stage", "1", "--data", "puppets", "--output", "runs/x", *words]
    module = importlib.import_module(name if path.name != "__main__.py" else f"{name}.__main__")
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    kinds = [call.args[1].id for call in calls if getattr(call.func, "id", "") == "run_command"]
    if kinds:
        parse(getattr(module, kinds[0]), words)
        return
    original = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        original(parser, words)
        raise Parsed

    argparse.ArgumentParser.parse_args = stop  # type: ignore[assignment, method-assign]
    try:
        with pytest.raises(Parsed):
            module.main()
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.commands], ids=str)
def test_commands_parse(block):
    variables = dict(re.findall(r"^([A-Z]+)=(\S+)", block.text, re.MULTILINE))
    for command in block.commands:
        for name, value in variables.items():
            command = command.replace(f"${name}", value)
        try:
            check_command(command)
        except (InputError, SystemExit) as error:
            pytest.fail(f"{command}: {error}")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("json", "yaml", "python")], ids=str)
def test_fenced_code_is_valid(block):
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    else:
        text = block.text if block.text.lstrip().startswith(("{", "[")) else "{" + block.text.rstrip(",") + "}"
        json.loads(text)


PROGRAMS = {
    "python": "",
    "bya": " -m bya_core",
    "torchrun": " -m torch.distributed.run",
    "pip": " -c 'pass'",  # installed already
}


@pytest.mark.parametrize(
    "block",
    [pytest.param(b, marks=pytest.mark.slow if b.mark == "slow" else (), id=str(b)) for b in MARKED],
)
def test_marked_blocks_run(block, tmp_path):
    for name in ("bya_core", "training", "demo", "docs", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, target in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{target} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    script = [sys.executable, "-c", block.text] if block.language == "python" else ["bash", "-ec", block.text]
    result = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]


def test_the_first_training_commands_are_among_the_marked_blocks():
    pages = {block.page.relative_to(ROOT).as_posix() for block in MARKED if "run_stage.py" in block.text}
    assert {"README.md", "docs/how-to/train.md"} <= pages
