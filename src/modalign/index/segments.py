"""The vectors of an index as they lie on the disk, and what one search sees of them.

Rows are numbered in the order they were added and never move; a row that was deleted stays where
it is and is left out of every result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from modalign.errors import CorruptError
from modalign.gallery import row_scales
from modalign.storage import limit_mapped, load_array

# Rows taken at once: their float32 copy fits a processor's cache.
BLOCK_BYTES = 3 * 2**20
# Files larger than this together give their pages back while they are scanned: reading them anew
# costs as much as the scan, so smaller ones stay mapped.
RESIDENT_BYTES = 2 * 2**30
LOOK_EVERY_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows of one file.

    Attributes:
        number: In the order they were written.
        file: Where they lie.
        first_row: Of the rows.
        array: As stored [n, D]; mapped, and never written.
        sha256: Of the file.
    """

    number: int
    file: Path
    first_row: int
    array: np.ndarray
    sha256: str

    @property
    def stop_row(self) -> int:
        """The row after its last."""
        return self.first_row + len(self.array)

    @cached_property
    def scale(self) -> np.ndarray:
        """One over each row's length, float32 [n]; made when rows are first scanned."""
        size = block_rows(self.array.shape[1])
        parts = [row_scales(self.array[at : at + size]) for at in range(0, len(self.array), size)]
        return np.concatenate(parts)


def open_segment(
    file: Path, *, number: int, first_row: int, rows: int, width: int, dtype: str, sha256: str
) -> Segment:
    """Map a file of rows.

    Raises:
        CorruptError: It is missing, cut off, or not what the database says.
    """
    found = load_array(file, mapped=True)
    if found.shape != (rows, width) or found.dtype != dtype:
        raise CorruptError(
            f"{file}: holds {found.dtype} {found.shape}, the index says {dtype} {(rows, width)}; "
            "restore the file, or build the index again",
            file=file,
        )
    return Segment(number, file, first_row, _lent(found), sha256)


def _lent(rows: np.ndarray) -> np.ndarray:
    """Map a file once more, in a way that torch takes: it knows no memory that is read-only.

    What would be written goes to a private copy of the page and never to the file.
    """
    if not isinstance(rows, np.memmap):
        return rows
    options: dict[str, Any] = {"offset": rows.offset, "shape": rows.shape}
    return np.asarray(np.memmap(str(rows.filename), rows.dtype, mode="c", **options))


@dataclass(frozen=True, eq=False)
class View:
    """What one search sees: it stays the same whatever is added or deleted meanwhile.

    Attributes:
        generation: Grows with every change.
        segments: In the order of their rows, without a gap.
        width: D.
        dtype: As stored.
        deleted: Rows that are, ascending int64.
        artefact: Name of the engine's folder that belongs to it; "" where there is none.
    """

    generation: int
    segments: tuple[Segment, ...]
    width: int
    dtype: str
    deleted: np.ndarray
    artefact: str

    @property
    def rows(self) -> int:
        """Rows there are, the deleted ones among them."""
        return self.segments[-1].stop_row if self.segments else 0

    def __len__(self) -> int:
        return self.rows - len(self.deleted)

    def live(self, start: int, stop: int) -> np.ndarray:
        """Return the rows of a range that are not deleted, ascending int64."""
        rows = np.arange(start, stop, dtype=np.int64)
        first, last = np.searchsorted(self.deleted, [start, stop])
        return np.delete(rows, self.deleted[first:last] - start) if last > first else rows

    def is_deleted(self, rows: np.ndarray) -> np.ndarray:
        """Return which of some rows are deleted, bool of the same shape."""
        return member(rows, self.deleted)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of some rows in their order, as stored [n, D], in new memory."""
        if len(self.segments) == 1:
            found: np.ndarray = self.segments[0].array[rows]
            return found
        found = np.empty((len(rows), self.width), self.dtype)
        for segment, places in self._parts(rows):
            found[places] = segment.array[rows[places] - segment.first_row]
        return found

    def scale(self, rows: np.ndarray) -> np.ndarray:
        """Return one over the length of some rows, float32 [n]."""
        found = np.empty(len(rows), np.float32)
        for segment, places in self._parts(rows):
            found[places] = segment.scale[rows[places] - segment.first_row]
        return found

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (first row, rows as stored, their scale) of a range, deleted rows among them."""
        size, seen = block_rows(self.width), 0
        large = sum(segment.array.nbytes for segment in self.segments) > RESIDENT_BYTES
        for segment in self.segments:
            first = max(start, segment.first_row)
            for at in range(first, min(stop, segment.stop_row), size):
                part = slice(
                    at - segment.first_row,
                    min(at + size, stop, segment.stop_row) - segment.first_row,
                )
                yield at, segment.array[part], segment.scale[part]
                seen += segment.array[part].nbytes
                if large and seen > LOOK_EVERY_BYTES:
                    limit_mapped(each.array for each in self.segments)
                    seen = 0

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[Segment, np.ndarray]]:
        """Yield each segment that holds some of the rows, and their places among them."""
        starts = [segment.first_row for segment in self.segments]
        numbers = np.searchsorted(starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            yield self.segments[number], np.flatnonzero(numbers == number)


def block_rows(width: int) -> int:
    """Return how many rows are taken at once."""
    return max(1, BLOCK_BYTES // (4 * width))


def member(rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return which rows are among others that are ascending, bool of the shape of `rows`."""
    if not len(among):
        return np.zeros(rows.shape, bool)
    places = np.searchsorted(among, rows)
    places[places == len(among)] = 0
    found: np.ndarray = among[places] == rows
    return found
