"""How much each member counts, chosen on validation rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modalign.connectors.members import CLOSED_FORMS
from modalign.evaluation import retrieval_ranks
from modalign.space.paired import PairedTables, pairs_of_rows, spread

# How much faster than what it finds a member's weight falls.
WEIGHT_POWER = 6
# A member that would count less, of all together, is left out.
LEAST_WEIGHT = 0.02
# What is expected counts as much as so many pairs that tell members apart perfectly: a weight a
# fifth from it costs half a unit of log likelihood.
PRIOR = 25.0
# A usual reciprocal of the temperature.
START_SCALE = 15.0
NEWTON_STEPS = 40
# Similarities of a direction that are looked at, and at a time.
MOST_COMPARED, BLOCK = 1 << 23, 1 << 20


def mean_reciprocal_rank_both(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> float:
    """Return the mean reciprocal rank, averaged over both directions."""
    there = 1.0 / retrieval_ranks(first, second, pairs)
    back = 1.0 / retrieval_ranks(second, first, pairs[:, ::-1])
    return float(there.mean() + back.mean()) / 2


def usual_weights(names: Sequence[str]) -> list[float]:
    """Return how much each member counts as a rule: closed forms as much as networks together.

    Networks of few pairs know less than a closed form, and each other's errors.
    """
    counts = Counter(name in CLOSED_FORMS for name in names)
    return [1.0 / counts[name in CLOSED_FORMS] for name in names]


def expected_weights(usual: Sequence[float], alone: Sequence[float]) -> list[float]:
    """Return how much each member is expected to count best, from what it finds alone.

    One that finds four fifths of what the best one does counts a quarter of the usual. Networks of
    a few hundred pairs may find much less than a closed form, or more. On training rows of four
    kinds of data, 250 to 4,500 of them, powers of 4 to 8 did as well as each other, and better
    than the second or the usual weights.

    Args:
        usual: Weights of members that find as much as each other.
        alone: Each one's mean reciprocal rank.
    """
    top = max(alone)
    weights = [
        weight * (rank / top) ** WEIGHT_POWER for weight, rank in zip(usual, alone, strict=True)
    ]
    return without_least(weights)


def without_least(weights: Sequence[float]) -> list[float]:
    """Return weights, 0 in place of those below `LEAST_WEIGHT` of all; the largest stays."""
    least = min(LEAST_WEIGHT * sum(weights), max(weights))
    return [weight if weight >= least else 0.0 for weight in weights]


def chosen_shares(
    vectors: Sequence[Mapping[str, np.ndarray]], paired: PairedTables, *, usual: Sequence[float]
) -> tuple[list[float], list[dict[str, Any]]]:
    """Choose how much each member's cosine counts, by how likely it makes the pairs.

    A query is taken as a choice among the gallery's items, whose log odds are the members'
    cosines, each times its weight. The weights are those under which the pairs are likeliest,
    none below 0; `PRIOR` holds them to what is expected of what each finds alone on the same rows
    (see `expected_weights`), the more the fewer these are. Every query counts once, of whichever
    direction.

    Args:
        vectors: Of each member, unit vectors by modality.
        paired: Which belong together.
        usual: Weights of members that find as much, see `usual_weights`.

    Returns:
        Shares whose squares sum to 1; and the mean reciprocal rank of each member alone, of the
        expected weights and of those chosen.

    Source: McFadden 1974, Conditional logit analysis of qualitative choice behavior; as weights
    of models, Wolpert 1992, Stacked generalization.
    """
    sides = [(v[paired.first], v[paired.second]) for v in vectors]
    count = len(sides)
    tried: list[dict[str, Any]] = []

    def rank(weights: Sequence[float]) -> float:
        first, second = (
            np.concatenate(
                [w**0.5 * side[place] for w, side in zip(weights, sides, strict=True) if w], axis=1
            )
            for place in (0, 1)
        )
        found = mean_reciprocal_rank_both(first, second, paired.pairs)
        tried.append({"weights": list(weights), "mean_reciprocal_rank": round(found, 6)})
        return found

    alone = [rank([float(m == n) for m in range(count)]) for n in range(count)]
    if count == 1:
        return [1.0], tried
    expected = parts_of_one(expected_weights(usual, alone))
    rank(expected)
    best = parts_of_one(likeliest_weights(sides, paired.pairs, expected=expected))
    if best != expected:
        rank(best)
    return [weight**0.5 for weight in best], tried


def parts_of_one(weights: Sequence[float]) -> list[float]:
    """Return weights that sum to 1, in thousandths: what is less is rounding."""
    kept = without_least(weights)
    rounded = [round(weight / sum(kept), 3) for weight in kept]
    return [weight / sum(rounded) for weight in rounded]


def likeliest_weights(
    sides: Sequence[tuple[np.ndarray, np.ndarray]], pairs: np.ndarray, *, expected: Sequence[float]
) -> list[float]:
    """Return the weights of cosines under which pairs are likeliest, in both directions.

    Args:
        sides: Of each member, unit vectors of both sides, float [A, D] and [B, D].
        pairs: Which belong together, int64 [P, 2].
        expected: What the weights are held to, by `PRIOR`; they sum to 1.

    Returns:
        Weights, 0 or more: what cosines are to be multiplied by; those expected where no
        multiple of them makes the pairs likelier.
    """
    prior = np.asarray(expected, np.float64)
    choices = [
        Choices.of([a for a, _ in sides], [b for _, b in sides], pairs),
        Choices.of([b for _, b in sides], [a for a, _ in sides], pairs[:, ::-1]),
    ]
    together = [choice.joined(prior) for choice in choices]
    scale = _minimum(lambda weights: _both(together, weights), np.array([START_SCALE]))[0]
    if not scale > 0:
        return list(expected)
    strength = PRIOR / scale**2

    def cost(weights: np.ndarray) -> Terms:
        value, slope, curvature = _both(choices, weights)
        off = weights - scale * prior
        return (
            value + strength * float(off @ off) / 2,
            slope + strength * off,
            curvature + strength * np.eye(len(off)),
        )

    return [float(weight) for weight in _minimum(cost, scale * prior)]


# A cost, its slope [M] and its curvature [M, M].
Terms = tuple[float, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Choices:
    """Queries that choose among the items of a gallery.

    Attributes:
        cosines: Of each member, float32 [M, Q, G].
        chosen: How much of its choice each query gives each item: 0, or one over the number of
            its positives; float32 [Q, G].
    """

    cosines: np.ndarray
    chosen: np.ndarray

    @classmethod
    def of(
        cls, queries: Sequence[np.ndarray], gallery: Sequence[np.ndarray], pairs: np.ndarray
    ) -> Choices:
        """Compare each member's queries that have a positive with its gallery.

        Of very many queries some, evenly spread, are enough for a handful of weights.
        """
        asked = spread(np.unique(pairs[:, 0]), max(1, MOST_COMPARED // len(gallery[0])))
        known = pairs_of_rows(pairs, asked)
        chosen = np.zeros((len(asked), len(gallery[0])), np.float32)
        chosen[known[:, 0], known[:, 1]] = 1.0
        chosen /= chosen.sum(1, keepdims=True)
        cosines = [q[asked].astype(np.float32) @ g.T for q, g in zip(queries, gallery, strict=True)]
        return cls(np.stack(cosines).astype(np.float32), chosen)

    def joined(self, weights: np.ndarray) -> Choices:
        """Return the choices by one member, which is all of them by some weights."""
        return Choices(np.tensordot(weights.astype(np.float32), self.cosines, 1)[None], self.chosen)

    def terms(self, weights: np.ndarray) -> Terms:
        """Return what the choices cost, less their log likelihood: a sum over queries.

        Args:
            weights: Of the members, float [M].
        """
        value, slope = 0.0, np.zeros(len(weights))
        curvature = np.zeros((len(weights), len(weights)))
        size = max(1, BLOCK // self.chosen.shape[1])
        for start in range(0, len(self.chosen), size):
            cosines = self.cosines[:, start : start + size]
            chosen = self.chosen[start : start + size]
            odds = np.tensordot(weights.astype(np.float32), cosines, 1)
            top = odds.max(1, keepdims=True)
            likely = np.exp(odds - top)
            total = likely.sum(1, keepdims=True)
            likely /= total
            value += float((top + np.log(total)).sum() - (odds * chosen).sum())
            # By query, each member's mean cosine; then how cosines vary together.
            means = np.einsum("qg,mqg->mq", likely, cosines).astype(np.float64)
            slope += means.sum(1) - np.einsum("qg,mqg->m", chosen, cosines)
            weighted = (cosines * likely).reshape(len(weights), -1)
            curvature += weighted @ cosines.reshape(len(weights), -1).T - means @ means.T
        return value, slope, curvature


def _both(choices: Sequence[Choices], weights: np.ndarray) -> Terms:
    """Return half the cost of both directions: the same pairs are chosen twice."""
    (v, s, c), (w, t, d) = (choice.terms(weights) for choice in choices)
    return (v + w) / 2, (s + t) / 2, (c + d) / 2


def _minimum(cost: Callable[[np.ndarray], Terms], start: np.ndarray) -> np.ndarray:
    """Return where a convex cost is least, no number below 0: Newton's method, projected.

    Source: Bertsekas 1982, Projected Newton methods for optimization problems with simple
    constraints.
    """
    weights = np.asarray(start, np.float64)
    value, slope, curvature = cost(weights)
    for _ in range(NEWTON_STEPS):
        # What is 0 and would become less stays.
        free = np.flatnonzero((weights > 0) | (slope < 0))
        if not len(free):
            break
        bent = curvature[np.ix_(free, free)]
        bent = bent + 1e-9 * max(float(np.trace(bent)), 1e-9) * np.eye(len(free))
        newton, plain = np.zeros_like(weights), np.zeros_like(weights)
        newton[free] = -np.linalg.solve(bent, slope[free])
        # Where one number arrives at 0 the others' step may lead up: each for itself leads down.
        plain[free] = -slope[free] / np.diag(bent)
        steps = (share * step for step in (newton, plain) for share in 0.5 ** np.arange(8))
        moved = (np.maximum(weights + step, 0.0) for step in steps)
        reached = ((there, cost(there)) for there in moved)
        found = next(((there, terms) for there, terms in reached if terms[0] < value), None)
        if found is None:
            break
        before, (weights, (value, slope, curvature)) = weights, found
        if np.abs(weights - before).max() <= 1e-4 * max(float(weights.max()), 1.0):
            break
    return weights
