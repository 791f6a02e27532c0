"""Stored vectors with their ids and where they come from, and exact search in them.

A gallery is a folder:

    gallery.json     the header: format, modality, width, rows, dtype, the hashes of the weights and
                     of the encoder the vectors passed through, the hash of every file, its own
    vectors.npy      [N, D], float16 as a rule; of any length, search takes the cosine
    ids.jsonl        a JSON string a line
    values.jsonl     what each item was (its text or its path), where it was given

It is written whole or not at all, and never changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modalign.errors import CorruptError, DataError, ShapeError, UsageError
from modalign.storage import (
    array_sha256,
    building,
    check_free,
    load_array,
    read_json,
    read_json_lines,
    save_array_blocks,
    sha256_file,
    write_json,
    write_json_lines,
)

FORMAT = 1
HEADER_FILE = "gallery.json"
VECTORS_FILE = "vectors.npy"
IDS_FILE = "ids.jsonl"
VALUES_FILE = "values.jsonl"
STORED_DTYPES = ("float16", "float32")

# See `Gallery`.
RESIDENT_BYTES = 256 * 2**20
BLOCK_BYTES = 4 * 2**20
# Similarities held at a time, 64 MiB.
BLOCK_SIMILARITIES = 1 << 24
# Products of unit vectors in float32 differ by this much at most, however they are summed up.
ROUNDING = 1e-6
# numpy's rows begin where a vector register may load them in one go.
ALIGNMENT = 64
# Rows whose values are all smaller than SMALLEST are zero, with any larger than LARGEST infinite:
# lengths of what lies between, and one over them, are float32.
SMALLEST, LARGEST = 1e-30, 1e30


@dataclass(frozen=True)
class Header:
    """What stored vectors are: the file `gallery.json`, but for its own hash.

    Attributes:
        format: Of the folder.
        modality: Of the items.
        width: D.
        rows: N.
        dtype: Of the vectors.
        embedding: Hash of the weights the vectors passed through.
        encoder: Fingerprint of the encoder their features come from.
        files: sha256 of each file, by name.
    """

    modality: str
    width: int
    rows: int
    dtype: str
    embedding: str
    encoder: str
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @cached_property
    def sha256(self) -> str:
        """The hash of all that is above, 64 hex digits."""
        return header_sha256(asdict(self))

    def as_json(self) -> dict[str, Any]:
        """Return what `gallery.json` holds."""
        return {**asdict(self), "header_sha256": self.sha256}


@dataclass(frozen=True)
class Hits:
    """What a search found, the most similar first, k of each query.

    Attributes:
        ids: Of the items, [Q][k].
        rows: Of the items in the gallery, int64 [Q, k].
        similarity: Cosine, float32 [Q, k].
        probability: Of each being a match, float32 [Q, k]; None where none was fitted. It orders
            the items where hubs are corrected.
    """

    ids: list[list[str]]
    rows: np.ndarray
    similarity: np.ndarray
    probability: np.ndarray | None = None


class Searchable(Protocol):
    """What a space searches: a gallery, or a store that somebody else made."""

    @property
    def modality(self) -> str:
        """Of the items."""

    @property
    def embedding(self) -> str:
        """Hash of what the vectors passed through."""

    @property
    def where(self) -> str:
        """How messages name it."""

    def __len__(self) -> int:
        """Return how many items there are."""

    def search(self, queries: np.ndarray, k: int, *, source: str | None = None) -> Hits:
        """Return the k most similar items of each query, float [Q, D] of any length.

        `source` is the queries' modality, which an approximate index is tuned by; None where they
        have none, or several.
        """

    def result_vectors(self, hits: Hits, query: int) -> np.ndarray:
        """Return the stored vectors of the items found for one of the queries, float [k, D]."""

    def shown(self, hits: Hits) -> list[list[str | None]]:
        """Return what each hit is, its text or its path; None where that is not stored."""


class Gallery:
    """Vectors of items of one modality, to be searched.

    Attributes:
        header: What they are.
        ids: Of the items, in the order of the rows.
        vectors: float16 or float32 [N, D], read-only; on the disk where the gallery is.
        folder: Where it lies; None in memory.
        resident_bytes: Searched in a float32 copy in memory where that is smaller than this,
            else block by block from the disk. Set it before the first search.
        block_bytes: Size of such a block in float32, for a processor's cache.
    """

    def __init__(
        self,
        header: Header,
        ids: Sequence[str],
        vectors: np.ndarray,
        *,
        values: Sequence[str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Take what `write`, `load` or `from_arrays` has checked."""
        self.header = header
        self.ids = ids
        self.vectors = vectors
        self.folder = folder
        self.resident_bytes = RESIDENT_BYTES
        self.block_bytes = BLOCK_BYTES
        self._values = values

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        modality: str,
        width: int,
        embedding: str,
        encoder: str,
        ids: Sequence[str],
        vectors: Iterable[np.ndarray],
        values: Iterable[str] | None = None,
        dtype: str = "float16",
        replace: bool = False,
    ) -> Gallery:
        """Write a gallery, whole or not at all.

        Args:
            folder: Where to; the folder it lies in must exist.
            modality: Of the items.
            width: D.
            embedding: Hash of the weights the vectors passed through.
            encoder: Fingerprint of the encoder.
            ids: Of the items, each once.
            vectors: Blocks of rows in the order of `ids`, float [n, D], of any length but 0.
            values: What each item was: its text or its path.
            dtype: "float16", or "float32" for vectors that it cannot hold.
            replace: Take the place of a gallery that is there.

        Raises:
            UsageError: The folder is there already, `dtype` is another, or ids, values and
                vectors differ in number or width.
            DataError: An id comes twice, or a vector is NaN, infinite as stored, or zero.
        """
        folder = Path(folder)
        # Only a gallery may be deleted for another.
        check_free(folder, replace=replace and (folder / HEADER_FILE).is_file())
        _check_dtype(dtype)
        _check_ids(ids)
        blocks = _checked_blocks(vectors, ids, width=width, dtype=dtype)
        with building(folder, replace=replace) as work:
            _write_values(work, values, rows=len(ids))
            write_json_lines(work / IDS_FILE, ids)
            save_array_blocks(
                work / VECTORS_FILE, blocks, shape=(len(ids), width), dtype=np.dtype(dtype)
            )
            files = {file.name: sha256_file(file) for file in sorted(work.iterdir())}
            header = Header(
                modality=modality,
                width=width,
                rows=len(ids),
                dtype=dtype,
                embedding=embedding,
                encoder=encoder,
                files=files,
            )
            write_json(work / HEADER_FILE, header.as_json())
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> Gallery:
        """Open a gallery; its vectors stay on the disk until they are searched.

        Raises:
            UsageError: The folder is no gallery.
            DataError: The gallery is of a newer format.
            CorruptError: A file is missing or does not fit the header. Bits flipped inside the
                files are found by `verify` alone.
        """
        folder = Path(folder)
        header = read_header(folder)
        vectors = load_array(folder / VECTORS_FILE, mapped=True)
        if vectors.shape != (header.rows, header.width) or vectors.dtype != header.dtype:
            raise CorruptError(
                f"{folder / VECTORS_FILE}: holds {vectors.dtype} {vectors.shape}, the header "
                f"says {header.dtype} {(header.rows, header.width)}; embed the items again",
                file=folder / VECTORS_FILE,
            )
        return cls(header, _read_lines(folder / IDS_FILE, header.rows), vectors, folder=folder)

    @classmethod
    def from_arrays(
        cls,
        ids: Sequence[str],
        vectors: np.ndarray,
        *,
        modality: str,
        embedding: str = "",
        encoder: str = "",
        values: Sequence[str] | None = None,
    ) -> Gallery:
        """Make a gallery in memory.

        Args:
            ids: Of the items, each once.
            vectors: float16 or float32 [N, D], of any length but 0; not copied.
            modality: Of the items.
            embedding: Hash of the weights the vectors passed through.
            encoder: Fingerprint of the encoder.
            values: What each item was.

        Raises:
            UsageError: The arguments differ in number, or `vectors` is of another dtype or no
                matrix.
            DataError: An id comes twice, or a vector is NaN, infinite or zero.
        """
        dtype = vectors.dtype.name
        _check_dtype(dtype)
        _check_ids(ids)
        if vectors.ndim != 2 or len(vectors) != len(ids):
            raise ShapeError(
                f"gallery: {len(ids)} ids for vectors {vectors.shape}, expected [{len(ids)}, width]"
            )
        _check_number(values, rows=len(ids))
        rows, width = vectors.shape
        for _ in _checked_blocks([vectors], ids, width=width, dtype=dtype):
            pass
        files = {VECTORS_FILE: array_sha256(vectors)}
        header = Header(
            modality=modality,
            width=width,
            rows=rows,
            dtype=dtype,
            embedding=embedding,
            encoder=encoder,
            files=files,
        )
        return cls(header, ids, vectors, values=values)

    def __len__(self) -> int:
        return self.header.rows

    @property
    def modality(self) -> str:
        """Of the items."""
        return self.header.modality

    @property
    def width(self) -> int:
        """D."""
        return self.header.width

    @property
    def embedding(self) -> str:
        """Hash of the weights the vectors passed through."""
        return self.header.embedding

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder."""
        return self.header.encoder

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"gallery {self.folder}"

    def result_vectors(self, hits: Hits, query: int) -> np.ndarray:
        """Return the stored vectors of the items found for one of the queries, float [k, D]."""
        found: np.ndarray = self.vectors[hits.rows[query]]
        return found

    def shown(self, hits: Hits) -> list[list[str | None]]:
        """Return what each hit was, its text or its path; None where that was not stored."""
        values = self.values
        return [
            [None if values is None else values[int(row)] for row in rows] for rows in hits.rows
        ]

    @cached_property
    def values(self) -> Sequence[str] | None:
        """What each item was, its text or its path; None where it was not stored.

        Raises:
            CorruptError: The file is missing or broken.
        """
        if self.folder is None or VALUES_FILE not in self.header.files:
            return self._values
        return _read_lines(self.folder / VALUES_FILE, len(self))

    def verify(self) -> list[str]:
        """Hash every file again.

        Returns:
            What is wrong, one line a file that is missing or not what was written.
        """
        if self.folder is None:
            return []
        problems = []
        for name, expected in self.header.files.items():
            file = self.folder / name
            found = sha256_file(file) if file.is_file() else "missing"
            if found != expected:
                problems.append(
                    f"{file}: is not what was written: sha256 {found[:12]}, expected "
                    f"{expected[:12]}; embed the items again"
                )
        return problems

    def search(self, queries: np.ndarray, k: int, *, source: str | None = None) -> Hits:
        """Find the k items most similar to each query, exactly.

        What is found for a query does not depend on the others, nor on the blocks the gallery
        is read in. Of equally similar items the lower row comes first.

        Args:
            queries: float [Q, D], of any length; one of zeros finds the first rows.
            k: Items a query, 1 or more; all of them where the gallery is smaller.
            source: Not used: what is exact needs no tuning.

        Raises:
            ShapeError: The queries are of another width.
            UsageError: `k` is below 1, or a query is NaN or infinite.
        """
        queries = self._checked_queries(queries)
        if k < 1:
            raise UsageError(f"search: k is {k}, expected 1 or more", k=k)
        k = min(k, len(self))
        best = _Best.none(len(queries), k)
        for start, block in self._unit_blocks():
            size = max(1, BLOCK_SIMILARITIES // max(1, len(block)))
            for first in range(0, len(queries), size):
                part = slice(first, first + size)
                best.merge(part, _search_block(queries[part], block, k), first_row=start)
        ids = [[self.ids[row] for row in rows] for rows in best.rows.tolist()]
        return Hits(ids, best.rows, best.similarity)

    def _checked_queries(self, queries: np.ndarray) -> np.ndarray:
        queries = np.asarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise ShapeError(
                f"search: queries {queries.shape}, expected [queries, {self.width}], the "
                "gallery's width",
                queries=queries.shape,
                width=self.width,
            )
        broken = np.flatnonzero(~(np.abs(queries).max(axis=1, initial=0.0) < LARGEST))
        if len(broken):
            raise UsageError(
                f"search: query {broken[0]} is NaN or infinite, expected finite numbers",
                row=int(broken[0]),
            )
        return unit_rows(queries)

    def _unit_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, unit rows float32) of the whole gallery, at once where it is small."""
        if len(self) * self.width * 4 < self.resident_bytes:
            yield 0, self._resident
            return
        for part in self._parts():
            yield part.start, _scaled(self.vectors[part], self._scales[part])

    def _parts(self) -> Iterator[slice]:
        size = max(1, self.block_bytes // (4 * self.width))
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    @cached_property
    def _resident(self) -> np.ndarray:
        copy = _aligned((len(self), self.width))
        for part in self._parts():
            copy[part] = unit_rows(self.vectors[part])
        return copy

    @cached_property
    def _scales(self) -> np.ndarray:
        return np.concatenate([row_scales(self.vectors[part]) for part in self._parts()])


# Search -----------------------------------------------------------------------------------


@dataclass
class _Best:
    """The best found so far: rows int64 [Q, k], -1 where there is none; similarity [Q, k]."""

    rows: np.ndarray
    similarity: np.ndarray

    @classmethod
    def none(cls, queries: int, k: int) -> _Best:
        return cls(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))

    def merge(self, part: slice, found: tuple[np.ndarray, np.ndarray], *, first_row: int) -> None:
        """Add what was found in a later block: of equals, the earlier rows stay in front."""
        rows = np.concatenate([self.rows[part], found[0] + first_row], axis=1)
        similarity = np.concatenate([self.similarity[part], found[1]], axis=1)
        k = self.rows.shape[1]
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        self.rows[part] = np.take_along_axis(rows, order, axis=1)
        self.similarity[part] = np.take_along_axis(similarity, order, axis=1)


