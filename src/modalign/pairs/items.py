"""Items: the raw things of one modality, each with an id, out of cells or a folder of files.

Within a modality the same value is one item; for files, the same resolved path.
"""

from __future__ import annotations

import json
import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from modalign.errors import DataError, UsageError, check_known
from modalign.pairs.tables import (
    NOT_UTF8,
    Faults,
    Table,
    and_more,
    is_unicode,
    kind,
    place,
    quoted,
    read_lines,
    read_table,
)

Reads = Literal["text", "file", "key"]
OnError = Literal["raise", "skip"]

DEFAULT_READS: dict[str, Reads] = {
    "text": "text",
    "image": "file",
    "audio": "file",
    "video": "file",
}
# The files of a folder that fit a modality; any other modality takes all.
FILE_ENDINGS = {
    "image": frozenset(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()),
    "audio": frozenset(".aac .aif .aiff .flac .m4a .mp3 .oga .ogg .opus .wav .wma".split()),
    "video": frozenset(".3gp .avi .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .webm .wmv".split()),
}
SKIPPING = "or skip such rows with --on-error skip"
# How a cell begins that is meant as a list of texts.
LIST_START = re.compile(r"""\[\s*["']""")


@dataclass(frozen=True)
class Skipped:
    """Something left out of a job, and why."""

    where: str
    value: str
    reason: str


@dataclass(frozen=True, eq=False)
class Items:
    """Raw things of one modality, each with an id, in order of first appearance.

    Attributes:
        modality: "image", "text", "audio", "video" or any name.
        reads: What a value is.
        ids: Unique.
        values: The text, the absolute path, or the key.
        source: The table or folder they were named in.
        rows: The data row of each item's first appearance, 1-based, int64 [N]; 0 for the
            files of a folder.
        lines: The line that row starts at, 1-based, int64 [N]; 0 where the format has none.
        skipped: What `read_items` left out.
    """

    modality: str
    reads: Reads
    ids: tuple[str, ...]
    values: tuple[str, ...]
    source: Path
    rows: np.ndarray
    lines: np.ndarray
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, index: int) -> str:
        """Name an item in a message: "photos.csv row 12 (line 13)", or the file in its folder."""
        row = int(self.rows[index])
        if row == 0:
            return f"{self.source.name}/{self.ids[index]}"
        return place(self.source, row, int(self.lines[index]))

    def select(self, indices: np.ndarray) -> Items:
        """Return the items at `indices`, int64 [n], under their old ids."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in indices.tolist()),
            values=tuple(self.values[i] for i in indices.tolist()),
            rows=self.rows[indices],
            lines=self.lines[indices],
        )


@dataclass(frozen=True)
class Column:
    """Where the items of one modality are written in a table."""

    modality: str
    name: str
    reads: Reads


@dataclass(frozen=True, eq=False)
class Links:
    """Which items occur in which rows: link m says that row rows[m] holds item items[m].

    Attributes:
        rows: 0-based, ascending, int64 [M].
        items: Index into the modality's items, int64 [M].
    """

    rows: np.ndarray
    items: np.ndarray

    def where(self, kept: np.ndarray) -> Links:
        """Return the links that are True in `kept`, bool [M]."""
        return Links(self.rows[kept], self.items[kept])


@dataclass(frozen=True, eq=False)
class Cells:
    """The values of one column, lists taken apart.

    Attributes:
        column: The column.
        values: M values in order of the rows.
        rows: The row of each value, 0-based, ascending, int64 [M].
        files: Each path as written to the file there is; empty where values are no paths.
    """

    column: Column
    values: list[str]
    rows: np.ndarray
    files: Mapping[str, FoundFile] = field(default_factory=dict)

    def where(self, kept: np.ndarray) -> Cells:
        """Return the values that are True in `kept`, bool [M]."""
        if kept.all():
            return self
        values = [self.values[i] for i in np.flatnonzero(kept).tolist()]
        return Cells(self.column, values, self.rows[kept], self.files)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file by the path that names it, and by the one that tells it from others."""

    path: str
    identity: str


