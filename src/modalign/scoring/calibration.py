"""Calibration: what a similarity says about being a match.

A search returns k items a query; a probability is that of one of them being a match, fitted on
the validation rows' own results. Every direction has its own, so that results of several
modalities can be ranked by one scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modalign.errors import DataError, ShapeError, UsageError

# Results a query that a calibration is fitted on.
HITS = 10
BINS = 15
# Fewer results above a threshold say nothing about precision there.
LEAST_ABOVE = 30
NEWTON_STEPS = 50


@dataclass(frozen=True)
class Calibration:
    """A logistic curve from similarity to the probability of a match.

    Attributes:
        slope: Per unit of similarity, > 0, or 0 where similarity says nothing.
        intercept: Log odds at similarity 0.
        gallery: Items of the gallery it was fitted on.
        results: Results it was fitted on.
        thresholds: By wanted precision: the similarity from which on results reach it.

    Source: Platt 1999, Probabilistic outputs for support vector machines; by Newton's method
    with the targets (n + 1) / (n + 2), as in Lin, Lin & Weng 2007.
    """

    slope: float
    intercept: float
    gallery: int
    results: int
    thresholds: Mapping[str, float | None]

    def probability(self, similarity: np.ndarray, *, gallery: int | None = None) -> np.ndarray:
        """Return probabilities, float64 of the same shape.

        Args:
            similarity: Of results, as the curve was fitted on.
            gallery: Items searched, where they are not as many as in fitting: in a gallery of
                twice as many, twice as many strangers reach a similarity, and as many matches.
        """
        strangers = np.log(max(gallery, 1) / max(self.gallery, 1)) if gallery else 0.0
        logit = self.slope * np.asarray(similarity, np.float64) + self.intercept - strangers
        logit = np.clip(logit, -50, 50)
        found: np.ndarray = 1 / (1 + np.exp(-logit))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return every field."""
        return {**vars(self), "thresholds": dict(self.thresholds)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """Return what `as_json` gave."""
        return cls(**values)


WANTED_PRECISIONS = (0.5, 0.7, 0.9)


def cross_fitted(similarity: np.ndarray, matched: np.ndarray, *, gallery: int) -> np.ndarray:
    """Return probabilities of results by calibrations that were fitted on other queries.

    Args:
        similarity: Of each query's results, float [Q, k].
        matched: bool [Q, k].
        gallery: Items searched.

    Returns:
        float64 [Q, k]: those of even queries from odd ones, and the other way round; of a single
        query its own.
    """
    found = np.empty(similarity.shape)
    for half in (0, 1):
        others = slice(1 - half, None, 2) if len(similarity) > 1 else slice(None)
        fitted = fit_calibration(
            similarity[others].ravel(), matched[others].ravel(), gallery=gallery
        )
        found[half::2] = fitted.probability(similarity[half::2])
    return found


def fit_calibration(similarity: np.ndarray, matched: np.ndarray, *, gallery: int) -> Calibration:
    """Fit a calibration on the results of queries.

    Args:
        similarity: Of each result, float [R].
        matched: Whether it is a match, bool [R].
        gallery: Items searched.

    Raises:
        ShapeError: The two differ in shape.
        DataError: There are no results, or one is NaN.
    """
    similarity, matched = _checked(similarity, matched)
    slope, intercept = _logistic(similarity, matched)
    thresholds = {
        f"{wanted:g}": threshold(similarity, matched, precision=wanted)
        for wanted in WANTED_PRECISIONS
    }
    return Calibration(slope, intercept, gallery, len(similarity), thresholds)


def _checked(similarity: np.ndarray, matched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    similarity = np.asarray(similarity, np.float64)
    matched = np.asarray(matched, bool)
    if similarity.ndim != 1 or similarity.shape != matched.shape:
        raise ShapeError(
            f"similarity {similarity.shape} and matched {matched.shape}: expected two vectors of "
            "one length"
        )
    if not len(similarity):
        raise DataError("calibration: there are no results, expected one at least")
    if not np.isfinite(similarity).all():
        row = int(np.flatnonzero(~np.isfinite(similarity))[0])
        raise DataError(f"calibration: similarity {row} is not finite, expected a number", row=row)
    return similarity, matched


def _logistic(similarity: np.ndarray, matched: np.ndarray) -> tuple[float, float]:
    """Return slope and intercept; a falling curve becomes a flat one."""
    yes, no = int(matched.sum()), int((~matched).sum())
    target = np.where(matched, (yes + 1) / (yes + 2), 1 / (no + 2))
    flat = float(np.log(target.mean() / (1 - target.mean())))
    spread = float(similarity.std())
    # Similarities that agree up to rounding say nothing.
    if spread < 1e-7:
        return 0.0, flat
    middle = float(similarity.mean())
    design = np.stack([(similarity - middle) / spread, np.ones_like(similarity)], axis=1)
    weights = np.array([0.0, flat])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -50, 50)))
        gradient = design.T @ (p - target)
        curvature = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # Half a step at most 2 wide: far starts overshoot.
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        weights = weights - step
        if float(np.abs(step).max()) < 1e-10:
            break
    if weights[0] <= 0:
        return 0.0, flat
    return float(weights[0] / spread), float(weights[1] - weights[0] * middle / spread)


