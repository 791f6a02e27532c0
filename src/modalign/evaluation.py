"""How good retrieval is: metrics as pure functions, and the standard protocol.

A query's rank is that of its best positive. Ties count against the query, so that a space in
which all vectors are equal scores 0. Every figure comes with the size of its gallery.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from modalign.errors import ShapeError, UsageError

# Two products of the same float32 unit vectors differ by this much at most, depending on where
# they lie in a matrix; a tie is a tie for all that.
TIE = 1e-6
# That a gain is by chance alone.
CHANCE = 0.025
# Similarities held at a time, 64 MiB.
BLOCK_SIMILARITIES = 1 << 24
METRICS = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_reciprocal_rank")


# Metrics ----------------------------------------------------------------------------------


def ranks(similarity: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return the rank of each query's best positive, counted from 1.

    The rank is 1 + the number of items that are no positives and at least as similar: ties
    count against the query, other positives do not count.

    Args:
        similarity: Higher is closer, float [Q, G].
        positives: True where item g answers query q, bool [Q, G]; every row has at least one.

    Returns:
        Ranks in 1..G, int64 [Q]; empty for no queries.

    Raises:
        ShapeError: The two matrices differ in shape.
        UsageError: A similarity is NaN, or a query has no positive.

    Source:
        Protocol of Karpathy & Fei-Fei 2015, arXiv:1412.2306. Differs: the tie rule.
    """
    similarity, positives = np.asarray(similarity), np.asarray(positives)
    if similarity.shape != positives.shape or similarity.ndim != 2:
        raise ShapeError(
            f"similarity {similarity.shape} and positives {positives.shape}: expected two "
            "matrices of one shape [queries, gallery]",
            similarity=similarity.shape,
            positives=positives.shape,
        )
    _check_answered(np.asarray(positives.any(axis=1)))
    pairs = np.argwhere(positives)
    return _block_ranks(similarity, pairs[:, 0], pairs[:, 1], tie=0.0)


def recall_at_k(similarity: np.ndarray, positives: np.ndarray, *, k: int) -> float:
    """Return the share of queries with a positive among their k most similar items.

    Ties count against the query, so a collapsed space scores 0 instead of looking like chance.

    Args:
        similarity: Cosine similarity, higher is closer, float [Q, G].
        positives: True where item g answers query q, bool [Q, G]; every row has at least one.
        k: Items looked at per query, 1 <= k <= G.

    Returns:
        A fraction in [0, 1], not a percentage.

    Raises:
        ShapeError: The two matrices differ in shape.
        UsageError: `k` is out of range, a query has no positive, or there are no queries.

    Source:
        R@K of Karpathy & Fei-Fei 2015, arXiv:1412.2306. Differs: the tie rule above.
    """
    found = _some(ranks(similarity, positives))
    if not 1 <= k <= np.shape(similarity)[1]:
        raise UsageError(
            f"recall_at_k: k is {k}, expected 1 to {np.shape(similarity)[1]}, the gallery's size",
            k=k,
        )
    return float(np.mean(found <= k))


def median_rank(similarity: np.ndarray, positives: np.ndarray) -> float:
    """Return the median of `ranks`: 1 is best; halfway between the two middle ones.

    Raises:
        ShapeError: The two matrices differ in shape.
        UsageError: A query has no positive, or there are no queries.

    Source:
        Karpathy & Fei-Fei 2015, arXiv:1412.2306. Differs: the tie rule of `ranks`.
    """
    return float(np.median(_some(ranks(similarity, positives))))


def mean_reciprocal_rank(similarity: np.ndarray, positives: np.ndarray) -> float:
    """Return the mean of 1 / `ranks`, in (0, 1].

    Raises:
        ShapeError: The two matrices differ in shape.
        UsageError: A query has no positive, or there are no queries.

    Source:
        Voorhees 1999, the TREC-8 question answering track report. Differs: the tie rule of
        `ranks`, and no rank is too low to count.
    """
    return float(np.mean(1.0 / _some(ranks(similarity, positives))))


def _some(found: np.ndarray) -> np.ndarray:
    if not len(found):
        raise UsageError("evaluation: there are no queries, expected one at least")
    return found


def _check_answered(answered: np.ndarray) -> None:
    lacking = np.flatnonzero(~answered)
    if len(lacking):
        raise UsageError(
            f"positives: {len(lacking)} of {len(answered)} queries have none (first: row "
            f"{lacking[0]}), expected one at least for each; leave these queries out",
            row=int(lacking[0]),
        )


