"""The durable rows of an index: vectors in segments, all else in SQLite.

    items.sqlite         ids, values, metadata, which segments there are, which rows are deleted
    vectors/000001.npy   a segment: rows [n, D] as stored

A segment is written, fsynced and renamed before the transaction that names it; what no
transaction names is a killed writer's, and `mend` removes it. Rows are only ever appended: the
newest small segments are joined as they grow, so that there are never many, and their rows keep
their numbers.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Lock, RLock
from typing import Any, NamedTuple

import numpy as np

from modalign.errors import CorruptError, DataError, UsageError
from modalign.index.database import BOUND_AT_ONCE, Database
from modalign.index.filters import (
    COMPARED,
    Condition,
    Fact,
    facts_of,
    metadata_json,
    packed,
    unpacked,
    value_of,
)
from modalign.index.segments import Segment, View, block_rows, open_segment
from modalign.storage import locked, save_array_blocks, sha256_file, sweep

ITEMS_FILE = "items.sqlite"
VECTORS_FOLDER = "vectors"
# A segment is not joined beyond this.
SEGMENT_ROWS = 1 << 18
# Another writer is waited for so long.
WAIT_S = 10.0
# Distinct values of a field that are listed.
LISTED_VALUES = 50
# Unknown or taken ids that a message names.
NAMED = 3
# Bytes as JSON holds them.
_HEX = {"id": "hex(id)", "value": "iif(value IS NULL, NULL, hex(value))"}


class _Written(NamedTuple):
    """A segment that lies on the disk and that no transaction has named yet."""

    number: int
    file: Path
    first_row: int
    rows: int
    sha256: str


class Rows:
    """All that an index must not lose.

    Attributes:
        wait_s: Another writer is waited for so long.
    """

    def __init__(
        self, folder: Path, *, width: int, dtype: str, identity: str, read_only: bool
    ) -> None:
        """Open the rows of a folder.

        Raises:
            CorruptError: A file is missing, cut off, or of another index.
        """
        self.folder = folder
        self.width = width
        self.dtype = dtype
        self.read_only = read_only
        self.database = Database(folder / ITEMS_FILE)
        self._identity = identity
        self.wait_s = WAIT_S
        self._in_process = RLock()
        self._holds_lock = False
        self._viewing = Lock()
        self._view: View | None = None
        if not (folder / ITEMS_FILE).is_file():
            raise CorruptError(
                f"{folder / ITEMS_FILE}: is missing, it holds the ids of all rows; restore it from "
                "a backup, or build the index again",
                file=folder / ITEMS_FILE,
            )
        self.view()

    @classmethod
    def create(cls, folder: Path, *, width: int, dtype: str, identity: str) -> Rows:
        """Make the rows of a new index, none at first."""
        (folder / VECTORS_FOLDER).mkdir()
        Database.create(folder / ITEMS_FILE, identity=identity).close()
        return cls(folder, width=width, dtype=dtype, identity=identity, read_only=False)

    # Reading ------------------------------------------------------------------------------

    def view(self) -> View:
        """Return what there is now, whoever added or deleted it."""
        held = self._view
        if held is not None and held.generation == self._generation():
            return held
        with self._viewing:
            return self._read_view()

    def _generation(self) -> int:
        with self.database.reading() as connection:
            return int(connection.execute("SELECT generation FROM state").fetchone()[0])

    def _read_view(self) -> View:
        while True:
            with self.database.snapshot() as connection:
                state = connection.execute("SELECT identity, generation, artefact FROM state")
                identity, generation, artefact = state.fetchone()
                listed = connection.execute(
                    "SELECT number, first_row, rows, sha256 FROM segments ORDER BY first_row"
                ).fetchall()
                deleted = _rows(connection.execute("SELECT row FROM deleted ORDER BY row"))
            self._check_identity(identity)
            try:
                segments = self._opened(listed)
            except (DataError, FileNotFoundError):
                # Joined into a larger one or written anew, and removed, since they were listed.
                if self._generation() != generation:
                    continue
                raise
            self._view = View(generation, segments, self.width, self.dtype, deleted, artefact)
            return self._view

    def _check_identity(self, found: str) -> None:
        if found != self._identity:
            raise CorruptError(
                f"{self.folder / ITEMS_FILE}: belongs to another index; restore the folder whole",
                file=self.folder / ITEMS_FILE,
            )

    def _opened(self, listed: Sequence[tuple[int, int, int, str]]) -> tuple[Segment, ...]:
        known = {} if self._view is None else {each.number: each for each in self._view.segments}
        return tuple(
            known.get(number)
            or open_segment(
                self.folder / VECTORS_FOLDER / _file_name(number),
                number=number,
                first_row=first_row,
                rows=rows,
                width=self.width,
                dtype=self.dtype,
                sha256=sha256,
            )
            for number, first_row, rows, sha256 in listed
        )

    def ids_of(self, rows: np.ndarray) -> list[str | None]:
        """Return the id of each row; None of one that is deleted."""
        return self._by_row("id", rows)

    def values_of(self, rows: np.ndarray) -> list[str | None]:
        """Return the value of each row; None where it has none, or is deleted."""
        return self._by_row("value", rows)

    def _by_row(self, column: str, rows: np.ndarray) -> list[str | None]:
        wanted = rows.tolist()
        found = {
            row: None if data is None else _text(data)
            for row, data in self._read(f"row, {_HEX[column]}", "row", list(dict.fromkeys(wanted)))
        }
        return [found.get(row) for row in wanted]

    def items(self, ids: Sequence[str]) -> dict[str, tuple[int, str | None, dict[str, Any]]]:
        """Return (row, value, metadata) of the ids that are there."""
        columns = f"row, {_HEX['id']}, {_HEX['value']}, json(coalesce(metadata, '{{}}'))"
        keys = [packed(name) for name in dict.fromkeys(ids)]
        return {
            _text(name): (row, None if value is None else _text(value), metadata)
            for row, name, value, metadata in self._read(columns, "id", keys)
        }

    def items_at(self, rows: Sequence[int]) -> dict[int, tuple[str | None, dict[str, Any]]]:
        """Return (value, metadata) of the rows that are there."""
        columns = f"row, {_HEX['value']}, json(coalesce(metadata, '{{}}'))"
        return {
            row: (None if value is None else _text(value), metadata)
            for row, value, metadata in self._read(columns, "row", list(dict.fromkeys(rows)))
        }

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return the row of each id that is there."""
        keys = [packed(name) for name in dict.fromkeys(ids)]
        found = self._read(f"{_HEX['id']}, row", "id", keys)
        return {_text(name): row for name, row in found}

    def _read(self, columns: str, key: str, values: Sequence[Any]) -> Iterator[list[Any]]:
        """Yield columns of the rows whose key is one of some values."""
        with self.database.reading() as connection:
            for part in _parts(values):
                yield from _read_at_once(connection, columns, key, part)

    def fitting(self, conditions: Sequence[Condition]) -> tuple[int, np.ndarray]:
        """Return the rows of which all conditions hold, ascending int64, and their generation.

        Raises:
            UsageError: No item has such a field; the message lists those there are.
        """
        with self.database.snapshot() as connection:
            generation = connection.execute("SELECT generation FROM state").fetchone()[0]
            fields = _fields(connection)
            parts, bound = [], list[Any]()
            for condition in conditions:
                sql, values = _selected(condition, _field_number(condition.field, fields))
                parts.append(f"SELECT row FROM ({sql})")
                bound += values
            sql = " INTERSECT ".join(parts) or "SELECT row FROM items"
            rows = _rows(connection.execute(sql, bound))
        rows.sort()
        return int(generation), rows

    def fields(self) -> dict[str, list[Any] | None]:
        """Return the distinct values of each field, None where they are more than 50."""
        with self.database.snapshot() as connection:
            return {
                name: _listed(connection, number) for name, number in _fields(connection).items()
            }

    # Writing ------------------------------------------------------------------------------

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        *,
        values: Sequence[str | None] | None,
        metadata: Sequence[Mapping[str, Any]] | None,
        replace: bool,
    ) -> None:
        """Append rows; durable when this returns.

        Args:
            ids: Each once.
            vectors: As stored [n, D], checked.
            values: One an id.
            metadata: One an id.
            replace: Delete the rows of ids that are there.

        Raises:
            UsageError: An id is there and `replace` is off, or metadata is of another form.
            DataError: The disk is full; nothing is added.
        """
        described = _described(ids, metadata)
        with self.locked():
            view = self.view()
            taken = self.rows_of(ids) if replace else {}
            if not replace:
                self.check_free(ids)
            joined = _joined(view.segments, len(vectors))
            segment = self._write_segment(view, joined, vectors)
            with self._unless_it_fails(segment.file), self.database.writing() as connection:
                _forget(connection, list(taken.values()))
                _replace_segments(connection, joined, segment)
                _insert(connection, ids, values, described, first_row=view.rows)
        for each in joined:
            each.file.unlink(missing_ok=True)

    def check_free(self, ids: Sequence[str]) -> None:
        """Raise a UsageError that names ids which are there already."""
        found = self.rows_of(ids) if len(self.view()) else {}
        taken = [name for name in ids if name in found]
        if taken:
            raise UsageError(
                f"{self.folder}: {named_ids(taken)} there already, expected new ids; replace "
                "them, or leave them out",
                ids=taken,
            )

    def _write_segment(
        self, view: View, joined: Sequence[Segment], vectors: np.ndarray
    ) -> _Written:
        blocks = [*(each.array for each in joined), vectors]
        rows = sum(map(len, blocks))
        first_row = view.rows + len(vectors) - rows
        return self._write_blocks(view, blocks, first_row=first_row, rows=rows)

    def _write_blocks(
        self, view: View, blocks: Iterable[np.ndarray], *, first_row: int, rows: int
    ) -> _Written:
        number = 1 + max((each.number for each in view.segments), default=0)
        file = self.folder / VECTORS_FOLDER / _file_name(number)
        save_array_blocks(file, blocks, shape=(rows, self.width), dtype=np.dtype(self.dtype))
        # Hashed from the disk, not from memory: what is read back is what is there.
        return _Written(number, file, first_row, rows, sha256_file(file))

    @contextmanager
    def _unless_it_fails(self, file: Path) -> Iterator[None]:
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                file.unlink(missing_ok=True)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete rows by id; durable when this returns.

        Raises:
            UsageError: An id is not there; nothing is deleted.
        """
        with self.locked():
            found = self.rows_of(ids)
            unknown = [name for name in dict.fromkeys(ids) if name not in found]
            if unknown:
                raise UsageError(
                    f"{self.folder}: {named_ids(unknown)} not there, expected ids of the index; "
                    "correct or leave them out",
                    ids=unknown,
                )
            with self.database.writing() as connection:
                _forget(connection, list(found.values()))
        return len(found)

    def erase(self) -> int:
        """Leave no vector, id or value of a deleted item in any file; durable when it returns.

        Segments are written anew with zeros in their place, one at a time, so that other writers
        wait for one at most. The names of metadata fields stay.

        Returns:
            How many items there were.

        Raises:
            UsageError: The index is read-only, or another process writes.
            DataError: The disk is full; what was not written anew yet stays.
        """
        deleted = self._fresh_view().deleted
        if not any(len(_left_of_deleted(each, deleted)) for each in self.view().segments):
            return 0
        with self.locked():
            # SQLite leaves copies of what it moved from page to page. First: whoever is killed
            # after it leaves vectors, by which the next call knows that there is work to do.
            self.database.vacuum()
        erased = row = 0
        while True:
            with self.locked():
                view = self._fresh_view()
                segment = next((each for each in view.segments if each.stop_row > row), None)
                if segment is None:
                    return erased
                erased += self._erase_in(view, segment, deleted)
                row = segment.stop_row

    def _erase_in(self, view: View, segment: Segment, deleted: np.ndarray) -> int:
        gone = _left_of_deleted(segment, deleted)
        if len(gone):
            blocks, rows = _without(segment.array, gone), len(segment.array)
            written = self._write_blocks(view, blocks, first_row=segment.first_row, rows=rows)
            with self._unless_it_fails(written.file), self.database.writing() as connection:
                _replace_segments(connection, [segment], written)
            segment.file.unlink(missing_ok=True)
        return len(gone)

    def change(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run statements of one's own as one durable change."""
        with self.locked(), self.database.writing() as connection:
            work(connection)

    def check_writable(self) -> None:
        """Raise a UsageError where the index was opened read-only."""
        if self.read_only:
            raise UsageError(
                f"{self.folder}: was opened read-only; load it with read_only=False to change it",
                folder=self.folder,
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other writers out, those of this process and of others.

        Raises:
            UsageError: The index is read-only, or another process is still writing after a while.
        """
        self.check_writable()
        with self._in_process:
            if self._holds_lock:
                yield
                return
            with _locked(self.folder, wait_s=self.wait_s):
                self._holds_lock = True
                try:
                    yield
                finally:
                    self._holds_lock = False

    def mend(self) -> list[Path]:
        """Remove what killed writers left; nothing where another process is writing."""
        removed: list[Path] = []
        with suppress(UsageError), locked(self.folder, wait=False):
            vectors = self.folder / VECTORS_FOLDER
            named = {each.file.name for each in self._fresh_view().segments}
            for folder in (self.folder, vectors):
                removed += sweep(folder)
            for file in sorted(vectors.glob("*.npy")):
                if file.name not in named:
                    file.unlink()
                    removed.append(file)
        return removed

    def _fresh_view(self) -> View:
        with self._viewing:
            return self._read_view()

    def verify(self) -> list[str]:
        """Hash every segment again, and have SQLite look through its file; return what is wrong."""
        problems = []
        with self.database.snapshot() as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            counted = connection.execute(
                "SELECT (SELECT count(*) FROM items) + (SELECT count(*) FROM deleted)"
            ).fetchone()[0]
        if found != "ok":
            problems.append(f"{self.database.path}: {found}; restore it from a backup")
        view = self.view()
        if counted != view.rows:
            problems.append(
                f"{self.database.path}: names {counted} rows, the segments hold {view.rows}; "
                "restore the folder whole"
            )
        for segment in view.segments:
            hashed = sha256_file(segment.file) if segment.file.is_file() else "missing"
            if hashed != segment.sha256:
                problems.append(
                    f"{segment.file}: is not what was written: sha256 {hashed[:12]}, expected "
                    f"{segment.sha256[:12]}; restore it, or build the index again"
                )
        return problems

    def close(self) -> None:
        """Close the file; a later call raises."""
        self.database.close()


@contextmanager
def _locked(folder: Path, *, wait_s: float) -> Iterator[None]:
    """Lock a folder, waiting for another process a little while."""
    deadline = time.monotonic() + wait_s
    while True:
        lock = locked(folder, wait=False)
        try:
            lock.__enter__()
            break
        except UsageError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _file_name(number: int) -> str:
    return f"{number:06d}.npy"


def _joined(segments: Sequence[Segment], rows: int) -> list[Segment]:
    """Return the last segments that new rows are joined with: those not larger than what comes.

    As in binary counting, each row is written again only as often as the number of rows has
    doubled, and there are never more segments than its logarithm.
    """
    found: list[Segment] = []
    for segment in reversed(segments):
        if len(segment.array) > rows or rows + len(segment.array) > SEGMENT_ROWS:
            break
        found.insert(0, segment)
        rows += len(segment.array)
    return found


def _left_of_deleted(segment: Segment, deleted: np.ndarray) -> np.ndarray:
    """Return the places of a segment's deleted rows that are not all zeros yet, ascending."""
    first, last = np.searchsorted(deleted, [segment.first_row, segment.stop_row])
    places = deleted[first:last] - segment.first_row
    kept: np.ndarray = places[segment.array[places].any(axis=1)]
    return kept


def _without(rows: np.ndarray, gone: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows as stored, those at some places as zeros."""
    size = block_rows(rows.shape[1])
    for at in range(0, len(rows), size):
        block = np.array(rows[at : at + size])
        first, last = np.searchsorted(gone, [at, at + size])
        block[gone[first:last] - at] = 0
        yield block


def _described(
    ids: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None
) -> list[tuple[str | None, list[tuple[str, Fact]]]]:
    """Return the metadata of each item as stored, and as compared."""
    if metadata is None:
        return [(None, []) for _ in ids]
    return [_checked_metadata(name, each) for name, each in zip(ids, metadata, strict=True)]


def _checked_metadata(
    name: str, metadata: Mapping[str, Any]
) -> tuple[str | None, list[tuple[str, Fact]]]:
    facts = facts_of(metadata, where=f"item {name!r}")
    return metadata_json(metadata) if metadata else None, facts


def _insert(
    connection: sqlite3.Connection,
    ids: Sequence[str],
    values: Sequence[str | None] | None,
    described: Sequence[tuple[str | None, list[tuple[str, Fact]]]],
    *,
    first_row: int,
) -> None:
    names = {name for _, facts in described for name, _ in facts}
    connection.executemany(
        "INSERT OR IGNORE INTO fields (name) VALUES (?)",
        [(packed(name),) for name in sorted(names)],
    )
    fields = _fields(connection)
    shown = [None] * len(ids) if values is None else [v if v is None else packed(v) for v in values]
    connection.executemany(
        "INSERT INTO items VALUES (?, ?, ?, ?)",
        (
            (first_row + place, packed(name), value, text)
            for place, (name, value, (text, _)) in enumerate(
                zip(ids, shown, described, strict=True)
            )
        ),
    )
    connection.executemany(
        "INSERT INTO facts VALUES (?, ?, ?, ?)",
        (
            (fields[name], fact.kind, fact.value, first_row + place)
            for place, (_, facts) in enumerate(described)
            for name, fact in facts
        ),
    )


def _replace_segments(
    connection: sqlite3.Connection, old: Sequence[Segment], new: _Written
) -> None:
    connection.executemany(
        "DELETE FROM segments WHERE number = ?", [(each.number,) for each in old]
    )
    connection.execute(
        "INSERT INTO segments VALUES (?, ?, ?, ?)",
        [new.number, new.first_row, new.rows, new.sha256],
    )


def _forget(connection: sqlite3.Connection, rows: Sequence[int]) -> None:
    """Delete items with all that is known of them; their vectors stay, and are never found."""
    fields = _fields(connection)
    for part in _parts(rows):
        described = connection.execute(
            f"SELECT row, metadata FROM items WHERE row IN ({_marks(part)})", part
        ).fetchall()
        connection.executemany(
            "DELETE FROM facts WHERE field = ? AND kind = ? AND value = ? AND row = ?",
            (
                (fields[name], fact.kind, fact.value, row)
                for row, text in described
                for name, fact in facts_of(json.loads(text or "{}"), where="")
            ),
        )
        connection.execute(f"DELETE FROM items WHERE row IN ({_marks(part)})", part)
        connection.executemany("INSERT INTO deleted VALUES (?)", [(row,) for row in part])


def _fields(connection: sqlite3.Connection) -> dict[str, int]:
    return {
        unpacked(name): number
        for name, number in connection.execute("SELECT name, number FROM fields ORDER BY number")
    }


def _field_number(name: str, known: Mapping[str, int]) -> int:
    if name not in known:
        raise UsageError(
            f"filter: no item has a field {name!r}; known: {', '.join(sorted(known)) or 'none'}",
            name=name,
            known=sorted(known),
        )
    return known[name]


def _selected(condition: Condition, field: int) -> tuple[str, list[Any]]:
    """Return the statement that gives the rows of which a condition holds, and its values."""
    having = "SELECT row FROM facts WHERE field = ?"
    if condition.operator == "absent":
        return f"SELECT row FROM items EXCEPT {having}", [field]
    facts = [value for fact in condition.facts for value in fact]
    if condition.operator == "in":
        if not facts:
            return f"{having} AND 0", [field]
        pairs = ", ".join(["(?, ?)"] * len(condition.facts))
        return f"{having} AND (kind, value) IN (VALUES {pairs})", [field, *facts]
    if condition.operator == "ne":
        return f"SELECT row FROM items EXCEPT {having} AND kind = ? AND value = ?", [field, *facts]
    return f"{having} AND kind = ? AND value {COMPARED[condition.operator]} ?", [field, *facts]


def _text(hexed: str) -> str:
    """Return what `packed` was given, of its bytes as JSON holds them."""
    return unpacked(bytes.fromhex(hexed))


def _read_at_once(
    connection: sqlite3.Connection, columns: str, key: str, values: Sequence[Any]
) -> list[list[Any]]:
    """Return columns of the rows whose key is one of some values, as one row of the answer.

    SQLite lets go of the interpreter at every row, and then waits until no other thread computes.
    """
    sql = (
        f"SELECT json_group_array(json_array({columns})) FROM items "
        f"WHERE {key} IN ({_marks(values)})"
    )
    try:
        found: list[list[Any]] = json.loads(connection.execute(sql, values).fetchone()[0])
    except sqlite3.DataError:
        # Together longer than SQLite's longest text.
        half = len(values) // 2
        if not half:
            raise
        parts = (values[:half], values[half:])
        return [row for part in parts for row in _read_at_once(connection, columns, key, part)]
    return found


def _listed(connection: sqlite3.Connection, field: int) -> list[Any] | None:
    """Return the distinct values of a field in their order, one step of the index to each."""
    found: list[Fact] = []
    last: tuple[Any, ...] = (0, 0)
    while len(found) <= LISTED_VALUES:
        following = connection.execute(
            "SELECT kind, value FROM facts WHERE field = ? AND (kind, value) > (?, ?) "
            "ORDER BY kind, value LIMIT 1",
            [field, *last],
        ).fetchone()
        if following is None:
            return [value_of(fact) for fact in found]
        found.append(Fact(*following))
        last = following
    return None


def _rows(cursor: Iterable[tuple[int]]) -> np.ndarray:
    return np.fromiter((row for (row,) in cursor), np.int64)


def _parts(values: Sequence[Any]) -> Iterator[list[Any]]:
    left = iter(values)
    while part := list(islice(left, BOUND_AT_ONCE)):
        yield part


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def named_ids(ids: Iterable[str]) -> str:
    """Return "id 'a' is", or "3 ids ('a', 'b', ...) are"."""
    names = list(ids)
    shown = ", ".join(repr(name) for name in names[:NAMED])
    if len(names) == 1:
        return f"id {shown} is"
    return f"{len(names)} ids ({shown}{', ...' if len(names) > NAMED else ''}) are"
