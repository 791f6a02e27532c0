"""A FAISS index file.

    faiss:FILE.index     ids in FILE.ids.txt (or the file `ids=` names), one a line in the order of
                         the rows; else the ids of an IndexIDMap, else the numbers that rows were
                         added under

The file is opened for reading alone and read into memory. Vectors are what the index gives back:
as they were added where it keeps them whole, near to it where it compresses them. An index has
the metric it was made with; "cosine" there is dot over vectors of length 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modalign.errors import DataError, import_extra
from modalign.gallery import Hits
from modalign.stores.array_file import ids_beside
from modalign.stores.contract import (
    Facts,
    Metric,
    Store,
    check_filled,
    check_metric,
    engine_errors,
    existing_path,
    folder_of_all,
    padded_hits,
    unique_places,
)
from modalign.stores.registry import StoreSpec

METRICS: dict[str, Metric] = {"METRIC_INNER_PRODUCT": "dot", "METRIC_L2": "l2"}


class FaissStore(Store):
    """One index, in memory."""

    def __init__(
        self,
        facts: Facts,
        indexes: tuple[Any, Any],
        ids: Sequence[str],
        *,
        files: Sequence[Path],
        labels: np.ndarray | None,
    ) -> None:
        """Take what was opened.

        Args:
            facts: Of it.
            indexes: That which holds the rows, and that which was read.
            ids: Of the rows.
            files: It lies in.
            labels: What the index calls each row, ascending int64; None for its number.
        """
        super().__init__(facts)
        # A map of ids frees the index in it, so it is kept as long.
        self._index, self._around = indexes
        self._ids = ids
        self._labels = labels
        self._files = sorted(file.absolute() for file in files)
        self._place = unique_places(ids, where=facts.where)

    @property
    def compresses(self) -> bool:
        """Whether it keeps less of a vector than two bytes a dimension."""
        try:
            return bool(self._index.sa_code_size() < 2 * self.width)
        except RuntimeError:
            # A graph, whose rows are in another index.
            return False

    def ids_sample(self, limit: int) -> list[str]:
        """Return the first ids."""
        return list(self._ids[:limit])

    def read(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Ask the index for its rows.

        Raises:
            DataError: The index cannot give vectors back.
        """
        found = [name for name in ids if name in self._place]
        if not found:
            return [], np.zeros((0, self.width), np.float32)
        rows = np.array([self._place[name] for name in found], np.int64)
        labels = rows if self._labels is None else self._labels[rows]
        try:
            if self._labels is not None:
                faiss = import_extra("faiss", extra="faiss")
                self._index.set_direct_map_type(faiss.DirectMap.Hashtable)
            elif hasattr(self._index, "make_direct_map"):
                # Where each row lies in the lists of an IVF index; made once.
                self._index.make_direct_map()
            return found, self._index.reconstruct_batch(labels)
        except RuntimeError as error:
            raise DataError(
                f"{self.facts.where}: a {type(self._index).__name__} gives no vectors back, "
                "expected an index that keeps them; attach the vectors it was made of, as npy: or "
                "parquet:",
                kind=type(self._index).__name__,
            ) from error

    def nearest(self, queries: np.ndarray, k: int) -> Hits:
        """Search by the index; its own order of ties."""
        found, rows = self._index.search(queries, k)
        if self._labels is not None:
            rows = np.where(rows < 0, -1, np.searchsorted(self._labels, rows))
        similarity = found if self.metric == "dot" else -found
        return padded_hits(
            [
                [(self._ids[row], row, value) for row, value in zip(*hits, strict=True) if row >= 0]
                for hits in zip(rows.tolist(), similarity.tolist(), strict=True)
            ],
            k,
        )

    def read_values(self, ids: Sequence[str]) -> Mapping[str, str | None]:
        """Return nothing: an index keeps numbers alone."""
        return {}

    def files(self) -> list[Path]:
        """Return the file and that of its ids."""
        return self._files

    @property
    def root(self) -> Path:
        """The folder the file lies in; where its ids lie elsewhere, the one that holds both."""
        return folder_of_all(self._files)


def open_index(spec: StoreSpec) -> Store:
    """Open an index file; see `open_store`."""
    path = existing_path(spec.path, spec=spec.text, folder=False)
    faiss = import_extra("faiss", extra="faiss")
    with engine_errors(spec.where, RuntimeError):
        index = faiss.read_index(str(path))
    check_filled(index.ntotal, where=spec.where)
    words = {getattr(faiss, word): word for word in METRICS}
    metric = check_metric(
        spec.options.get("metric"),
        words.get(index.metric_type, f"number {index.metric_type} of FAISS"),
        known=METRICS,
        where=spec.where,
    )
    facts = Facts(
        spec.text, spec.kind, spec.where, width=index.d, metric=metric, count=index.ntotal
    )
    rows, own_ids = _unwrapped(faiss, index)
    labels = _own_labels(faiss, rows)
    ids, beside = ids_beside(path, spec, rows=facts.count)
    if own_ids is None and labels is not None:
        own_ids = [str(number) for number in labels.tolist()]
        if beside:
            raise DataError(
                f"{beside[0]}: names rows by their order, and those of {path} have numbers of "
                f"their own, such as {own_ids[0]}; take the file away, the numbers are the ids",
                file=beside[0],
            )
    if own_ids is not None and not beside:
        ids = own_ids
    return FaissStore(facts, (rows, index), ids, files=[path, *beside], labels=labels)


def _own_labels(faiss: Any, index: Any) -> np.ndarray | None:
    """Return the numbers that rows of an IVF index were added under, ascending; None of 0, 1, 2."""
    if not isinstance(index, faiss.IndexIVF):
        return None
    lists = index.invlists
    sizes = [(each, lists.list_size(each)) for each in range(lists.nlist)]
    parts = [faiss.rev_swig_ptr(lists.get_ids(each), size).copy() for each, size in sizes if size]
    labels: np.ndarray = np.sort(np.concatenate(parts))
    return None if np.array_equal(labels, np.arange(len(labels))) else labels


def _unwrapped(faiss: Any, index: Any) -> tuple[Any, list[str] | None]:
    """Return the index that counts in rows, and the ids of the map around it."""
    if not isinstance(index, (faiss.IndexIDMap, faiss.IndexIDMap2)):
        return index, None
    own_ids = [str(number) for number in faiss.vector_to_array(index.id_map).tolist()]
    return faiss.downcast_index(index.index), own_ids
