"""How hard an engine must try for the queries there really are.

Queries of another modality lie outside of the gallery's distribution, where an engine's usual
settings keep far less than they promise. So each source of queries has its own rung of the
engine's ladder of efforts: the lowest at which, on one half of a sample, recall against exact
search is what was wanted, by a margin for the size of the sample. The other half says what it
keeps.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from modalign.errors import CorruptError, UsageError
from modalign.index.contract import Effort
from modalign.index.ranking import Ranked

# The name under which an index is tuned on its own rows, for want of queries.
OWN_ROWS = ""
SAMPLE = 1000
# One-sided, of a normal distribution: 19 of 20 times the true recall lies above.
MARGIN_ERRORS = 1.645
# Fewer queries say nothing of a recall near 1.
FEWEST = 20
TIMED = 50


@dataclass(frozen=True)
class Calibration:
    """What was found for one source of queries.

    Attributes:
        source: Their modality; "" for the index's own rows.
        wanted: Recall that was wanted, a share.
        k: Neighbours it is counted over.
        rung: Of the ladder; None where no rung reaches it, and search is exact.
        effort: What stands on that rung.
        kept: Recall of the other half of the sample at that rung, a share; 1 where exact.
        best: Recall of the first half, the best of the rungs tried.
        queries: In the sample.
        milliseconds: Median of single queries at that rung; None where exact.
    """

    source: str
    wanted: float
    k: int
    rung: int | None
    effort: dict[str, int] | None
    kept: float
    best: float
    queries: int
    milliseconds: float | None

    @property
    def own_rows(self) -> bool:
        """Whether it was the index's own rows that were asked, for want of queries."""
        return self.source == OWN_ROWS

    @property
    def reached(self) -> bool:
        """Whether the engine reaches what was wanted."""
        return self.rung is not None

    def as_json(self) -> dict[str, Any]:
        """Return all of it, and what it means in words."""
        return {**asdict(self), "reached": self.reached, "note": self.note}

    @property
    def note(self) -> str:
        """What a user must know of it; "" where all is well."""
        if self.own_rows:
            return (
                "tuned on the gallery's own vectors: queries of another modality lie outside of "
                "their distribution, and recall may be far lower; give real ones (--space SPACE "
                "--queries PAIRS)"
            )
        if not self.reached:
            return (
                f"the engine keeps {self.best:.3f} at most of the {self.k} nearest, wanted "
                f"{self.wanted}: {self.source} queries are searched exactly"
            )
        return ""

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Calibration:
        """Return what `as_json` gave."""
        names = [each.name for each in fields(cls)]
        if not set(names) <= set(stored):
            raise CorruptError("index: a calibration lacks values; tune the index again")
        return cls(**{name: stored[name] for name in names})


def check_recall(recall: float) -> None:
    """Raise a UsageError unless a recall can be wanted."""
    if not 0 < recall <= 1:
        raise UsageError(
            f"recall is {recall}, expected above 0 and at most 1, as in 0.99", recall=recall
        )


def sampled(queries: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the queries to tune by, in a drawn order, float32 [Q, D].

    Raises:
        UsageError: They are too few to say anything.
    """
    if len(queries) < FEWEST:
        raise UsageError(
            f"tune: {len(queries)} queries, expected {FEWEST} at least, better some hundreds; "
            "give more",
            queries=len(queries),
        )
    order = np.random.default_rng(seed).permutation(len(queries))[:SAMPLE]
    return np.asarray(queries)[order]


def calibrate(
    source: str,
    queries: np.ndarray,
    *,
    exact: Callable[[np.ndarray, int], list[Ranked]],
    at_rung: Callable[[np.ndarray, int, int], list[Ranked]],
    ladder: Sequence[Effort],
    recall: float,
    k: int,
) -> Calibration:
    """Choose the lowest rung that reaches a recall.

    Args:
        source: Of the queries.
        queries: Of unit length, in a drawn order, float32 [Q, D].
        exact: (queries, k) -> the true k best of each.
        at_rung: (queries, k, rung) -> what the engine finds.
        ladder: Its efforts.
        recall: Wanted, a share.
        k: Neighbours it is counted over.
    """
    half = len(queries) // 2
    chosen, held_out = queries[:half], queries[half:]
    truth = exact(chosen, k)
    best = 0.0

    def reaches(step: int) -> bool:
        nonlocal best
        shares = kept_shares(at_rung(chosen, k, step), truth)
        best = max(best, float(shares.mean()))
        return lower_bound(shares) >= recall

    # A rung looks at more than those below it: a few of a long ladder say where it is enough.
    found = bisect_left(range(len(ladder)), True, key=reaches)
    rung = found if found < len(ladder) else None
    kept, milliseconds = 1.0, None
    if rung is not None:
        kept = float(kept_shares(at_rung(held_out, k, rung), exact(held_out, k)).mean())
        seconds = []
        for query in held_out[:TIMED]:
            begin = time.perf_counter()
            at_rung(query[None], k, rung)
            seconds.append(time.perf_counter() - begin)
        milliseconds = round(1e3 * float(np.median(seconds)), 3)
    return Calibration(
        source=source,
        wanted=recall,
        k=k,
        rung=rung,
        effort=None if rung is None else dict(ladder[rung]),
        kept=round(kept, 6),
        best=round(best, 6),
        queries=len(queries),
        milliseconds=milliseconds,
    )


def kept_shares(found: Sequence[Ranked], truth: Sequence[Ranked]) -> np.ndarray:
    """Return the share of each query's true neighbours that was found, float64 [Q].

    What is as similar as the last of them is as good, so that ties cost nothing.
    """
    shares = [
        np.count_nonzero(got[1] >= wanted[1][-1]) / len(wanted[1]) if len(wanted[1]) else 1.0
        for got, wanted in zip(found, truth, strict=True)
    ]
    return np.minimum(1.0, np.array(shares, np.float64))


def lower_bound(shares: np.ndarray) -> float:
    """Return what the mean is at least, 19 of 20 times, with so many queries."""
    if len(shares) < 2:
        return 0.0
    return float(shares.mean() - MARGIN_ERRORS * shares.std(ddof=1) / math.sqrt(len(shares)))


def chosen_rung(
    calibrations: Mapping[str, Calibration], source: str | None, *, k: int, steps: int
) -> int | None:
    """Return the rung of a search, None for an exact one.

    A source that was never tuned gets the largest effort of any that was. More neighbours than
    were tuned for are harder to find all: each doubling takes the next rung.

    Args:
        calibrations: By source.
        source: The queries' modality; None where they have none, or several.
        k: Neighbours wanted.
        steps: Of the ladder.
    """
    if source in calibrations and source is not None:
        used = [calibrations[source]]
    else:
        real = [each for each in calibrations.values() if not each.own_rows]
        used = real or list(calibrations.values())
    rungs = [each.rung for each in used]
    known = [rung for rung in rungs if rung is not None]
    if len(known) < len(rungs) or not known:
        return None
    doublings = math.ceil(max(0.0, math.log2(k / min(each.k for each in used))))
    return min(max(known) + doublings, steps - 1)
