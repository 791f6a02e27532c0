"""Correction of similarities: an item that is close to every query answers none of them.

What is stored is never changed. From an item's vector and a bank of training queries follow a
bias that is taken off its similarity, or another vector to compare with; so the top results of
any index can be corrected by sorting them again.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from modalign.errors import ShapeError, UsageError, check_known
from modalign.evaluation import beyond_chance, retrieval_ranks

# Similarities held at a time, 32 MiB.
BLOCK = 1 << 23


@dataclass(frozen=True)
class Bank:
    """What a direction's correction is worked out from.

    Attributes:
        queries: Training queries as they are sent, float [B, D], of any length.
        center: Mean of the unit vectors of the gallery's training items, float [D]; None where
            nothing is to be centred.
    """

    queries: np.ndarray
    center: np.ndarray | None = None

    @classmethod
    def empty(cls, width: int) -> Bank:
        """Return the bank that corrects nothing."""
        return cls(np.zeros((0, width), np.float16))

    def __len__(self) -> int:
        return len(self.queries)


@dataclass(frozen=True)
class Compared:
    """Two sides as they are compared: by the cosine, less each item's bias.

    Attributes:
        queries: float [Q, D].
        gallery: float [G, D].
        bias: float32 [G].
    """

    queries: np.ndarray
    gallery: np.ndarray
    bias: np.ndarray

    def similarity(self) -> np.ndarray:
        """Return the corrected similarities, float32 [Q, G]."""
        return self._similarity(self.queries, unit(self.gallery))

    def best_results(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each query's k best similarities and their gallery rows, [Q, min(k, G)] both.

        Some queries at a time: no more memory than for the results.
        """
        gallery = unit(self.gallery)
        size = max(1, BLOCK // max(len(gallery), 1))
        parts = [
            best_results(self._similarity(self.queries[start : start + size], gallery), k)
            for start in range(0, max(len(self.queries), 1), size)
        ]
        similarity, rows = zip(*parts, strict=True)
        return np.concatenate(similarity), np.concatenate(rows)

    def _similarity(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        found: np.ndarray = unit(queries) @ gallery.T - self.bias
        return found


def best_results(similarity: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best similarities of each query and their rows, [Q, min(k, G)] both."""
    size = similarity.shape[1]
    k = min(k, size)
    if k < size:
        rows = np.sort(np.argpartition(similarity, size - k, axis=1)[:, size - k :], axis=1)
    else:
        rows = np.tile(np.arange(size), (len(similarity), 1))
    found = np.take_along_axis(similarity, rows, axis=1)
    # Of items as similar those of the first rows come first, also where not all are returned.
    bar = found.min(axis=1, keepdims=True, initial=np.inf)
    tied = np.flatnonzero((similarity == bar).sum(1) > (found == bar).sum(1))
    for query in tied:
        rows[query] = np.sort(np.argsort(-similarity[query], kind="stable")[:k])
        found[query] = similarity[query, rows[query]]
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(rows, order, axis=1)


@dataclass(frozen=True)
class Correction(ABC):
    """How what is compared follows from a bank.

    Attributes:
        centred: Take the mean of its side off every unit vector first.
    """

    centred: bool = False
    name: ClassVar[str]

    def applied(self, queries: np.ndarray, gallery: np.ndarray, bank: Bank) -> Compared:
        """Correct both sides; neither is changed in place.

        Args:
            queries: float [Q, D], of any length.
            gallery: float [G, D], of any length.
            bank: An empty one: both sides are compared as they are.

        Raises:
            ShapeError: The widths differ.
            UsageError: Centring is asked for, and the bank has no center.
        """
        if not len(bank):
            return Compared(queries, gallery, np.zeros(len(gallery), np.float32))
        asked = bank.queries
        if self.centred:
            if bank.center is None:
                raise UsageError(f"{self.name}: the bank has no center, expected one")
            middle = unit(asked).mean(0)
            queries, asked = unit(queries) - middle, unit(asked) - middle
            gallery = unit(gallery) - bank.center
        gallery = self._moved(gallery, asked)
        return Compared(queries, gallery, self.bias(gallery, asked))

    def _moved(self, gallery: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Return what items are compared by."""
        return gallery

    def _of(self, similarity: np.ndarray) -> np.ndarray:
        """Return the bias of items from their similarities to the bank, [G, B] -> [G]."""
        return np.zeros(len(similarity), np.float32)

    def bias(self, gallery: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Return what is taken off each item's cosine.

        Args:
            gallery: float [G, D], of any length.
            asked: Training queries, float [B, D], of any length; none: nothing is taken off.

        Returns:
            float32 [G].

        Raises:
            ShapeError: The widths differ.
        """
        if gallery.ndim != 2 or asked.ndim != 2 or gallery.shape[1] != asked.shape[1]:
            raise ShapeError(
                f"gallery {gallery.shape} and bank {asked.shape}: expected matrices of one width"
            )
        found = np.zeros(len(gallery), np.float32)
        if not len(asked):
            return found
        queries = unit(asked).T
        size = max(1, BLOCK // len(asked))
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

    def bias(self, gallery: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Return zeros."""
        return np.zeros(len(gallery), np.float32)


@dataclass(frozen=True)
class Centring(NoCorrection):
    """Take the mean of its side off every unit vector: both sides lie around one point.

    Source: Liang et al. 2022, arXiv:2203.02053 (the gap between modalities is a constant
    vector); that it is taken off wholly is ours.
    """

    centred: bool = True
    name: ClassVar[str] = "centring"


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


@dataclass(frozen=True)
class InverseConvolution(Correction):
    """Move items away from the mean of their closest training queries.

    Attributes:
        k: Queries; all of the bank where it has fewer.
        share: Of the mean, weighted by similarity, that is taken off the unit vector, > 0.

    Source: Jian & Wang 2023, arXiv:2310.13468 (InvGC), with the closest neighbours alone as in
    its LocalAdj. Differs: the graph is of items and training queries, so that an item's
    correction does not depend on the gallery it lies in.
    """

    k: int = 100
    share: float = 0.1
    name: ClassVar[str] = "inverse-convolution"

    def __post_init__(self) -> None:
        """Refuse k below 1 and shares that are not above 0."""
        if self.k < 1 or not 0 < self.share < np.inf:
            raise UsageError(
                f"inverse convolution: k is {self.k} and share {self.share}, expected 1 or more "
                "and above 0"
            )

    def _moved(self, gallery: np.ndarray, asked: np.ndarray) -> np.ndarray:
        queries, moved = unit(asked), unit(gallery).copy()
        k = min(self.k, len(queries))
        size = max(1, BLOCK // (len(queries) + k * queries.shape[1]))
        for start in range(0, len(moved), size):
            part = moved[start : start + size]
            similarity = part @ queries.T
            closest = np.argpartition(similarity, len(queries) - k, axis=1)[:, -k:]
            weights = np.maximum(np.take_along_axis(similarity, closest, axis=1), 0.0)
            weights /= np.maximum(weights.sum(1, keepdims=True), np.float32(1e-12))
            part -= self.share * np.einsum("gk,gkd->gd", weights, queries[closest])
        return moved

    def bias(self, gallery: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Return zeros: the vectors themselves move."""
        return np.zeros(len(gallery), np.float32)


CORRECTIONS: dict[str, type[Correction]] = {
    kind.name: kind for kind in (NoCorrection, Centring, Csls, InvertedSoftmax, InverseConvolution)
}
# What is tried where it is chosen; the first one wins a tie.
# It seldom harms and often helps; a softmax of the wrong temperature can cost a fifth of recall.
USUAL = Csls(k=10)
CANDIDATES: tuple[Correction, ...] = (
    NoCorrection(),
    Centring(),
    USUAL,
    InvertedSoftmax(temperature=0.05),
    InvertedSoftmax(temperature=0.07),
    InvertedSoftmax(temperature=0.1),
    InvertedSoftmax(temperature=0.07, centred=True),
    InverseConvolution(k=100, share=0.1),
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
    bank: Bank,
    *,
    candidates: Sequence[Correction] = CANDIDATES,
) -> tuple[Correction, list[dict[str, Any]]]:
    """Choose by recall@1 and the mean reciprocal rank together, on rows nothing was trained on.

    Args: see `candidate_ranks`.

    Returns:
        The best, and what was tried.
    """
    ranks = candidate_ranks(queries, gallery, positives, bank, candidates=candidates)
    tried = [
        {
            **candidate.as_json(),
            "recall_at_1": float(np.mean(found == 1)),
            "mean_reciprocal_rank": float(np.mean(1.0 / found)),
        }
        for candidate, found in zip(candidates, ranks, strict=True)
    ]
    return candidates[best_candidate(ranks, candidates)], tried


def candidate_ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    positives: np.ndarray,
    bank: Bank,
    *,
    candidates: Sequence[Correction] = CANDIDATES,
) -> np.ndarray:
    """Return every query's rank by each correction, int64 [candidates, Q].

    Args:
        queries: float [Q, D].
        gallery: float [G, D].
        positives: (query, item), int64 [P, 2].
        bank: Of the direction.
        candidates: The first one is the plainest.
    """
    applied = (candidate.applied(queries, gallery, bank) for candidate in candidates)
    return np.stack(
        [retrieval_ranks(c.queries, c.gallery, positives, bias=c.bias) for c in applied]
    )


def best_candidate(ranks: np.ndarray, candidates: Sequence[Correction]) -> int:
    """Return the place of the candidate whose ranks are best.

    The usual one stays unless another gains on it by more than the best of so many would by
    chance: see `beyond_chance`.

    Args:
        ranks: Of each candidate, int64 [candidates, Q].
        candidates: Where the usual one is not among them or moves nothing, the first is it.
    """
    usual = candidates.index(USUAL) if USUAL in candidates else 0
    if np.array_equal(ranks[usual], ranks[0]):
        usual = 0
    scores = (ranks == 1) + 1.0 / ranks
    best = int(np.argmax(scores.mean(axis=1)))
    gain = scores[best] - scores[usual]
    return best if beyond_chance([gain], tried=len(candidates) - 1) else usual


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length 1, float32; one of zeros stays."""
    values = np.asarray(vectors, np.float32)
    scaled: np.ndarray = values / np.maximum(
        np.linalg.norm(values, axis=1, keepdims=True), np.float32(1e-12)
    )
    return scaled