def _block_ranks(
    similarity: np.ndarray, rows: np.ndarray, columns: np.ndarray, *, tie: float
) -> np.ndarray:
    """Ranks of a block of queries, int64 [Q].

    Args:
        similarity: float [Q, G].
        rows: Queries of the positives, ascending, each of 0..Q-1 at least once, int [P].
        columns: Gallery items of the positives, each pair once, int [P].
        tie: Items this much less similar still count as equal.
    """
    if not len(similarity):
        return np.zeros(0, np.int64)
    if np.isnan(similarity.max(axis=1)).any():
        row = int(np.flatnonzero(np.isnan(similarity.max(axis=1)))[0])
        raise UsageError(f"similarity: NaN in row {row}, expected numbers", row=row)
    own = similarity[rows, columns]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    bar = np.maximum.reduceat(own, starts) - similarity.dtype.type(tie)
    passed = np.count_nonzero(similarity >= bar[:, None], axis=1)
    positives_passed = np.add.reduceat((own >= bar[rows]).astype(np.int64), starts)
    return np.asarray(1 + passed - positives_passed, np.int64)


# Large galleries --------------------------------------------------------------------------


def retrieval_ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    positives: np.ndarray,
    *,
    block: int | None = None,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """Return `ranks` by cosine similarity without ever holding the whole matrix.

    Items within 1e-6 of the best positive count as ties: equal vectors give products that
    differ by rounding. A vector of zeros has similarity 0 to all.

    Args:
        queries: float [Q, D], of any length.
        gallery: float [G, D], of any length.
        positives: Pairs (query, gallery item), int64 [P, 2], in any order; a pair said twice
            counts once.
        block: Queries computed at once; by default so many that the block takes 64 MiB.
        bias: What is taken off each item's similarity, float [G]; see `modalign.scoring`.

    Returns:
        Ranks in 1..G, int64 [Q].

    Raises:
        ShapeError: The arrays do not fit each other.
        UsageError: A value is NaN or infinite, a pair is out of range, or a query has no
            positive.
    """
    _check_widths(queries, gallery)
    rows, columns = _sorted_pairs(positives, len(queries), len(gallery))
    gallery = _unit_rows(gallery, what="gallery")
    size = block or max(1, BLOCK_SIMILARITIES // max(1, len(gallery)))
    found = np.zeros(len(queries), np.int64)
    for start, end, own in _query_blocks(rows, len(queries), size):
        similarity = _unit_rows(queries[start:end], what="queries", first=start) @ gallery.T
        if bias is not None:
            similarity -= bias.astype(np.float32)
        found[start:end] = _block_ranks(similarity, rows[own] - start, columns[own], tie=TIE)
    return found


def _check_widths(queries: np.ndarray, gallery: np.ndarray) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ShapeError(
            f"queries {queries.shape} and gallery {gallery.shape}: expected matrices of one "
            "width, [queries, width] and [gallery, width]",
            queries=queries.shape,
            gallery=gallery.shape,
        )


def _sorted_pairs(
    positives: np.ndarray, queries: int, gallery: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each pair once, by query: (queries, gallery items); checked."""
    pairs = np.asarray(positives)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ShapeError(
            f"positives {pairs.shape}: expected pairs (query, gallery item) of shape [pairs, 2]",
            positives=pairs.shape,
        )
    pairs = pairs.astype(np.int64)
    for side, (name, count) in enumerate((("query", queries), ("gallery item", gallery))):
        outside = np.flatnonzero((pairs[:, side] < 0) | (pairs[:, side] >= count))
        if len(outside):
            raise UsageError(
                f"positives, row {outside[0]}: {name} {pairs[outside[0], side]} is out of range, "
                f"expected 0 to {count - 1}",
                row=int(outside[0]),
            )
    # One number a pair sorts several times as fast as rows of two.
    keys = np.unique(pairs[:, 0] * max(1, gallery) + pairs[:, 1])
    rows, columns = np.divmod(keys, max(1, gallery))
    _check_answered(np.bincount(rows, minlength=queries) > 0)
    return rows, columns


def _query_blocks(rows: np.ndarray, queries: int, size: int) -> Iterator[tuple[int, int, slice]]:
    """Yield (first query, end, their positives) of each block."""
    for start in range(0, queries, size):
        end = min(start + size, queries)
        first, last = np.searchsorted(rows, (start, end))
        yield start, end, slice(int(first), int(last))


def _unit_rows(vectors: np.ndarray, *, what: str, first: int = 0) -> np.ndarray:
    """Rows of unit length, float32; a row of zeros stays so."""
    values = np.asarray(vectors, np.float32)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = first + int(np.flatnonzero(~finite)[0])
        raise UsageError(f"{what}: NaN or infinite in row {row}, expected finite numbers", row=row)
    # By the largest value first, so that no square is too large for float32.
    largest = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    scaled: np.ndarray = values / np.where(largest > 0, largest, np.float32(1))
    lengths = np.sqrt(np.einsum("nd,nd->n", scaled, scaled))[:, None]
    scaled /= np.where(lengths > 0, lengths, np.float32(1))
    return scaled


# The standard protocol --------------------------------------------------------------------


def bootstrap_interval(
    hits: np.ndarray, *, seed: int, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval in which the mean lies when queries are drawn anew.

    Queries are drawn one by one: five captions of one photo count as independent, so the
    interval is somewhat too narrow there. Where all scores are equal it has no width, unless they
    are hits: that all of ten queries found theirs does not say that every query will.

    Args:
        hits: True where a query found a positive; or any score, [Q].
        seed: Of the resampling.
        resamples: Galleries of queries drawn.
        level: Share of the resamples inside the interval, in (0, 1).

    Raises:
        UsageError: There are no hits, or `level` is out of range.

    Source:
        The percentile interval of Efron 1979, Bootstrap methods: another look at the
        jackknife. Drawing Q queries with replacement is drawing how often each value
        comes from a multinomial distribution, which is how it is done here. Of hits that are
        all equal, the exact interval of Clopper & Pearson 1934.
    """
    if not 0 < level < 1:
        raise UsageError(f"bootstrap_interval: level is {level}, expected between 0 and 1")
    scores = _some(np.asarray(hits, np.float64))
    if np.asarray(hits).dtype == bool and scores.min() == scores.max():
        bound = ((1 - level) / 2) ** (1 / len(scores))
        return (bound, 1.0) if scores[0] else (0.0, 1 - bound)
    values, counts = np.unique(scores, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(hits), counts / len(hits), resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn @ values / len(hits), (tail, 1 - tail))
    return float(low), float(high)


def beyond_chance(gains: Sequence[np.ndarray], *, tried: int = 1) -> bool:
    """Return whether the best of several ways gains more than chance alone would give.

    Args:
        gains: Of every query, by how much that way is better than the usual one; one array for
            each direction, float [Q] each. The same pairs are asked for in each direction, so
            the directions' standard errors add up.
        tried: How many ways that one is the best of.

    Source:
        One-sided, at a level of .025 shared among those that were tried (Dunn 1961, Multiple
        comparisons among means).
    """
    error = sum((gain.var() / len(gain)) ** 0.5 for gain in gains)
    errors = NormalDist().inv_cdf(1 - CHANCE / max(tried, 1))
    return bool(sum(gain.mean() for gain in gains) > errors * error)


@dataclass(frozen=True)
class Direction:
    """What was measured with queries of one modality in a gallery of another.

    Attributes:
        source: Modality of the queries.
        target: Modality of the gallery.
        queries: How many.
        gallery: Items searched, those that answer no query among them.
        recall_at_1: Share of queries, in [0, 1]; likewise 5 and 10. In a gallery of fewer
            than k items it is 1.
        recall_at_5: See above.
        recall_at_10: See above.
        median_rank: Of the best positive, 1 is best.
        mean_reciprocal_rank: In (0, 1].
        interval_95: Of `recall_at_1`, see `bootstrap_interval`.
    """

    source: str
    target: str
    queries: int
    gallery: int
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_reciprocal_rank: float
    interval_95: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """Return what `modalign evaluate --json` prints of a direction."""
        return {
            "from": self.source,
            "to": self.target,
            "queries": self.queries,
            "gallery": self.gallery,
            **{name: getattr(self, name) for name in METRICS},
            "interval_95": list(self.interval_95),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Direction:
        """Make a direction from what `as_json` gave; keys added later are left out."""
        low, high = values["interval_95"]
        rest = {name: values[name] for name in ("queries", "gallery", *METRICS)}
        return cls(values["from"], values["to"], **rest, interval_95=(low, high))


def evaluate_direction(
    queries: np.ndarray,
    gallery: np.ndarray,
    positives: np.ndarray,
    *,
    source: str,
    target: str,
    seed: int,
    bias: np.ndarray | None = None,
) -> Direction:
    """Measure retrieval in one direction by the standard protocol.

    Every query counts once, whatever the number of its positives; the best of them is what
    counts. Gallery items that answer no query stay, as distractors.

    Args:
        queries: float [Q, D], of any length.
        gallery: float [G, D], of any length.
        positives: Pairs (query, gallery item), int64 [P, 2].
        source: Modality of the queries.
        target: Modality of the gallery.
        seed: Of the interval.
        bias: See `retrieval_ranks`.

    Raises:
        ShapeError: The arrays do not fit each other.
        UsageError: A query has no positive, a value is NaN, or there are no queries.
    """
    found = _some(retrieval_ranks(queries, gallery, positives, bias=bias))
    return direction_of(found, source=source, target=target, gallery=len(gallery), seed=seed)


def every_direction(modalities: Iterable[str]) -> list[tuple[str, str]]:
    """Return all ordered pairs of different modalities."""
    names = list(modalities)
    return [(a, b) for a in names for b in names if a != b]


def direction_of(
    found: np.ndarray, *, source: str, target: str, gallery: int, seed: int
) -> Direction:
    """Sum up the ranks of queries, for those who compute ranks of their own.

    Args:
        found: `ranks`, int64 [Q], one at least.
        source: Modality of the queries.
        target: Modality of the gallery.
        gallery: Its size.
        seed: Of the interval.
    """
    recall = {k: float(np.mean(found <= k)) for k in (1, 5, 10)}
    return Direction(
        source=source,
        target=target,
        queries=len(found),
        gallery=gallery,
        recall_at_1=recall[1],
        recall_at_5=recall[5],
        recall_at_10=recall[10],
        median_rank=float(np.median(found)),
        mean_reciprocal_rank=float(np.mean(1.0 / found)),
        interval_95=bootstrap_interval(found <= 1, seed=seed),
    )


# Tables -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """One figure over several seeds."""

    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class SeedRow:
    """One direction over several seeds.

    Attributes:
        source: Modality of the queries.
        target: Modality of the gallery.
        gallery: Its size.
        seeds: Runs summed up.
        metrics: By the names of `METRICS`.
    """

    source: str
    target: str
    gallery: int
    seeds: int
    metrics: dict[str, Spread]


def seed_table(runs: Sequence[Sequence[Direction]]) -> list[SeedRow]:
    """Sum up runs that differ in their seed alone: mean, lowest and highest of each figure.

    Args:
        runs: The directions of each seed, the same in each and in one order.

    Raises:
        UsageError: There are no runs, or they measured different directions or galleries.
    """
    if not runs:
        raise UsageError("seed_table: there are no runs, expected one at least")
    measured = [[(d.source, d.target, d.queries, d.gallery) for d in run] for run in runs]
    for number, found in enumerate(measured):
        if found != measured[0]:
            raise UsageError(
                f"seed_table, run {number}: measured {found}, expected what run 0 did: "
                f"{measured[0]}"
            )
    return [_seed_row(directions) for directions in zip(*runs, strict=True)]


def _seed_row(directions: Sequence[Direction]) -> SeedRow:
    first = directions[0]
    figures = {name: [float(getattr(d, name)) for d in directions] for name in METRICS}
    return SeedRow(
        source=first.source,
        target=first.target,
        gallery=first.gallery,
        seeds=len(directions),
        metrics={
            name: Spread(sum(values) / len(values), min(values), max(values))
            for name, values in figures.items()
        },
    )


def format_table(directions: Sequence[Direction]) -> str:
    """Return directions as plain text in columns, one line a direction below a heading."""
    heading = ("direction", "queries", "gallery", "R@1", "95 %", "R@5", "R@10", "median", "MRR")
    rows = [heading, *(_cells(direction) for direction in directions)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _cells(direction: Direction) -> tuple[str, ...]:
    low, high = direction.interval_95
    return (
        f"{direction.source} -> {direction.target}",
        f"{direction.queries:,}",
        f"{direction.gallery:,}",
        fraction(direction.recall_at_1),
        f"{fraction(low)}-{fraction(high)}",
        fraction(direction.recall_at_5),
        fraction(direction.recall_at_10),
        f"{direction.median_rank:g}",
        fraction(direction.mean_reciprocal_rank),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The first column to the left, figures to the right."""
    figures = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join((cells[0].ljust(widths[0]), *figures))


def fraction(value: float) -> str:
    """Return .237 for 0.237, and 1.000 for 1."""
    return f"{value:.3f}".removeprefix("0")