def threshold(similarity: np.ndarray, matched: np.ndarray, *, precision: float) -> float | None:
    """Return the similarity from which on the results are matches as often as wanted.

    Of all thresholds that reach it the lowest, so that most is found.

    Args:
        similarity: float [R].
        matched: bool [R].
        precision: Share of matches among results at or above the threshold, in (0, 1].

    Returns:
        A similarity; None where no threshold with enough results above it reaches it.

    Raises:
        UsageError: `precision` is out of range.
    """
    if not 0 < precision <= 1:
        raise UsageError(f"precision is {precision}, expected above 0, at most 1")
    similarity, matched = _checked(similarity, matched)
    order = np.argsort(-similarity, kind="stable")
    ranked, hits = similarity[order], np.cumsum(matched[order])
    counts = np.arange(1, len(ranked) + 1)
    # Results of equal similarity are above a threshold together or not at all.
    last = np.append(ranked[1:] != ranked[:-1], True)
    reached = last & (counts >= min(LEAST_ABOVE, len(ranked))) & (hits >= precision * counts)
    places = np.flatnonzero(reached)
    return float(ranked[places[-1]]) if len(places) else None


@dataclass(frozen=True)
class ReliabilityBin:
    """Results whose probabilities are close to each other.

    Attributes:
        probability: Their mean probability.
        observed: Share of them that are matches.
        count: How many.
    """

    probability: float
    observed: float
    count: int


def reliability(
    probability: np.ndarray, matched: np.ndarray, *, bins: int = BINS
) -> list[ReliabilityBin]:
    """Return bins of equally many results, by rising probability; none is empty."""
    probability, matched = _checked(probability, matched)
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [
        ReliabilityBin(float(probability[p].mean()), float(matched[p].mean()), len(p))
        for p in parts
    ]


def expected_calibration_error(
    probability: np.ndarray, matched: np.ndarray, *, bins: int = BINS
) -> float:
    """Return the mean distance of probability and observed share, weighted by results, in [0, 1].

    Source: Naeini, Cooper & Hauskrecht 2015, with bins of equally many results.
    """
    found = reliability(probability, matched, bins=bins)
    total = sum(b.count for b in found)
    return sum(b.count * abs(b.probability - b.observed) for b in found) / total


def result_matches(rows: np.ndarray, positives: np.ndarray, *, gallery: int) -> np.ndarray:
    """Return which results are matches.

    Args:
        rows: Gallery rows of each query's results, int64 [Q, k].
        positives: (query, item), int64 [P, 2].
        gallery: Items searched.

    Returns:
        bool [Q, k].
    """
    known = np.asarray(positives, np.int64)
    keys = known[:, 0] * gallery + known[:, 1]
    asked = np.arange(len(rows))[:, None] * gallery + rows
    found: np.ndarray = np.isin(asked, keys)
    return found
