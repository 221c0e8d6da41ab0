"""Exceptions shared by all packages."""

from __future__ import annotations


class InputError(ValueError):
    """Invalid user input, reported as one sentence.

    The command line prints it and exits with code 2; nodes show it as it is.

    Args:
        problem: What is wrong.
        expected: What is valid.
        hint: How to fix it.
    """

    def __init__(self, problem: str, expected: str, hint: str) -> None:
        self.problem, self.expected, self.hint = problem, expected, hint
        super().__init__(f"{problem}; expected {expected}; {hint}.")


class Cancelled(RuntimeError):
    """Raised when the caller cancels a run. No partial output is left."""


class Paused(Cancelled):
    """Raised when a run is cancelled and can be resumed. The message names the folder of the finished parts."""
