"""Pairs: the items of several modalities, which of them belong together, and their splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np

from modalign.errors import DataError, UsageError, check_known
from modalign.pairs.items import (
    Cells,
    Column,
    Items,
    Links,
    OnError,
    Reads,
    Rejected,
    Skipped,
    column_of,
    make_items,
    read_cells,
    read_row_ids,
)
from modalign.pairs.splits import (
    SPLITS,
    check_splits,
    check_validation,
    hold_out,
    read_splits,
)
from modalign.pairs.tables import Table, read_table

# Columns that are used where they are there, and are no modalities.
RESERVED = ("id", "split")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Items of several modalities and the rows that join them; many-to-many.

    Attributes:
        source: The table.
        sha256: Of the table's bytes.
        items: Modality to its unique items, in order of first appearance.
        skipped: What was left out.
        links: Modality to which of its items occur in which rows.
        splits: The split of each row, an index into `SPLITS`, int8 [R].
        rows: The number of each row in the table, 1-based, ascending, int64 [R].
        split_seed: What rows were held out with; None where a column names the splits.
        validation_share: The share that was held out; None where a column names the splits.
    """

    source: Path
    sha256: str
    items: dict[str, Items]
    skipped: tuple[Skipped, ...]
    links: dict[str, Links]
    splits: np.ndarray
    rows: np.ndarray
    split_seed: int | None = None
    validation_share: float | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities, as they were asked for."""
        return tuple(self.items)

    def positives(self, a: str, b: str, *, split: str | None = None) -> np.ndarray:
        """Return which items of `a` belong to which of `b`: they share a row.

        Args:
            a: A modality.
            b: Another.
            split: Only rows of this split; by default all.

        Returns:
            (index into items[a], index into items[b]), unique, in ascending order, int64
            [P, 2]; P is 0 where the split has no rows.

        Raises:
            UsageError: A modality or the split is unknown.
        """
        left, right = self._links(a, split), self._links(b, split)
        starts = np.searchsorted(right.rows, left.rows, side="left")
        counts = np.searchsorted(right.rows, left.rows, side="right") - starts
        # Each link of `a` meets every link of `b` in its row: counts[i] of them from starts[i].
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        partners = right.items[np.repeat(starts, counts) + nth]
        width = len(self.items[b])
        keys = np.unique(np.repeat(left.items, counts) * width + partners)
        return np.stack(np.divmod(keys, width), axis=1)

    def members(self, modality: str, *, split: str | None = None) -> np.ndarray:
        """Return the items that occur in rows of a split.

        Args:
            modality: Whose items.
            split: By default all.

        Returns:
            Ascending, int64 [n]; empty where the split has no rows.

        Raises:
            UsageError: The modality or the split is unknown.
        """
        return np.unique(self._links(modality, split).items)

    def repeated(self, split: str) -> int:
        """Return how many pairs of a split are pairs of the training rows too, of any two sides.

        Recall that is measured on them is flattered: training has seen the answer.

        Raises:
            UsageError: The split is unknown.
        """
        found = 0
        for a, b in combinations(self.items, 2):
            width = len(self.items[b])
            trained, held = (self.positives(a, b, split=name) for name in ("train", split))
            known = np.isin(held @ [width, 1], trained @ [width, 1])
            found += int(known.sum())
        return found

    def split_sizes(self) -> dict[str, int]:
        """Return the rows of each split that has any."""
        counts = np.bincount(self.splits, minlength=len(SPLITS)).tolist()
        return {name: count for name, count in zip(SPLITS, counts, strict=True) if count}

    def held_out(self) -> np.ndarray:
        """Return the numbers of the validation rows in the table, ascending, int64 [n]."""
        rows: np.ndarray = self.rows[self.splits == SPLITS.index("validation")]
        return rows

    def holding_out(self, rows: np.ndarray, *, seed: int, share: float) -> Pairs:
        """Return the pairs with another split: some rows validation, all others train.

        Args:
            rows: Their numbers in the table, int64 [n]; those that are not there are ignored.
            seed: What they were drawn with.
            share: The share that was drawn.
        """
        splits = np.isin(self.rows, rows).astype(np.int8)
        return replace(self, splits=splits, split_seed=seed, validation_share=share)

    def without(self, modality: str, indices: Sequence[int], reasons: Sequence[str]) -> Pairs:
        """Return the pairs without some items, as broken media found later.

        Rows that lose all they had of the modality go as a whole, and so do items left without
        a row. Indices into the items change, ids do not.

        Args:
            modality: Whose items.
            indices: Which items.
            reasons: Why, for each; they are added to `skipped`.

        Raises:
            UsageError: The modality or an index is unknown, or a reason is missing.
            DataError: A split that had rows has none left.
        """
        check_known(modality, self.items, what="modality")
        items = self.items[modality]
        _check_indices(items, indices, reasons)
        kept = np.ones(len(items), bool)
        kept[list(indices)] = False
        links = dict(self.links)
        links[modality] = links[modality].where(kept[links[modality].items])
        rows = len(self.splits)
        had, has = (
            np.bincount(found.rows, minlength=rows) > 0
            for found in (self.links[modality], links[modality])
        )
        alive = has | ~had
        skipped = tuple(
            Skipped(items.where(i), items.values[i], reason)
            for i, reason in zip(indices, reasons, strict=True)
        )
        rest = self._rows(links, alive)
        self._check_rest(rest, skipped)
        return replace(rest, skipped=self.skipped + skipped)

    def _rows(self, links: Mapping[str, Links], alive: np.ndarray) -> Pairs:
        """Keep only rows that are True in `alive`, and the items in them."""
        number = np.cumsum(alive) - 1
        new_items, new_links = {}, {}
        for modality, link in links.items():
            link = link.where(alive[link.rows])
            used, items = np.unique(link.items, return_inverse=True)
            new_items[modality] = self.items[modality].select(used)
            new_links[modality] = Links(number[link.rows], items)
        return replace(
            self,
            items=new_items,
            links=new_links,
            splits=self.splits[alive],
            rows=self.rows[alive],
        )

    def _check_rest(self, rest: Pairs, skipped: tuple[Skipped, ...]) -> None:
        for split in self.split_sizes():
            if split not in rest.split_sizes():
                raise DataError(
                    f"{self.source.name}: no {split} rows are left without {len(skipped)} items "
                    f"(the first, {skipped[0].where}: {skipped[0].reason}), expected some; "
                    "correct these items",
                    file=str(self.source),
                    split=split,
                )

    def _links(self, modality: str, split: str | None) -> Links:
        check_known(modality, self.items, what="modality")
        links = self.links[modality]
        if split is None:
            return links
        check_known(split, SPLITS, what="split")
        return links.where(self.splits[links.rows] == SPLITS.index(split))


def _check_indices(items: Items, indices: Sequence[int], reasons: Sequence[str]) -> None:
    if len(indices) != len(reasons):
        raise UsageError(
            f"{len(indices)} items and {len(reasons)} reasons, expected one for each",
            indices=len(indices),
            reasons=len(reasons),
        )
    for index in indices:
        if not 0 <= index < len(items):
            raise UsageError(
                f"{items.modality} item {index} is unknown, expected 0 to {len(items) - 1}",
                index=index,
            )


def read_pairs(
    path: Path | str,
    columns: Mapping[str, str | None] | Sequence[str],
    *,
    reads: Mapping[str, Reads] | None = None,
    seed: int = 0,
    validation: float = 0.1,
    on_error: OnError = "raise",
    may_be_empty: bool = False,
) -> Pairs:
    """Read which items belong together, and check all that can be checked without opening media.

    Args:
        path: A table; the paths in it are relative to its folder.
        columns: Modality to its column, or modalities whose columns have their names. "id" and
            "split" name these columns where they are called otherwise; None ignores them.
        reads: What the items of a modality are; by default "text" for text, "file" for image,
            audio and video.
        seed: Decides which groups are held out where there is no split column.
        validation: Share of the groups of rows to hold out, at most 0.5. With 0 there need be
            no validation rows, nor training rows: for a table that is only measured on.
        on_error: "skip" leaves out rows with empty cells or missing files and lists them.
        may_be_empty: A row may lack modalities, so long as two are there.

    Raises:
        UsageError: The call asks for less than two modalities, or leaves open what one reads.
        DataError: Something is missing, malformed, or too little is left.
    """
    check_known(on_error, get_args(OnError), what="on_error")
    check_validation(validation)
    path = Path(path).absolute()
    asked = _asked(columns, reads or {})
    table = read_table(path, asked.wanted)
    table.check_columns(asked.required)
    rejected = Rejected()
    row_ids = read_row_ids(table, asked.id, rejected) if asked.id in table.cells else None
    named = read_splits(table, asked.split, rejected) if asked.split in table.cells else None
    cells = [
        read_cells(table, column, rejected, may_be_empty=may_be_empty)
        for column in asked.modalities
    ]
    _reject_lonely(table, cells, rejected)
    skipped = rejected.settle(table, on_error)
    used = np.ones(len(table), bool)
    used[list(rejected.reasons)] = False
    items, links = _joined(table, cells, used, row_ids)
    rows = np.flatnonzero(used) + 1
    pairs = Pairs(path, _sha256(path), items, skipped, links, np.zeros(len(rows), np.int8), rows)
    if named is None:
        return _with_held_out(pairs, share=validation, seed=seed)
    if validation:
        check_splits(path, named[used])
    return replace(pairs, splits=named[used])


def _reject_lonely(table: Table, cells: Sequence[Cells], rejected: Rejected) -> None:
    """Reject the rows that have items of fewer than two modalities."""
    there = np.zeros(len(table), np.int64)
    for part in cells:
        there[np.unique(part.rows)] += 1
    for row in np.flatnonzero(there < 2).tolist():
        names = ", ".join(repr(part.column.name) for part in cells)
        reason = f"{there[row]} of the columns {names} hold something, expected two or more"
        rejected.add(table, row, value="", reason=reason)


def _with_held_out(pairs: Pairs, *, share: float, seed: int) -> Pairs:
    """Draw the validation rows; none where `share` is 0."""
    splits = pairs.splits
    if share:
        items, links = list(pairs.items.values()), list(pairs.links.values())
        splits = hold_out(items, links, len(splits), share=share, seed=seed)
    return replace(pairs, splits=splits, split_seed=seed, validation_share=share)


@dataclass(frozen=True)
class _Asked:
    """The columns a call asks for.

    Attributes:
        modalities: Those of items.
        id: The column of ids, used where it is there; "" to ignore it.
        split: The same of splits.
        required: Columns that must be there.
    """

    modalities: tuple[Column, ...]
    id: str
    split: str
    required: tuple[str, ...]

    @property
    def wanted(self) -> set[str]:
        """All columns to read."""
        return {self.id, self.split, *self.required}


def _asked(columns: Mapping[str, str | None] | Sequence[str], reads: Mapping[str, Reads]) -> _Asked:
    if isinstance(columns, str):
        raise UsageError(
            f"columns is the text {columns!r}, expected at least two modalities, as in "
            '["image", "text"]',
            columns=columns,
        )
    named = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    modalities = tuple(
        column_of(modality, name or "", reads.get(modality))
        for modality, name in named.items()
        if modality not in RESERVED
    )
    _check_modalities(modalities, reads)
    reserved = {key: named.get(key, key) or "" for key in RESERVED}
    return _Asked(modalities, **reserved, required=tuple(name for name in named.values() if name))


def _check_modalities(modalities: Sequence[Column], reads: Mapping[str, Reads]) -> None:
    names = [column.modality for column in modalities]
    if len(names) < 2:
        raise UsageError(
            f"columns name {len(names)} modalities ({', '.join(names) or 'none'}), expected at "
            "least two",
            modalities=names,
        )
    for column in modalities:
        if not column.name:
            raise UsageError(
                f"modality {column.modality!r}: no column is named, expected one",
                modality=column.modality,
            )
    for modality in reads:
        check_known(modality, names, what="reads: modality")


def _joined(
    table: Table, cells: Sequence[Cells], used: np.ndarray, row_ids: list[str] | None
) -> tuple[dict[str, Items], dict[str, Links]]:
    """Make the items of each modality; their links count only the rows that are used."""
    number = np.cumsum(used) - 1
    items, links = {}, {}
    for part in cells:
        modality = part.column.modality
        items[modality], link = make_items(table, part.where(used[part.rows]), row_ids)
        links[modality] = Links(number[link.rows], link.items)
    return items, links


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
