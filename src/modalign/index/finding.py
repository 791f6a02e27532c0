"""One state of an index and how it is searched: the engine proposes, the durable rows decide.

Deletions, filters and rows that came after the engine was built are seen to here, once for all
engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from modalign.index.artefacts import Artefact
from modalign.index.ranking import Ranked, merged, ranked
from modalign.index.scanning import Scanner
from modalign.index.segments import View, member
from modalign.index.tuning import Calibration, chosen_rung

# So small a share of all rows that fit a filter is searched exactly, and so are `few_rows`.
FEW_SHARE = 0.05
# An engine asked for a larger share of its rows is slower than looking at all of them.
ASKED_SHARE = 0.25
NOTHING: Ranked = (np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True, eq=False)
class State:
    """What one search sees.

    Attributes:
        view: The rows.
        artefact: The engine; None where every search is exact.
        calibrations: By the queries' modality.
        scanner: Of exact search.
        few_rows: So many that fit a filter, or fewer, are searched exactly.
    """

    view: View
    artefact: Artefact | None
    calibrations: Mapping[str, Calibration]
    scanner: Scanner
    few_rows: int

    @property
    def covered(self) -> int:
        """Rows the engine knows, those deleted since among them."""
        return 0 if self.artefact is None else self.artefact.record.rows

    def exact(
        self, queries: np.ndarray, k: int, *, allowed: np.ndarray | None = None
    ) -> list[Ranked]:
        """Return the k best of all rows, or of those allowed, for each query; see `find`."""
        if allowed is not None:
            return self.scanner.search_among(self.view, queries, k, allowed)
        return self.scanner.search(self.view, queries, min(k, len(self.view)))

    def find(
        self,
        queries: np.ndarray,
        k: int,
        *,
        source: str | None = None,
        allowed: np.ndarray | None = None,
    ) -> list[Ranked]:
        """Return the k best rows of each query, as its source is calibrated.

        Args:
            queries: Of unit length, float32 [Q, D].
            k: 1 or more; all there are where they are fewer.
            source: The queries' modality; None for the largest effort of any.
            allowed: Rows to choose from, ascending and none deleted; None for all.
        """
        few = allowed is not None and len(allowed) <= max(self.few_rows, FEW_SHARE * len(self.view))
        rung = None if few or self.artefact is None else self._rung(source, k)
        if rung is None:
            return self.exact(queries, k, allowed=allowed)
        return self.find_by_engine(queries, k, rung, allowed=allowed)

    def _rung(self, source: str | None, k: int) -> int | None:
        assert self.artefact is not None
        steps = len(self.artefact.engine.efforts())
        return chosen_rung(self.calibrations, source, k=k, steps=steps)

    def find_by_engine(
        self, queries: np.ndarray, k: int, rung: int, *, allowed: np.ndarray | None = None
    ) -> list[Ranked]:
        """Return the k best rows of each query that the engine finds at a rung of its ladder."""
        old, new = self._split(allowed)
        found = self._proposed(queries, k, rung, old)
        if self.view.rows == self.covered:
            return found
        if new is None:
            left = len(self.view.live(self.covered, self.view.rows))
            later = self.scanner.search(self.view, queries, min(k, left), start=self.covered)
        else:
            later = self.scanner.search_among(self.view, queries, k, new)
        # Later rows have higher numbers, so of equals the engine's come first.
        return [merged(*pair, k) for pair in zip(found, later, strict=True)]

    def _split(self, allowed: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the allowed rows that the engine knows, and the later ones."""
        if allowed is None:
            return None, None
        at = int(np.searchsorted(allowed, self.covered))
        return allowed[:at], allowed[at:]

    def _proposed(
        self, queries: np.ndarray, k: int, rung: int, allowed: np.ndarray | None
    ) -> list[Ranked]:
        """Ask the engine for more until k of what it proposes may be shown; else look at all."""
        deleted = int(np.searchsorted(self.view.deleted, self.covered))
        fitting = self.covered - deleted if allowed is None else len(allowed)
        k = min(k, fitting)
        if not k:
            return [NOTHING for _ in queries]
        found: list[Ranked] = [NOTHING for _ in queries]
        # A query of zeros has no direction, and engines differ in what they make of it.
        zeros = np.flatnonzero(~queries.any(axis=1)).tolist()
        left = np.flatnonzero(queries.any(axis=1)).tolist()
        wanted = math.ceil(k * self.covered / fitting)
        while left and wanted <= max(k, ASKED_SHARE * self.covered):
            rows = self._candidates(queries[left], wanted, rung, allowed)
            best = ranked(self.view, queries[left], rows, k)
            for query, each in zip(left, best, strict=True):
                found[query] = each
            left = [query for query in left if len(found[query][0]) < k]
            wanted, rung = 2 * wanted, rung + 1
        for query in [*zeros, *left]:
            found[query] = self._old_exact(queries[query : query + 1], k, allowed)
        return found

    def _candidates(
        self, queries: np.ndarray, wanted: int, rung: int, allowed: np.ndarray | None
    ) -> list[np.ndarray]:
        """Return the engine's proposals that may be shown, ascending rows of each query."""
        assert self.artefact is not None
        ladder = self.artefact.engine.efforts()
        proposed = self.artefact.candidates(queries, wanted, ladder[min(rung, len(ladder) - 1)])
        shown = proposed >= 0
        if allowed is not None:
            shown &= member(proposed, allowed)
        elif len(self.view.deleted):
            shown &= ~self.view.is_deleted(proposed)
        # Each once, whatever the engine says.
        return [np.unique(rows[fits]) for rows, fits in zip(proposed, shown, strict=True)]

    def _old_exact(self, query: np.ndarray, k: int, allowed: np.ndarray | None) -> Ranked:
        rows = self.view.live(0, self.covered) if allowed is None else allowed
        return self.scanner.search_among(self.view, query, k, rows)[0]
