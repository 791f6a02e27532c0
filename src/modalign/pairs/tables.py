"""CSV, TSV, JSONL, Parquet and plain text lines as columns of cells.

Cells are held column by column, and only of the columns asked for. What is wrong with the
form of a table (quotes, ragged rows, broken JSON) is found here; what is wrong with the
content of a cell is found in `items`.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modalign.errors import DataError, import_extra

# Longer texts are no captions: most likely a quote swallowed the rest of the file.
LONGEST_CELL = 1 << 24
# What a header of one column may be separated by instead.
OTHER_SEPARATORS = (";", "\t", ",")
NOT_UTF8 = "is not UTF-8 text; save the file again as UTF-8"


@dataclass(frozen=True, eq=False)
class Table:
    """The columns asked for, of one file.

    Attributes:
        source: The file.
        names: All columns there are.
        cells: Column name to one cell a row. A column that is not there is absent.
        lines: The line each row starts at, 1-based, int64 [R]; 0 where the format has none.
        json_lists: A text cell may be a JSON list of strings.
    """

    source: Path
    names: tuple[str, ...]
    cells: dict[str, list[Any]]
    lines: np.ndarray
    json_lists: bool = False

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """Name a row in a message.

        Args:
            row: 0-based.
        """
        return place(self.source, row + 1, int(self.lines[row]))

    def check_columns(self, wanted: Iterable[str]) -> None:
        """Raise a DataError that lists the columns there are, where one is not among them."""
        for name in wanted:
            if name not in self.names:
                way_out = "name another with --column MODALITY=COLUMN"
                raise DataError(
                    f"{self.source.name}: has no column {name!r}; its columns: "
                    f"{', '.join(self.names)}; {other_separator(self.names) or way_out}",
                    file=str(self.source),
                    column=name,
                    known=self.names,
                )


def other_separator(names: Sequence[str]) -> str:
    """Return what to do where the only name in a header holds another separator, else ""."""
    found = [mark for mark in OTHER_SEPARATORS if len(names) == 1 and mark in names[0]]
    if not found:
        return ""
    return (
        f"the separator seems to be {found[0]!r}, expected ',' in .csv and a tab in .tsv; save "
        "the table again with that one, or rename it to the ending that fits"
    )


def place(source: Path, row: int, line: int) -> str:
    """Return "photos.csv row 12 (line 13)"; the line only where it is known and differs."""
    line_text = f" (line {line})" if line not in (0, row) else ""
    return f"{source.name} row {row}{line_text}"


@dataclass
class Faults:
    """What is wrong with the rows of a file: the first is shown, the others are counted.

    Attributes:
        source: The file.
        found: (row from 1, line or 0, what is wrong and the way out).
    """

    source: Path
    found: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, row: int, line: int, what: str) -> None:
        """Note that a row is wrong."""
        self.found.append((row, line, what))

    def check_none(self) -> None:
        """Raise a DataError with the first fault, if there is one."""
        if not self.found:
            return
        row, line, what = min(self.found)
        others = and_more(len({fault[0] for fault in self.found}) - 1)
        raise DataError(
            f"{place(self.source, row, line)}: {what}{others}",
            file=str(self.source),
            row=row,
            line=line,
        )


def and_more(count: int) -> str:
    """Return " (and 17 more rows)", or nothing for none."""
    if count == 0:
        return ""
    return f" (and {count} more row{'s' if count > 1 else ''})"


def quoted(value: str, limit: int = 120) -> str:
    """Return a value in quotes and at a length that fits in a message."""
    return repr(value if len(value) <= limit else value[: limit - 1] + "…")


def read_table(path: Path, wanted: Collection[str]) -> Table:
    """Read columns of a table whose format its ending names.

    Args:
        path: A file with one of `SUPPORTED_ENDINGS`.
        wanted: The columns to keep.

    Raises:
        DataError: The file is missing, empty, of another format, or not well formed.
        MissingExtraError: It is Parquet, and pyarrow is not installed.
    """
    check_file(path)
    read = _READERS.get(path.suffix.lower())
    if read is None:
        compressed = path.suffix.lower() in (".gz", ".bz2", ".xz", ".zst", ".zip")
        raise DataError(
            f"{path.name}: ending {path.suffix!r} is not supported, expected one of "
            f"{', '.join(SUPPORTED_ENDINGS)}; "
            f"{'unpack the file first' if compressed else 'convert or rename the file'}",
            file=str(path),
            known=SUPPORTED_ENDINGS,
        )
    table = read(path, wanted)
    if len(table) == 0:
        raise DataError(f"{path.name}: has no rows, expected at least one", file=str(path))
    return table


def read_columns(path: Path) -> list[str]:
    """Return the names of a table's columns, in their order.

    Raises:
        DataError: As `read_table`.
    """
    return list(read_table(path, ()).names)


def check_columns(path: Path, wanted: Iterable[str]) -> list[str]:
    """Return the names of a table's columns; see `Table.check_columns`.

    Raises:
        DataError: As `read_table`, or a column is not there.
    """
    table = read_table(path, ())
    table.check_columns(wanted)
    return list(table.names)


def check_file(path: Path) -> None:
    """Raise a DataError unless `path` is a file."""
    if path.is_dir():
        raise DataError(
            f"{path}: is a folder, expected a table ({', '.join(SUPPORTED_ENDINGS)}); "
            "a folder holds items, a table says which belong together",
            file=str(path),
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; correct the path", file=str(path))


def read_lines(path: Path) -> Table:
    """Read a text file as a table of one column "line"; blank lines are left out."""
    cells, lines = [], array("q")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as handle:
        for number, line in enumerate(handle, start=1):
            if text := line.rstrip("\n"):
                cells.append(text)
                lines.append(number)
    if not cells:
        raise DataError(f"{path.name}: is empty, expected one item a line", file=str(path))
    return Table(path, ("line",), {"line": cells}, _int64(lines))


def is_unicode(text: str) -> bool:
    """Return False for text with bytes that were no UTF-8, or with half a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_csv(path: Path, wanted: Collection[str]) -> Table:
    return _read_delimited(path, wanted, delimiter=",")


