"""Features of two modalities and the pairs between them: what stages train on and measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modalign.encoders import Features
from modalign.features import FeatureRows

# Rows embedded or read at a time where the whole would not fit.
CHUNK_ROWS = 16384


@dataclass(frozen=True)
class PairedTables:
    """Features of two modalities and which rows belong together, of one split.

    Attributes:
        first: Modality of the first column of `pairs`.
        second: Modality of the second.
        tables: Features by modality.
        pairs: (row of the first table, row of the second), int64 [P, 2].
    """

    first: str
    second: str
    tables: dict[str, FeatureRows]
    pairs: np.ndarray

    def oriented(self, source: str) -> np.ndarray:
        """Return (row of the source, row of the other) for every pair, int64 [P, 2]."""
        return self.pairs if source == self.first else self.pairs[:, ::-1]

    def among(self, directions: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the directions between these two modalities."""
        return [d for d in directions if set(d) == {self.first, self.second}]


@dataclass(frozen=True)
class RowTables:
    """Features of several modalities and the rows that join them, of one split.

    Attributes:
        tables: Features by modality.
        rows: Of each row the item of each modality, in the order of `tables`; -1 where the row
            lacks it, int64 [R, M].
    """

    tables: dict[str, FeatureRows]
    rows: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Which modalities each row has, bool [R, M]."""
        found: np.ndarray = self.rows >= 0
        return found


def chunks(table: FeatureRows) -> Iterator[Features]:
    """Return the rows of a table in order, some thousand at a time."""
    starts = range(0, len(table), CHUNK_ROWS)
    return (table.take(np.arange(s, min(s + CHUNK_ROWS, len(table)))) for s in starts)


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many of some rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def pairs_of_rows(pairs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the pairs of some rows of the first side, numbered by their place among these.

    Args:
        pairs: (row of the first side, row of the second), int64 [P, 2].
        rows: Of the first side, ascending, int64 [R].
    """
    known = pairs[np.isin(pairs[:, 0], rows)]
    return np.stack([np.searchsorted(rows, known[:, 0]), known[:, 1]], axis=1)


def first_rows(paired: PairedTables, limit: int) -> PairedTables:
    """Keep the pairs of the first `limit` items of the first modality, and those items."""
    chosen = np.unique(paired.pairs[:, 0])[:limit]
    pairs = paired.pairs[np.isin(paired.pairs[:, 0], chosen)]
    first, first_index = np.unique(pairs[:, 0], return_inverse=True)
    second, second_index = np.unique(pairs[:, 1], return_inverse=True)
    return PairedTables(
        paired.first,
        paired.second,
        {
            paired.first: paired.tables[paired.first].subset(first),
            paired.second: paired.tables[paired.second].subset(second),
        },
        np.stack([first_index, second_index], axis=1),
    )


def feature_figures(table: FeatureRows) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation of a table's features over valid positions, [D_m] each."""
    total = np.zeros(table.width)
    squares = np.zeros(table.width)
    count = 0
    for features in chunks(table):
        valid = features.values if features.mask is None else features.values[features.mask]
        flat = valid.astype(np.float64)
        total += flat.sum(0)
        squares += np.square(flat).sum(0)
        count += len(flat)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