def _search_block(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows int64 [Q, k] and similarity float32 [Q, k], best first, in a block of rows."""
    k = min(k, len(block))
    rows = np.empty((len(queries), k), np.int64)
    similarity = np.empty((len(queries), k), np.float32)
    rough = queries @ block.T if len(queries) > 1 else (block @ queries[0])[None]
    for index, query in enumerate(queries):
        rows[index], similarity[index] = _best_of(query, rough[index], block, k)
    return rows, similarity


def _best_of(
    query: np.ndarray, rough: np.ndarray, block: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose by the product of matrices, decide by one whose rounding depends on two rows alone."""
    bar = np.partition(rough, len(rough) - k)[len(rough) - k] - np.float32(2 * ROUNDING)
    candidates = np.flatnonzero(rough >= bar)
    similarity = (block[candidates] * query).sum(axis=1)
    order = np.argsort(-similarity, kind="stable")[:k]
    return candidates[order], similarity[order]


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32; a row of zeros stays so."""
    rows = _float32(vectors)
    rows *= _inverse_lengths(rows.copy())[:, None]
    return rows


def row_scales(vectors: np.ndarray) -> np.ndarray:
    """One over each row's length, 0 for a row of zeros, float32 [N]."""
    return _inverse_lengths(_float32(vectors))


def _inverse_lengths(rows: np.ndarray) -> np.ndarray:
    """As `row_scales`, of float32 rows, which are overwritten."""
    # By the largest value first, so that no square is too large or too small for float32.
    largest = np.abs(rows).max(axis=1, initial=0.0)
    rows /= np.where(largest > SMALLEST, largest, np.float32(1))[:, None]
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows)) * largest
    scale: np.ndarray = np.divide(
        np.float32(1), lengths, out=np.zeros_like(lengths), where=largest > SMALLEST
    )
    return scale