def _read_tsv(path: Path, wanted: Collection[str]) -> Table:
    return _read_delimited(path, wanted, delimiter="\t")


def _read_delimited(path: Path, wanted: Collection[str], *, delimiter: str) -> Table:
    faults = Faults(path)
    # Bytes that are no UTF-8 become surrogates, so that the row which holds them can be named.
    escape = "surrogateescape"
    with _wide_cells(), path.open(encoding="utf-8-sig", errors=escape, newline="") as handle:
        records = _records(handle, delimiter, faults)
        names = next(records, (0, []))[1]
        _check_header(path, names, faults)
        columns = [(i, list[Any]()) for i, name in enumerate(names) if name in wanted]
        lines = array("q")
        for line, record in records:
            lines.append(line)
            if len(record) == len(names):
                for index, cells in columns:
                    cells.append(record[index])
            else:
                faults.add(len(lines), line, _ragged(record, names))
    faults.check_none()
    kept = {names[index]: cells for index, cells in columns}
    return Table(path, tuple(names), kept, _int64(lines), json_lists=True)


def _records(
    handle: Iterable[str], delimiter: str, faults: Faults
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line where a record starts, and its cells; blank lines are left out."""
    reader = csv.reader(handle, delimiter=delimiter, strict=True)
    line, row = 1, 0
    try:
        for record in reader:
            if record:
                yield line, record
                row += 1
            line = reader.line_num + 1
    except csv.Error as error:
        faults.add(row, line, _misquoted(str(error)))


def _misquoted(error: str) -> str:
    if "unexpected end" in error:
        what = "has a quote that is never closed"
    elif "field limit" in error:
        what = f"has a cell of over {LONGEST_CELL:,} characters, or a quote that is never closed"
    else:
        what = f"is not well quoted ({error})"
    return f'{what}; put a cell that holds quotes into quotes, and double each inside: "a ""b"" c"'


def _ragged(record: list[str], names: list[str]) -> str:
    way_out = "put a cell that holds the separator into quotes"
    return (
        f"has {len(record)} cells, expected {len(names)} as in the header; "
        f"{other_separator(names) or way_out}"
    )


def _check_header(path: Path, names: list[str], faults: Faults) -> None:
    if faults.found:
        raise DataError(f"{path.name} header: {faults.found[0][2]}", file=str(path))
    if not names:
        raise DataError(f"{path.name}: is empty, expected a header and rows", file=str(path))
    for name, count in Counter(names).items():
        if not is_unicode(name):
            raise DataError(f"{path.name} header: {NOT_UTF8}", file=str(path))
        if count > 1:
            raise DataError(
                f"{path.name} header: names {name!r} {count} times, expected each once; "
                "rename or remove the others",
                file=str(path),
                column=name,
            )


@contextmanager
def _wide_cells() -> Iterator[None]:
    """Let csv read cells up to LONGEST_CELL; its limit is one for the whole process."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_jsonl(path: Path, wanted: Collection[str]) -> Table:
    faults = Faults(path)
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    names: dict[str, None] = {}
    lines = array("q")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as handle:
        for line, text in enumerate(handle, start=1):
            if text.isspace():
                continue
            lines.append(line)
            record = _json_object(text)
            if isinstance(record, str):
                faults.add(len(lines), line, record)
                continue
            if not record.keys() <= names.keys():
                names.update(dict.fromkeys(record))
            for name, cells in columns.items():
                cells.append(record.get(name))
    faults.check_none()
    kept = {name: cells for name, cells in columns.items() if name in names}
    return Table(path, tuple(names), kept, _int64(lines))


def _json_object(text: str) -> dict[str, Any] | str:
    """Return the object, or what is wrong with it."""
    try:
        value = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        if not is_unicode(text):
            return NOT_UTF8
        return f"is not JSON ({error.msg} at column {error.colno}); write one object a line"
    except (ValueError, RecursionError) as error:
        return f"is not JSON that can be read ({error}); write one object a line"
    if isinstance(value, dict):
        return value
    return f'is JSON, but {kind(value)}, expected an object like {{"image": ..., "text": ...}}'


def kind(value: object) -> str:
    """Return what a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")


def _read_parquet(path: Path, wanted: Collection[str]) -> Table:
    parquet = import_extra("pyarrow.parquet", extra="parquet")
    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            rows = file.metadata.num_rows
            _check_header(path, names, Faults(path))
            columns: dict[str, list[Any]] = {name: [] for name in names if name in wanted}
            for batch in file.iter_batches(columns=list(columns)):
                for name, cells in columns.items():
                    cells.extend(batch.column(name).to_pylist())
    except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors and OSErrors
        raise DataError(
            f"{path.name}: is not Parquet that can be read ({_first_line(error)}); write it again",
            file=str(path),
        ) from error
    return Table(path, tuple(names), columns, np.zeros(rows, np.int64))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _int64(numbers: array[int]) -> np.ndarray:
    return np.array(numbers, np.int64)


_READERS: dict[str, Callable[[Path, Collection[str]], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
SUPPORTED_ENDINGS = tuple(_READERS)