@dataclass
class Rejected:
    """Rows that cannot be used but could be skipped: by row, the first reason of each."""

    reasons: dict[int, Skipped] = field(default_factory=dict)

    def add(self, table: Table, row: int, *, value: str, reason: str) -> None:
        """Note that a row is rejected."""
        if row not in self.reasons:
            self.reasons[row] = Skipped(table.where(row), value, reason)

    def settle(self, table: Table, on_error: OnError) -> tuple[Skipped, ...]:
        """Return what to skip, in order of rows.

        Raises:
            DataError: There is something and `on_error` is "raise", or nothing else is left.
        """
        rows = sorted(self.reasons)
        if rows and on_error == "raise":
            first = self.reasons[rows[0]]
            raise DataError(
                f"{first.where}: {first.reason}{and_more(len(rows) - 1)}; correct it, {SKIPPING}",
                file=str(table.source),
                row=rows[0] + 1,
                value=first.value,
                rejected=len(rows),
            )
        if len(rows) == len(table):
            first = self.reasons[rows[0]]
            raise DataError(
                f"{table.source.name}: all {len(rows)} rows would be skipped (the first, "
                f"{first.where}: {first.reason}), expected at least one to use; "
                "correct the table",
                file=str(table.source),
                rejected=len(rows),
            )
        return tuple(self.reasons[row] for row in rows)


def column_of(modality: str, name: str, reads: Reads | None) -> Column:
    """Return a column, with the default `reads` of its modality.

    Raises:
        UsageError: The modality has no default.
    """
    reads = reads or DEFAULT_READS.get(modality)
    if reads is None:
        raise UsageError(
            f"modality {modality!r}: nothing says what its column holds; give "
            f'reads={{"{modality}": ...}} as one of {", ".join(get_args(Reads))}',
            modality=modality,
        )
    check_known(reads, get_args(Reads), what=f"modality {modality}: reads")
    return Column(modality, name, reads)


def read_cells(
    table: Table, column: Column, rejected: Rejected, *, may_be_empty: bool = False
) -> Cells:
    """Take the cells of a column apart and check each value.

    Empty cells, unless they may be empty, and missing files go into `rejected`. In a CSV or TSV
    file a cell that begins with a bracket and a quote, `["` or `['`, is meant as a JSON list of
    texts, and is an error where it is none: half a list is no caption. Any other text may begin
    with a bracket, as "[laughs] a man"; one that begins with both is written as a list of one
    text.

    Raises:
        DataError: A cell holds what is neither a text nor a list of texts.
    """
    faults, values, rows = Faults(table.source), list[str](), array("q")
    for row, cell in enumerate(table.cells[column.name]):
        parts = _parts(cell, table.json_lists)
        if parts is None:
            faults.add(row + 1, int(table.lines[row]), _malformed_list(cell, column))
        for value in parts or ():
            text = _text(value, column)
            if text is None:
                faults.add(row + 1, int(table.lines[row]), _wrong_kind(value, column))
            elif not text:
                if not may_be_empty:
                    rejected.add(table, row, value="", reason=_empty(column))
            else:
                values.append(text)
                rows.append(row)
                if not is_unicode(text):
                    faults.add(row + 1, int(table.lines[row]), NOT_UTF8)
    faults.check_none()
    cells = Cells(column, values, np.array(rows, np.int64))
    return replace(cells, files=_find_files(table, cells, rejected))


def _parts(cell: Any, json_lists: bool) -> Sequence[Any] | None:
    """Return the values of a cell, None for a broken list; an empty list is one empty value."""
    if isinstance(cell, str):
        if json_lists and cell.startswith("["):
            return _json_list(cell) or (None if LIST_START.match(cell) else [cell])
        return (cell,)
    return cell or [None] if isinstance(cell, list) else (cell,)


