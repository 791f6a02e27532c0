"""Vectors in a Parquet file, searched exactly by modalign itself.

    parquet:FILE.parquet     columns `id` and `vector` (`id=` and `vector=` name others); `value=`
                             names a column of texts

Vectors are read by row group; the first search reads them all into memory as float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from modalign.errors import DataError, import_extra
from modalign.gallery import Gallery, Hits
from modalign.stores.array_file import check_exact_metric, exact_gallery
from modalign.stores.arrow import first_odd_length, list_width, matrix
from modalign.stores.contract import (
    Facts,
    Store,
    check_column,
    check_filled,
    engine_errors,
    existing_path,
    unique_places,
)
from modalign.stores.registry import StoreSpec

BATCH_ROWS = 4096


class ParquetStore(Store):
    """Rows of one file, by row group."""

    def __init__(
        self, facts: Facts, path: Path, *, ids: Sequence[str], vector: str, value: str | None
    ) -> None:
        """Take a file whose columns are checked."""
        super().__init__(facts)
        self._path = path
        self._ids = ids
        self._vector = vector
        self._value = value
        self._place = unique_places(ids, where=facts.where)

    def ids_sample(self, limit: int) -> list[str]:
        """Return the first ids."""
        return list(self._ids[:limit])

    def read(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Read the row groups these rows lie in, one at a time."""
        found = sorted((name for name in ids if name in self._place), key=self._place.__getitem__)
        parts = [
            matrix(column, [self._ids[row] for row in rows], where=self.facts.where)
            for rows, column in self._groups(found, self._vector)
        ]
        return found, np.concatenate(parts or [np.zeros((0, self.width), np.float32)])

    def nearest(self, queries: np.ndarray, k: int) -> Hits:
        """Search exactly, as a gallery is."""
        return self._gallery.search(queries, k)

    def read_values(self, ids: Sequence[str]) -> Mapping[str, str | None]:
        """Return what stands in the column `value=` names."""
        if self._value is None:
            return {}
        found = sorted((name for name in ids if name in self._place), key=self._place.__getitem__)
        return {
            self._ids[row]: None if value is None else str(value)
            for rows, column in self._groups(found, self._value)
            for row, value in zip(rows, column.to_pylist(), strict=True)
        }

    def files(self) -> list[Path]:
        """Return the file."""
        return [self._path]

    @property
    def root(self) -> Path:
        """The folder the file lies in."""
        return self._path.parent

    def _groups(self, ids: Sequence[str], column: str) -> Iterator[tuple[list[int], Any]]:
        """Yield (rows, their values of a column) of ids in the order of the file."""
        rows = [self._place[name] for name in ids]
        with engine_errors(self.facts.where, *_broken()), _opened(self._path) as file:
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                inside = [row for row in rows if first <= row < last]
                if inside:
                    values = file.read_row_group(group, columns=[column])[column]
                    yield inside, values.take([row - first for row in inside])
                first = last

    @cached_property
    def _gallery(self) -> Gallery:
        rows = np.empty((self.count, self.width), np.float32)
        first = 0
        with engine_errors(self.facts.where, *_broken()), _opened(self._path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=[self._vector]):
                last = first + batch.num_rows
                rows[first:last] = matrix(
                    batch.column(0), self._ids[first:last], where=self.facts.where
                )
                first = last
        return exact_gallery(self._ids, rows, where=self.facts.where)


def open_parquet(spec: StoreSpec) -> Store:
    """Open a Parquet file; see `open_store`."""
    path = existing_path(spec.path, spec=spec.text, folder=False)
    check_exact_metric(spec)
    names = {"id": "id", "vector": "vector"} | spec.options
    with engine_errors(spec.where, *_broken()), _opened(path) as file:
        schema, count = file.schema_arrow, file.metadata.num_rows
        for option in ("vector", "id", *(["value"] if "value" in names else [])):
            check_column(names[option], schema.names, option=option, where=spec.where)
        check_filled(count, where=spec.where)
        ids = _ids(file, names["id"], spec)
        width = _width(file, names["vector"], ids, spec)
    facts = Facts(spec.text, spec.kind, spec.where, width=width, metric="cosine", count=count)
    return ParquetStore(facts, path, ids=ids, vector=names["vector"], value=names.get("value"))


def _ids(file: Any, name: str, spec: StoreSpec) -> list[str]:
    column = file.read(columns=[name])[name]
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(
            f"{spec.where}: column {name!r} is null in row {row}, expected an id; drop the row, or "
            "name another column with id=",
            row=row,
        )
    return [str(value) for value in column.to_pylist()]


def _width(file: Any, name: str, ids: Sequence[str], spec: StoreSpec) -> int:
    """Return the width of all rows; lists of any length are looked through for it."""
    width = list_width(file.schema_arrow.field(name), where=spec.where)
    if width is not None:
        return width
    first = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=[name]):
        part = ids[first : first + batch.num_rows]
        width = first_odd_length(batch.column(0), part, width=width, where=spec.where)
        first += batch.num_rows
    return width or 0


def _opened(path: Path) -> Any:
    return import_extra("pyarrow.parquet", extra="parquet").ParquetFile(path)


def _broken() -> tuple[type[Exception], ...]:
    arrow_error: type[Exception] = import_extra("pyarrow", extra="parquet").ArrowException
    return arrow_error, OSError
