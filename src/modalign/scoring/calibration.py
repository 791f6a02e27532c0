"""Calibration: what a similarity says about being a match.

A search returns k items a query; a probability is that of one of them being a match, fitted on
the validation rows' own results. Every direction has its own, so that results of several
modalities can be ranked by one scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modalign.errors import DataError, ShapeError, UsageError

# Results a query that a calibration is fitted on.
HITS = 10
BINS = 15
# From fewer results a precision is known to no better than three points in a hundred.
LEAST_ABOVE = 250
NEWTON_STEPS = 60
# Highest probabilities that are tried: of results that match as well as any, some are nobody's
# pair.
CEILINGS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


@dataclass(frozen=True)
class Calibration:
    """A logistic curve from similarity to the probability of a match, up to a ceiling.

    Attributes:
        slope: Per unit of similarity, > 0, or 0 where similarity says nothing.
        intercept: Log odds at similarity 0, below the ceiling.
        gallery: Items of the gallery it was fitted on.
        results: Results it was fitted on.
        thresholds: By wanted precision: the similarity from which on results reach it.
        ceiling: What the probability of the highest similarities comes to, in (0, 1].

    Source: Platt 1999, Probabilistic outputs for support vector machines. Differs: the ceiling,
    of those tried the most likely one; the curve is fitted by Fisher's scoring.
    """

    slope: float
    intercept: float
    gallery: int
    results: int
    thresholds: Mapping[str, float | None]
    ceiling: float = 1.0

    def probability(self, similarity: np.ndarray, *, gallery: int | None = None) -> np.ndarray:
        """Return probabilities, float64 of the same shape.

        Args:
            similarity: Of results, as the curve was fitted on; -inf, where there is none, has
                probability 0.
            gallery: Items searched, where they are not as many as in fitting: in a gallery of
                twice as many, twice as many strangers reach a similarity, and as many matches.
        """
        strangers = np.log(max(gallery, 1) / max(self.gallery, 1)) if gallery else 0.0
        values = np.asarray(similarity, np.float64)
        there = ~np.isneginf(values)
        logit = self.slope * np.where(there, values, 0.0) + self.intercept - strangers
        logit = np.clip(logit, -50, 50)
        found: np.ndarray = np.where(there, self.ceiling / (1 + np.exp(-logit)), 0.0)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return every field."""
        return {**vars(self), "thresholds": dict(self.thresholds)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """Return what `as_json` gave."""
        return cls(**values)


WANTED_PRECISIONS = (0.3, 0.5, 0.7, 0.9)


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


def kept_precision(
    similarity: np.ndarray, matched: np.ndarray, *, gallery: int
) -> dict[str, dict[str, float]]:
    """Return the precision that thresholds keep on queries they were not fitted on.

    Args: as of `cross_fitted`.

    Returns:
        By wanted precision, "precision" and "results", those above the thresholds that the other
        half of the queries suggests; a wanted precision that neither half suggests a threshold
        for is left out.
    """
    above = {f"{wanted:g}": np.zeros(2) for wanted in WANTED_PRECISIONS}
    for half in (0, 1) if len(similarity) > 1 else ():
        others = slice(1 - half, None, 2)
        fitted = fit_calibration(
            similarity[others].ravel(), matched[others].ravel(), gallery=gallery
        )
        for wanted, found in fitted.thresholds.items():
            if found is not None:
                reached = similarity[half::2] >= found
                above[wanted] += (matched[half::2][reached].sum(), reached.sum())
    return {
        wanted: {"precision": float(hits / count), "results": int(count)}
        for wanted, (hits, count) in above.items()
        if count
    }


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
    curve = _most_likely(similarity, matched)
    found = Calibration(curve.slope, curve.intercept, gallery, len(similarity), {}, curve.ceiling)
    # By the curve, not by the matches: the lowest threshold that reaches a precision by chance
    # is lower than the one that keeps it.
    probability = found.probability(similarity)
    thresholds = {
        f"{wanted:g}": threshold(similarity, probability, precision=wanted)
        for wanted in WANTED_PRECISIONS
    }
    return replace(found, thresholds=thresholds)


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


@dataclass(frozen=True)
class _Curve:
    slope: float
    intercept: float
    ceiling: float
    log_likelihood: float


def _most_likely(similarity: np.ndarray, matched: np.ndarray) -> _Curve:
    """Return the curve under the most likely ceiling, the highest where several are."""
    share = float(matched.mean())
    curves = [
        _logistic(similarity, matched, ceiling)
        for ceiling in CEILINGS
        if ceiling > share or ceiling == 1
    ]
    return max(curves, key=lambda curve: curve.log_likelihood)


def _logistic(similarity: np.ndarray, matched: np.ndarray, ceiling: float) -> _Curve:
    """Return the likeliest curve below a ceiling; a falling one becomes a flat one.

    A match and a stranger that nobody saw are added: a clean cut has a finite slope.
    """
    yes, no = int(matched.sum()), int((~matched).sum())
    wanted = np.where(matched, (yes + 1) / (yes + 2), 1 / (no + 2))
    mean = min(float(wanted.mean()) / ceiling, 1 - 1e-6)
    flat = float(np.log(mean / (1 - mean)))
    spread = float(similarity.std())
    # Similarities that agree up to rounding say nothing.
    if spread < 1e-7:
        return _Curve(0.0, flat, ceiling, _log_likelihood(wanted, np.array(ceiling * mean)))
    middle = float(similarity.mean())
    design = np.stack([(similarity - middle) / spread, np.ones_like(similarity)], axis=1)
    weights = np.array([0.0, flat])
    for _ in range(NEWTON_STEPS):
        share = _sigmoid(design @ weights)
        p = np.clip(ceiling * share, 1e-12, 1 - 1e-12)
        rise = ceiling * share * (1 - share)
        sure = rise / (p * (1 - p))
        gradient = design.T @ (sure * (wanted - p))
        information = (design * (sure * rise)[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(information, gradient)
        # A step at most 1 wide: far starts overshoot.
        step *= min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
        weights = weights + step
        if float(np.abs(step).max()) < 1e-9:
            break
    if weights[0] <= 0:
        return _Curve(0.0, flat, ceiling, _log_likelihood(wanted, np.array(ceiling * mean)))
    return _Curve(
        float(weights[0] / spread),
        float(weights[1] - weights[0] * middle / spread),
        ceiling,
        _log_likelihood(wanted, ceiling * _sigmoid(design @ weights)),
    )


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-np.clip(logit, -50, 50)))
    return found


def _log_likelihood(wanted: np.ndarray, probability: np.ndarray) -> float:
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    # To a millionth: of ceilings that say the same the highest is taken.
    return round(float(np.sum(wanted * np.log(p) + (1 - wanted) * np.log(1 - p))), 6)


def threshold(similarity: np.ndarray, probability: np.ndarray, *, precision: float) -> float | None:
    """Return the similarity from which on the results are matches as often as wanted.

    Of all thresholds that reach it the lowest, so that most is found.

    Args:
        similarity: float [R].
        probability: Of each being a match, or whether it is one, in [0, 1], [R].
        precision: Share of matches among results at or above the threshold, in (0, 1].

    Returns:
        A similarity; None where no threshold with enough results above it reaches it.

    Raises:
        UsageError: `precision` is out of range.
    """
    if not 0 < precision <= 1:
        raise UsageError(f"precision is {precision}, expected above 0, at most 1")
    order = np.argsort(-similarity, kind="stable")
    ranked, hits = similarity[order], np.cumsum(probability[order], dtype=np.float64)
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