def _json_list(cell: str) -> list[Any] | None:
    """Return the strings of a JSON list, or None where the cell is a text as it stands."""
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(value, str) for value in values):
        return None
    return values or [None]


def _text(value: Any, column: Column) -> str | None:
    """Return a value as text, "" where it is empty, None where it is of a wrong kind."""
    if isinstance(value, str):
        return "" if value.isspace() else value
    if value is None or value != value:  # nan is how some writers say empty
        return ""
    if column.reads == "key" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return None


def _empty(column: Column) -> str:
    return f"column {column.name!r} is empty, expected {_EXPECTED[column.reads]}"


def _malformed_list(cell: str, column: Column) -> str:
    return (
        f"column {column.name!r} holds {quoted(cell)}, which begins as a list and is no JSON list "
        'of texts, expected one like ["a dog", "a cat"]; correct the cell, or write a text that '
        "begins so as a list of one"
    )


def _wrong_kind(value: Any, column: Column) -> str:
    return (
        f"column {column.name!r} holds {kind(value)}, expected {_EXPECTED[column.reads]} "
        "or a list of such; change the cell, or name another column"
    )


_EXPECTED: dict[Reads, str] = {
    "text": "text",
    "file": "the path of a file",
    "key": "a key",
}


def read_row_ids(table: Table, name: str, rejected: Rejected) -> list[str]:
    """Return the id of each row.

    Raises:
        DataError: An id is taken, or is neither text nor a number.
    """
    column, faults, first_row = Column("id", name, "key"), Faults(table.source), dict[str, int]()
    way_out = "give each row its own, or ignore the column with --column id="
    ids = []
    for row, cell in enumerate(table.cells[name]):
        text = _text(cell, column)
        ids.append(text or "")
        if text is None or not is_unicode(text):
            what = NOT_UTF8 if text else f"column {name!r} holds {kind(cell)}, expected an id"
            faults.add(row + 1, int(table.lines[row]), what)
        elif not text:
            rejected.add(table, row, value="", reason=_empty(column))
        elif (first := first_row.setdefault(text, row)) != row:
            what = f"id {quoted(text)} is taken by {table.where(first)}; {way_out}"
            faults.add(row + 1, int(table.lines[row]), what)
    faults.check_none()
    return ids


def make_items(table: Table, cells: Cells, row_ids: list[str] | None) -> tuple[Items, Links]:
    """Give every distinct value one item, and link it to its rows.

    Args:
        table: The table the cells are from.
        cells: Values that are all to be used.
        row_ids: One id for each row of the table; by default its number.

    Raises:
        DataError: Two texts would have one id.
    """
    column, values, files = cells.column, cells.values, cells.files
    index: dict[str, int] = {}
    identities = (files[value].identity for value in values) if files else iter(values)
    codes = np.fromiter((index.setdefault(key, len(index)) for key in identities), np.int64)
    # Codes count up, so an item appears first where the highest code so far is passed.
    first = np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))
    names = [values[i] for i in first.tolist()]
    ids = tuple(_text_ids(table, cells, first, row_ids) if column.reads == "text" else names)
    items = Items(
        modality=column.modality,
        reads=column.reads,
        ids=ids,
        values=tuple(files[name].path if files else name for name in names),
        source=table.source,
        rows=cells.rows[first] + 1,
        lines=table.lines[cells.rows[first]],
    )
    return items, Links(cells.rows, codes)


