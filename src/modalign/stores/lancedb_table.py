"""A LanceDB table.

    lancedb:FOLDER#TABLE     columns `id` and `vector` (`id=` and `vector=` name others); `value=`
                             names a column of texts or paths

Opened in place: LanceDB writes nothing to read or to search. Its vector index says the metric;
without an index every search names one, so `metric=` chooses it, or else l2, LanceDB's own default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modalign.errors import DataError, import_extra
from modalign.gallery import Hits
from modalign.stores.arrow import first_odd_length, list_width, matrix
from modalign.stores.contract import (
    Facts,
    Metric,
    Store,
    check_collection,
    check_column,
    check_filled,
    check_metric,
    chunks,
    engine_errors,
    existing_path,
    folder_files,
    padded_hits,
    similarity_of,
)
from modalign.stores.registry import StoreSpec

METRICS: dict[str, Metric] = {"cosine": "cosine", "l2": "l2", "dot": "dot"}
BROKEN = (RuntimeError, ValueError, OSError)
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
QUERIES_AT_ONCE = 64


class LanceStore(Store):
    """One table, read in place."""

    def __init__(self, facts: Facts, table: Any, folder: Path, names: Mapping[str, str]) -> None:
        """Take a table whose columns are checked."""
        super().__init__(facts)
        self._table = table
        self._folder = folder
        self._names = names

    def ids_sample(self, limit: int) -> list[str]:
        """Return the first ids."""
        column = self._names["id"]
        with engine_errors(self.facts.where, *BROKEN):
            found = self._table.search().select([column]).limit(limit).to_arrow()
        return [str(value) for value in found[column].to_pylist()]

    def read(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Ask for the rows whose id is among some, a thousand at a time."""
        found: list[str] = []
        parts = [np.zeros((0, self.width), np.float32)]
        for part, column in self._columns(ids, self._names["vector"]):
            if part:
                found += part
                parts.append(matrix(column, part, where=self.facts.where))
        return found, np.concatenate(parts)

    def nearest(self, queries: np.ndarray, k: int) -> Hits:
        """Search by the table's index, or without one through all rows."""
        found: list[list[tuple[str, int, float]]] = [[] for _ in queries]
        name = self._names["id"]
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            with engine_errors(self.facts.where, *BROKEN):
                hits = (
                    self._table.search(
                        queries[start : start + QUERIES_AT_ONCE],
                        vector_column_name=self._names["vector"],
                    )
                    .distance_type(self.metric)
                    .select([name, "_distance"])
                    .limit(k)
                    .to_arrow()
                )
            # One query has no column that numbers it.
            numbers = (
                hits["query_index"].to_pylist()
                if "query_index" in hits.column_names
                else [0] * hits.num_rows
            )
            columns = (numbers, hits[name].to_pylist(), hits["_distance"].to_pylist())
            for query, found_id, distance in zip(*columns, strict=True):
                similarity = similarity_of(distance, self.metric)
                found[start + query].append((str(found_id), -1, similarity))
        return padded_hits([sorted(hits, key=_by_similarity) for hits in found], k)

    def read_values(self, ids: Sequence[str]) -> Mapping[str, str | None]:
        """Return what stands in the column `value=` names."""
        if "value" not in self._names:
            return {}
        return {
            name: None if value is None else str(value)
            for part, column in self._columns(ids, self._names["value"])
            for name, value in zip(part, column.to_pylist(), strict=True)
        }

    def files(self) -> list[Path]:
        """Return every file of the table; other tables of the folder are not looked at."""
        return folder_files(self._folder)

    @property
    def root(self) -> Path:
        """The folder the table's own folder lies in."""
        return self._folder.parent

    def _columns(self, ids: Sequence[str], name: str) -> list[tuple[list[str], Any]]:
        """Return (ids, their values of a column) of the rows that are there."""
        key = self._names["id"]
        found = []
        for part in chunks(ids):
            condition = _among(part, self._table.schema.field(key), where=self.facts.where)
            if condition is None:
                continue
            with engine_errors(self.facts.where, *BROKEN):
                rows = self._table.search().where(condition).select([key, name]).to_arrow()
            found.append(([str(value) for value in rows[key].to_pylist()], rows[name]))
        return found


def open_table(spec: StoreSpec) -> Store:
    """Open a table; see `open_store`."""
    folder = existing_path(spec.path, spec=spec.text, folder=True)
    lancedb = import_extra("lancedb", extra="lancedb")
    # By the folders, for LanceDB's list is of the first ten alone.
    tables = [path.stem for path in folder.glob("*.lance") if path.is_dir()]
    name = check_collection(spec.collection, tables, spec=spec.text, what="table")
    with engine_errors(spec.where, *BROKEN):
        table = lancedb.connect(str(folder)).open_table(name)
        schema, count = table.schema, table.count_rows()
    names = {"id": "id", "vector": "vector"} | spec.options
    for option in ("vector", "id", *(["value"] if "value" in names else [])):
        check_column(names[option], schema.names, option=option, where=spec.where)
    check_filled(count, where=spec.where)
    facts = Facts(
        spec.text,
        spec.kind,
        spec.where,
        width=_width(table, names, spec),
        metric=_metric(table, names["vector"], spec),
        count=count,
        collection=name,
    )
    return LanceStore(facts, table, folder / f"{name}.lance", names)


def _width(table: Any, names: Mapping[str, str], spec: StoreSpec) -> int:
    """Return the width of the vectors; LanceDB itself searches lists of one fixed size alone."""
    column = table.schema.field(names["vector"])
    width = list_width(column, where=spec.where)
    if width is not None:
        return width
    with engine_errors(spec.where, *BROKEN):
        rows = table.search().select([names["id"], names["vector"]]).to_arrow().combine_chunks()
    ids = [str(value) for value in rows[names["id"]].to_pylist()]
    first_odd_length(rows[names["vector"]].combine_chunks(), ids, width=None, where=spec.where)
    raise DataError(
        f"{spec.where}: column {column.name!r} is {column.type}, expected lists of one fixed size, "
        "without which LanceDB does not search; name another with vector=",
        name=column.name,
    )


def _metric(table: Any, vector: str, spec: StoreSpec) -> Metric:
    asked = spec.options.get("metric")
    with engine_errors(spec.where, *BROKEN):
        indexes = [index.name for index in table.list_indices() if vector in index.columns]
        stats = table.index_stats(indexes[0]) if indexes else None
    own = stats.distance_type if stats is not None else asked or "l2"
    return check_metric(asked, str(own), known=METRICS, where=spec.where)


def _among(ids: Sequence[str], column: Any, *, where: str) -> str | None:
    """Return the SQL condition that a row's id is one of these; None where it can be none."""
    types = import_extra("pyarrow.types", extra="lancedb")
    if types.is_integer(column.type):
        # "007" is no number that `str` writes.
        words = [name for name in ids if NUMBER.fullmatch(name)]
    elif types.is_string(column.type) or types.is_large_string(column.type):
        words = ["'" + name.replace("'", "''") + "'" for name in ids]
    else:
        raise DataError(
            f"{where}: ids in column {column.name!r} are {column.type}, expected text or whole "
            "numbers; name another with id=",
            name=column.name,
        )
    return f"`{column.name}` IN ({', '.join(words)})" if words else None


def _by_similarity(hit: tuple[str, int, float]) -> float:
    return -hit[2]
