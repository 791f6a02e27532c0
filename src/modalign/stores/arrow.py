"""Columns of lists, as Parquet and LanceDB hold vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modalign.errors import DataError, import_extra


def list_width(column: Any, *, where: str) -> int | None:
    """Return the width of a column's lists; None where each has a length of its own.

    Args:
        column: A pyarrow field.
        where: Of the store.

    Raises:
        DataError: The column holds no lists of real numbers.
    """
    types = import_extra("pyarrow.types", extra="parquet")
    fixed = types.is_fixed_size_list(column.type)
    lists = fixed or types.is_list(column.type) or types.is_large_list(column.type)
    numbers = lists and (
        types.is_floating(column.type.value_type) or types.is_integer(column.type.value_type)
    )
    if not numbers:
        raise DataError(
            f"{where}: column {column.name!r} is {column.type}, expected lists of real numbers; "
            "name another with vector=",
            name=column.name,
        )
    return int(column.type.list_size) if fixed else None


def first_odd_length(column: Any, ids: Sequence[str], *, width: int | None, where: str) -> int:
    """Return the width that all lists of a column have.

    Args:
        column: A pyarrow array of lists, not empty.
        ids: Of its rows.
        width: Expected; None for that of the first row.
        where: Of the store.

    Raises:
        DataError: A list is null or of another length; the message names its id.
    """
    compute = import_extra("pyarrow.compute", extra="parquet")
    lengths = compute.fill_null(compute.list_value_length(column), -1).to_numpy(
        zero_copy_only=False
    )
    expected = int(lengths[0]) if width is None else width
    odd = np.flatnonzero((lengths != expected) | (lengths < 1))
    if len(odd):
        row = int(odd[0])
        found = "no vector" if lengths[row] < 0 else f"a vector of width {lengths[row]}"
        others = f"width {expected} as of the rows before" if expected > 0 else "one of numbers"
        raise DataError(
            f"{where}: id {ids[row]!r} has {found}, expected {others}; mend or drop the row in "
            "the store",
            id=ids[row],
        )
    return expected


def matrix(column: Any, ids: Sequence[str], *, where: str) -> np.ndarray:
    """Return a column of lists as float32 [n, D].

    Raises:
        DataError: A list is null or of another length than the first.
    """
    if not len(column):
        return np.zeros((0, 0), np.float32)
    compute = import_extra("pyarrow.compute", extra="parquet")
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    width = first_odd_length(column, ids, width=None, where=where)
    flat = compute.list_flatten(column)
    # A null among the numbers becomes NaN, which is refused by its id.
    numbers = np.asarray(flat.to_numpy(zero_copy_only=False), np.float32)
    return numbers.reshape(len(column), width)