def _text_ids(
    table: Table, cells: Cells, first: np.ndarray, row_ids: list[str] | None
) -> list[str]:
    """Return the id of the row for its only text, "id#0", "id#1" for one of several."""
    rows = cells.rows[first]
    starts = np.searchsorted(cells.rows, rows, side="left")
    counts = np.searchsorted(cells.rows, rows, side="right") - starts
    ids = [
        (row_ids[row] if row_ids else str(row + 1)) + (f"#{place}" if count > 1 else "")
        for row, place, count in zip(
            rows.tolist(), (first - starts).tolist(), counts.tolist(), strict=True
        )
    ]
    if row_ids and len(set(ids)) < len(ids):  # an id "a#0" beside the texts of "a"
        taken = next(name for name, count in Counter(ids).items() if count > 1)
        row = int(rows[len(ids) - 1 - ids[::-1].index(taken)])
        raise DataError(
            f"{table.where(row)}: the id {taken!r} of a text is taken by a text of another row; "
            "use ids that do not end in # and a number",
            file=str(table.source),
            row=row + 1,
            id=taken,
        )
    return ids


@dataclass
class Locator:
    """Finds files by paths relative to one folder, at one look at the disk for each.

    Args:
        folder: Where paths start.
        modality: For messages.
    """

    folder: Path
    modality: str
    _resolved: dict[str, str] = field(default_factory=dict)

    def find(self, value: str) -> FoundFile | str:
        """Return the file a path means, or why there is none."""
        if "://" in value:
            return f"{quoted(value)} is an address, expected the path of a file; download it first"
        folder, name = os.path.split(os.path.join(self.folder, value))
        try:
            if folder not in self._resolved:
                self._resolved[folder] = os.path.realpath(folder)
            path = os.path.join(self._resolved[folder], name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                return FoundFile(path, path)
            identity = os.path.realpath(path)
            status = os.stat(identity)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            return self._missing(value, error)
        if stat.S_ISREG(status.st_mode):
            return FoundFile(path, identity)
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        return f"{quoted(value)} is {what}, expected {self._expected}"

    def _missing(self, value: str, error: Exception) -> str:
        if _looks_like_text(value):
            return (
                f"{quoted(value)} looks like text, expected {self._expected}; the column may be "
                f"the wrong one (--column {self.modality}=COLUMN)"
            )
        if isinstance(error, FileNotFoundError):
            return f"{quoted(value)} does not exist in {self.folder}, expected {self._expected}"
        why = error.strerror if isinstance(error, OSError) else error
        return f"{quoted(value)} cannot be opened ({why}), expected {self._expected}"

    @property
    def _expected(self) -> str:
        article = "an" if self.modality[0] in "aeiou" else "a"
        return f"the path of {article} {self.modality} file"


def _looks_like_text(value: str) -> bool:
    """Tell a sentence from a path: it has spaces, and no ending as files have."""
    ending = os.path.splitext(value)[1][1:]
    return len(value.split()) > 1 and not (ending.isalnum() and len(ending) <= 5)


def _find_files(table: Table, cells: Cells, rejected: Rejected) -> dict[str, FoundFile]:
    """Look each path up once; rows whose file is not there are rejected."""
    column, files, missing = cells.column, dict[str, FoundFile](), dict[str, str]()
    if column.reads != "file":
        return files
    locator = Locator(table.source.parent, column.modality)
    for row, value in zip(cells.rows.tolist(), cells.values, strict=True):
        if value in files:
            continue
        found = missing.get(value) or locator.find(value)
        if isinstance(found, FoundFile):
            files[value] = found
        else:
            missing[value] = found
            rejected.add(table, row, value=value, reason=f"column {column.name!r}: {found}")
    return files


def read_items(
    path: Path | str,
    modality: str,
    *,
    reads: Reads | None = None,
    column: str | None = None,
    on_error: OnError = "raise",
) -> Items:
    """Read the items of one modality.

    Args:
        path: A folder of files (with all folders in it; hidden ones are ignored), a .txt file
            with one item a line, or a table.
        modality: Any name. For image, audio and video the endings of a folder's files decide
            which of them are meant.
        reads: What an item is; by default "text" for text, "file" for image, audio and video.
        column: The column of a table; by default the one named like the modality.
        on_error: "skip" leaves out empty cells and missing files and lists them in `skipped`.

    Raises:
        UsageError: `reads` is needed, or does not fit.
        DataError: Something is missing, malformed, or nothing is left.
    """
    check_known(on_error, get_args(OnError), what="on_error")
    path = Path(path).absolute()
    source = column_of(modality, column or modality, reads)
    if path.is_dir() or path.suffix.lower() == ".txt":
        _check_no_column(path, column)
    if path.is_dir():
        return _folder_items(path, source, on_error)
    if not path.exists():
        raise DataError(
            f"{path}: there is no such file or folder; correct the path", file=str(path)
        )
    if path.suffix.lower() == ".txt":
        return _table_items(read_lines(path), Column(modality, "line", source.reads), on_error)
    table = read_table(path, {source.name, "id"})
    table.check_columns([source.name])
    return _table_items(table, source, on_error)


def _check_no_column(path: Path, column: str | None) -> None:
    if column is not None:
        raise UsageError(
            f"{path.name}: has no columns, and column {column!r} was named; leave it out",
            column=column,
        )


def _table_items(table: Table, column: Column, on_error: OnError) -> Items:
    rejected = Rejected()
    row_ids = read_row_ids(table, "id", rejected) if "id" in table.cells else None
    cells = read_cells(table, column, rejected)
    skipped = rejected.settle(table, on_error)
    used = ~np.isin(cells.rows, list(rejected.reasons))
    items, _ = make_items(table, cells.where(used), row_ids)
    return replace(items, skipped=skipped)


def _folder_items(folder: Path, column: Column, on_error: OnError) -> Items:
    if column.reads != "file":
        raise UsageError(
            f"{folder}: is a folder of files, and {column.modality} reads a {column.reads}; "
            "give a table, or a .txt file with one item a line",
            reads=column.reads,
        )
    names = _names_that_fit(folder, column.modality)
    found: dict[str, tuple[str, str]] = {}
    skipped, locator = [], Locator(folder, column.modality)
    for name in names:
        file = locator.find(name)
        if isinstance(file, FoundFile):
            found.setdefault(file.identity, (name, file.path))
        else:
            skipped.append(Skipped(f"{folder.name}/{name}", name, file))
    if skipped and (on_error == "raise" or not found):
        raise DataError(
            f"{skipped[0].where}: {skipped[0].reason}; correct it, or skip such files with "
            "--on-error skip",
            file=str(folder),
            value=skipped[0].value,
            rejected=len(skipped),
        )
    unknown = np.zeros(len(found), np.int64)
    ids = tuple(name for name, _ in found.values())
    values = tuple(path for _, path in found.values())
    return Items(column.modality, "file", ids, values, folder, unknown, unknown, tuple(skipped))


def _names_that_fit(folder: Path, modality: str) -> list[str]:
    """Return the files of a folder that fit a modality, as sorted relative posix paths."""
    names = sorted(_walk(folder))
    endings = FILE_ENDINGS.get(modality)
    fit = [name for name in names if not endings or _ending(name) in endings]
    if not fit:
        counts = Counter(_ending(name) or "no ending" for name in names)
        there = ", ".join(f"{count} {ending}" for ending, count in counts.most_common(5))
        raise DataError(
            f"{folder}: holds no {modality} file, expected "
            f"{', '.join(sorted(endings)) if endings else 'any file'}; found {there or 'nothing'}",
            file=str(folder),
            found=dict(counts),
        )
    return fit


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _walk(folder: Path) -> Iterator[str]:
    """Yield all files that are not hidden; linked folders are followed, each once."""
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        kept = []
        for name in sorted(folders):
            resolved = os.path.realpath(os.path.join(parent, name))
            if not name.startswith(".") and resolved not in seen:
                seen.add(resolved)
                kept.append(name)
        folders[:] = kept
        relative = Path(parent).relative_to(folder)
        yield from ((relative / name).as_posix() for name in names if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: is a folder that cannot be read ({error.strerror}); "
        "correct its permissions",
        file=str(error.filename),
    ) from error
