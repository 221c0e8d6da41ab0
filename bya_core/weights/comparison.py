"""Comparison of the weights that a model needs with those that its files contain, and of two models."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bya_core.errors import InputError

log = logging.getLogger(__name__)

MAX_LISTED = 10  # names of each kind listed in a message

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightComparison:
    """Differences between the weights of a model and those of its files.

    Args:
        expected: Number of weights of the model.
        missing: Weights of the model that no file contains.
        unexpected: Entries of the files that the model does not have.
        misshapen: Name -> (stored shape, shape in the model).
    """

    expected: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def matches(self) -> bool:
        """Whether files and model agree."""
        return not (self.missing or self.unexpected or self.misshapen)

    def check(self) -> None:
        """Raise an `InputError` that lists the differences, if there are any."""
        differences = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": [f"{name} {was} instead of {wanted}" for name, (was, wanted) in self.misshapen.items()],
        }
        parts = [f"{len(names)} {kind} ({shorten(names)})" for kind, names in differences.items() if names]
        if parts:
            problem = f"weights with entries {'; '.join(parts)}"
            raise InputError(
                problem, f"exactly the {self.expected} entries of this model", "check that all files match"
            )

    def tolerate(self, never_read: Sequence[str]) -> WeightComparison:
        """The comparison without unexpected entries and without missing weights that no computation reads.

        Both are logged as warnings: earlier versions of a release store other auxiliary weights.

        Args:
            never_read: Prefixes of the names of weights that no computation reads.
        """
        absent = [name for name in self.missing if name.startswith(tuple(never_read))]
        if self.unexpected:
            log.warning(
                "ignored %d entries that the model does not have: %s", len(self.unexpected), shorten(self.unexpected)
            )
        if absent:
            log.warning(
                "%d weights that no computation reads are missing and set to zero: %s", len(absent), shorten(absent)
            )
        needed = tuple(name for name in self.missing if name not in absent)
        return WeightComparison(self.expected, needed, (), self.misshapen)


def compare_weights(expected: Shapes, given: Shapes) -> WeightComparison:
    """Compare names and shapes of two sets of weights."""
    shared = sorted(expected.keys() & given.keys())
    return WeightComparison(
        expected=len(expected),
        missing=tuple(sorted(expected.keys() - given.keys())),
        unexpected=tuple(sorted(given.keys() - expected.keys())),
        misshapen={name: (given[name], expected[name]) for name in shared if expected[name] != given[name]},
    )


def shorten(names: Sequence[str]) -> str:
    """At most `MAX_LISTED` names."""
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Hash of all weights: names, shapes and a few values of each, the same in any precision."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()[:8].to(torch.bfloat16).float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:16]
