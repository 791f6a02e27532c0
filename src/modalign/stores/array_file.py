"""Vectors in .npy and .npz files, searched exactly by modalign itself.

    npy:FILE.npy     rows; ids in FILE.ids.txt (or the file `ids=` names), one a line, else "0", ...
    npz:FILE.npz     arrays `vectors` and `ids` (`vector=` and `id=` name others); without an array
                     of ids as for .npy; `value=` names an array of texts

A .npy stays on the disk; it is neither locked nor written. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from modalign.errors import CorruptError, DataError, ShapeError, UsageError
from modalign.gallery import STORED_DTYPES, Gallery, Hits
from modalign.storage import limit_mapped, load_array, read_bytes
from modalign.stores.contract import (
    Facts,
    Store,
    check_column,
    check_filled,
    check_rows,
    engine_errors,
    existing_path,
    folder_of_all,
    unique_places,
)
from modalign.stores.registry import StoreSpec

# Rows looked through at once when a file is first searched.
BLOCK = 4096


class ArrayStore(Store):
    """Rows of one array."""

    def __init__(
        self,
        facts: Facts,
        rows: np.ndarray,
        ids: Sequence[str],
        *,
        files: Sequence[Path],
        texts: Sequence[str] | None = None,
    ) -> None:
        """Take arrays whose shapes and ids are checked."""
        super().__init__(facts)
        self._rows = rows
        self._ids = ids
        self._files = sorted(file.absolute() for file in files)
        self._texts = texts
        self._place = unique_places(ids, where=facts.where)

    def ids_sample(self, limit: int) -> list[str]:
        """Return the first ids."""
        return list(self._ids[:limit])

    def read(self, ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Read rows by number."""
        found = [name for name in ids if name in self._place]
        limit_mapped([self._rows])
        return found, np.asarray(self._rows[[self._place[name] for name in found]])

    def nearest(self, queries: np.ndarray, k: int) -> Hits:
        """Search exactly, as a gallery is."""
        return self._gallery.search(queries, k)

    def read_values(self, ids: Sequence[str]) -> Mapping[str, str | None]:
        """Return the texts of the array that `value=` names."""
        if self._texts is None:
            return {}
        return {name: self._texts[self._place[name]] for name in ids if name in self._place}

    def files(self) -> list[Path]:
        """Return the file and that of its ids."""
        return self._files

    @property
    def root(self) -> Path:
        """The folder the file lies in; where its ids lie elsewhere, the one that holds both."""
        return folder_of_all(self._files)

    @cached_property
    def _gallery(self) -> Gallery:
        return exact_gallery(self._ids, self._rows, where=self.facts.where)


def exact_gallery(ids: Sequence[str], rows: np.ndarray, *, where: str) -> Gallery:
    """Return rows as a gallery, which is searched exactly by cosine.

    Rows of float16 and float32 are searched where they are; others are copied to float32.

    Raises:
        DataError: A vector is NaN, infinite or zero; the message names its id.
    """
    if rows.dtype.name not in STORED_DTYPES:
        with np.errstate(over="ignore"):
            rows = np.asarray(rows, np.float32)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        check_rows(ids[part], np.asarray(rows[part], np.float32), metric="cosine", where=where)
    return Gallery.from_arrays(ids, rows, modality="")


def open_npy(spec: StoreSpec) -> Store:
    """Open a .npy file; see `open_store`."""
    path = existing_path(spec.path, spec=spec.text, folder=False)
    rows = load_array(path, mapped=True)
    facts = _facts(spec, rows)
    ids, beside = ids_beside(path, spec, rows=len(rows))
    return ArrayStore(facts, rows, ids, files=[path, *beside])


def open_npz(spec: StoreSpec) -> Store:
    """Open a .npz file, which is read into memory; see `open_store`."""
    path = existing_path(spec.path, spec=spec.text, folder=False)
    arrays = _arrays(path, spec)
    names = {"vector": "vectors", "id": "ids"} | spec.options
    check_column(names["vector"], arrays, option="vector", where=spec.where)
    rows = arrays[names["vector"]]
    facts = _facts(spec, rows)
    texts = None
    if "value" in spec.options:
        texts = _texts(arrays, spec.options["value"], spec, option="value", rows=len(rows))
    if names["id"] in arrays or "id" in spec.options:
        own = _texts(arrays, names["id"], spec, option="id", rows=len(rows))
        return ArrayStore(facts, rows, own, files=[path], texts=texts)
    ids, beside = ids_beside(path, spec, rows=len(rows))
    return ArrayStore(facts, rows, ids, files=[path, *beside], texts=texts)


def check_exact_metric(spec: StoreSpec) -> None:
    """Raise a UsageError where another metric is asked of modalign's own exact search."""
    asked = spec.options.get("metric", "cosine")
    if asked != "cosine":
        raise UsageError(
            f"store {spec.text}: metric={asked}, but a {spec.kind} file is searched by modalign "
            "itself, by cosine; leave metric= out",
            metric=asked,
        )


def ids_beside(path: Path, spec: StoreSpec, *, rows: int) -> tuple[Sequence[str], list[Path]]:
    """Return the ids of a file that holds none, and the file they stand in.

    One a line in the file `ids=` names, or in FILE.ids.txt; the rows' numbers without it.

    Raises:
        DataError: The file that `ids=` names is not there, or has not one line a row.
    """
    named = spec.options.get("ids")
    beside = Path(named) if named else path.with_suffix(".ids.txt")
    if not named and not beside.is_file():
        return [str(row) for row in range(rows)], []
    with engine_errors(str(beside), UnicodeDecodeError):
        text = read_bytes(beside).decode()
    # Not splitlines(): it also splits at signs that may stand inside an id.
    ids = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    if len(ids) != rows:
        raise DataError(
            f"{beside}: {len(ids):,} ids for the {rows:,} vectors of {path}, expected one a line "
            "for each; write it again",
            file=beside,
        )
    return ids, [beside]


def _facts(spec: StoreSpec, rows: np.ndarray) -> Facts:
    check_exact_metric(spec)
    if rows.dtype.kind not in "iuf":
        raise DataError(
            f"{spec.where}: is of dtype {rows.dtype}, expected real numbers; write it again as "
            "float32",
            dtype=str(rows.dtype),
        )
    if rows.ndim != 2 or not rows.shape[1]:
        raise ShapeError(
            f"{spec.where}: has shape {rows.shape}, expected [rows, width]; write it again as one "
            "vector a row",
            shape=rows.shape,
        )
    check_filled(len(rows), where=spec.where)
    count, width = rows.shape
    return Facts(spec.text, spec.kind, spec.where, width=width, metric="cosine", count=count)


def _arrays(path: Path, spec: StoreSpec) -> dict[str, np.ndarray]:
    broken = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
    # Opened here, because np.load leaves a broken archive open.
    with engine_errors(spec.where, *broken), path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise CorruptError(f"{spec.where}: is no .npz; open it as npy:{path}", file=path)
        with loaded as archive:
            return {name: archive[name] for name in archive.files}


def _texts(
    arrays: Mapping[str, np.ndarray], name: str, spec: StoreSpec, *, option: str, rows: int
) -> list[str]:
    check_column(name, arrays, option=option, where=spec.where)
    array = arrays[name]
    if array.shape != (rows,):
        raise ShapeError(
            f"{spec.where}: array {name!r} has shape {array.shape}, expected ({rows},), one for "
            f"each vector; name another with {option}=",
            shape=array.shape,
        )
    return [str(value) for value in array.tolist()]
