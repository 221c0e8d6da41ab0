"""Wrong command lines are one sentence, whatever the encoding of the terminal is."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest

from bya_core.cli.parsing import parse
from bya_core.errors import InputError
from bya_core.validation import Field, validated


@validated
class Options:
    """Options of a test.

    Args:
        output: a file.
        mode: a choice.
        steps: a number with a range.
    """

    output: Path
    mode: Literal["a", "b"] = "a"
    steps: Annotated[int, Field(ge=1)] = 4


WRONG = {
    "": "no --output; expected a value for each; see bya --help.",
    "--output x --mode c": '--mode is "c"; expected a or b; see bya --help.',
    "--output x --steps many": '--steps is "many"; expected an integer; see bya --help.',
    "--output x --steps 0": "steps is 0; expected at least 1; use a larger value.",
    "--output x --step 3": "the unknown option or value --step; expected options of the command; use --steps, or see "
    "bya --help.",
    "--output x --mode": "--mode without a value; expected a value; see bya --help.",
}


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
@pytest.mark.parametrize("line", WRONG)
def test_wrong_options_are_one_sentence(line, encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(InputError) as error:
        parse(Options, line.split(), prog="bya")
    assert str(error.value) == WRONG[line]


def test_unknown_options_are_collected_if_asked_for():
    unknown: list[str] = []
    options = parse(Options, ["--output", "x", "--other", "3"], unknown=unknown)
    assert (options.output, unknown) == (Path("x"), ["--other", "3"])
