"""Forecast: what recall more pairs would bring, from recall at fewer.

Recall is followed on the scale of log odds over the logarithm of the pairs, where it is nearly
a straight line that bends down: curves that bend more or less are fitted to runs drawn anew, and
the spread of what they say is the interval. How often intervals hold: bench/forecast.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from modalign.errors import DataError, UsageError

RESAMPLES = 400
# Recall is kept this far from 0 and 1, where log odds end.
MARGIN = 1e-4
# Of the gain per doubling, how much is left at the next doubling: from a straight line to a curve
# that bends soon. Each counts by how well it fits.
BENDS = (1.0, 0.9, 0.8, 0.65)
# Deviation of what is measured from such a curve, in log odds.
MISFIT = 0.05
# What curves miss grows by this much of log odds for every doubling beyond the last size.
DRIFT = 0.03
# Of the deviation that chance gives a recall: what all sizes share, for they have the queries in
# common, and what each has for itself.
SHARED_NOISE, OWN_NOISE = 0.3, 0.3
LEAST_SIZES = 3
MOST_DOUBLINGS = 20


@dataclass(frozen=True)
class Forecast:
    """Recall at a number of pairs.

    Attributes:
        pairs: How many.
        recall: In [0, 1].
        interval_80: Where it is expected in four cases of five.
    """

    pairs: int
    recall: float
    interval_80: tuple[float, float]


@dataclass(frozen=True)
class Curves:
    """Curves that were fitted to runs drawn anew.

    Attributes:
        largest: The most pairs that were measured.
        reached: The recall they had, in [0, 1].
        start: Of each curve the log odds at `largest`, float64 [C].
        gain: What the first doubling beyond it adds, float64 [C].
        bend: What is left of the gain after each doubling, float64 [C].
        drift: What each curve goes astray for every doubling, float64 [C].
    """

    largest: int
    reached: float
    start: np.ndarray
    gain: np.ndarray
    bend: np.ndarray
    drift: np.ndarray

    def log_odds(self, pairs: float) -> np.ndarray:
        """Return what the curves say of a number of pairs, float64 [C]."""
        doublings = float(np.log2(pairs / self.largest))
        bent = np.array([_bent(doublings, bend) for bend in self.bend])
        found: np.ndarray = self.start + self.gain * bent + self.drift * max(doublings, 0.0)
        return found

    def at(self, pairs: int) -> Forecast:
        """Return the forecast for a number of pairs."""
        if pairs < 1:
            raise UsageError(f"forecast: pairs is {pairs}, expected 1 or more")
        low, middle, high = np.quantile(_share(self.log_odds(pairs)), (0.1, 0.5, 0.9))
        return Forecast(pairs, float(middle), (float(low), float(high)))

    def pairs_for(self, wanted: float) -> tuple[int | None, int | None, int | None]:
        """Return the pairs needed for a recall: by the middle curve, the high, and the low end.

        Args:
            wanted: In (0, 1).

        Returns:
            Pairs, more than were measured where those did not reach it; None where no number up
            to a million times as many does.
        """
        if not 0 < wanted < 1:
            raise UsageError(f"forecast: recall {wanted} is wanted, expected between 0 and 1")
        ends: list[Callable[[Forecast], float]] = [
            lambda found: found.recall,
            lambda found: found.interval_80[1],
            lambda found: found.interval_80[0],
        ]
        middle, best, worst = (self._first(wanted, end) for end in ends)
        return middle, best, worst

    def _first(self, wanted: float, end: Callable[[Forecast], float]) -> int | None:
        def reaches(doublings: float) -> bool:
            return end(self.at(max(1, round(self.largest * 2**doublings)))) >= wanted

        # An end of the interval may say fewer than were seen to fall short.
        least = 0.0 if self.reached < wanted else -float(np.log2(self.largest))
        # The low end rises, then falls as curves go astray: what counts is where it first arrives.
        steps: list[float] = [*np.arange(least, MOST_DOUBLINGS).tolist(), float(MOST_DOUBLINGS)]
        place = next((place for place, step in enumerate(steps) if reaches(step)), None)
        if place is None:
            return None
        low, high = steps[max(place - 1, 0)], steps[place]
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if reaches(middle) else (middle, high)
        return round(self.largest * 2**high)


def fit_curves(sizes: Sequence[int], recall: np.ndarray, *, queries: int, seed: int = 0) -> Curves:
    """Fit curves to recall at nested numbers of pairs.

    Args:
        sizes: Pairs, rising, three at least.
        recall: Of each size and repetition, float [sizes, repetitions], in [0, 1].
        queries: That each recall was measured with: what chance alone moves it.
        seed: Of what is drawn anew.

    Raises:
        DataError: There are fewer than three sizes, or they do not rise.
        UsageError: The recall does not fit the sizes.
    """
    values = np.asarray(recall, np.float64)
    if len(sizes) < LEAST_SIZES or any(a >= b for a, b in pairwise(sizes)):
        raise DataError(
            f"forecast: recall at {len(sizes)} sizes ({', '.join(map(str, sizes))}), expected "
            f"{LEAST_SIZES} or more that rise; give more pairs"
        )
    if values.ndim != 2 or len(values) != len(sizes) or not np.isfinite(values).all():
        raise UsageError(
            f"forecast: recall {values.shape}, expected a finite one for each of {len(sizes)} "
            "sizes and repetition"
        )
    rng = np.random.default_rng(seed)
    doublings = np.log2(np.asarray(sizes) / sizes[-1])
    odds = _drawn(values, queries, rng)
    # The last sizes say most of what comes.
    weights = 2.0 ** (doublings / 4)
    lines = [_lines(_bent(doublings, bend), odds, weights) for bend in BENDS]
    # [bends, curves] each
    starts, gains, misfits = (np.stack(part) for part in zip(*lines, strict=True))
    fit = -misfits / (2 * MISFIT**2)
    share = np.exp(fit - fit.max(0))
    limits = np.cumsum(share / share.sum(0), axis=0)
    chosen = (rng.random(RESAMPLES) > limits[:-1]).sum(0)
    start, gain = (np.take_along_axis(part, chosen[None], 0)[0] for part in (starts, gains))
    bend = np.array(BENDS)[chosen]
    drift = DRIFT * rng.standard_normal(RESAMPLES)
    return Curves(int(sizes[-1]), float(values[-1].mean()), start, gain, bend, drift)


def _bent(doublings: float | np.ndarray, bend: float) -> Any:
    """Return the gains of some doublings, in those of the first beyond the largest size."""
    return doublings if bend == 1 else (1 - bend**doublings) / (1 - bend)


def _drawn(values: np.ndarray, queries: int, rng: np.random.Generator) -> np.ndarray:
    """Draw repetitions and queries anew; return log odds, float64 [RESAMPLES, sizes]."""
    repetitions = values.shape[1]
    taken = rng.integers(0, repetitions, (RESAMPLES, repetitions))
    drawn = values.T[taken].mean(1)
    noise = np.sqrt(np.maximum(drawn * (1 - drawn), 1 / queries) / queries)
    shared, own = rng.standard_normal((RESAMPLES, 1)), rng.standard_normal(drawn.shape)
    return _log_odds(drawn + noise * (SHARED_NOISE * shared + OWN_NOISE * own))


def _lines(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weighted least-squares lines of rows: values at 0, slopes, and what they miss."""
    middle, level = np.average(x, weights=weights), np.average(y, axis=1, weights=weights)
    spread = np.average(np.square(x - middle), weights=weights)
    together = np.average((x - middle) * (y - level[:, None]), axis=1, weights=weights)
    slope = np.maximum(together / spread, 0.0)  # more pairs do not harm
    missed = y - level[:, None] - slope[:, None] * (x - middle)
    return level - slope * middle, slope, np.square(missed) @ weights


