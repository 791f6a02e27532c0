"""An index: durable rows that are added, deleted, filtered and searched, and an engine on top.

A folder:

    index.json    what the vectors are, and which engine is wanted
    items.sqlite  ids, values, metadata, deletions, calibrations
    vectors/      the vectors in segments
    engine/       what the engine made of them; it can be made again at any time

All calls are safe from several threads, and see what other processes have added.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np

from modalign.errors import CorruptError, DataError, MismatchError, ShapeError, UsageError
from modalign.gallery import LARGEST, SMALLEST, Gallery, Hits
from modalign.index.artefacts import (
    ENGINE_FOLDER,
    Artefact,
    LiveRows,
    build_artefact,
    open_artefact,
    remove_others,
)
from modalign.index.contract import Progress, no_progress
from modalign.index.filters import Condition, parse_filter
from modalign.index.finding import State
from modalign.index.galleries import add_gallery, check_metadata
from modalign.index.header import Header, read_header
from modalign.index.ranking import Ranked, unit_queries
from modalign.index.registry import EXACT, parse_engine
from modalign.index.rows import Rows, named_ids
from modalign.index.scanning import Scanner
from modalign.index.segments import View
from modalign.index.tuning import (
    FEWEST,
    OWN_ROWS,
    SAMPLE,
    Calibration,
    calibrate,
    check_recall,
    sampled,
)
from modalign.storage import sweep

# A rebuild of the engine is due when this share of the rows came after it, or is deleted.
STALE_SHARE = 0.2
FEW_ROWS = 10_000
# Filters whose rows are kept in memory.
KEPT_FILTERS = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexedItem:
    """One item of an index.

    Attributes:
        id: The user's.
        row: Its number, in the order of adding.
        value: What it is, its text or its path; None where that is not stored.
        metadata: A JSON object.
    """

    id: str
    row: int
    value: str | None
    metadata: dict[str, Any]


class Index:
    """Vectors of items of one modality that can be added to and searched.

    Attributes:
        folder: Where it lies.
        header: What it is.
        rows: What of it must not be lost.
        engine_problem: Why the engine is not used, and every search exact; "" where it is.
        few_rows: So many rows that fit a filter, or fewer, are searched exactly, which for them is
            as fast. Set it before the first search.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open a folder; see `load_index`."""
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        self.engine_problem = ""
        self.few_rows = FEW_ROWS
        self.rows = Rows(
            self.folder,
            width=self.header.width,
            dtype=self.header.dtype,
            identity=self.header.identity,
            read_only=read_only,
        )
        self._scanner = Scanner()
        self._state: State | None = None
        self._opening = Lock()
        self._fitting: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._keeping = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What it is ---------------------------------------------------------------------------

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
        return f"index {self.folder}"

    @property
    def media_root(self) -> Path | None:
        """Folder that the items' files lie in; None where they are none, or anywhere."""
        return None if self.header.media_root is None else Path(self.header.media_root)

    @property
    def engine_name(self) -> str:
        """What searches, as "exact" or "faiss-ivf"."""
        artefact = self.state().artefact
        return EXACT if artefact is None else artefact.record.shown

    @property
    def stale_share(self) -> float:
        """Share of the rows that the engine does not know, or that were deleted since; 0 of none.

        They are searched exactly, or left out, so results stay right and searches become slower.
        """
        state = self.state()
        if state.artefact is None:
            return 1.0 if self.header.engine != EXACT and len(state.view) else 0.0
        gone = state.artefact.record.count - len(state.view.live(0, state.covered))
        return (state.view.rows - state.covered + gone) / max(1, state.view.rows)

    def __len__(self) -> int:
        return len(self.rows.view())

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """Return how many items there are, or fit a filter.

        Raises:
            UsageError: The filter is none, or names a field that no item has.
        """
        if where is None:
            return len(self)
        return len(self._allowed(parse_filter(where))[1])

    def item(self, id: str) -> IndexedItem:
        """Return an item by its id.

        Raises:
            UsageError: It is not there.
        """
        found = self.rows.items([id])
        self._check_there([id], found)
        return IndexedItem(id, *found[id])

    def found(self, id: str) -> IndexedItem | None:
        """Return an item; None where there is none of this id."""
        items = self.rows.items([id])
        return IndexedItem(id, *items[id]) if id in items else None

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Return the stored vectors of items, float32 [n, D].

        Raises:
            UsageError: One is not there.
        """
        while True:
            # Before the rows are known: what is deleted and erased from now on is in it still.
            view = self.rows.view()
            rows = self.rows.rows_of(ids)
            self._check_there(ids, rows)
            wanted = np.array([rows[name] for name in ids], np.int64)
            if not len(wanted) or wanted.max() < view.rows:
                return view.vectors(wanted).astype(np.float32)

    def metadata_fields(self) -> dict[str, list[Any] | None]:
        """Return the distinct values of each metadata field, None where they are more than 50."""
        return self.rows.fields()

    def _check_there(self, ids: Iterable[str], found: Mapping[str, Any]) -> None:
        unknown = [name for name in ids if name not in found]
        if unknown:
            raise UsageError(
                f"{self.where}: {named_ids(unknown)} not there, expected ids of the index; check "
                "them",
                ids=unknown,
            )

    # Search -------------------------------------------------------------------------------

    def search(self, queries: np.ndarray, k: int, *, source: str | None = None) -> Hits:
        """Find the k items most similar to each query.

        Similarities are exact cosines of the stored vectors, whatever the engine; of equally
        similar items that which was added first comes first.

        Args:
            queries: float [Q, D], of any length; one of zeros finds the first rows.
            k: Items a query, 1 or more; all of them where there are fewer.
            source: The queries' modality, whose calibrated effort is made; None, or one that was
                not tuned, for the largest of any.

        Raises:
            ShapeError: The queries are of another width.
            UsageError: `k` is below 1, or a query is NaN or infinite.
        """
        return self._search(queries, k, source=source, conditions=None)

    def filtered(self, where: Mapping[str, Any]) -> FilteredIndex:
        """Return a view of the items whose metadata fit; it is searched as the whole is.

        Raises:
            UsageError: The filter is none, or names a field that no item has.
        """
        conditions = parse_filter(where)
        self._allowed(conditions)
        return FilteredIndex(self, conditions, where)

    def result_vectors(self, hits: Hits, query: int) -> np.ndarray:
        """Return the stored vectors of the items found for one of the queries, float [k, D]."""
        return self.rows.view().vectors(hits.rows[query])

    def shown(self, hits: Hits) -> list[list[str | None]]:
        """Return what each hit is, its text or its path; None where that is not stored."""
        values = iter(self.rows.values_of(hits.rows.reshape(-1)))
        return [[next(values) for _ in rows] for rows in hits.rows]

    def _search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        source: str | None,
        conditions: tuple[Condition, ...] | None,
    ) -> Hits:
        unit = unit_queries(queries, self.width, where=self.where)
        if k < 1:
            raise UsageError(f"{self.where}: k is {k}, expected 1 or more", k=k)
        while True:
            state, allowed = self.state(), None
            if conditions is not None:
                generation, allowed = self._allowed(conditions)
                if generation != state.view.generation:
                    continue
            found = state.find(unit, k, source=source, allowed=allowed)
            there = len(state.view) if allowed is None else len(allowed)
            hits = self._hits(found, min(k, there))
            if hits is not None:
                return hits
            if self.rows.view() is state.view:
                raise CorruptError(
                    f"{self.where}: rows are found that the database does not name; restore the "
                    "folder whole, or build the index again",
                    folder=self.folder,
                )

    def _hits(self, found: Sequence[Ranked], k: int) -> Hits | None:
        """Return what was found, with ids; None where an item has been deleted meanwhile."""
        rows = np.array([each[0] for each in found], np.int64).reshape(len(found), k)
        similarity = np.array([each[1] for each in found], np.float32).reshape(len(found), k)
        ids = self.rows.ids_of(rows.reshape(-1))
        known = [name for name in ids if name is not None]
        if len(known) < len(ids):
            return None
        return Hits(
            [known[at : at + k] for at in range(0, len(known), k)] if k else [[] for _ in found],
            rows,
            similarity,
        )

    def _allowed(self, conditions: tuple[Condition, ...]) -> tuple[int, np.ndarray]:
        """Return the generation and the rows that fit, from memory where nothing has changed."""
        generation = self.rows.view().generation
        key = (generation, conditions)
        with self._keeping:
            if key in self._fitting:
                self._fitting.move_to_end(key)
                return generation, self._fitting[key]
        generation, rows = self.rows.fitting(conditions)
        with self._keeping:
            self._fitting[generation, conditions] = rows
            while len(self._fitting) > KEPT_FILTERS:
                self._fitting.popitem(last=False)
        return generation, rows

    def state(self) -> State:
        """Return what there is to search now, for whoever measures."""
        view = self.rows.view()
        state = self._state
        if state is not None and state.view is view:
            return state
        with self._opening:
            state = self._state
            if state is None or state.view is not view:
                artefact = self._artefact(view, state)
                calibrations = {} if artefact is None else self._calibrations(artefact.name)
                state = State(view, artefact, calibrations, self._scanner, self.few_rows)
                self._state = state
            return state

    def _artefact(self, view: View, state: State | None) -> Artefact | None:
        """Return the engine that belongs to a view: the one that is open, or opened now."""
        if state is not None and state.view.artefact == view.artefact:
            return state.artefact
        self.engine_problem = ""
        if not view.artefact:
            return None
        try:
            return open_artefact(self.folder, view)
        except DataError as error:
            # Nothing is lost but time: the rows themselves are searched.
            self.engine_problem = str(error)
            logger.warning("%s; until then every search is exact", error)
            return None

    def _calibrations(self, artefact: str) -> dict[str, Calibration]:
        with self.rows.database.reading() as connection:
            found = connection.execute(
                "SELECT source, result FROM tuning WHERE artefact = ?", [artefact]
            ).fetchall()
        return {source: Calibration.from_json(json.loads(text)) for source, text in found}

    # Changes ------------------------------------------------------------------------------

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        *,
        values: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        replace: bool = False,
    ) -> int:
        """Add items; they are durable, and found, when this returns.

        Args:
            ids: Of the items, each once.
            vectors: float [n, D], of any length but 0.
            values: What each item is: its text or its path.
            metadata: A JSON object an item; see `modalign.index.filters`.
            replace: Take the place of items whose ids are there.

        Returns:
            How many were added.

        Raises:
            UsageError: Ids, vectors, values and metadata differ in number or width, an id is
                there and `replace` is off, or the index is read-only or another process writes.
            DataError: An id comes twice, a vector is NaN, infinite as stored, or zero, or the
                disk is full; nothing is added.
        """
        ids = list(ids)
        self._check_numbers(ids, values, metadata)
        stored = self._stored(ids, vectors)
        if ids:
            self.rows.add(ids, stored, values=values, metadata=metadata, replace=replace)
        return len(ids)

    def add_gallery(
        self,
        gallery: Gallery,
        *,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
        replace: bool = False,
        progress: Progress = no_progress,
    ) -> int:
        """Add all items of a gallery, a part at a time; each part is durable when it is told of.

        Raises:
            MismatchError: The gallery is of another modality, or was made with other weights.
            UsageError: As `add`, or metadata is of ids that are not in the gallery.
            DataError: As `add`; parts that were told of stay.
        """
        self._check_gallery(gallery)
        check_metadata(metadata or {}, gallery.ids)
        if not replace:
            self.rows.check_free(gallery.ids)
        add_gallery(self.rows, gallery, metadata or {}, progress, replace=replace)
        return len(gallery)

    def _check_gallery(self, gallery: Gallery) -> None:
        for noun, found, expected in (
            ("modality", gallery.modality, self.modality),
            ("width", gallery.width, self.width),
            ("weights", gallery.embedding, self.embedding),
            ("dtype", gallery.header.dtype, self.header.dtype),
        ):
            if found != expected:
                raise MismatchError(
                    f"{gallery.where}: its {noun} is {str(found)[:12]!r}, {self.where} has "
                    f"{str(expected)[:12]!r}; add a gallery of the same space and modality, or "
                    "make an index of its own",
                    found=found,
                    expected=expected,
                )

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items by id; they are found no more when this returns.

        What lies on the disk of them is gone with the next `rebuild`.

        Returns:
            How many were deleted.

        Raises:
            UsageError: An id is not there, the index is read-only, or another process writes;
                nothing is deleted.
        """
        return self.rows.delete(list(ids))

    def _check_numbers(
        self, ids: Sequence[str], values: Sequence[Any] | None, metadata: Sequence[Any] | None
    ) -> None:
        for noun, given in (("values", values), ("metadata", metadata)):
            if given is not None and len(given) != len(ids):
                raise ShapeError(
                    f"{self.where}: {len(given)} {noun} for {len(ids)} ids, expected one each"
                )
        first: dict[str, int] = {}
        for place, name in enumerate(ids):
            if not isinstance(name, str):
                raise UsageError(f"{self.where}: id {name!r} in place {place}, expected text")
            if first.setdefault(name, place) != place:
                raise DataError(
                    f"{self.where}: duplicate id {name!r} in places {first[name]} and {place}, "
                    "expected each id once; rename or leave out one of them",
                    id=name,
                    row=place,
                )

    def _stored(self, ids: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape != (len(ids), self.width):
            raise ShapeError(
                f"{self.where}: vectors {vectors.shape} for {len(ids)} ids, expected "
                f"[{len(ids)}, {self.width}], the index's width",
                vectors=vectors.shape,
                width=self.width,
            )
        with np.errstate(over="ignore", under="ignore"):
            stored: np.ndarray = vectors.astype(self.header.dtype, copy=False)
        largest = np.abs(stored).max(axis=1, initial=0.0).astype(np.float32)
        broken = np.flatnonzero(~((largest > SMALLEST) & (largest < LARGEST)))
        if len(broken):
            place = int(broken[0])
            what = "zero" if largest[place] <= SMALLEST else "NaN or infinite"
            raise DataError(
                f"{self.where}: the vector of {ids[place]!r} (place {place}) is {what} in "
                f"{stored.dtype}, expected finite values that are not all zero; look at the item, "
                "or skip it",
                id=ids[place],
                row=place,
            )
        return stored

    # The engine ---------------------------------------------------------------------------

    def tune(
        self,
        queries: Mapping[str, np.ndarray],
        *,
        recall: float = 0.99,
        k: int = 10,
        seed: int = 0,
    ) -> dict[str, dict[str, Any]]:
        """Choose how hard the engine tries for each modality of queries, and store it.

        Args:
            queries: Real ones by modality, float [Q, D]; some hundreds are enough.
            recall: Share of the k nearest that is to be found.
            k: Neighbours.
            seed: Of the sample and its halves.

        Returns:
            By modality: `recall` found on the half that was not chosen by, `effort`, `reached`,
            which is false where no effort does, and those queries are searched exactly; see
            `modalign.index.tuning.Calibration`. Nothing of an index without an engine.

        Raises:
            UsageError: `recall` is not in (0, 1], or a modality has fewer than 20 queries.
        """
        check_recall(recall)
        state = self.state()
        if state.artefact is None:
            return {}
        samples = {
            source: sampled(unit_queries(given, self.width, where=self.where), seed=seed)
            for source, given in queries.items()
        }
        found = self._tuned(state, samples, recall=recall, k=k)
        name = state.artefact.name
        self.rows.change(lambda connection: _store_tuning(connection, name, found, samples))
        return {each.source: each.as_json() for each in found}

    def calibrations(self) -> dict[str, dict[str, Any]]:
        """Return what `tune` found and the searches now use, by modality."""
        return {name: each.as_json() for name, each in self.state().calibrations.items()}

    def _tuned(
        self, state: State, samples: Mapping[str, np.ndarray], *, recall: float, k: int
    ) -> list[Calibration]:
        assert state.artefact is not None
        return [
            calibrate(
                source,
                queries,
                exact=state.exact,
                at_rung=state.find_by_engine,
                ladder=state.artefact.engine.efforts(),
                recall=recall,
                k=min(k, len(state.view)),
            )
            for source, queries in samples.items()
        ]

    def rebuild(
        self,
        engine: str | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        queries: Mapping[str, np.ndarray] | None = None,
        recall: float = 0.99,
        k: int = 10,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Make the engine anew from all rows there are, and tune it as it was tuned.

        What was deleted is erased: no file of the index holds it any more (see `Rows.erase`).

        Searches go on by the old one until the new one takes its place.

        Args:
            engine: Another engine, as in `build_index`; by default the one there is.
            settings: Its settings.
            queries: Other queries to tune by; see `tune`.
            recall: Wanted of them, or where nothing was tuned yet.
            k: Neighbours that is counted over.
            seed: Of all that is drawn.
            progress: Told of how far it is.

        Raises:
            UsageError: The engine or a setting is unknown, or the index is read-only.
            DataError: The disk is full; the old engine stays.
            MissingExtraError: The engine's package is not installed.
        """
        check_recall(recall)
        self.rows.check_writable()
        samples, wanted = self._samples(queries, recall=recall, k=k, seed=seed)
        header = self._wanted(engine, settings)
        self.rows.erase()
        view = self.rows.view()
        if header.engine == EXACT or not len(view):
            self._publish(header, "", [], {})
            return
        name = build_artefact(
            self.folder,
            view,
            engine=header.engine,
            settings=header.settings,
            seed=seed,
            progress=progress,
        )
        artefact = open_artefact(self.folder, replace(view, artefact=name))
        state = State(view, artefact, {}, self._scanner, self.few_rows)
        found = [
            calibration
            for source, sample in samples.items()
            for calibration in self._tuned(
                state, {source: sample}, recall=wanted[source][0], k=wanted[source][1]
            )
        ]
        artefact.engine.close()
        self._publish(header, name, found, samples)

    def _wanted(self, engine: str | None, settings: Mapping[str, Any] | None) -> Header:
        """Return the header with another engine in it, or as it is."""
        if engine is None:
            return self.header
        name, chosen = parse_engine(engine, settings or {}, rows=len(self))
        return replace(self.header, engine=name, settings=chosen)

    def _samples(
        self, queries: Mapping[str, np.ndarray] | None, *, recall: float, k: int, seed: int
    ) -> tuple[dict[str, np.ndarray], dict[str, tuple[float, int]]]:
        """Return the queries to tune by, and the recall and k that each source wants.

        They are those that are given, or of the last time, or some of the rows themselves.
        """
        if queries:
            given = {
                source: sampled(unit_queries(rows, self.width, where=self.where), seed=seed)
                for source, rows in queries.items()
            }
            return given, dict.fromkeys(given, (recall, k))
        with self.rows.database.reading() as connection:
            stored = connection.execute("SELECT source, result, queries FROM tuning").fetchall()
        samples: dict[str, np.ndarray] = {}
        wanted: dict[str, tuple[float, int]] = {}
        for source, text, data in stored:
            if source != OWN_ROWS:
                earlier = Calibration.from_json(json.loads(text))
                rows = np.frombuffer(data, np.float16).reshape(-1, self.width)
                samples[source] = unit_queries(rows, self.width, where=self.where)
                wanted[source] = (earlier.wanted, earlier.k)
        if not samples:
            rows = LiveRows(self.rows.view()).sample(SAMPLE, seed=seed)
            if len(rows) >= FEWEST:
                samples = {OWN_ROWS: sampled(rows, seed=seed)}
                wanted = {OWN_ROWS: (recall, k)}
        return samples, wanted

    def _publish(
        self,
        header: Header,
        name: str,
        found: Sequence[Calibration],
        samples: Mapping[str, np.ndarray],
    ) -> None:
        """Have searches use another artefact, and remove the old one."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE state SET artefact = ?", [name])
            _store_tuning(connection, name, found, samples)

        with self.rows.locked():
            if name and not (self.folder / ENGINE_FOLDER / name).is_dir():
                raise UsageError(
                    f"{self.folder}: another process has rebuilt the engine meanwhile; use that "
                    "one, or rebuild it once more",
                    folder=self.folder,
                )
            header.write(self.folder)
            self.header = header
            self.rows.change(change)
            remove_others(self.folder, name)

    # The rest -----------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """Return what there is, in numbers: items, rows, bytes on the disk and in memory."""
        state = self.state()
        artefact = state.artefact
        return {
            "items": len(state.view),
            "rows": state.view.rows,
            "engine": self.engine_name,
            "engine_rows": state.covered,
            "engine_disk_bytes": 0 if artefact is None else artefact.disk_bytes(),
            "engine_memory_bytes": 0 if artefact is None else artefact.engine.memory_bytes(),
            "scan_memory_bytes": self._scanner.memory_bytes(),
            "build_seconds": 0.0 if artefact is None else artefact.record.seconds,
            "vector_bytes": sum(each.array.nbytes for each in state.view.segments),
        }

    def verify(self) -> list[str]:
        """Hash every file again; return what is wrong, one line each."""
        problems = self.rows.verify()
        state = self.state()
        if self.engine_problem:
            problems.append(self.engine_problem)
        if state.artefact is not None:
            problems += state.artefact.verify()
        return problems

    def mend(self) -> list[Path]:
        """Remove what killed writers left behind, unless another process is writing."""
        removed = self.rows.mend()
        removed += sweep(self.folder / ENGINE_FOLDER)
        return removed

    def close(self) -> None:
        """Close its files; a later call raises."""
        state, self._state = self._state, None
        if state is not None and state.artefact is not None:
            state.artefact.engine.close()
        self.rows.close()


class FilteredIndex:
    """The items of an index whose metadata fit a filter; see `Index.filtered`."""

    def __init__(
        self, index: Index, conditions: tuple[Condition, ...], where: Mapping[str, Any]
    ) -> None:
        """Take an index, and a filter that it has checked."""
        self.index = index
        self._conditions = conditions
        self._filter = where

    @property
    def modality(self) -> str:
        """Of the items."""
        return self.index.modality

    @property
    def embedding(self) -> str:
        """Hash of the weights the vectors passed through."""
        return self.index.embedding

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.index.where} filtered by {json.dumps(self._filter)}"

    def __len__(self) -> int:
        return len(self.index._allowed(self._conditions)[1])

    def search(self, queries: np.ndarray, k: int, *, source: str | None = None) -> Hits:
        """Find the k most similar of the items that fit; see `Index.search`."""
        return self.index._search(queries, k, source=source, conditions=self._conditions)

    def result_vectors(self, hits: Hits, query: int) -> np.ndarray:
        """Return the stored vectors of the items found for one of the queries, float [k, D]."""
        return self.index.result_vectors(hits, query)

    def shown(self, hits: Hits) -> list[list[str | None]]:
        """Return what each hit is; None where that is not stored."""
        return self.index.shown(hits)


def _store_tuning(
    connection: sqlite3.Connection,
    artefact: str,
    found: Sequence[Calibration],
    samples: Mapping[str, np.ndarray],
) -> None:
    """Store calibrations of an artefact; those of another one are no longer of use."""
    connection.execute("DELETE FROM tuning WHERE artefact != ?", [artefact])
    if any(not each.own_rows for each in found):
        connection.execute("DELETE FROM tuning WHERE source = ?", [OWN_ROWS])
    connection.executemany(
        "INSERT OR REPLACE INTO tuning VALUES (?, ?, ?, ?)",
        [
            (
                each.source,
                artefact,
                json.dumps(each.as_json()),
                samples[each.source].astype(np.float16).tobytes(),
            )
            for each in found
        ],
    )
