"""Hub correction: an item that is close to every query answers none of them.

What is stored is never changed. Each item has a bias, worked out from its vector and a bank of
training queries, that is taken off its similarity; so the top results of any index can be
corrected by sorting them again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from modalign.errors import ShapeError, UsageError, check_known
from modalign.evaluation import retrieval_ranks

# Similarities held at a time, 32 MiB.
BLOCK = 1 << 23


@dataclass(frozen=True)
class Correction(ABC):
    """How an item's bias follows from its similarities to the bank."""

    name: ClassVar[str]

    @abstractmethod
    def _of(self, similarity: np.ndarray) -> np.ndarray:
        """Return the bias of items from their similarities to the bank, [G, B] -> [G]."""

    def bias(self, gallery: np.ndarray, bank: np.ndarray) -> np.ndarray:
        """Return what is taken off each item's cosine.

        Args:
            gallery: float [G, D], of any length.
            bank: Training queries, float [B, D], of any length; none: nothing is taken off.

        Returns:
            float32 [G].

        Raises:
            ShapeError: The widths differ.
        """
        if gallery.ndim != 2 or bank.ndim != 2 or gallery.shape[1] != bank.shape[1]:
            raise ShapeError(
                f"gallery {gallery.shape} and bank {bank.shape}: expected matrices of one width"
            )
        found = np.zeros(len(gallery), np.float32)
        if not len(bank):
            return found
        queries = unit(bank).T
        size = max(1, BLOCK // len(bank))
        for start in range(0, len(gallery), size):
            found[start : start + size] = self._of(unit(gallery[start : start + size]) @ queries)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return its name and settings."""
        return {"name": self.name, **vars(self)}


@dataclass(frozen=True)
class NoCorrection(Correction):
    """Cosine as it is."""

    name: ClassVar[str] = "none"

    def _of(self, similarity: np.ndarray) -> np.ndarray:
        return np.zeros(len(similarity), np.float32)


@dataclass(frozen=True)
class Csls(Correction):
    """Take off half the mean similarity to the k closest queries of the bank.

    Attributes:
        k: Queries; all of the bank where it has fewer.

    Source: Conneau et al. 2018, arXiv:1710.04087, halved; what it takes off for the query is
    the same for all items and is left out.
    """

    k: int = 10
    name: ClassVar[str] = "csls"

    def __post_init__(self) -> None:
        """Refuse k below 1."""
        if self.k < 1:
            raise UsageError(f"csls: k is {self.k}, expected 1 or more")

    def _of(self, similarity: np.ndarray) -> np.ndarray:
        k = min(self.k, similarity.shape[1])
        closest = np.partition(similarity, similarity.shape[1] - k, axis=1)[:, -k:]
        half: np.ndarray = closest.mean(1) / 2
        return half


@dataclass(frozen=True)
class InvertedSoftmax(Correction):
    """Take off the temperature times the log of the mean of exp(similarity / temperature).

    Attributes:
        temperature: Small: the closest queries alone count; large: all alike.

    Source: Smith et al. 2017, arXiv:1702.03859, as a difference of logarithms.
    """

    temperature: float = 0.07
    name: ClassVar[str] = "inverted-softmax"

    def __post_init__(self) -> None:
        """Refuse a temperature that is not above 0."""
        if not 0 < self.temperature < np.inf:
            raise UsageError(
                f"inverted softmax: temperature is {self.temperature}, expected more than 0"
            )

    def _of(self, similarity: np.ndarray) -> np.ndarray:
        top = similarity.max(1)
        shares = np.exp((similarity - top[:, None]) / self.temperature)
        found: np.ndarray = top + self.temperature * np.log(shares.mean(1))
        return found


CORRECTIONS: dict[str, type[Correction]] = {
    kind.name: kind for kind in (NoCorrection, Csls, InvertedSoftmax)
}
# What is tried where it is chosen; the first one wins a tie.
CANDIDATES: tuple[Correction, ...] = (
    NoCorrection(),
    Csls(10),
    InvertedSoftmax(0.05),
    InvertedSoftmax(0.07),
    InvertedSoftmax(0.1),
)


def correction_from_json(values: dict[str, Any]) -> Correction:
    """Return what `Correction.as_json` gave.

    Raises:
        UsageError: The name is unknown.
    """
    settings = dict(values)
    name = settings.pop("name")
    check_known(name, CORRECTIONS, what="hub correction")
    return CORRECTIONS[name](**settings)


def choose_correction(
    queries: np.ndarray,
    gallery: np.ndarray,
    positives: np.ndarray,
    bank: np.ndarray,
    *,
    candidates: Sequence[Correction] = CANDIDATES,
) -> tuple[Correction, list[dict[str, Any]]]:
    """Choose by recall@1 and the mean reciprocal rank together, on rows nothing was trained on.

    Args:
        queries: float [Q, D].
        gallery: float [G, D].
        positives: (query, item), int64 [P, 2].
        bank: Training queries, float [B, D].
        candidates: The first one wins a tie.

    Returns:
        The best, and what was tried.
    """
    tried = []
    for candidate in candidates:
        bias = candidate.bias(gallery, bank)
        ranks = retrieval_ranks(queries, gallery, positives, bias=bias)
        figures = {
            "recall_at_1": float(np.mean(ranks == 1)),
            "mean_reciprocal_rank": float(np.mean(1.0 / ranks)),
        }
        tried.append({**candidate.as_json(), **figures})
    score = [entry["recall_at_1"] + entry["mean_reciprocal_rank"] for entry in tried]
    return candidates[int(np.argmax(score))], tried


def rerank(similarity: np.ndarray, bias: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort the results of an index anew, each less its bias.

    Args:
        similarity: Of the results, float [Q, N].
        bias: Of the same items, float [Q, N].
        k: Results kept.

    Returns:
        Their places among the N, int64 [Q, k], and what they are sorted by, float32 [Q, k],
        the highest first; ties keep the index's order.
    """
    corrected = (similarity - bias).astype(np.float32)
    order = np.argsort(-corrected, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(corrected, order, axis=1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length 1, float32; one of zeros stays."""
    values = np.asarray(vectors, np.float32)
    scaled: np.ndarray = values / np.maximum(
        np.linalg.norm(values, axis=1, keepdims=True), np.float32(1e-12)
    )
    return scaled
