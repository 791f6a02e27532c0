"""What decides, whoever proposed: cosines of the durable vectors in float32, as `Gallery` has them.

An engine and a rough scan only say which rows to look at. Each row's cosine here depends on that
row and the query alone, bit for bit the one `Gallery.search` gives, so results of any engine, of
any order of adding, compare; of equally similar rows the lower comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from modalign.errors import ShapeError, UsageError
from modalign.gallery import LARGEST, unit_rows
from modalign.index.segments import View

# Rows whose vectors are looked at together: what several queries' cost is then the arithmetic.
RANKED_AT_ONCE = 4096
# Rows, and their cosines with a query, the best first.
Ranked = tuple[np.ndarray, np.ndarray]


def unit_queries(queries: np.ndarray, width: int, *, where: str) -> np.ndarray:
    """Return queries of unit length, float32 [Q, D]; one of zeros stays so.

    Raises:
        ShapeError: They are of another width.
        UsageError: One is NaN or infinite.
    """
    queries = np.asarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ShapeError(
            f"{where}: queries {queries.shape}, expected [queries, {width}], the index's width",
            queries=queries.shape,
            width=width,
        )
    broken = np.flatnonzero(~(np.abs(queries).max(axis=1, initial=0.0) < LARGEST))
    if len(broken):
        raise UsageError(
            f"{where}: query {broken[0]} is NaN or infinite, expected finite numbers",
            row=int(broken[0]),
        )
    return unit_rows(queries)


def ranked(view: View, queries: np.ndarray, rows: Sequence[np.ndarray], k: int) -> list[Ranked]:
    """Return the k best of some rows, of each query its own.

    Args:
        view: Which they are of.
        queries: Of unit length, float32 [Q, D].
        rows: Of each query, ascending int64, each once.
        k: At most so many.
    """
    found: list[Ranked] = []
    for part in _together([len(some) for some in rows]):
        vectors = unit_rows(view.vectors(np.concatenate(rows[part])))
        start = 0
        for query, some in zip(queries[part], rows[part], strict=True):
            similarity = (vectors[start : start + len(some)] * query).sum(axis=1)
            start += len(some)
            order = np.argsort(-similarity, kind="stable")[:k]
            found.append((some[order], similarity[order]))
    return found


def _together(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield runs of at most `RANKED_AT_ONCE` rows in all, or of one that alone has more."""
    first = total = 0
    for place, size in enumerate(sizes):
        if place > first and total + size > RANKED_AT_ONCE:
            yield slice(first, place)
            first, total = place, 0
        total += size
    if sizes:
        yield slice(first, len(sizes))


def merged(first: Ranked, second: Ranked, k: int) -> Ranked:
    """Return the k best of two lists; of equals, the first list's."""
    similarity = np.concatenate([first[1], second[1]])
    order = np.argsort(-similarity, kind="stable")[:k]
    return np.concatenate([first[0], second[0]])[order], similarity[order]


def shortlist(rough: np.ndarray, k: int, *, slack: float) -> np.ndarray:
    """Return the places, ascending, that may be among the k best by true cosines.

    Args:
        rough: Cosines that are off by half of `slack` at most, float32 [n]; -inf for what is out.
        k: At most n.
        slack: As above.
    """
    bar = np.partition(rough, len(rough) - k)[len(rough) - k] - np.float32(slack)
    return np.flatnonzero(rough >= max(bar, np.finfo(np.float32).min))