def _scaled(vectors: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Rows times their scale, float32, in new memory."""
    rows = _float32(vectors)
    rows *= scale[:, None]
    return rows


def _float32(vectors: np.ndarray) -> np.ndarray:
    """Finite floats as float32 in new memory; exact.

    numpy widens float16 one number at a time. Moving the bits by hand is several times as fast:
    the sign to the top, the exponent where float32 has its own, whose bias is 112 more.
    """
    rows = _aligned(vectors.shape)
    if vectors.dtype != np.float16:
        rows[...] = vectors
        return rows
    bits = rows.view(np.int32)
    bits[...] = vectors.view(np.int16)
    bits <<= 13
    # A negative number is all ones above its 15 bits: the sign stays, three of them go.
    bits &= np.int32(-0x70000001)
    rows *= np.float32(2.0**112)
    return rows


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Uninitialised float32 that begins at a multiple of 64 bytes."""
    size = math.prod(shape) * 4
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


# Files ------------------------------------------------------------------------------------


def header_sha256(header: dict[str, Any]) -> str:
    """Return the hash of a header without its own hash, 64 hex digits."""
    rest = {key: value for key, value in header.items() if key != "header_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_header(folder: Path) -> Header:
    """Read a gallery's header alone.

    Raises:
        UsageError: The folder is no gallery.
        DataError: The gallery is of a newer format.
        CorruptError: The header is not what was written.
    """
    path = folder / HEADER_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder}: no gallery here (there is no {HEADER_FILE}), expected a folder that "
            "`modalign embed` wrote; check the path",
            folder=folder,
        )
    stored = read_json(path)
    found = stored.get("format") if isinstance(stored, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise DataError(
            f"{path}: format {found}, this modalign reads {FORMAT}; upgrade modalign to read it",
            file=path,
            found=found,
        )
    if found != FORMAT or stored.get("header_sha256") != header_sha256(stored):
        raise CorruptError(
            f"{path}: is not what was written: its own hash does not fit; embed the items again",
            file=path,
        )
    names = [attribute.name for attribute in fields(Header)]
    lacking = [name for name in names if name not in stored]
    if lacking:
        raise CorruptError(f"{path}: lacks {', '.join(lacking)}; embed the items again", file=path)
    return Header(**{name: stored[name] for name in names})


def _read_lines(path: Path, rows: int) -> list[str]:
    lines = read_json_lines(path)
    if len(lines) != rows or not all(isinstance(line, str) for line in lines):
        raise CorruptError(
            f"{path}: holds {len(lines)} lines, expected {rows} of text; embed the items again",
            file=path,
        )
    return lines


def _write_values(work: Path, values: Iterable[str] | None, *, rows: int) -> None:
    if values is not None:
        values = list(values)
        _check_number(values, rows=rows)
        write_json_lines(work / VALUES_FILE, values)


# Checks -----------------------------------------------------------------------------------


def _check_dtype(dtype: str) -> None:
    if dtype not in STORED_DTYPES:
        raise UsageError(
            f"gallery: vectors of {dtype}, expected {' or '.join(STORED_DTYPES)}", dtype=dtype
        )


def _check_number(values: Sequence[str] | None, *, rows: int) -> None:
    if values is not None and len(values) != rows:
        raise ShapeError(f"gallery: {len(values)} values for {rows} ids, expected one each")


def _check_ids(ids: Sequence[str]) -> None:
    if not len(ids):
        raise DataError("gallery: there are no items, expected one at least")
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        earlier = first.setdefault(name, row)
        if earlier != row:
            raise DataError(
                f"gallery: duplicate id {name!r} in rows {earlier} and {row}, expected each id "
                "once; rename or leave out one of them",
                id=name,
                row=row,
            )


def _checked_blocks(
    blocks: Iterable[np.ndarray], ids: Sequence[str], *, width: int, dtype: str
) -> Iterator[np.ndarray]:
    """Yield blocks as they are stored.

    Raises:
        ShapeError: A block is of another width, or there are more or fewer rows than ids.
        DataError: A vector is not finite or zero as it is stored; the message names its id.
    """
    row = 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != width or row + len(block) > len(ids):
            raise ShapeError(
                f"gallery: vectors {block.shape} after row {row}, expected at most "
                f"{len(ids) - row} rows of width {width}"
            )
        with np.errstate(over="ignore", under="ignore"):
            stored = block.astype(dtype, copy=False)
        _check_vectors(stored, ids, first=row)
        row += len(block)
        yield stored
    if row != len(ids):
        raise ShapeError(f"gallery: {row} vectors for {len(ids)} ids, expected one each")


def _check_vectors(stored: np.ndarray, ids: Sequence[str], *, first: int) -> None:
    largest = np.abs(stored).max(axis=1, initial=0.0).astype(np.float32)
    broken = np.flatnonzero(~((largest > SMALLEST) & (largest < LARGEST)))
    if len(broken):
        row = int(broken[0])
        what = "zero" if largest[row] <= SMALLEST else "NaN or infinite"
        raise DataError(
            f"gallery: the vector of {ids[first + row]!r} (row {first + row}) is {what} in "
            f"{stored.dtype}, expected finite values that are not all zero; look at the item, or "
            "skip it",
            id=ids[first + row],
            row=first + row,
        )
