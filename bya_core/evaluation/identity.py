"""Identity of faces: similarity to the references of all characters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def cosine_similarity(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Cosine of one embedding [D] with each of [K, D]: [K] in -1..1. For embeddings of a face encoder."""
    one, many = np.asarray(one, dtype=np.float64), np.asarray(many, dtype=np.float64)
    length = np.linalg.norm(many, axis=1) * np.linalg.norm(one)
    return many @ one / np.maximum(length, 1e-12)


def nearest(similarity: np.ndarray) -> int:
    """Index of the most similar reference."""
    return int(np.argmax(similarity))


@dataclass(frozen=True)
class IdentityTable:
    """Faces of N characters against the references of all.

    Args:
        likeness: of character n's face in frame f to the reference of character k [N, F, N]; NaN without a face.
    """

    likeness: np.ndarray

    @property
    def per_frame(self) -> np.ndarray:
        """Likeness of each face to its own reference [N, F]; NaN where there is no face."""
        return np.stack([self.likeness[n, :, n] for n in range(len(self.likeness))])

    @property
    def confusion(self) -> np.ndarray:
        """Mean likeness of character n's faces to the reference of character k [N, N]; NaN without faces."""
        seen = np.isfinite(self.likeness).all(axis=2)
        total = np.where(seen[..., None], self.likeness, 0.0).sum(axis=1)
        count = seen.sum(axis=1)[:, None]
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    @property
    def mean(self) -> np.ndarray:
        """[N], over the frames with a face."""
        return np.diag(self.confusion)

    @property
    def worst(self) -> np.ndarray:
        """[N], the frame least like its reference."""
        seen = np.isfinite(self.per_frame).any(axis=1)
        least = np.where(np.isfinite(self.per_frame), self.per_frame, np.inf).min(axis=1)
        return np.where(seen, least, np.nan)

    @property
    def right(self) -> np.ndarray:
        """Whether a character is most like its own reference, bool [N]; False without a face."""
        likeness = np.where(np.isfinite(self.confusion), self.confusion, -np.inf)
        own = np.arange(len(likeness))
        return (likeness.argmax(axis=1) == own) & np.isfinite(likeness.max(axis=1))


def identity_table(faces: np.ndarray, references: np.ndarray) -> IdentityTable:
    """Compare embeddings.

    Args:
        faces: [N, F, D]; rows of NaN where a character shows no face.
        references: [N, D].
    """
    faces, references = (np.asarray(given, dtype=np.float64) for given in (faces, references))
    lengths = np.linalg.norm(faces, axis=2, keepdims=True) * np.linalg.norm(references, axis=1)
    return IdentityTable(np.einsum("nfd,kd->nfk", faces, references) / np.maximum(lengths, 1e-12))
