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

    def ranks(self, weights: Sequence[float]) -> list[np.ndarray]:
        """Return every query's reciprocal rank, of both directions."""
        first, second = (
            np.concatenate(
                [w**0.5 * v[m] for w, v in zip(weights, self.vectors, strict=True) if w], axis=1
            )
            for m in (self.paired.first, self.paired.second)
        )
        pairs = self.paired.pairs
        return [
            1.0 / retrieval_ranks(first, second, pairs),
            1.0 / retrieval_ranks(second, first, pairs[:, ::-1]),
        ]

    def beats(self, weights: Sequence[float], others: Sequence[float]) -> bool:
        """Return whether shares gain more on others than the standard error of the gain."""
        gains = [a - b for a, b in zip(self.ranks(weights), self.ranks(others), strict=True)]
        error = sum(gain.var() / len(gain) for gain in gains) ** 0.5
        return bool(sum(gain.mean() for gain in gains) > error)


def chosen_shares(
    vectors: Sequence[Mapping[str, np.ndarray]], paired: PairedTables
) -> tuple[list[float], list[dict[str, Any]]]:
    """Choose how much each member's cosine counts, greedily, by the mean reciprocal rank.

    All count alike unless that choice gains more on it than the standard error of the gain: what
    few rows say against a member is mostly chance, and members together seldom err alike.

    Args:
        vectors: Of each member, unit vectors by modality.
        paired: Which belong together.

    Returns:
        Shares whose squares sum to 1, and what was tried.
    """
    joined, count = _Joined(vectors, paired), len(vectors)
    tried: list[dict[str, Any]] = []

    def rank(weights: Sequence[float]) -> float:
        found = float(np.mean([side.mean() for side in joined.ranks(weights)]))
        tried.append({"weights": list(weights), "mean_reciprocal_rank": round(found, 6)})
        return found

    alike = [1.0] * count
    rank(alike)
    alone = [rank([float(m == n) for m in range(count)]) for n in range(count)]
    order = sorted(range(count), key=lambda n: -alone[n])
    best = [float(n == order[0]) for n in range(count)]
    top = alone[order[0]]
    for number in order[1:]:
        options = [[*best[:number], share, *best[number + 1 :]] for share in SHARES]
        ranks = [rank(option) for option in options]
        if max(ranks) > top:
            top, best = max(ranks), options[int(np.argmax(ranks))]
    if not joined.beats(best, alike):
        best = alike
    total = sum(best)
    return [(weight / total) ** 0.5 for weight in best], tried
