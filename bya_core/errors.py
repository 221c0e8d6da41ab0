"""The one error that a user's input can cause."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used, told in one sentence: what came, what was expected, what to do.

    The command line prints it and exits with code 2; nodes show it as it is.
    """

    def __init__(self, came: str, expected: str, do: str) -> None:
        self.came, self.expected, self.do = came, expected, do
        super().__init__(f"{came}; expected {expected}; {do}.")


class Cancelled(RuntimeError):
    """Raised where work stops because the caller asked for it; nothing half-written is left."""


class Paused(Cancelled):
    """Stopped, but what was finished is kept and can be gone on with; says where."""
