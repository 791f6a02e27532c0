"""How much each member counts, chosen on validation rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modalign.connectors.members import CLOSED_FORMS
from modalign.evaluation import beyond_chance, retrieval_ranks
from modalign.space.paired import PairedTables

# Of a member that joins others, against the first one's 1.
SHARES = (0.5, 1.0, 2.0)
# How much faster than what it finds a member's weight falls.
WEIGHT_POWER = 6
# A member that would count less, of all together, is left out.
LEAST_WEIGHT = 0.02


def reciprocal_ranks_both(
    first: np.ndarray, second: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return every query's reciprocal rank, of both directions."""
    there = 1.0 / retrieval_ranks(first, second, pairs)
    back = 1.0 / retrieval_ranks(second, first, pairs[:, ::-1])
    return there, back


def mean_reciprocal_rank_both(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> float:
    """Return the mean reciprocal rank, averaged over both directions."""
    there, back = reciprocal_ranks_both(first, second, pairs)
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
    least = LEAST_WEIGHT * sum(weights)
    return [weight if weight >= least else 0.0 for weight in weights]


def chosen_shares(
    vectors: Sequence[Mapping[str, np.ndarray]], paired: PairedTables, *, usual: Sequence[float]
) -> tuple[list[float], list[dict[str, Any]]]:
    """Choose how much each member's cosine counts, greedily, by the mean reciprocal rank.

    They count as expected of what each finds alone (see `expected_weights`) unless that choice
    gains on it by more than the best of so many would by chance (see `beyond_chance`): what few
    rows say against a member is mostly that, and members together seldom err alike.

    Args:
        vectors: Of each member, unit vectors by modality.
        paired: Which belong together.
        usual: Weights of members that find as much, see `usual_weights`.

    Returns:
        Shares whose squares sum to 1, and what was tried.
    """
    count = len(vectors)
    tried: list[dict[str, Any]] = []
    ranks: dict[tuple[float, ...], tuple[np.ndarray, np.ndarray]] = {}

    def rank(weights: Sequence[float]) -> float:
        first, second = (
            np.concatenate(
                [w**0.5 * v[m] for w, v in zip(weights, vectors, strict=True) if w], axis=1
            )
            for m in (paired.first, paired.second)
        )
        ranks[tuple(weights)] = there, back = reciprocal_ranks_both(first, second, paired.pairs)
        found = float(there.mean() + back.mean()) / 2
        tried.append({"weights": list(weights), "mean_reciprocal_rank": round(found, 6)})
        return found

    alone = [rank([float(m == n) for m in range(count)]) for n in range(count)]
    expected = expected_weights(usual, alone)
    rank(expected)
    order = sorted(range(count), key=lambda n: -alone[n])
    best = [float(n == order[0]) for n in range(count)]
    top = alone[order[0]]
    for number in order[1:]:
        options = [[*best[:number], share, *best[number + 1 :]] for share in SHARES]
        found = [rank(option) for option in options]
        if max(found) > top:
            top, best = max(found), options[int(np.argmax(found))]
    gains = [m - o for m, o in zip(ranks[tuple(best)], ranks[tuple(expected)], strict=True)]
    if not beyond_chance(gains, tried=len(tried)):
        best = expected
    total = sum(best)
    return [(weight / total) ** 0.5 for weight in best], tried