def _log_odds(share: np.ndarray) -> np.ndarray:
    kept = np.clip(share, MARGIN, 1 - MARGIN)
    found: np.ndarray = np.log(kept / (1 - kept))
    return found


def _share(log_odds: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-np.clip(log_odds, -50, 50)))
    return found


def holds(forecast: Forecast, measured: float, *, hits: int) -> bool:
    """Return whether a measured recall lies in the interval of its forecast.

    It is known to half a hit: all of forty queries is what is expected of .999, which no curve
    rounds up.

    Args:
        forecast: Of the size that was measured.
        measured: The recall, in [0, 1].
        hits: What it could have had: queries times repetitions, 1 or more.
    """
    low, high = forecast.interval_80
    return low - 0.5 / hits <= measured <= high + 0.5 / hits


def coverage(
    sizes: Sequence[int], recall: np.ndarray, *, queries: int, seed: int = 0
) -> list[tuple[int, float, Forecast]]:
    """Leave the largest sizes out, one more at a time, and forecast them.

    Args: see `fit_curves`.

    Returns:
        (pairs, the recall that was measured, its forecast) for every size left out, as long as
        three remain.
    """
    found = []
    for kept in range(LEAST_SIZES, len(sizes)):
        curves = fit_curves(sizes[:kept], recall[:kept], queries=queries, seed=seed)
        found += [
            (size, float(np.mean(recall[place])), curves.at(size))
            for place, size in enumerate(sizes)
            if place >= kept
        ]
    return found
