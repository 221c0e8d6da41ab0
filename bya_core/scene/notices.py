"""Notices of one kind: the first ones, and how many more there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHOWN = 5


def first_few(notices: Iterable[str]) -> list[str]:
    """The first five of several notices of one kind; a last one counts the others."""
    unique = list(dict.fromkeys(notices))
    if len(unique) <= SHOWN + 1:
        return unique
    return [*unique[:SHOWN], f"{len(unique) - SHOWN} more notices of this kind are not shown."]


def listed(names: Sequence[str]) -> str:
    """Names as words: "Ada", "Ada and Bo", or "Ada, Bo, Cy, Di, Ed and 7 others"."""
    if len(names) > SHOWN + 1:
        return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} others"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
