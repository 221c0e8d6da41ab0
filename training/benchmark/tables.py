"""Markdown tables of results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table; the first row of `rows` follows the header."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def number(value: float | None, digits: int = 2) -> str:
    """Format a value, or "-" if it is None."""
    return "-" if value is None else f"{value:.{digits}f}"
