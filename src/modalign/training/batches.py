"""Batches of pairs with all their positives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modalign.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Pairs of one step.

    Attributes:
        first: Item of the first modality in each pair, int64 [B].
        second: Item of the second modality in each pair, int64 [B].
        positives: True where first_i and second_j belong together, whether or not they were
            drawn as a pair, bool [B, B].
    """

    first: np.ndarray
    second: np.ndarray
    positives: np.ndarray


class PairBatches:
    """Draws each pair once an epoch, in an order that is a function of (seed, epoch).

    Args:
        pairs: (first item, second item), int64 [P, 2], each pair once.
        batch_size: Pairs a batch, B; all of them where there are fewer.
        seed: What the order is drawn from.

    Raises:
        DataError: There are no pairs.
    """

    def __init__(self, pairs: np.ndarray, *, batch_size: int, seed: int) -> None:
        if not len(pairs):
            raise DataError("training: no pairs in the train split, expected some")
        self.pairs = pairs
        self.batch_size = min(batch_size, len(pairs))
        self.seed = seed
        self.partners = Partners(pairs)
        self._drawn: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches an epoch; the rest of a pass is left for another epoch's order."""
        return len(self.pairs) // self.batch_size

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (
                epoch,
                np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs)),
            )
        chosen = self._drawn[1][place * self.batch_size : (place + 1) * self.batch_size]
        first, second = self.pairs[chosen].T
        return Batch(first, second, self.partners.within(first, second))


class Partners:
    """Which items of the second side belong to an item of the first.

    Args:
        pairs: (first item, second item), int64 [P, 2].
    """

    def __init__(self, pairs: np.ndarray) -> None:
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        self._second = pairs[order, 1]
        count = int(pairs[:, 0].max()) + 1 if len(pairs) else 0
        self._starts = np.searchsorted(pairs[order, 0], np.arange(count + 1))

    def of(self, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (position in `first`, partner) for every partner, int64 [K] each."""
        lengths = self._starts[first + 1] - self._starts[first]
        positions = np.repeat(np.arange(len(first)), lengths)
        within = np.arange(len(positions)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return positions, self._second[np.repeat(self._starts[first], lengths) + within]

    def within(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return which of the given items belong together, bool [B, B']."""
        positions, partners = self.of(first)
        order = np.argsort(second, kind="stable")
        low = np.searchsorted(second[order], partners, side="left")
        high = np.searchsorted(second[order], partners, side="right")
        result = np.zeros((len(first), len(second)), bool)
        counts = high - low
        columns = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        result[np.repeat(positions, counts), order[np.repeat(low, counts) + columns]] = True
        return result
