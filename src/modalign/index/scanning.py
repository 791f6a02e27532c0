"""Exact search: every row is looked at.

Rows are read where they lie, widened to float32 a block at a time in a processor's cache, so that
nothing grows with the index. A single query is bound by how fast memory is read: it is scanned in
a bfloat16 copy, half as large as float32, whose error is bounded row by row; whatever the bound
cannot rule out is decided by the durable vectors. So the copy changes the time and never a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from modalign.gallery import ROUNDING
from modalign.index.ranking import Ranked, ranked, shortlist
from modalign.index.segments import View, block_rows

if TYPE_CHECKING:
    import torch

# A bfloat16 copy of at most this size is kept in memory.
COPY_BYTES = 2 * 2**30
# Below this many rows a copy would not be worth it.
COPY_ROWS = 20_000
# A copy is made anew when this share of the rows came after it.
STALE_SHARE = 0.125
# Rough cosines held at a time, 64 MiB.
ROUGH_VALUES = 1 << 24
# bfloat16 has 8 bits: rounding changes a number by 2 ** -9 of it at most, told here twice over.
BFLOAT16_STEP = 2.0**-8
# How far sums in float32 of products of bfloat16 may be off; each machine's are tried on this.
SUM_ERROR = 1e-5
TRIED_ROWS, TRIED_QUERIES = 2048, 4
# More rows to decide than this share: the copy is too coarse for these data.
COARSE_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class _Copy:
    """The first rows of an index in bfloat16.

    Attributes:
        rows: Of unit length, bfloat16 [n, D].
        error: Length of the largest difference to a row in float32.
        trusted: Whether this machine multiplies bfloat16 as exactly as the bound needs.
    """

    rows: torch.Tensor
    error: float
    trusted: bool


class Scanner:
    """Exact search of one index, whatever is added to it."""

    def __init__(self, *, copy_bytes: int = COPY_BYTES, copy_rows: int = COPY_ROWS) -> None:
        """Take limits of the copy: its size at most, and its rows at least."""
        self.copy_bytes = copy_bytes
        self.copy_rows = copy_rows
        self._copy: _Copy | None = None
        self._copying = Lock()

    def memory_bytes(self) -> int:
        """Return the size of the copy; 0 while there is none."""
        return 0 if self._copy is None else self._copy.rows.numel() * 2

    def search(self, view: View, queries: np.ndarray, k: int, *, start: int = 0) -> list[Ranked]:
        """Return the k best rows of each query among all from `start` on that are not deleted.

        Args:
            view: What to search.
            queries: Of unit length, float32 [Q, D].
            k: At most as many as there are rows to look at.
            start: The first row that is looked at.
        """
        if k < 1 or view.rows == start:
            return [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
        if len(queries) == 1 and start == 0 and (copy := self._copy_of(view)) is not None:
            found = _by_copy(copy, view, queries[0], k)
            if found is not None:
                return [found]
        step = max(1, ROUGH_VALUES // (view.rows - start))
        return [
            each
            for at in range(0, len(queries), step)
            for each in _by_blocks(view, queries[at : at + step], k, start)
        ]

    def search_among(
        self, view: View, queries: np.ndarray, k: int, rows: np.ndarray
    ) -> list[Ranked]:
        """Return the k best of some rows for each query.

        Args:
            view: What to search.
            queries: Of unit length, float32 [Q, D].
            k: At most so many.
            rows: Ascending int64, none of them deleted.
        """
        k = min(k, len(rows))
        if k < 1:
            return [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
        step = max(1, ROUGH_VALUES // len(rows))
        return [
            each
            for at in range(0, len(queries), step)
            for each in _by_rows(view, queries[at : at + step], k, rows)
        ]

    def _copy_of(self, view: View) -> _Copy | None:
        """Return a copy of nearly all rows; None where none is wanted, or of use."""
        size = view.rows * view.width * 2
        if view.rows < self.copy_rows or size > self.copy_bytes:
            return None
        with self._copying:
            copy = self._copy
            # Two threads may see different moments: one of more rows than the view is none of it.
            if copy is None or not view.rows * (1 - STALE_SHARE) <= len(copy.rows):
                copy = self._copy = _made_copy(view)
        return copy if copy.trusted else None


def _by_copy(copy: _Copy, view: View, query: np.ndarray, k: int) -> Ranked | None:
    """Search by the copy, and what was added since by blocks; None where it is too coarse."""
    import torch

    exact = torch.from_numpy(query)
    rounded = exact.bfloat16()
    covered = min(len(copy.rows), view.rows)
    rough = np.empty((1, view.rows), np.float32)
    rough[0, :covered] = torch.mv(copy.rows[:covered], rounded).float().numpy()
    _fill(rough[:, covered:], view, query[None], covered)
    rough[0, view.deleted] = -np.inf
    bar = abs(float(np.partition(rough[0], view.rows - k)[view.rows - k]))
    off = copy.error + float((exact - rounded.float()).norm()) + SUM_ERROR
    # The rounding of what comes out, for rows a little beyond the bar too.
    slack = 2 * (1 + BFLOAT16_STEP) * (off + BFLOAT16_STEP * (bar + 8 * off))
    places = shortlist(rough[0], k, slack=slack)
    if len(places) > max(k, COARSE_SHARE * view.rows):
        return None
    return ranked(view, query[None], [places], k)[0]


def _made_copy(view: View) -> _Copy:
    import torch

    rows = torch.empty((view.rows, view.width), dtype=torch.bfloat16)
    error = 0.0
    for first, block, scale in view.blocks(0, view.rows):
        unit = torch.from_numpy(block).float() * torch.from_numpy(scale)[:, None]
        part = rows[first : first + len(block)]
        part.copy_(unit)
        error = max(error, float((unit - part.float()).norm(dim=1).max()))
    return _Copy(rows, error, _is_trusted(rows))


def _is_trusted(rows: torch.Tensor) -> bool:
    """Return whether products of bfloat16 are summed in float32 here."""
    import torch

    some = rows[:TRIED_ROWS]
    for query in some[:: max(1, len(some) // TRIED_QUERIES)][:TRIED_QUERIES]:
        expected = some.double() @ query.double()
        off = (torch.mv(some, query).double() - expected).abs()
        if bool((off > BFLOAT16_STEP * expected.abs() + SUM_ERROR).any()):
            return False
    return True


def _by_blocks(view: View, queries: np.ndarray, k: int, start: int) -> list[Ranked]:
    rough = np.empty((len(queries), view.rows - start), np.float32)
    _fill(rough, view, queries, start)
    rough[:, view.deleted[np.searchsorted(view.deleted, start) :] - start] = -np.inf
    rows = [shortlist(each, k, slack=4 * ROUNDING) + start for each in rough]
    return ranked(view, queries, rows, k)


def _fill(rough: np.ndarray, view: View, queries: np.ndarray, start: int) -> None:
    """Write the rough cosines of all rows from `start` on, float32 [Q, n]."""
    import torch

    wanted = torch.from_numpy(queries.T if len(queries) > 1 else queries[0])
    buffer = torch.empty((block_rows(view.width), view.width), dtype=torch.float32)
    for first, block, scale in view.blocks(start, start + rough.shape[1]):
        wide = buffer[: len(block)].copy_(torch.from_numpy(block))
        wide *= torch.from_numpy(scale)[:, None]
        product = torch.mv(wide, wanted)[:, None] if wanted.ndim == 1 else torch.mm(wide, wanted)
        rough[:, first - start : first - start + len(block)] = product.T.numpy()


def _by_rows(view: View, queries: np.ndarray, k: int, rows: np.ndarray) -> list[Ranked]:
    rough = np.empty((len(queries), len(rows)), np.float32)
    size = block_rows(view.width)
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        wide = view.vectors(part).astype(np.float32)
        wide *= view.scale(part)[:, None]
        rough[:, at : at + size] = queries @ wide.T
    some = [rows[shortlist(each, k, slack=4 * ROUNDING)] for each in rough]
    return ranked(view, queries, some, k)
