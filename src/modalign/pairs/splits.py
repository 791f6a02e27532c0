"""Which rows train and which validate.

Rows are held out by groups that share an item, so that no photo is trained on with one of
its captions and validated with another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modalign.errors import DataError, UsageError
from modalign.pairs.items import Items, Links, Rejected
from modalign.pairs.tables import Faults, Table, quoted

SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {
    "train": 0,
    "validation": 1,
    "val": 1,
    "valid": 1,
    "dev": 1,
    "test": 2,
}
FEWEST_GROUPS = 4
FEWEST_HELD_OUT = 2


def check_validation(share: float) -> None:
    """Raise a UsageError unless `share` is 0 (hold nothing out) up to 0.5."""
    if not 0 <= share <= 0.5:
        raise UsageError(
            f"validation is {share}, expected a share of the groups from 0 (hold nothing out) "
            "to 0.5",
            validation=share,
        )


def read_splits(table: Table, name: str, rejected: Rejected) -> np.ndarray:
    """Return the split each row names, as an index into `SPLITS`, int8 [R].

    Raises:
        DataError: A word is unknown.
    """
    faults, codes = Faults(table.source), np.zeros(len(table), np.int8)
    for row, word in enumerate(table.cells[name]):
        code = SPLIT_WORDS.get(word) if isinstance(word, str) else None
        if code is not None:
            codes[row] = code
        elif word is None or (isinstance(word, str) and not word.strip()):
            reason = f"column {name!r} is empty, expected one of {', '.join(SPLIT_WORDS)}"
            rejected.add(table, row, value="", reason=reason)
        else:
            faults.add(row + 1, int(table.lines[row]), _unknown(word, name))
    faults.check_none()
    return codes


def _unknown(word: Any, name: str) -> str:
    shown = quoted(word) if isinstance(word, str) else word
    return (
        f"split {shown} is unknown; known: {', '.join(SPLIT_WORDS)}; correct column {name!r}, "
        "or leave it out with --column split="
    )


def check_splits(source: Path, codes: np.ndarray) -> None:
    """Raise a DataError unless there are rows to train on and rows to validate with."""
    for code in (0, 1):
        if not (codes == code).any():
            raise DataError(
                f"{source.name}: its splits have no {SPLITS[code]} rows, expected some; name "
                "some, or leave the column out with --column split= to have rows held out",
                file=str(source),
                split=SPLITS[code],
            )


def row_numbers(rows: np.ndarray) -> str:
    """Return the numbers of rows, int64 [n], as a record keeps them: "3,17,40"."""
    return ",".join(map(str, rows.tolist()))


def rows_of(numbers: str) -> np.ndarray:
    """Return the rows whose numbers `row_numbers` wrote, int64 [n]."""
    return np.array(numbers.split(",") if numbers else [], np.int64)


def hold_out(
    items: Sequence[Items], links: Sequence[Links], rows: int, *, share: float, seed: int
) -> np.ndarray:
    """Draw the validation rows: whole groups of rows that share an item, by hash.

    Rows that share an item of any modality that is a file or a key stay together; where all
    are text, rows that share an item of the first. A text shared by many rows (the label of
    a class) glues nothing. The draw depends on the seed and the items' names alone, not on
    the order of the rows.

    Args:
        items: The items of each modality.
        links: Their rows.
        rows: R.
        share: Of the groups; at least `FEWEST_HELD_OUT` groups are held out.
        seed: Another seed draws others.

    Returns:
        An index into `SPLITS`, int8 [R].

    Raises:
        DataError: There are fewer than `FEWEST_GROUPS` groups.
    """
    binding = [i for i, part in enumerate(items) if part.reads != "text"] or [0]
    roots = group_rows([links[i] for i in binding], rows)
    names: dict[int, str] = {}
    # A row may lack the first binding modality: the next one it has names its group.
    for i in dict.fromkeys([*binding, *range(len(items))]):
        names = _group_names(items[i], links[i], roots) | names
    if len(names) < FEWEST_GROUPS:
        modalities = " or ".join(items[i].modality for i in binding)
        raise DataError(
            f"{items[0].source.name}: its {rows} rows form {len(names)} groups that share no "
            f"{modalities} item, needed at least {FEWEST_GROUPS} to hold some out for "
            "validation; add rows, or a column 'split'",
            file=str(items[0].source),
            groups=len(names),
        )
    count = max(FEWEST_HELD_OUT, round(share * len(names)))
    ranks = np.fromiter((_rank(seed, name) for name in names.values()), np.uint64)
    held_out = np.fromiter(names, np.int64)[np.argsort(ranks, kind="stable")[:count]]
    return np.isin(roots, held_out).astype(np.int8)


def group_rows(links: Sequence[Links], rows: int) -> np.ndarray:
    """Return the first row of the group each row belongs to, int64 [R]."""
    roots = list(range(rows))

    def root(row: int) -> int:
        while roots[row] != row:
            roots[row] = row = roots[roots[row]]
        return row

    for link in links:
        _, first, inverse = np.unique(link.items, return_index=True, return_inverse=True)
        joined = link.rows[first][inverse]
        shared = joined != link.rows
        for one, other in zip(joined[shared].tolist(), link.rows[shared].tolist(), strict=True):
            low, high = sorted((root(one), root(other)))
            roots[high] = low
    return np.fromiter((root(row) for row in range(rows)), np.int64, rows)


def _group_names(items: Items, links: Links, roots: np.ndarray) -> dict[int, str]:
    """Name each group, by its first row, after its least item."""
    # A text's id is the number of its row, a file's value says where it lies on this machine.
    names = items.ids if items.reads == "file" else items.values
    least: dict[int, str] = {}
    for group, item in zip(roots[links.rows].tolist(), links.items.tolist(), strict=True):
        if group not in least or names[item] < least[group]:
            least[group] = names[item]
    return least


def _rank(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "big")
