"""The contract every store keeps: vectors with ids that somebody else wrote, only ever read.

An adapter writes what its engine must be asked for: `read` (rows by id, in any order), `nearest`
(its own search), `ids_sample`, `read_values`, and where the files are. Order, checks and sums over
the files are written once, here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from modalign.errors import (
    CorruptError,
    DataError,
    MismatchError,
    ModalignError,
    ShapeError,
    UsageError,
)
from modalign.gallery import LARGEST, SMALLEST, Hits
from modalign.storage import sha256_file

Metric = Literal["cosine", "l2", "dot"]
Opened = Literal["in place", "snapshot", "server"]

# A vector this close to length 1 has it: float16 rounds lengths by up to a thousandth.
UNIT_TOLERANCE = 1e-3
# Ids asked for at once: few enough for any engine's query language.
IDS_AT_ONCE = 1000


@dataclass(frozen=True)
class Facts:
    """What an adapter knows of a store once it is open.

    Attributes:
        name: The spec it was opened by.
        kind: Of the adapter, such as "lancedb".
        where: Path and collection, as messages name them.
        width: D.
        metric: By which the store's own engine searches.
        count: Rows.
        collection: Table or collection in it; None where there is but one.
        opened: "in place" where the engine only reads; "snapshot", a private copy, where it
            would write; "server" behind an address.
    """

    name: str
    kind: str
    where: str
    width: int
    metric: Metric
    count: int
    collection: str | None = None
    opened: Opened = "in place"


class Store(ABC):
    """Vectors of somebody else. No call changes, adds or removes a file of the store.

    Use it as a context manager, or `close` it: a snapshot lies on the disk until then.
    """

    def __init__(self, facts: Facts, *, closing: ExitStack | None = None) -> None:
        """Take what the adapter found on opening, and what is to be closed in the end."""
        self.facts = facts
        self._closing = closing or ExitStack()

    # What an adapter writes.

    @abstractmethod
    def ids_sample(self, limit: int) -> list[str]:
        """Return some ids, at most `limit`, for messages."""

    @abstractmethod
    def read(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Read the rows of these ids, each asked for once.

        Returns:
            The ids found, in any order, and their vectors, real numbers [n, D].
        """

    @abstractmethod
    def nearest(self, queries: np.ndarray, k: int) -> Hits:
        """Search by the engine; `queries` and `k` are checked, and `k` is at most `count`."""

    @abstractmethod
    def read_values(self, ids: Sequence[str]) -> Mapping[str, str | None]:
        """Return the texts or paths stored beside these ids; of what is not there, nothing."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Return every file of the store as somebody else wrote it, sorted; none of a server."""

    @property
    @abstractmethod
    def root(self) -> Path:
        """The folder that names in `checksums` are relative to."""

    @property
    def compresses(self) -> bool:
        """Whether the vectors it gives back are no longer those it was given."""
        return False

    # What every store then has.

    def close(self) -> None:
        """Give back what was opened; a second time does nothing."""
        self._closing.close()

    @property
    def name(self) -> str:
        """The spec it was opened by."""
        return self.facts.name

    @property
    def kind(self) -> str:
        """Of the adapter."""
        return self.facts.kind

    @property
    def width(self) -> int:
        """D."""
        return self.facts.width

    @property
    def metric(self) -> Metric:
        """By which the store's own engine searches."""
        return self.facts.metric

    @property
    def count(self) -> int:
        """Rows."""
        return self.facts.count

    def describe(self) -> dict[str, Any]:
        """Return what the store is and how it was opened, as JSON values."""
        facts = self.facts
        return {
            "kind": facts.kind,
            "collection": facts.collection,
            "width": facts.width,
            "metric": facts.metric,
            "count": facts.count,
            "opened": facts.opened,
        }

    def vectors(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Read vectors by id, and no other rows' vectors but those stored in one block with them.

        Args:
            ids: Asked for; one that is asked for twice comes twice.

        Returns:
            The ids that are there, in the order asked, and their vectors as the engine gives them
            back, float32 [n, D]. Engines that compress give back what they kept; a Qdrant server
            keeps unit vectors under cosine.

        Raises:
            DataError: An id stands in two rows; a vector is of another width, NaN, infinite, or
                zero where the metric is cosine.
        """
        found, rows = self.read(list(dict.fromkeys(ids)))
        place = unique_places(found, where=self.facts.where)
        vectors = self._as_float32(rows, len(found))
        check_rows(found, vectors, metric=self.metric, where=self.facts.where)
        there = [name for name in ids if name in place]
        return there, vectors[[place[name] for name in there]]

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """Find the k nearest rows of each query through the store's own engine.

        Args:
            queries: float [Q, D].
            k: Rows a query, 1 or more; all of them where the store is smaller.

        Returns:
            Hits, the nearest first. `similarity` is higher for what is closer: the cosine where
            the metric is cosine; the product where it is dot; where it is l2 the *negative
            squared distance*, 0 at most, which no cosine can be told from. `rows` are row numbers
            in files (npy, npz, parquet, faiss), and -1 in databases, which have none. Where an
            approximate engine finds fewer than k, the rest is id "", row -1, similarity -inf.

        Raises:
            ShapeError: The queries are of another width.
            UsageError: `k` is below 1, a query is NaN or infinite, or zero where the metric is
                cosine.
        """
        queries = self._checked_queries(queries)
        if k < 1:
            raise UsageError(f"{self.facts.where}: k is {k}, expected 1 or more", k=k)
        k = min(k, self.count)
        if not len(queries) or not k:
            return padded_hits([[] for _ in queries], k)
        return self.nearest(queries, k)

    def values(self, ids: Sequence[str]) -> list[str | None]:
        """Return the text or path stored beside each id; None where there is none."""
        values = self.read_values(list(dict.fromkeys(ids)))
        return [values.get(name) for name in ids]

    def checksums(self) -> dict[str, str]:
        """Return the sha256 of every file of the store by its name in `root`; {} of a server."""
        return {file.relative_to(self.root).as_posix(): sha256_file(file) for file in self.files()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _as_float32(self, rows: np.ndarray, count: int) -> np.ndarray:
        if not count:
            return np.zeros((0, self.width), np.float32)
        if rows.shape != (count, self.width):
            raise CorruptError(
                f"{self.facts.where}: gave vectors {rows.shape} for {count} ids, expected "
                f"{(count, self.width)}; look at the store with its own tools",
                shape=rows.shape,
            )
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            return np.ascontiguousarray(rows, np.float32)

    def _checked_queries(self, queries: np.ndarray) -> np.ndarray:
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise ShapeError(
                f"{self.facts.where}: queries {queries.shape}, expected [queries, {self.width}], "
                "the store's width; train the map into this store's space",
                queries=queries.shape,
                width=self.width,
            )
        fault = first_fault(queries, metric=self.metric)
        if fault is not None:
            row, what = fault
            raise UsageError(
                f"{self.facts.where}: query {row} is {what}, expected finite values that are not "
                "all zero; look at the item behind it",
                row=row,
            )
        return queries


# Checks -----------------------------------------------------------------------------------


def length_spread(vectors: np.ndarray) -> tuple[float, float]:
    """Return the shortest and the longest length among vectors [n, D]; (1, 1) of none."""
    if not len(vectors):
        return 1.0, 1.0
    lengths = np.linalg.norm(np.asarray(vectors, np.float64), axis=1)
    return float(lengths.min()), float(lengths.max())


def check_cosine(store: Store, vectors: np.ndarray) -> None:
    """Check that the store's own order is the order of cosines, which maps are trained for.

    Under dot and l2 it is where all vectors have length 1, within a thousandth.

    Args:
        store: Which is to be searched.
        vectors: A sample of its vectors, float32 [n, D].

    Raises:
        MismatchError: The metric is dot or l2, and a vector of the sample has another length.
    """
    shortest, longest = length_spread(vectors)
    off = max(abs(1 - shortest), abs(longest - 1))
    if store.metric == "cosine" or off <= UNIT_TOLERANCE:
        return
    if store.compresses:
        raise MismatchError(
            f"{store.facts.where}: compresses its vectors: those it gives back have lengths "
            f"{shortest:.4g} to {longest:.4g}, and what it searches by is not their cosine; attach "
            "the vectors it was made of, as npy: or parquet:",
            metric=store.metric,
            shortest=shortest,
            longest=longest,
        )
    # LanceDB alone is told the metric with each search, so long as no index fixes it.
    way_out = "ask for it with ?metric=cosine, or " if store.kind == "lancedb" else ""
    raise MismatchError(
        f"{store.facts.where}: its metric is {store.metric} and its vectors have lengths "
        f"{shortest:.4g} to {longest:.4g}, expected cosine, or all of length 1: its order is not "
        f"the order of cosines a map is trained for; {way_out}attach a copy whose vectors are "
        "scaled to length 1",
        metric=store.metric,
        shortest=shortest,
        longest=longest,
    )


def check_rows(ids: Sequence[str], vectors: np.ndarray, *, metric: Metric, where: str) -> None:
    """Raise a DataError that names the first id whose vector no search can rank."""
    fault = first_fault(vectors, metric=metric)
    if fault is not None:
        row, what = fault
        raise DataError(
            f"{where}: the vector of id {ids[row]!r} is {what}, expected finite values that are "
            "not all zero; mend or drop the row in the store",
            id=ids[row],
        )


def first_fault(vectors: np.ndarray, *, metric: Metric) -> tuple[int, str] | None:
    """Return the first row that is not finite, or zero under cosine, and which of it it is."""
    largest = np.abs(vectors).max(axis=1, initial=0.0)
    least = SMALLEST if metric == "cosine" else -1.0
    broken = np.flatnonzero(~((largest > least) & (largest < LARGEST)))
    if not len(broken):
        return None
    row = int(broken[0])
    return row, "zero" if largest[row] <= SMALLEST else "NaN or infinite"


def unique_places(ids: Sequence[str], *, where: str) -> dict[str, int]:
    """Return the place of each id; raise a DataError where one stands twice."""
    place: dict[str, int] = {}
    for row, name in enumerate(ids):
        if place.setdefault(name, row) != row:
            raise DataError(
                f"{where}: id {name!r} stands in two rows, expected every id once; rename or drop "
                "one in the store, or name another with id=",
                id=name,
            )
    return place


def check_metric(asked: str | None, own: str, *, known: Mapping[str, Metric], where: str) -> Metric:
    """Return the metric in our words.

    Args:
        asked: The option `metric=`, None where it is not given.
        own: The engine's own word for what it searches by.
        known: Our word for each of the engine's.
        where: Of the store.

    Raises:
        MismatchError: The engine searches by another metric than asked for, or than we know.
    """
    if own not in known:
        raise MismatchError(
            f"{where}: its metric is {own}, expected one of: {', '.join(known)}; write the store "
            "again with one of them",
            metric=own,
        )
    if asked is not None and asked != known[own]:
        raise MismatchError(
            f"{where}: searches by {known[own]}, metric={asked} was asked for; leave metric= out, "
            f"or attach a store that searches by {asked}",
            metric=known[own],
            asked=asked,
        )
    return known[own]


def check_collection(name: str | None, known: Iterable[str], *, spec: str, what: str) -> str:
    """Return the name after '#' if it is there, else raise a UsageError that lists what is."""
    names = sorted(known)
    if name in names:
        return str(name)
    found = f"no {what} {name!r}" if name else f"names no {what}"
    raise UsageError(
        f"store {spec}: {found}, expected one of: {', '.join(names) or 'none is there'}; name it "
        "after '#'",
        name=name,
        known=names,
    )


def check_column(name: str, known: Iterable[str], *, option: str, where: str) -> None:
    """Raise a DataError that lists the columns unless `name` is one of them."""
    names = list(known)
    if name not in names:
        raise DataError(
            f"{where}: has no {name!r}, expected one of: {', '.join(names) or 'none is there'}; "
            f"name it with {option}=",
            name=name,
            known=names,
        )


def folder_of_all(files: Sequence[Path]) -> Path:
    """Return the innermost folder that some files lie in."""
    return Path(os.path.commonpath([file.parent for file in files]))


def check_filled(count: int, *, where: str) -> None:
    """Raise a DataError where a store has no rows: its width is unknown then."""
    if not count:
        raise DataError(f"{where}: is empty, expected vectors; look at the path", count=0)


def existing_path(text: str, *, spec: str, folder: bool) -> Path:
    """Return the path of a store, which must be there: engines make folders that are not."""
    path = Path(text)
    if path.is_dir() if folder else path.is_file():
        return path
    raise DataError(
        f"{text}: is no {'folder' if folder else 'file'}, expected the store of {spec}; check the "
        "path",
        file=text,
    )


@contextmanager
def engine_errors(where: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an engine's errors about what it reads into one CorruptError; our own pass through."""
    try:
        yield
    except ModalignError:
        raise
    except kinds as error:
        text = " ".join(str(error).split())
        raise CorruptError(
            f"{where}: cannot be read ({text[:200] or type(error).__name__}), expected what its "
            "engine wrote, neither cut off nor encrypted; restore it from a backup",
            where=where,
        ) from error


# What engines give back -------------------------------------------------------------------


def padded_hits(found: Sequence[Sequence[tuple[str, int, float]]], k: int) -> Hits:
    """Make Hits of (id, row, similarity) a query, filled up to k as `Store.search` says."""
    ids = [["" for _ in range(k)] for _ in found]
    rows = np.full((len(found), k), -1, np.int64)
    similarity = np.full((len(found), k), -np.inf, np.float32)
    for query, hits in enumerate(found):
        for place, (name, row, value) in enumerate(hits[:k]):
            ids[query][place] = name
            rows[query, place] = row
            similarity[query, place] = value
    return Hits(ids, rows, similarity)


def similarity_of(distance: float, metric: Metric) -> float:
    """Return the similarity of a distance as LanceDB and Chroma count it.

    Both give 1 - cosine, 1 - product and the squared distance.
    """
    return -distance if metric == "l2" else 1.0 - distance


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield ids in parts an engine's query can hold."""
    for start in range(0, len(ids), IDS_AT_ONCE):
        yield ids[start : start + IDS_AT_ONCE]


def folder_files(folder: Path) -> list[Path]:
    """Return every file in a folder and below, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
