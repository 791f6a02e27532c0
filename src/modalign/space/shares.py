"""How much each member counts, chosen on validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modalign.evaluation import retrieval_ranks
from modalign.space.paired import PairedTables

# Of a member that joins others, against the first one's 1.
SHARES = (0.5, 1.0, 2.0)


def mean_reciprocal_rank_both(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> float:
    """Return the mean reciprocal rank, averaged over both directions."""
    there = 1.0 / retrieval_ranks(first, second, pairs)
    back = 1.0 / retrieval_ranks(second, first, pairs[:, ::-1])
    return float(there.mean() + back.mean()) / 2


@dataclass(frozen=True)
class _Joined:
    """Members' vectors of some pairs, joined by shares."""

    vectors: Sequence[Mapping[str, np.ndarray]]
    paired: PairedTables

    def rank(self, weights: Sequence[float]) -> float:
        sides = [
            np.concatenate(
                [w**0.5 * v[m] for w, v in zip(weights, self.vectors, strict=True) if w], axis=1
            )
            for m in (self.paired.first, self.paired.second)
        ]
        return mean_reciprocal_rank_both(sides[0], sides[1], self.paired.pairs)


def chosen_shares(
    vectors: Sequence[Mapping[str, np.ndarray]], paired: PairedTables
) -> tuple[list[float], list[dict[str, Any]]]:
    """Choose how much each member's cosine counts, greedily, by the mean reciprocal rank.

    Args:
        vectors: Of each member, unit vectors by modality.
        paired: Which belong together.

    Returns:
        Shares whose squares sum to 1, and what was tried.
    """
    joined, count = _Joined(vectors, paired), len(vectors)
    tried: list[dict[str, Any]] = []

    def rank(weights: Sequence[float]) -> float:
        found = joined.rank(weights)
        tried.append({"weights": list(weights), "mean_reciprocal_rank": round(found, 6)})
        return found

    alone = [rank([float(m == n) for m in range(count)]) for n in range(count)]
    order = sorted(range(count), key=lambda n: -alone[n])
    best = [float(n == order[0]) for n in range(count)]
    top = alone[order[0]]
    for number in order[1:]:
        options = [[*best[:number], share, *best[number + 1 :]] for share in SHARES]
        ranks = [rank(option) for option in options]
        if max(ranks) > top:
            top, best = max(ranks), options[int(np.argmax(ranks))]
    total = sum(best)
    return [(weight / total) ** 0.5 for weight in best], tried
