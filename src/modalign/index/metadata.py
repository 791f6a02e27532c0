"""Metadata of items from a table: a column `id`, and every other column a field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from modalign.errors import DataError
from modalign.pairs.tables import read_columns, read_table

ID_COLUMN = "id"
WORDS = {"true": True, "false": False}


def read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    """Return the metadata of each id in a CSV, TSV, JSONL or Parquet file.

    In CSV and TSV a column of numbers, or of true and false, is read as such, any other as text;
    an empty cell is no value. JSONL and Parquet say what their values are.

    Raises:
        DataError: The file is no table, has no column `id`, or an id comes twice.
    """
    names = read_columns(path)
    table = read_table(path, names)
    if ID_COLUMN not in names:
        raise DataError(
            f"{path.name}: has no column {ID_COLUMN!r}; its columns: {', '.join(names)}; name the "
            "one with the items' ids so",
            file=str(path),
            known=names,
        )
    typed = _typed if path.suffix.lower() in (".csv", ".tsv") else list
    fields = {name: typed(table.cells[name]) for name in names if name != ID_COLUMN}
    found: dict[str, dict[str, Any]] = {}
    for row, name in enumerate(table.cells[ID_COLUMN]):
        if not isinstance(name, str) or not name or name in found:
            wrong = f"id {name!r} comes twice" if name in found else f"id {name!r} is no text"
            raise DataError(
                f"{table.where(row)}: {wrong}, expected each item's id once; correct the row",
                file=str(path),
                row=row + 1,
            )
        values = {field: cells[row] for field, cells in fields.items()}
        found[name] = {field: value for field, value in values.items() if value is not None}
    return found


def _typed(cells: list[str]) -> list[Any]:
    """Return cells as numbers or booleans where all of a column are; an empty one is None."""
    texts = [cell for cell in cells if cell != ""]
    for read in (WORDS.__getitem__, _number):
        try:
            values = {text: read(text) for text in texts}
        except (KeyError, ValueError):
            continue
        return [values.get(cell) for cell in cells]
    return [cell or None for cell in cells]


def _number(text: str) -> int | float:
    """Return a number as JSON writes one, so that "007" and "1_000" stay text."""
    value = json.loads(text)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(text)
    return value
