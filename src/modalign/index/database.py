"""The SQLite file of an index: its connections, its errors, its tables.

A commit is the acknowledgement: `synchronous=EXTRA` has the disk hold all of it, the folder's own
entry too, before the call returns. Whoever is killed in a transaction leaves a journal, by which
SQLite itself takes the file back to the last commit when it is next opened.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from modalign.errors import CorruptError, DataError, UsageError

FORMAT = 1
BUSY_S = 30.0
# Values bound in one statement; SQLite takes 32,766.
BOUND_AT_ONCE = 500

SCHEMA = """
CREATE TABLE state (identity TEXT NOT NULL, generation INTEGER NOT NULL, artefact TEXT NOT NULL);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY, first_row INTEGER NOT NULL, rows INTEGER NOT NULL,
    sha256 TEXT NOT NULL
);
CREATE TABLE items (row INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, value BLOB, metadata TEXT);
CREATE TABLE deleted (row INTEGER PRIMARY KEY);
CREATE TABLE fields (number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE);
CREATE TABLE facts (
    field INTEGER NOT NULL, kind INTEGER NOT NULL, value NOT NULL, row INTEGER NOT NULL,
    PRIMARY KEY (field, kind, value, row)
) WITHOUT ROWID;
CREATE TABLE tuning (
    source TEXT PRIMARY KEY, artefact TEXT NOT NULL, result TEXT NOT NULL, queries BLOB NOT NULL
);
"""

_FULL = (sqlite3.SQLITE_FULL,)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_NO_PLACE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)


class Database:
    """Connections to one file: any thread takes one, and gives it back."""

    def __init__(self, path: Path) -> None:
        """Take a file that is there; it is opened when it is first asked."""
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = Lock()
        self._closed = False

    @classmethod
    def create(cls, path: Path, *, identity: str) -> Database:
        """Make a file with empty tables."""
        with database_errors(path):
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                connection.executescript(SCHEMA)
                connection.execute("INSERT INTO state VALUES (?, 1, '')", [identity])
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            finally:
                connection.close()
        return cls(path)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection for single statements."""
        with database_errors(self.path):
            connection = self._take()
            try:
                yield connection
            finally:
                self._give_back(connection)

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that sees one state of the file all along."""
        with self.reading() as connection, _transaction(connection, "DEFERRED"):
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give a connection whose changes are durable, all of them, when the block has ended."""
        with self.reading() as connection, _transaction(connection, "IMMEDIATE"):
            yield connection
            connection.execute("UPDATE state SET generation = generation + 1")

    def vacuum(self) -> None:
        """Write the file anew, without what was deleted; it takes its size on the disk meanwhile.

        Raises:
            DataError: The disk is full; nothing is changed.
        """
        with self.reading() as connection:
            connection.execute("VACUUM")

    def close(self) -> None:
        """Close what is idle now, and what is given back later."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise UsageError(f"{self.path.parent}: this index is closed; load it again")
            if self._idle:
                return self._idle.pop()
        # A reader opens it for writing too, where it may, so that what a kill left is taken back.
        mode = "rw" if os.access(self.path, os.W_OK) else "ro"
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous = EXTRA")
        # What is deleted is overwritten, not only forgotten.
        connection.execute("PRAGMA secure_delete = ON")
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str) -> Iterator[None]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        # SQLite itself has gone back after some errors, a full disk among them.
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours.

    Raises:
        DataError: The disk is full.
        UsageError: Another process holds the file too long, or it may not be written.
        CorruptError: It is not what was written.
    """
    try:
        yield
    except sqlite3.IntegrityError:
        # What a constraint refuses is the caller's to name.
        raise
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _FULL:
            raise DataError(
                f"{path}: the disk is full; free some space and run the same command again, "
                "nothing that was added is lost",
                file=path,
            ) from error
        if code in _BUSY:
            raise UsageError(
                f"{path}: another process has kept it for {BUSY_S:.0f} s; try again when that one "
                "has ended",
                file=path,
            ) from error
        if code in _NO_PLACE:
            raise UsageError(
                f"{path}: cannot be opened or written ({error}); expected a file and a folder "
                "that may be written to",
                file=path,
            ) from error
        raise CorruptError(
            f"{path}: is not what was written ({error}); restore it from a backup, or build the "
            "index again",
            file=path,
        ) from error
