"""Identity of faces: similarity to the reference images of all characters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def cosine_similarity(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Cosine similarity of an embedding [D] with each of [K, D]: [K] in -1..1."""
    one, many = np.asarray(one, dtype=np.float64), np.asarray(many, dtype=np.float64)
    length = np.linalg.norm(many, axis=1) * np.linalg.norm(one)
    return many @ one / np.maximum(length, 1e-12)


@dataclass(frozen=True)
class IdentityTable:
    """Similarity of the faces of N characters to all reference images.

    Args:
        likeness: similarity of character n in frame f to the reference image of character k [N, F, N]; NaN without a
            face.
    """

    likeness: np.ndarray

    @property
    def per_frame(self) -> np.ndarray:
        """Similarity of each face to its own reference image [N, F]; NaN without a face."""
        return np.einsum("nfn->nf", self.likeness)

    @property
    def confusion(self) -> np.ndarray:
        """Mean over frames of `likeness` [N, N]; NaN without faces."""
        visible = np.isfinite(self.likeness).all(axis=2)
        total = np.where(visible[..., None], self.likeness, 0.0).sum(axis=1)
        count = visible.sum(axis=1)[:, None]
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    @property
    def mean(self) -> np.ndarray:
        """Mean similarity to the own reference image [N]."""
        return np.diag(self.confusion)

    @property
    def worst(self) -> np.ndarray:
        """Lowest similarity of a frame to the own reference image [N]; NaN without faces."""
        return np.fmin.reduce(self.per_frame, axis=1)

    @property
    def correct(self) -> np.ndarray:
        """Whether a character is most similar to its own reference image, bool [N]; False without a face."""
        nearest = np.nan_to_num(self.confusion, nan=-np.inf).argmax(axis=1)
        return (nearest == np.arange(len(nearest))) & np.isfinite(self.mean)


def identity_table(faces: np.ndarray, references: np.ndarray) -> IdentityTable:
    """Compare embeddings.

    Args:
        faces: embeddings of the faces [N, F, D]; NaN without a face.
        references: embeddings of the reference images [N, D].
    """
    faces, references = (np.asarray(each, dtype=np.float64) for each in (faces, references))
    lengths = np.linalg.norm(faces, axis=2, keepdims=True) * np.linalg.norm(references, axis=1)
    return IdentityTable(np.einsum("nfd,kd->nfk", faces, references) / np.maximum(lengths, 1e-12))
